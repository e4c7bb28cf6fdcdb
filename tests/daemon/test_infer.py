"""The inference process's loop, in this process, with real networks and no camera."""

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import numpy as np
import pytest
from visaged.daemon.camera import CameraConfig
from visaged.daemon.config import Config
from visaged.daemon.infer import Inference
from visaged.daemon.intake import Taken
from visaged.daemon.metrics import InferMetrics
from visaged.daemon.outline import PathsConfig
from visaged.pipelines.engines.engine import EngineConfig
from visaged.pipelines.frame import Frame

from tests.daemon.test_freed_memory import MOST_MB, Hoard, anonymous_mb


def test_a_frame_that_cannot_be_worked_on_is_dropped_and_the_next_is_answered(
    runtime: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = PathsConfig(state=tmp_path, runtime=runtime, cache=cache, shm=tmp_path)
    config = Config(paths=paths, camera=(CameraConfig(name="a", source="synthetic:pattern"),))
    with InferMetrics("infer") as metrics, Inference(config, metrics) as inference:
        ledger = inference._intake.ledgers["a"]

        def answer() -> None:
            seq = ledger.count_captured()
            rgb = np.zeros((120, 160, 3), np.uint8)
            inference._answer([Taken(Frame("a", seq, seq, rgb), 0.0, "replay")])

        def refuse(work: object, places: object) -> None:
            raise ValueError("landmarks must be finite")

        with monkeypatch.context() as patched:
            patched.setattr(inference._pipeline, "run", refuse)
            answer()
        answer()
        book = ledger.snapshot()

    assert book.dropped["bad_frame"] == 1
    assert (book.captured, book.published, book.in_flight) == (2, 1, 0)


@pytest.fixture
def two_cameras(runtime: Path, tmp_path: Path, cache: Path) -> Iterator[Callable[[float], Inference]]:
    """Make the inference of two cameras that wait for each other for so many milliseconds."""
    made: list[Inference] = []

    def make(batch_wait_ms: float) -> Inference:
        paths = PathsConfig(state=tmp_path, runtime=runtime, cache=cache, shm=tmp_path)
        cameras = tuple(CameraConfig(name=name, source="synthetic:pattern") for name in "ab")
        config = Config(paths=paths, camera=cameras, engine=EngineConfig(batch_wait_ms=batch_wait_ms))
        made.append(Inference(config, InferMetrics("infer")))
        return made[-1]

    yield make
    for inference in made:
        inference.close()


class FakeIntake:
    """Cameras whose frames come at given times, in seconds of a clock that only waiting moves."""

    def __init__(self, arrivals: dict[str, float]) -> None:
        self.now_s = 0.0
        self._arrivals = dict(arrivals)

    def wait(self, timeout_ms: float, without: Collection[str] = ()) -> list[str]:
        coming = {c: at for c, at in self._arrivals.items() if c not in without}
        due = [at for at in coming.values() if at <= self.now_s + timeout_ms / 1e3]
        self.now_s = max(self.now_s, min(due)) if due else self.now_s + timeout_ms / 1e3
        return [c for c, at in coming.items() if at <= self.now_s]

    def take(self, camera: str) -> Taken:
        del self._arrivals[camera]
        return Taken(Frame(camera, 1, 1, np.zeros((4, 4, 3), np.uint8)), 0.0, "live")


@pytest.mark.parametrize(
    ("wait_ms", "arrivals", "together"),
    [
        (0, {"a": 0.0, "b": 0.004}, ["a"]),
        (10, {"a": 0.0, "b": 0.004}, ["a", "b"]),
        (10, {"a": 0.0, "b": 0.020}, ["a"]),
        (10, {"b": 0.001, "a": 0.001}, ["a", "b"]),
    ],
)
def test_a_frame_waits_for_those_of_other_cameras_until_its_deadline(
    two_cameras: Callable[[float], Inference],
    monkeypatch: pytest.MonkeyPatch,
    wait_ms: float,
    arrivals: dict[str, float],
    together: list[str],
) -> None:
    inference = two_cameras(wait_ms)
    intake = FakeIntake(arrivals)

    with monkeypatch.context() as patched:
        patched.setattr(inference, "_intake", intake)
        patched.setattr("visaged.daemon.infer.time.monotonic", lambda: intake.now_s + 1)
        batch = inference._gather()

    assert sorted(taken.frame.camera for taken in batch) == together


def test_a_full_batch_does_not_wait(
    two_cameras: Callable[[float], Inference], monkeypatch: pytest.MonkeyPatch
) -> None:
    inference = two_cameras(100)
    intake = FakeIntake({"a": 0.0, "b": 0.001})

    with monkeypatch.context() as patched:
        patched.setattr(inference, "_intake", intake)
        patched.setattr("visaged.daemon.infer.time.monotonic", lambda: intake.now_s + 1)
        inference._gather()

    assert intake.now_s < 0.01


def test_what_was_freed_goes_back_while_it_serves(
    two_cameras: Callable[[float], Inference],
) -> None:
    inference, hoard = two_cameras(0), Hoard()
    full = anonymous_mb()
    hoard.close()

    inference._keep_house()
    first = full - anonymous_mb()
    hoard = Hoard()
    full = anonymous_mb()
    hoard.close()
    inference._keep_house()

    assert first > MOST_MB
    assert full - anonymous_mb() < 50, "not every second: it costs milliseconds"
