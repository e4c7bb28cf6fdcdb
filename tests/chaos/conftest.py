"""What every chaos test starts from, and how long the long run is."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from tests.chaos.stage import Stage

U8 = npt.NDArray[np.uint8]


@pytest.fixture(scope="session")
def rounds() -> int:
    """How often each process is killed: VISAGED_CHAOS_ROUNDS; 2 where it is not set, 100 in the long run."""
    return int(os.environ.get("VISAGED_CHAOS_ROUNDS", "2"))


@pytest.fixture(scope="session")
def face(tmp_path_factory: pytest.TempPathFactory, astronaut: U8) -> str:
    """The source of a camera that wanders over a face for a day."""
    photo = tmp_path_factory.mktemp("photo") / "astronaut.png"
    cv2.imwrite(str(photo), cv2.cvtColor(astronaut, cv2.COLOR_RGB2BGR))
    return f"synthetic:pan?photo={photo}&width=512&height=400&fps=10&seconds=86400"


@pytest.fixture(scope="module")
def make_stage(cache: Path) -> Iterator[Callable[..., Stage]]:
    """Return a function that makes a stage, which is gone at the end of the module."""
    with ExitStack() as stages:
        yield lambda cameras, **more: stages.enter_context(Stage(cache, cameras, _free_port(), **more))


@pytest.fixture(scope="module")
def stage(make_stage: Callable[..., Stage], face: str) -> Iterator[Stage]:
    """A daemon with two cameras under load, for the faults of a module."""
    made = make_stage({"a": face, "b": face})
    made.start()
    yield made
    made.finish()


def _free_port() -> int:
    """Return a TCP port that nobody uses, with 20 free-looking ones after it."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port < 65000:
            return port
