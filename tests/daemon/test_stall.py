"""When an inference process is taken for stuck: frames wait, and not one is settled."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from visaged.daemon.ledger import Ledger, ledger_path
from visaged.daemon.stall import STALLED_S, StallWatch


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[StallWatch]:
    watch = StallWatch(tmp_path, ["door"])
    yield watch
    watch.close()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(ledger_path(tmp_path, "door")) as ledger:
        yield ledger


def test_without_a_ledger_nobody_is_stuck(watch: StallWatch) -> None:
    assert [watch.is_stalled("infer", now) for now in (0.0, 10 * STALLED_S)] == [False, False]


def test_an_idle_camera_is_not_a_stall(watch: StallWatch, ledger: Ledger) -> None:
    ledger.count_captured()
    ledger.publish()

    assert [watch.is_stalled("infer", now) for now in (0.0, 10 * STALLED_S)] == [False, False]


def test_waiting_frames_of_which_none_is_settled_are_a_stall(watch: StallWatch, ledger: Ledger) -> None:
    ledger.count_captured()

    assert [watch.is_stalled("infer", now) for now in (0.0, STALLED_S - 1, STALLED_S)] == [False, False, True]


def test_frames_dropped_by_the_camera_do_not_hide_it(watch: StallWatch, ledger: Ledger) -> None:
    ledger.count_captured()
    watch.is_stalled("infer", 0.0)
    ledger.count_captured()
    ledger.drop_at_capture("queue_full")

    assert watch.is_stalled("infer", STALLED_S)


def test_slow_progress_is_progress(watch: StallWatch, ledger: Ledger) -> None:
    for _ in range(3):
        ledger.count_captured()
    watch.is_stalled("infer", 0.0)
    ledger.publish()

    assert not watch.is_stalled("infer", STALLED_S)
    assert watch.is_stalled("infer", 2 * STALLED_S)


def test_a_fresh_process_is_given_its_time(watch: StallWatch, ledger: Ledger) -> None:
    ledger.count_captured()
    watch.is_stalled("infer", 0.0)
    watch.forgive("infer", STALLED_S)

    assert not watch.is_stalled("infer", STALLED_S + 1)
    assert watch.is_stalled("infer", 2 * STALLED_S)


def test_a_capture_without_a_beat_is_stalled_and_one_that_waits_is_not(
    watch: StallWatch, ledger: Ledger
) -> None:
    watch.forgive("capture@door", time.monotonic() - STALLED_S)

    assert watch.is_stalled("capture@door", time.monotonic())
    ledger.beat()
    assert not watch.is_stalled("capture@door", time.monotonic())
    assert watch.is_stalled("capture@door", time.monotonic() + STALLED_S)


def test_a_process_that_leaves_no_trace_is_never_stalled(watch: StallWatch) -> None:
    for name in ("learn", "gateway", "capture@door"):  # the camera has no ledger yet
        watch.forgive(name, 0.0)

        assert not watch.is_stalled(name, 10 * STALLED_S)
