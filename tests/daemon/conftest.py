"""Real material for the tests of the processes: videos, photos, a memory disk that is too small."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.videos import write_video

MakeVideo = Callable[..., Path]


@pytest.fixture
def make_video(tmp_path: Path) -> MakeVideo:
    """Return a function that writes a video; frame `n` is grey of value `4 * n`."""

    def make(
        name: str = "video.avi", n_frames: int = 40, size: tuple[int, int] = (160, 120), fps: float = 25
    ) -> Path:
        greys = (np.full((size[1], size[0], 3), 4 * n % 256, np.uint8) for n in range(n_frames))
        return write_video(tmp_path / name, greys, fps)

    return make


@pytest.fixture
def small_shm(tmp_path: Path) -> Iterator[Path]:
    """Return a memory disk of 2 MB; skips where mounting is not allowed."""
    folder = tmp_path / "shm"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: a full /dev/shm (mounting a small one needs root)")
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if made.returncode != 0:
        pytest.skip(f"NOT TESTED: a full /dev/shm (cannot mount a small one: {made.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
