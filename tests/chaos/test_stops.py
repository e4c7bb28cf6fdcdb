"""SIGSTOP: a process that lives and does nothing, for a moment and for good; a client that never reads."""

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from visaged.daemon.stall import STALLED_S

from tests.chaos.stage import Metric, Stage

PAUSE_S = 3.0
BACK_S = 5.0
STOPPED_FOR_GOOD_S = STALLED_S + 20.0
DEAF = """
import sys, time, zmq
socket = zmq.Context().socket(zmq.SUB)
socket.setsockopt(zmq.RCVHWM, 1)
socket.connect(sys.argv[1])
socket.subscribe(b"")
print("up", flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def deaf(stage: Stage) -> Iterator[None]:
    """A subscriber in a process of its own that never reads."""
    line = [sys.executable, "-c", DEAF, stage.daemon.endpoint]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as popen:
        assert popen.stdout is not None and popen.stdout.readline() == "up\n"
        yield
        popen.kill()


def test_a_client_that_never_reads_costs_the_others_nothing(stage: Stage, deaf: None) -> None:
    missed: Metric = ("infer", "visaged_results_missed_total", {})
    with stage.fault(within_s=BACK_S, line="a client reads too slowly", metric=missed) as fault:
        lost = {camera: seen.n_lost for camera, seen in stage.viewer.seen.items()}
        stage.wait(fault.is_counted, 60, "a result that the deaf client missed")
        fault.is_over()
    assert {camera: seen.n_lost for camera, seen in stage.viewer.seen.items()} == lost


@pytest.mark.parametrize("name", ["infer", "capture@a"])
def test_a_process_that_was_stopped_for_a_moment_goes_on(stage: Stage, name: str) -> None:
    process = stage.process(name)
    process.suspend()
    time.sleep(PAUSE_S)
    process.resume()

    stage.publishes(BACK_S)
    stage.check_books()
    stage.check_people()
    assert stage.process(name).pid == process.pid


def test_processes_that_were_stopped_for_good_are_killed_and_back(stage: Stage, rounds: int) -> None:
    if rounds < 10:
        pytest.skip(f"takes {STALLED_S:.0f} s: set VISAGED_CHAOS_ROUNDS=10 or more")
    for name in ("infer", "capture@a"):
        restarts: Metric = ("supervisor", "visaged_process_restarts_total", {"process": name})
        with stage.fault(
            within_s=STOPPED_FOR_GOOD_S,
            line=f"{name} lives and has done no work for",
            metric=restarts,
            allowed=f"{name} ended by SIGKILL",
        ):
            stage.n_infer_ends += name == "infer"
            stage.process(name).suspend()
