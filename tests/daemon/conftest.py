"""Real material for the tests of the processes: videos, photos, a memory disk that is too small."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

MakeVideo = Callable[..., Path]


@pytest.fixture
def make_video(tmp_path: Path) -> MakeVideo:
    """Return a function that writes a video; frame `n` is grey of value `4 * n`."""

    def make(
        name: str = "video.avi", n_frames: int = 40, size: tuple[int, int] = (160, 120), fps: float = 25
    ) -> Path:
        path = tmp_path / name
        codec = "MJPG" if path.suffix == ".avi" else "mp4v"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, size)
        assert writer.isOpened()
        for n in range(n_frames):
            writer.write(np.full((size[1], size[0], 3), 4 * n % 256, np.uint8))
        writer.release()
        return path

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
