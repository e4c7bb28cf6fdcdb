"""What every chaos test starts from, and how long the long run is."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from tests.chaos.stage import Stage
from tests.conftest import find_free_port

SET_CLOCK = Path(__file__).with_name("set_clock.c")
U8 = npt.NDArray[np.uint8]


@pytest.fixture(scope="session")
def rounds() -> int:
    """How often each process is killed: VISAGED_CHAOS_ROUNDS; once where it is not set, 100 in the long run.

    Tests beside this one kill infer, learn and a capture of the same daemon again.
    """
    return int(os.environ.get("VISAGED_CHAOS_ROUNDS", "1"))


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory, astronaut: U8) -> Path:
    """A face, 512 x 512 px."""
    path = tmp_path_factory.mktemp("photo") / "astronaut.png"
    cv2.imwrite(str(path), cv2.cvtColor(astronaut, cv2.COLOR_RGB2BGR))
    return path


@pytest.fixture(scope="session")
def face(photo: Path) -> str:
    """The source of a camera that wanders over a face for a day."""
    return f"synthetic:pan?photo={photo}&width=512&height=400&fps=10&seconds=86400"


@pytest.fixture(scope="session")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """The file with the seconds by which the daemon's wall clock is off; None without a C compiler."""
    folder = tmp_path_factory.mktemp("clock")
    line = ["cc", "-shared", "-fPIC", "-o", str(folder / "set_clock.so"), str(SET_CLOCK)]
    if shutil.which("cc") is None or subprocess.run(line).returncode:
        return None
    (folder / "seconds").write_text("0")
    return folder / "seconds"


@pytest.fixture(scope="session")
def shm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the rings of frames lie."""
    return tmp_path_factory.mktemp("shm")


@pytest.fixture(scope="session")
def stage(cache: Path, face: str, clock: Path | None, shm: Path) -> Iterator[Stage]:
    """One daemon for every fault: two cameras, learning, small disks and a clock of its own."""
    tables: dict[str, dict[str, object]] = {
        "learning": {"enabled": True, "after_samples": 100_000, "every_h": 0},
        "paths": {"shm": str(shm)},
    }
    with (
        Stage(cache, {"a": face, "b": face}, find_free_port(), tables) as made,
        pytest.MonkeyPatch.context() as patch,
    ):
        if clock is not None:
            patch.setenv("LD_PRELOAD", str(clock.parent / "set_clock.so"))
            patch.setenv("VISAGED_TEST_CLOCK", str(clock))
        made.mount_small_disks(shm)
        made.daemon.start()
        patch.undo()
        made.watch()
        yield made
        made.finish()
