"""Fixtures for all tests: short folders for sockets, free ports, and the data beside the repository."""

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from visaged.daemon.outline import default_cache
from visaged.pipelines.archives import fetch
from visaged.pipelines.model_store import ModelStore

U8 = npt.NDArray[np.uint8]

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_configure() -> None:
    """Let Ctrl-C reach the processes under test, also where a shell started pytest in the background.

    Such a shell leaves SIGINT ignored, and children inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
    """A TCP port that nobody uses, with 20 free-looking ones after it."""
    for _ in range(50):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port < 65000:
            return port
    raise AssertionError("no free port")
