"""What a long run says: slopes, drift, drops, and which limits are broken. Arithmetic only."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from msgspec import Struct
from scipy.stats import theilslopes

MIN_SAMPLES = 6  # two in each third
TIDE_S = 60.0
"""Infer gives freed memory back so often; between, its heap rises by a quarter. What stays is the ebb."""
NOISE_MB, NOISE_COUNT = 4.0, 1.5
"""Growth within the run that is no leak, however steep: what an allocator rounds, a file open just now."""


class Sample(Struct, frozen=True, kw_only=True):
    """What was seen at one moment, `at_s` seconds after the first result.

    Latencies (ms, capture to publication) are of the results since the sample before, 0 when there were none.
    Captured, published and dropped frames count from the start of the daemon.
    """

    at_s: float
    pss_mb: dict[str, float]
    fds: dict[str, int]
    threads: dict[str, int]
    p50_ms: float
    p99_ms: float
    results: int
    faces: int
    captured: int
    published: int
    dropped: dict[str, int]
    in_flight: int
    load: float

    @property
    def memory_mb(self) -> float:
        """All processes together."""
        return sum(self.pss_mb.values())

    @property
    def n_dropped(self) -> int:
        """For all reasons together."""
        return sum(self.dropped.values())

    @property
    def n_fds(self) -> int:
        """All processes together."""
        return sum(self.fds.values())

    @property
    def n_threads(self) -> int:
        """All processes together."""
        return sum(self.threads.values())


@dataclass(frozen=True, slots=True)
class Limits:
    """What a long run may show after its warm-up."""

    memory_mb_per_h: float = 12.0
    fds_per_h: float = 4.0
    drift: float = 1.5
    dropped_share: float = 0.01


class Slope(Struct, frozen=True):
    """How fast something grows, per hour: the Theil-Sen estimate and its 95 % interval.

    Neighbouring samples resemble each other, which the interval does not know: it is too narrow, but for
    memory, of which there is one value a minute.
    """

    per_h: float
    low: float
    high: float

    def grown(self, seconds: float) -> float:
        """Return by how much it grows in so many seconds."""
        return self.per_h * seconds / 3600


class Verdict(Struct, frozen=True, kw_only=True):
    """What a run says. `broken` has a sentence per limit that is broken.

    Drifts are the median of the last third over that of the first, of the percentiles of each sample.
    """

    measured_s: float
    memory: Slope
    memory_of: dict[str, Slope]
    fds: Slope
    threads: Slope
    p50_drift: float
    p99_drift: float
    dropped_share: float
    broken: tuple[str, ...]


def judge(samples: Sequence[Sample], warm_up_s: float, limits: Limits) -> Verdict:
    """Return what the samples after the warm-up say.

    Raises:
        ValueError: fewer than `MIN_SAMPLES` of them.
    """
    kept = [sample for sample in samples if sample.at_s >= warm_up_s]
    if len(kept) < MIN_SAMPLES:
        raise ValueError(f"{len(kept)} samples after the warm-up; {MIN_SAMPLES} are needed")
    at_s = [sample.at_s for sample in kept]
    names = [name for name in kept[-1].pss_mb if all(name in sample.pss_mb for sample in kept)]
    captured = kept[-1].captured - kept[0].captured
    verdict = Verdict(
        measured_s=at_s[-1] - at_s[0],
        memory=slope(*ebbs(at_s, [sample.memory_mb for sample in kept])),
        memory_of={name: slope(*ebbs(at_s, [sample.pss_mb[name] for sample in kept])) for name in names},
        fds=slope(at_s, [sample.n_fds for sample in kept]),
        threads=slope(at_s, [sample.n_threads for sample in kept]),
        p50_drift=drift([sample.p50_ms for sample in kept if sample.results]),
        p99_drift=drift([sample.p99_ms for sample in kept if sample.results]),
        dropped_share=(kept[-1].n_dropped - kept[0].n_dropped) / max(1, captured),
        broken=(),
    )
    broken = [*_growing(verdict, limits), *_slower(verdict, limits), *_stopped(kept)]
    return msgspec.structs.replace(verdict, broken=tuple(broken))


def ebbs(at_s: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return the least value of each whole minute, and when it was; all of a run that is too short for it."""
    minutes = [int((at - at_s[0]) / TIDE_S) for at in at_s]
    lowest: dict[int, tuple[float, float]] = {}
    for minute, at, value in zip(minutes, at_s, values, strict=True):
        if minute < minutes[-1] and (minute not in lowest or value < lowest[minute][1]):
            lowest[minute] = at, value
    if len(lowest) < MIN_SAMPLES:
        return list(at_s), list(values)
    return [at for at, _ in lowest.values()], [value for _, value in lowest.values()]


def slope(at_s: Sequence[float], values: Sequence[float]) -> Slope:
    """Return the median of the slopes between all pairs of samples: a few that stick out do not bend it.

    Source: Sen, "Estimates of the regression coefficient based on Kendall's tau", JASA 63 (1968).
    """
    fit = theilslopes(np.asarray(values, np.float64), np.asarray(at_s, np.float64) / 3600)
    return Slope(round(float(fit[0]), 3), round(float(fit[2]), 3), round(float(fit[3]), 3))


def drift(values: Sequence[float]) -> float:
    """Return the median of the last third over that of the first; 1 when there is too little to say."""
    third = len(values) // 3
    first = float(np.median(values[:third])) if third else 0.0
    return round(float(np.median(values[-third:])) / first, 3) if first else 1.0


def _growing(verdict: Verdict, limits: Limits) -> Iterator[str]:
    for name, grows, limit, unit, noise in (
        ("memory", verdict.memory, limits.memory_mb_per_h, "MB", NOISE_MB),
        ("open files", verdict.fds, limits.fds_per_h, "files", NOISE_COUNT),
        ("threads", verdict.threads, limits.fds_per_h, "threads", NOISE_COUNT),
    ):
        if grows.low > 0 and grows.per_h > limit and grows.grown(verdict.measured_s) > noise:
            yield f"{name} grow by {grows.per_h:.1f} {unit} an hour, allowed are {limit:g}"


def _slower(verdict: Verdict, limits: Limits) -> Iterator[str]:
    for name, ratio in (("p50", verdict.p50_drift), ("p99", verdict.p99_drift)):
        if ratio > limits.drift:
            said = f"{name} of the last third is {ratio:.2f} times that of the first"
            yield f"{said}, allowed is {limits.drift:g}"
    share, allowed = verdict.dropped_share, limits.dropped_share
    if share > allowed:
        yield f"{share:.1%} of the frames were dropped, allowed are {allowed:.1%}"


def _stopped(kept: Sequence[Sample]) -> Iterator[str]:
    """Yield that nothing was published any more: a daemon that does nothing leaks nothing either."""
    third = kept[-(len(kept) // 3) :]
    if third[-1].published == third[0].published:
        yield f"nothing was published in the last {third[-1].at_s - third[0].at_s:.0f} s"
