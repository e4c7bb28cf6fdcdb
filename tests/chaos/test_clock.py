"""A wall clock that jumps over all that is kept: nothing is deleted for it, and frames go on."""

from pathlib import Path

from tests.chaos.stage import Metric, Stage
from tests.conftest import skip_or_fail

YEARS_S = 3 * 365 * 86_400
BACK_S = 20.0


def test_a_clock_that_jumps_by_years_deletes_nothing(stage: Stage, clock: Path | None) -> None:
    if clock is None:
        skip_or_fail("cc", "NOT TESTED: a clock that jumps; there is no C compiler `cc`")
    assert clock is not None
    step: Metric = ("infer", "visaged_clock_step_seconds", {})
    n_samples = len(stage.flagger.said())
    # strangers, whom nobody enrolled, do expire with the clock
    allowed = "infer ended by SIGKILL|a stranger was not"
    try:
        with stage.fault(within_s=BACK_S, line="the clock was set", metric=step, allowed=allowed) as fault:
            clock.write_text(str(YEARS_S))
            stage.wait(lambda: stage.metric(*step) > YEARS_S - 60, 5, "the jump to be noticed")
            stage.publishes(5)
            stage.new_log()
            fault.is_over()
            stage.kill("infer")  # its successor has never known the right time
            stage.stores_flags(BACK_S)
    finally:
        clock.write_text("0")
    stage.wait(lambda: abs(stage.metric(*step)) < 60, 5, "the clock to be right again")
    stage.check_people()
    assert len(stage.flagger.said()) >= n_samples
