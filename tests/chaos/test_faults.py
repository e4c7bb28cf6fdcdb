"""Faults in the running daemon, under load: it is back in time, and nothing that was said is lost."""

import contextlib
import importlib.util
import os
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from visaged.daemon.client import Subscriber
from visaged.daemon.control import ControlClient, Flag
from visaged.pipelines.errors import VisagedError

from tests.chaos.stage import Stage, fill, small_disk

INFER_BACK_S, CAPTURE_BACK_S, LEARN_BACK_S, RESUMED_S = 20.0, 5.0, 10.0, 5.0
PAUSE_S = 15.0  # between two kills of the same process in the long run: the supervisor takes 5 a minute
SHORT, DAY_S = 2, 86_400
PAGE, STAYS_DOWN_S = 4096, 20.0


def test_killed_again_and_again_everything_comes_back(
    make_stage: Callable[..., Stage], face: str, rounds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """kill -9 of infer, of a capture process and of the learner in turn, while faces are flagged."""
    limits_s = {"infer": INFER_BACK_S, "capture@a": CAPTURE_BACK_S}
    if importlib.util.find_spec("torch"):
        limits_s["learn"] = LEARN_BACK_S
    stage = make_stage({"a": face, "b": face}, tables={"learning": {"enabled": "learn" in limits_s}})
    stage.start()
    took: dict[str, list[float]] = {name: [] for name in limits_s}

    for turn in range(rounds):
        for name, limit_s in limits_s.items():
            begun_s = time.monotonic()
            stage.kill(name)
            stage.wait(lambda name=name: stage.is_up(name), limit_s, name)  # type: ignore[misc]
            stage.back_within(limit_s)
            took[name].append(time.monotonic() - begun_s)
            if rounds > SHORT:
                time.sleep(PAUSE_S / len(limits_s))
        for name in limits_s:
            assert stage.metric("supervisor", "visaged_process_restarts_total", process=name) == turn + 1

    n_flagged = len(stage.load.flagged())
    stage.check()
    log = stage.daemon.log_file.read_text()
    for name in limits_s:
        assert log.count(f"{name} ended by SIGKILL") == rounds
    with capsys.disabled():
        for name, seconds in took.items():
            print(
                f"\n  {name}: {rounds} kills, back after {statistics.median(seconds):.2f} s (median), "
                f"{max(seconds):.2f} s at most; {n_flagged} flagged samples, none lost"
            )


@pytest.mark.parametrize("name", ["infer", "capture@a"])
def test_a_process_that_was_stopped_goes_on_and_its_frames_are_accounted_for(stage: Stage, name: str) -> None:
    process = stage.process(name)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(3)
    os.kill(process.pid, signal.SIGCONT)

    stage.back_within(RESUMED_S)

    assert stage.metric("supervisor", "visaged_process_restarts_total", process=name) == 0
    stage.check()


def test_a_subscriber_that_never_reads_costs_nobody_else_anything(stage: Stage) -> None:
    with contextlib.ExitStack() as deaf:
        for _ in range(5):
            deaf.enter_context(Subscriber(stage.daemon.endpoint, ["a", "b"]))
        before = stage.process("infer").memory_info().rss
        stage.wait(lambda: stage.metric("infer", "visaged_subscribers") >= 10, 20, "deaf subscribers")
        time.sleep(3)
        stage.back_within(1.0)
        grown = stage.process("infer").memory_info().rss - before

    assert grown < 40e6, "what they do not read is kept for them"
    stage.check()


def test_a_full_disk_refuses_flags_in_words_and_frames_flow_on(
    make_stage: Callable[..., Stage], face: str
) -> None:
    stage = make_stage({"a": face, "b": face})
    try:
        disk = stage.enter(small_disk(stage.state, 16))
    except OSError as error:
        pytest.skip(str(error))
    stage.start()
    n_before = len(stage.load.flagged())

    filler = fill(disk)
    stage.wait(lambda: stage.load.n_refused > 3, 20, "a flag that is refused")
    stage.back_within(1.0)
    with ControlClient(stage.daemon.runtime) as control, pytest.raises(VisagedError) as refused:
        control.request(Flag(camera="a", track=stage.track_of("a"), emotion="fear"), timeout_s=5)
    filler.unlink()
    stage.wait(lambda: len(stage.load.flagged()) > n_before, 20, "a flag once there is room again")

    assert "disk" in str(refused.value), refused.value
    stage.check()


def test_a_clock_that_jumps_changes_nothing(
    make_stage: Callable[..., Stage],
    face: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library, offset = tmp_path / "clock.so", tmp_path / "offset"
    if not shutil.which("cc"):
        pytest.skip("there is no C compiler to move the daemon's clock with")
    source = Path(__file__).parent / "clock.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    offset.write_text("0")
    monkeypatch.setenv("VISAGED_CLOCK_FILE", str(offset))
    monkeypatch.setenv("LD_PRELOAD", str(library))
    stage = make_stage({"a": face, "b": face})
    stage.start()
    monkeypatch.delenv("LD_PRELOAD")

    for jump_s in (DAY_S, -DAY_S):
        before, n_flagged = stage.load.newest()["a"], len(stage.load.flagged())
        offset.write_text(str(jump_s))
        stage.back_within(2.0)
        stage.wait(lambda n=n_flagged: len(stage.load.flagged()) > n, 10, "a flag after the jump")  # type: ignore[misc]
        after = stage.load.newest()["a"]
        assert abs(after.captured_at - before.captured_at) > 0.9 * DAY_S, "the clock did not jump"
        assert 0 < after.captured_ns - before.captured_ns < 60e9

    assert stage.metric("supervisor", "visaged_process_restarts_total", process="infer") == 0
    stage.check()


def test_a_corrupt_page_is_refused_once_in_words_and_a_backup_brings_everything_back(
    make_stage: Callable[..., Stage], face: str
) -> None:
    """What is damaged is not served from, not written to and not replaced by itself."""
    stage = make_stage({"a": face})
    stage.start()
    stage.load.end.set()
    stage.load.join(10)
    assert stage.daemon.stop() == 0

    for database in ("samples.db", "gallery.db"):
        path = stage.state / database
        backup = path.read_bytes()
        middle = len(backup) // 2 // PAGE * PAGE
        broken = os.urandom(PAGE)
        path.write_bytes(backup[:middle] + broken + backup[middle + PAGE :])
        begun_s = time.monotonic()
        stage.daemon.start()
        with pytest.raises(VisagedError, match="exit code 78"):
            while time.monotonic() < begun_s + STAYS_DOWN_S:
                stage.daemon.check()
                time.sleep(0.1)
        log = stage.daemon.log_file.read_text()
        errors = [line for line in log.splitlines() if "ERROR   infer" in line]
        assert len(errors) == 1 and "damaged" in errors[0] and "restore a backup" in errors[0], errors
        assert path.read_bytes()[middle : middle + PAGE] == broken, "it was written to"
        path.write_bytes(backup)

    stage.restart()
    stage.check()
