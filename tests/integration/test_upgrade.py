"""A daemon whose plans are missing serves at once, builds them beside, and loses no frame in the swap."""

import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from visaged.daemon.camera import CameraConfig
from visaged.daemon.client import Subscriber
from visaged.daemon.control import ControlClient, Status
from visaged.pipelines.message import FaceFrame
from visaged.tools.temporary_daemon import TemporaryDaemon

U8 = npt.NDArray[np.uint8]

PATIENCE_S = 90.0
INT8 = {"engine": {"precision": "int8", "backend": "onnxruntime"}}


@pytest.fixture
def cache_without_plans(tmp_path: Path, cache: Path) -> Path:
    """A cache with the imported networks and no plan."""
    shutil.copytree(cache / "models", tmp_path / "cache" / "models")
    shutil.copytree(cache / "archives" / "fer", tmp_path / "cache" / "archives" / "fer")
    return tmp_path / "cache"


@pytest.fixture
def photo(tmp_path: Path, astronaut: U8) -> Path:
    path = tmp_path / "astronaut.png"
    cv2.imwrite(str(path), cv2.cvtColor(astronaut, cv2.COLOR_RGB2BGR))
    return path


def listen(
    daemon: TemporaryDaemon, subscriber: Subscriber, is_enough: Callable[[list[FaceFrame]], bool]
) -> list[FaceFrame]:
    """Return all results until there are enough."""
    results: list[FaceFrame] = []
    deadline = time.monotonic() + PATIENCE_S
    while not is_enough(results):
        assert time.monotonic() < deadline, daemon.log_file.read_text()
        daemon.check()
        received = subscriber.receive(1.0)
        if received is not None and isinstance(received[0], FaceFrame):
            results.append(received[0])
    return results


def status_of(daemon: TemporaryDaemon) -> dict[str, Any]:
    with ControlClient(daemon.runtime) as control:
        return control.request(Status())


def test_a_missing_plan_is_built_beside_and_taken_over_without_losing_a_frame(
    photo: Path, cache_without_plans: Path
) -> None:
    camera = CameraConfig(
        name="stage",
        source=f"synthetic:pan?photo={photo}&width=512&height=400&fps=20&seconds=60",
        policy="live",
    )
    with TemporaryDaemon([camera], cache=cache_without_plans, wheels=None, tables=INT8) as daemon:
        daemon.runtime.mkdir(exist_ok=True)
        with Subscriber(daemon.endpoint, ["stage"], timeout_s=PATIENCE_S) as subscriber:
            daemon.start()
            before = listen(daemon, subscriber, lambda results: bool(results))
            first = status_of(daemon)
            after = listen(
                daemon,
                subscriber,
                lambda results: [r.release != before[0].release for r in results[-20:]] == [True] * 20,
            )
            last = status_of(daemon)
            lost = subscriber.n_lost
        assert daemon.stop() == 0
        book = daemon.books()["stage"]

    results = [*before, *after]
    releases = [result.release for result in results]
    assert first["engines"]["face-resnet"]["is_fallback"]
    assert "not built" in first["engines"]["face-resnet"]["reason"]
    assert last["engines"]["face-resnet"]["precision"] == "int8"
    assert not last["engines"]["face-resnet"]["is_fallback"]
    assert last["upgrade"] == "done"
    assert len(Counter(releases)) == 2 and releases == sorted(releases, key=releases.index)  # one change
    assert lost == 0
    assert [r.seq for r in results] == list(range(results[0].seq, results[0].seq + len(results)))
    assert book.dropped["swap"] == 0
    assert book.captured == book.published + sum(book.dropped.values()) + book.in_flight
    tracks = {face.track for result in results for face in result.faces}
    assert len(tracks) == 1, "the swap broke a track"


def test_a_daemon_that_finds_its_plans_runs_from_them_at_once(photo: Path, cache: Path) -> None:
    camera = CameraConfig(
        name="stage",
        source=f"synthetic:pan?photo={photo}&width=512&height=400&fps=20&seconds=60",
        policy="live",
    )
    for _ in range(2):  # the first may have to build
        with TemporaryDaemon([camera], cache=cache, wheels=None, tables=INT8) as daemon:
            daemon.runtime.mkdir(exist_ok=True)
            with Subscriber(daemon.endpoint, ["stage"], timeout_s=PATIENCE_S) as subscriber:
                daemon.start()
                listen(daemon, subscriber, lambda results: len(results) > 5)
                status = status_of(daemon)
                had_plans = status["upgrade"] == "none needed"
                while status["upgrade"] not in ("none needed", "done"):
                    listen(daemon, subscriber, lambda results: len(results) > 5)
                    status = status_of(daemon)
        if had_plans:
            break

    assert status["upgrade"] == "none needed"
    assert status["engines"]["face-resnet"]["precision"] == "int8"
