"""A wall clock that jumps over all that is kept: nothing is deleted for it, and frames go on."""

import re
import time
from pathlib import Path

import pytest
from visaged.pipelines.loop.sample_store import SampleStore

from tests.chaos.stage import Metric, Stage
from tests.conftest import find_free_port, skip_or_fail

YEARS_S = 3 * 365 * 86_400
BACK_S = 20.0
STEP: Metric = ("infer", "visaged_clock_step_seconds", {})


@pytest.fixture
def setter(clock: Path | None) -> Path:
    """The file that sets the clock of the daemon."""
    if clock is None:
        skip_or_fail("cc", "NOT TESTED: a clock that jumps; there is no C compiler `cc`")
    assert clock is not None
    return clock


def test_a_machine_that_starts_30_years_ahead_deletes_nothing_until_that_is_true(
    setter: Path, cache: Path, face: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = tmp_path / "clock"
    clock.write_text("0 0 first-boot")
    monkeypatch.setenv("LD_PRELOAD", str(setter.parent / "set_clock.so"))
    monkeypatch.setenv("VISAGED_TEST_CLOCK", str(clock))
    with Stage(cache, {"a": face}, find_free_port()) as stage:
        stage.daemon.start()
        stage.watch()
        with stage.flagger.paused():
            before = set(stage.flagger.said())
            assert stage.daemon.stop() == 0
            booted_s = 5 - time.clock_gettime(time.CLOCK_BOOTTIME)
            clock.write_text(f"{10 * YEARS_S} {booted_s:.0f} second-boot")
            stage.daemon.start()
            stage.wait(lambda: stage.metric(*STEP) > 9 * YEARS_S, 60, "the jump to be noticed")
            stage.publishes(30)
        stage.stores_flags(BACK_S)
        stage.check_people()
        assert len(re.findall(r"the clock jumped by \+9460\d{5} s", stage.daemon.log_file.read_text())) == 1

        clock.write_text(f"{10 * YEARS_S} {booted_s:.0f} second-boot 1")
        stage.wait(lambda: stage.metric(*STEP) == 0, 5, "the kernel to be believed")
        with stage.flagger.paused():
            after = set(stage.flagger.said()) - before
            stage.kill("infer")  # the next one looks at once at what is too old
            stage.wait(lambda: not stored(stage) & before, 30, "what is 30 years old now to go")
            assert after and after <= stored(stage)


def test_a_clock_that_jumps_by_years_deletes_nothing(stage: Stage, setter: Path) -> None:
    n_samples = len(stage.flagger.said())
    allowed = "infer ended by SIGKILL"
    try:
        with stage.fault(within_s=BACK_S, line="the clock jumped", metric=STEP, allowed=allowed) as fault:
            setter.write_text(str(YEARS_S))
            stage.wait(lambda: stage.metric(*STEP) > YEARS_S - 60, 5, "the jump to be noticed")
            stage.publishes(5)
            stage.new_log()
            fault.is_over()
            stage.kill("infer")  # its successor has never known the right time
            stage.stores_flags(BACK_S)
    finally:
        setter.write_text("0")
    stage.wait(lambda: abs(stage.metric(*STEP)) < 60, 5, "the clock to be right again")
    stage.check_people()
    assert len(stage.flagger.said()) >= n_samples


def stored(stage: Stage) -> set[str]:
    """Return the ids of all samples on disk."""
    with SampleStore(stage.state) as store:
        return {sample.id for sample in store.samples()}
