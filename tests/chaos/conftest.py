"""A daemon for every test to break, and how often the long run breaks it."""

import os
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
    """How often each process is killed: VISAGED_CHAOS_ROUNDS, 1 where it is not set, 100 in the long run."""
    return int(os.environ.get("VISAGED_CHAOS_ROUNDS", "1"))


@pytest.fixture(scope="session")
def face(tmp_path_factory: pytest.TempPathFactory, astronaut: U8) -> str:
    """The source of a camera that wanders over a face for an hour."""
    photo = tmp_path_factory.mktemp("photo") / "astronaut.png"
    cv2.imwrite(str(photo), cv2.cvtColor(astronaut, cv2.COLOR_RGB2BGR))
    return f"synthetic:pan?photo={photo}&width=512&height=400&fps=10&seconds=3600"


@pytest.fixture
def make_stage(cache: Path, free_port: int) -> Iterator[Callable[..., Stage]]:
    """Return a function that makes a stage, which is gone at the end."""
    with ExitStack() as stages:
        yield lambda cameras, **more: stages.enter_context(Stage(cache, cameras, free_port, **more))


@pytest.fixture
def stage(make_stage: Callable[..., Stage], face: str) -> Stage:
    """A daemon with two cameras under load."""
    made = make_stage({"a": face, "b": face})
    made.start()
    return made
