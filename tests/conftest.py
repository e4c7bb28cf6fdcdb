"""Fixtures for all tests: short folders for sockets, free ports, and the data beside the repository."""

import contextlib
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from typer.testing import CliRunner
from visaged.daemon.outline import default_cache
from visaged.pipelines.archives import fetch
from visaged.pipelines.loop.sighting import SIDE_PX, Sighting
from visaged.pipelines.message import EMOTIONS, Identity
from visaged.pipelines.model_store import ModelStore
from visaged.tools.cli import build_app

from tests.turned_astronaut import write_task

U8 = npt.NDArray[np.uint8]

TESTS = Path(__file__).resolve().parent
SHARED_DATA = TESTS.parents[1] / "shared" / "data"
REAL_TIME = frozenset({"chaos", "daemon", "gpu", "integration", "systemd"})
"""Folders whose tests run processes or watch the clock: a neighbour would take what they measure."""


def pytest_configure() -> None:
    """Let Ctrl-C reach the processes under test, also where a shell started pytest in the background.

    Such a shell leaves SIGINT ignored, and children inherit that. And let them keep their bytecode, also
    where the environment forbids it: each would compile all of visaged anew, a third of its start.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    settings.register_profile("visaged", deadline=None)  # the cores are shared
    settings.load_profile("visaged")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what must have the machine to itself; `make test` runs the rest side by side before it.

    In the folders that is everything but modules marked `patient`. What breaks the one daemon of the chaos
    tests comes last: that runs to the end of the session, and would be beside everybody else.
    """
    for item in items:
        is_patient = item.get_closest_marker("patient") is not None
        if folder_of(item) in REAL_TIME and not is_patient:
            item.add_marker(pytest.mark.realtime)
    items.sort(key=shares_chaos)


def shares_chaos(item: pytest.Item) -> bool:
    """Whether an item needs the daemon that all chaos tests share."""
    return folder_of(item) == "chaos" and isinstance(item, pytest.Function) and "stage" in item.fixturenames


def folder_of(item: pytest.Item) -> str:
    """Return the folder of `tests` that an item is in."""
    return item.path.relative_to(TESTS).parts[0]


def skip_or_fail(what: str, reason: str) -> None:
    """Skip loudly; fail instead when VISAGED_REQUIRE names `what`, as `VISAGED_REQUIRE=gpu,data`."""
    if what in os.environ.get("VISAGED_REQUIRE", "").split(","):
        pytest.fail(f"VISAGED_REQUIRE={what}: {reason}")
    pytest.skip(reason)


@pytest.fixture
def shared_data() -> Path:
    """The folder of videos and photos beside the repository."""
    if not SHARED_DATA.is_dir():
        skip_or_fail("data", f"no test data in {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def cache() -> Path:
    """The folder where imported networks and demo material are kept between runs."""
    return default_cache()


@pytest.fixture(scope="session")
def store(cache: Path) -> ModelStore:
    """The imported networks."""
    return ModelStore(cache)


@pytest.fixture(scope="session")
def astronaut(cache: Path) -> U8:
    """`(512, 512, 3)` RGB of the public-domain photo of Eileen Collins, one smiling face."""
    bgr = cv2.imread(str(fetch("demo/astronaut.png", cache)))
    assert bgr is not None
    return np.ascontiguousarray(bgr[..., ::-1]).astype(np.uint8)


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A runtime folder with a short path: sockets allow 107 bytes, which tmp_path can exceed."""
    folder = Path(tempfile.mkdtemp(prefix="visaged-test-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def free_port() -> int:
    """A TCP port that nobody uses, nor the 20 after it."""
    return find_free_port()


def find_free_port() -> int:
    """Return a TCP port that nobody uses, nor the 20 after it; the kernel gives none of these away.

    Of each four tests that run side by side every one has ports of its own: nobody takes what another has
    found and does not use yet.
    """
    first = 20_000 + 3_000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4)
    for port in np.random.default_rng().integers(first, first + 2_980, 50).tolist():
        with contextlib.ExitStack() as probes, contextlib.suppress(OSError):
            for offset in range(21):
                probes.enter_context(socket.socket()).bind(("127.0.0.1", port + offset))
            return int(port)
    raise AssertionError("no free port")


def sighting(seq: int = 10, *, track: int = 3, seed: int = 0, **changes: Any) -> Sighting:
    """Return a sighting made up: frame `seq`, a tenth of a second a frame, its picture noise of `seed`."""
    draw = np.random.default_rng(seed)
    probabilities = np.zeros(len(EMOTIONS), np.float32)
    probabilities[:2] = 0.7, 0.3
    values: dict[str, Any] = {
        "camera": "door",
        "track": track,
        "seq": seq,
        "captured_ns": seq * 10**8,
        "captured_at": 1_700_000_000 + seq / 10,
        "chip": draw.integers(0, 256, (SIDE_PX, SIDE_PX, 3), np.uint8),
        "landmarks": draw.uniform(50, 150, (5, 2)).astype(np.float32),
        "face_px": 120.0,
        "quality": 0.8,
        "embedding": draw.normal(0, 0.09, 128).astype(np.float32),
        "space": "face-resnet",
        "probabilities": probabilities,
        "members": {"face-resnet": probabilities[::-1].copy(), "emotion-xception": probabilities},
        "disagreement": 0.1,
        "identity": Identity(state="known", person="Ada", distance=0.3, margin=0.4),
        "release": "abc",
    }
    return Sighting(**{**values, **changes})


@pytest.fixture(scope="session")
def make_sighting() -> Callable[..., Sighting]:
    """Return the function that makes sightings."""
    return sighting


@pytest.fixture(scope="session")
def site_detector(tmp_path_factory: pytest.TempPathFactory, astronaut: U8) -> Path:
    """A detector that `visaged train-detector` has made of the astronaut upside down."""
    folder = tmp_path_factory.mktemp("site")
    task, out = write_task(folder, astronaut), folder / "out" / "site.svm"
    words = ["train-detector", str(task), "--out", str(out), "--c", "1e-6", "--c", "4", "--epsilon", "0.1"]
    CliRunner().invoke(build_app("train-detector"), words, catch_exceptions=False)
    return out
