"""What a long run says: made-up runs that leak, slow down, lose frames or stop, and one that is well."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from visaged.pipelines.errors import VisagedError
from visaged.tools.resources import process_usages
from visaged.tools.soak_run import Soaked
from visaged.tools.soak_verdict import Limits, Sample, Slope, Verdict, drift, judge, slope

pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra `learn`)")
from visaged.tools.soak import report

WARM_UP_S = 240.0
LIMITS = Limits(memory_mb_per_h=12, fds_per_h=4, drift=1.5, dropped_share=0.01)
MINUTE = 12  # samples, one every 5 s


def sample(at_s: float, **changes: Any) -> Sample:
    """A sample of a daemon that is well."""
    values: dict[str, Any] = {
        "at_s": at_s,
        "pss_mb": {"supervisor": 25.0, "infer": 400.0, "capture@bench": 75.0},
        "fds": {"infer": 40, "capture@bench": 12},
        "threads": {"infer": 18, "capture@bench": 4},
        "p50_ms": 15.0,
        "p99_ms": 30.0,
        "results": 150,
        "faces": 500,
        "captured": int(at_s * 30),
        "published": int(at_s * 30),
        "dropped": {},
        "in_flight": 1,
        "load": 1.0,
    }
    return Sample(**{**values, **changes})


def run_of(minutes: int, **how: Any) -> list[Sample]:
    """A run; `how` gives a field's value at so many seconds. Memory has noise and grows in the warm-up."""
    noise = np.random.default_rng(0).normal(0, 1.5, minutes * MINUTE)
    samples = []
    for index in range(minutes * MINUTE):
        at_s = 5.0 * (index + 1)
        infer = 400 + float(noise[index]) + min(0.0, at_s - WARM_UP_S)
        well: dict[str, Any] = {"pss_mb": {"infer": infer, "capture@bench": 75.0}}
        samples.append(sample(at_s, **{**well, **{name: value(at_s) for name, value in how.items()}}))
    return samples


def verdict_of(samples: list[Sample]) -> Verdict:
    return judge(samples, WARM_UP_S, LIMITS)


def test_a_daemon_that_is_well_breaks_no_limit_whatever_its_warm_up_took() -> None:
    verdict = verdict_of(run_of(30))

    assert verdict.broken == ()
    assert abs(verdict.memory.per_h) < 5
    assert verdict.measured_s == pytest.approx(26 * 60, abs=10)


def test_a_leak_of_30_mb_an_hour_is_found_in_the_process_that_leaks() -> None:
    def leak(at_s: float) -> dict[str, float]:
        return {"infer": 400.0 + 30 * at_s / 3600, "capture@bench": 75.0}

    verdict = verdict_of(run_of(30, pss_mb=leak))

    assert verdict.memory.per_h == pytest.approx(30, abs=1)
    assert verdict.memory_of["infer"].per_h == pytest.approx(30, abs=1)
    assert verdict.memory_of["capture@bench"].per_h == 0
    assert verdict.broken == ("memory grow by 30.0 MB an hour, allowed are 12",)


def test_peaks_of_a_tenth_of_the_samples_do_not_bend_the_slope() -> None:
    def peaks(at_s: float) -> dict[str, float]:
        return {"infer": 700.0 if at_s > 1500 and at_s % 20 == 0 else 400.0}

    assert verdict_of(run_of(30, pss_mb=peaks)).memory.per_h == 0


def test_a_heap_that_rises_and_is_given_back_every_minute_is_judged_by_its_ebbs() -> None:
    """A quarter of a run of half an hour, with a tide that beats with the samples, is not a slope."""

    def tide(leak_mb_per_h: float) -> Callable[[float], dict[str, float]]:
        def memory(at_s: float) -> dict[str, float]:
            flood = 90 * ((at_s % 60.7) / 60.7) ** 0.5 + 40 * np.sin(at_s / 500)
            return {"infer": 300 + flood + leak_mb_per_h * at_s / 3600, "capture@bench": 75.0}

        return memory

    sound, leaking = (verdict_of(run_of(240, pss_mb=tide(leak))) for leak in (0.0, 30.0))

    assert sound.broken == ()
    assert [sentence.split(" by ")[0] for sentence in leaking.broken] == ["memory grow"]
    assert leaking.memory.low < 30 < leaking.memory.high


def test_growth_that_chance_may_have_made_breaks_no_limit() -> None:
    noise = np.random.default_rng(1).normal(0, 30, 40 * MINUTE)

    def restless(at_s: float) -> dict[str, float]:
        return {"infer": 400 + float(noise[int(at_s / 5) - 1]) + 30 * at_s / 3600, "capture@bench": 75.0}

    verdict = verdict_of(run_of(30, pss_mb=restless))

    assert verdict.memory.per_h > LIMITS.memory_mb_per_h and verdict.memory.low < 0
    assert verdict.broken == ()


def test_growth_that_is_steep_and_small_is_no_leak() -> None:
    def step(at_s: float) -> dict[str, float]:
        return {"infer": 400.0 + 60 * at_s / 3600}  # an MB and a half in 90 s

    samples = [each for each in run_of(6, pss_mb=step) if each.at_s <= WARM_UP_S + 90]

    assert verdict_of(samples).memory.per_h == pytest.approx(60, abs=1)
    assert verdict_of(samples).broken == ()


@pytest.mark.parametrize(
    ("field", "sentence"), [("fds", "open files grow by"), ("threads", "threads grow by")]
)
def test_a_file_or_thread_every_five_minutes_is_too_many(field: str, sentence: str) -> None:
    verdict = verdict_of(run_of(30, **{field: lambda at_s: {"infer": 40 + int(at_s / 300)}}))

    assert getattr(verdict, field).per_h == pytest.approx(12, abs=1)
    assert len(verdict.broken) == 1
    assert verdict.broken[0].startswith(sentence)


def test_latency_that_doubles_is_drift_and_a_slow_minute_is_none() -> None:
    slower = verdict_of(run_of(30, p99_ms=lambda at_s: 30.0 * (1 + at_s / 1800)))
    one_minute = verdict_of(run_of(30, p99_ms=lambda at_s: 300.0 if 1700 < at_s < 1760 else 30.0))

    assert slower.p99_drift == pytest.approx(1.47, abs=0.05)
    assert judge(run_of(30, p50_ms=lambda at_s: 1 + at_s), 0, LIMITS).broken[0].startswith("p50 of the last")
    assert one_minute.broken == ()


def test_dropped_frames_count_from_the_end_of_the_warm_up() -> None:
    early = verdict_of(run_of(30, dropped=lambda at_s: {"queue_full": int(min(at_s, WARM_UP_S))}))
    always = verdict_of(run_of(30, dropped=lambda at_s: {"stale": int(at_s)}))

    assert early.dropped_share == 0
    assert always.broken == ("3.3% of the frames were dropped, allowed are 1.0%",)


def test_a_daemon_that_does_nothing_is_not_well() -> None:
    verdict = verdict_of(run_of(30, published=lambda at_s: int(min(at_s, 900) * 30)))

    assert verdict.broken[0].startswith("nothing was published in the last")


def test_too_few_samples_are_no_verdict() -> None:
    with pytest.raises(ValueError, match="0 samples after the warm-up"):
        verdict_of(run_of(4)[:-1])


def test_the_slope_of_a_line_is_the_line_and_drift_of_too_little_is_none() -> None:
    assert slope([0.0, 1800.0, 3600.0], [1.0, 2.0, 3.0]) == Slope(2.0, 2.0, 2.0)
    assert drift([1.0, 2.0]) == 1.0
    assert drift([2.0, 2.0, 9.0, 9.0, 3.0, 3.0]) == 1.5


def test_a_broken_limit_is_one_sentence_after_json_and_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leaking = Soaked(run_of(30, pss_mb=lambda at_s: {"infer": 400.0 + at_s}), {"flags": 7})

    with pytest.raises(VisagedError, match=r"^memory grow by 3600.0 MB an hour, allowed are 12$"):
        report(leaking, {"cpu": "x"}, WARM_UP_S, LIMITS, tmp_path)

    figures = msgspec.json.decode((tmp_path / "soak.json").read_bytes())
    assert figures["verdict"]["memory"]["per_h"] == 3600
    assert (len(figures["samples"]), figures["deeds"]) == (360, {"flags": 7})
    picture = cv2.imread(str(tmp_path / "soak.png"))
    assert picture is not None and picture.std() > 5
    assert "+3600.0 MB/h" in capsys.readouterr().out


def test_a_run_that_failed_keeps_what_was_sampled_and_says_why(tmp_path: Path) -> None:
    broken_off = Soaked(run_of(1), failure="the daemon ended with exit code 1")

    with pytest.raises(VisagedError, match=r"ended early: the daemon ended .*; too short for a verdict"):
        report(broken_off, {}, WARM_UP_S, LIMITS, tmp_path)

    assert len(msgspec.json.decode((tmp_path / "soak.json").read_bytes())["samples"]) == MINUTE


def test_the_usage_of_a_process_that_is_none_of_the_daemons_goes_by_its_number() -> None:
    import os

    usage = process_usages(os.getpid())[f"pid {os.getpid()}"]

    assert usage.pss_bytes > 10e6
    assert usage.n_fds >= 3
    assert usage.n_threads >= 1
