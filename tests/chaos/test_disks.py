"""Disks that are full and pages that are spoilt: frames go on, what is stored stays, and it is said once."""

from pathlib import Path

import pytest

from tests.chaos.disks import empty_log, full, spoilt
from tests.chaos.stage import Metric, Stage
from tests.conftest import skip_or_fail

BACK_S = 5.0
REFUSED = "refused a control request"  # a line for each request, besides the one about the fault


@pytest.fixture(autouse=True)
def disks(stage: Stage) -> None:
    if stage.no_disks:
        skip_or_fail("mount", f"NOT TESTED: full disks; none can be mounted here: {stage.no_disks}")


def test_a_full_disk_refuses_flags_and_costs_no_frame(stage: Stage) -> None:
    failing: Metric = ("infer", "visaged_store_failures_total", {"store": "samples"})
    with stage.fault(
        within_s=BACK_S,
        line="the samples cannot be written",
        metric=failing,
        allowed=f"{REFUSED}|the gallery cannot be|a stranger was not",
    ):
        n_refused = len(stage.flagger.refusals)
        with stage.flagger.paused():
            empty_log(stage.state / "samples.db")  # else the next ones fit into the space it has
        with full(stage.state):
            stage.wait(lambda: len(stage.flagger.refusals) > n_refused, 20, "a refused flag")
            assert "full" in stage.flagger.refusals[-1]
            stage.publishes(BACK_S)
        stage.stores_flags(20)


def test_a_camera_that_finds_no_room_for_its_ring_waits_for_it(stage: Stage, shm: Path) -> None:
    dropped: Metric = ("capture@a", "visaged_frames_dropped_total", {"camera": "a", "reason": "no_room"})
    with stage.fault(
        within_s=BACK_S, line="camera a: no room in .* are dropped", metric=dropped, allowed="capture@a ended"
    ) as fault:
        stage.process("capture@a").suspend()  # so that it does not answer while its ring goes
        for ring in shm.glob("*-a-*"):
            ring.unlink()
        with full(shm):
            stage.kill("capture@a")
            stage.wait(lambda: stage.metric(*dropped) > 3, 15, "frames without room")
        fault.is_over()


def test_a_spoilt_sample_store_refuses_flags_and_costs_no_frame(stage: Stage) -> None:
    failing: Metric = ("infer", "visaged_store_failures_total", {"store": "samples"})
    before = len(stage.flagger.refusals)
    with (
        stage.fault(
            within_s=20,
            line="the samples cannot be written .* is damaged",
            metric=failing,
            allowed=f"{REFUSED}|infer ended by| learn: | learn ended",
        ) as fault,
        stage.flagger.paused(),
    ):
        database = stage.state / "samples.db"
        with spoilt(database, "samples", "PRAGMA user_version = 1"):
            stage.flagger.is_paused = False
            stage.wait(lambda: len(stage.flagger.refusals) > before, 20, "a refused flag")
            stage.flagger.is_paused = True
            stage.publishes(BACK_S)
            stage.wait(fault.is_counted, 5, "the failure to be counted")
        fault.is_over()
        for name in ("infer", "learn"):  # both still have the spoilt file open
            stage.kill(name)


def test_a_spoilt_gallery_is_said_and_people_are_recognised_from_memory(stage: Stage) -> None:
    failing: Metric = ("infer", "visaged_store_failures_total", {"store": "gallery"})
    with stage.fault(
        within_s=20,
        line="from memory alone .* is damaged",
        metric=failing,
        allowed=f"{REFUSED}|infer ended by|a stranger was not",
    ) as fault:
        with (
            stage.flagger.paused(),
            spoilt(stage.state / "gallery.db", "templates", "UPDATE people SET last_seen = last_seen"),
        ):
            stage.wait(fault.is_counted, 10, "the damage to be noticed")
            stage.publishes(BACK_S)
            fault.is_over()
        stage.kill("infer")
