"""How well a predictor does, how sure one can be of it, and how sure the predictor should be of itself.

Every metric follows from sums over faces. So it is computed on thousands of resamples at once: a resample
is a number of times that each group counts. Groups (person, track, session), not faces, are drawn, because
faces of one group are alike and count for less than as many faces of others.

Shape letters: N faces, K classes, M bins of confidence, R resamples, G groups, P parts of a metric.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Text = npt.NDArray[np.str_]

N_BINS = 15  # Guo et al. 2017, section 5
FLOOR = 1e-9  # a probability below it counts as this: one veto that is wrong is bad, not infinitely bad
DRAWS_AT_ONCE = 4_000_000  # groups drawn in one go: 64 MB


@dataclass(frozen=True, slots=True)
class ClassReport:
    """What was said about each class: `confusion` `(K, K)` counts, a row per true class, a column per said.

    A share of nothing (the recall of a class that has no faces) is NaN.
    """

    confusion: I64

    @property
    def n_true(self) -> I64:
        """`(K,)` faces of each class."""
        n_true: I64 = self.confusion.sum(axis=1)
        return n_true

    @property
    def recall(self) -> F64:
        """`(K,)` share of a class's faces that were said to be of it, in 0..1."""
        return _share(self._hits, self.n_true)

    @property
    def precision(self) -> F64:
        """`(K,)` share of the faces said to be of a class that are, in 0..1."""
        return _share(self._hits, self.confusion.sum(axis=0))

    @property
    def f1(self) -> F64:
        """`(K,)` harmonic mean of recall and precision, in 0..1."""
        return _share(2 * self._hits, self.n_true + self.confusion.sum(axis=0))

    @property
    def accuracy(self) -> float:
        """Share of all faces that were said right, in 0..1."""
        return float(_share(self._hits.sum(), self.confusion.sum()))

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that were shown or said, in 0..1."""
        return float(_mean_of_known(self.f1))

    @property
    def _hits(self) -> I64:
        return np.diagonal(self.confusion)


def confusion_matrix(labels: I64, said: I64, n_classes: int) -> I64:
    """Return `(K, K)` counts: a row per true class, a column per class said.

    Args:
        labels: `(N,)` true classes, below `n_classes`.
        said: `(N,)` classes said, below `n_classes`.
        n_classes: K.
    """
    if labels.shape != said.shape or labels.ndim != 1:
        raise ValueError(f"{labels.shape=} {said.shape=}")
    places = labels.astype(np.int64) * n_classes + said
    return np.bincount(places, minlength=n_classes**2).reshape(n_classes, n_classes).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Metric:
    """A number about probabilities `(N, K)` and shares of votes `(N, K)`; call it with both.

    The true class is the one with the largest share, the first of several.
    """

    name: str
    parts: Callable[[F32, F32], F64]
    """Probabilities and shares to `(N, P)`: what each face adds."""
    value: Callable[[F64], F64]
    """`(..., P)` sums over faces to `(...)` values; NaN when there is nothing to measure."""
    is_better_larger: bool = True

    def __call__(self, probabilities: F32, targets: F32) -> float:
        """Return the value on these faces."""
        _check(probabilities, targets)
        return float(self.value(self.parts(probabilities, targets).sum(axis=0)))

    def best_of(self, values: Sequence[float]) -> int:
        """Return the place of the best value, the first of several; NaN is worse than any."""
        signed = np.asarray(values) if self.is_better_larger else -np.asarray(values)
        return int(np.where(np.isnan(signed), -np.inf, signed).argmax())


def _mean_parts(p: F32, targets: F32, of: Callable[[F32, F32], npt.NDArray[np.generic]]) -> F64:
    return np.stack([of(p, targets).astype(np.float64), np.ones(len(p))], axis=1)


def _is_right(p: F32, targets: F32) -> npt.NDArray[np.bool_]:
    right: npt.NDArray[np.bool_] = p.argmax(axis=1) == targets.argmax(axis=1)
    return right


def _squares(p: F32, targets: F32) -> F64:
    squares: F64 = ((p.astype(np.float64) - targets) ** 2).sum(axis=1)
    return squares


def _surprise(p: F32, targets: F32) -> F64:
    surprise: F64 = -(targets * np.log(np.maximum(p.astype(np.float64), FLOOR))).sum(axis=1)
    return surprise


def _f1_parts(p: F32, targets: F32) -> F64:
    classes = np.arange(p.shape[1])
    said, true = p.argmax(axis=1)[:, None] == classes, targets.argmax(axis=1)[:, None] == classes
    return np.concatenate([2 * (said & true), said.astype(int) + true], axis=1).astype(np.float64)


def _macro_f1(sums: F64) -> F64:
    doubled_hits, n_named = np.split(sums, 2, axis=-1)
    return _mean_of_known(_share(doubled_hits, n_named))


def _bin_parts(p: F32, targets: F32, n_bins: int = N_BINS) -> F64:
    """Return `(N, 3 M)`: in the place of the face's bin, whether it was right, how sure it was, and 1."""
    confidence = p.max(axis=1).astype(np.float64)
    bins = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    place = bins[:, None] == np.arange(n_bins)
    what = np.stack([_is_right(p, targets), confidence, np.ones(len(p))], axis=1)
    parts: F64 = (what[:, :, None] * place[:, None, :]).reshape(len(p), 3 * n_bins)
    return parts


def _ece(sums: F64) -> F64:
    right, confidence, n_faces = np.split(sums, 3, axis=-1)
    return _share(np.abs(right - confidence).sum(axis=-1), n_faces.sum(axis=-1))


def _mean(sums: F64) -> F64:
    return _share(sums[..., 0], sums[..., 1])


ACCURACY = Metric("accuracy", partial(_mean_parts, of=_is_right), _mean)
"""Share of faces said right, in 0..1."""
MACRO_F1 = Metric("macro F1", _f1_parts, _macro_f1)
"""Mean F1 of the classes that were shown or said, in 0..1."""
ECE = Metric("ECE", _bin_parts, _ece, is_better_larger=False)
"""Expected calibration error over 15 bins of equal width, in 0..1.

It cannot be negative, so resampling can only add to a small one: its interval lies too high. Differences
suffer less. Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, eq. 3."""
BRIER = Metric("Brier score", partial(_mean_parts, of=_squares), _mean, is_better_larger=False)
"""Mean squared distance from the shares of votes, summed over classes, in 0..2.

Source: Brier, "Verification of forecasts expressed in terms of probability", MWR 78, 1950, eq. 2."""
LOG_LOSS = Metric("log loss", partial(_mean_parts, of=_surprise), _mean, is_better_larger=False)
"""Mean cross entropy against the shares of votes, in nats; probabilities below 1e-9 count as that."""

METRICS = {metric.name: metric for metric in (ACCURACY, MACRO_F1, ECE, BRIER, LOG_LOSS)}


def recall_of(index: int, name: str) -> Metric:
    """Return the recall of one class as a metric, for an interval of it."""

    def parts(p: F32, targets: F32) -> F64:
        true = targets.argmax(axis=1) == index
        return np.stack([true & (p.argmax(axis=1) == index), true], axis=1).astype(np.float64)

    return Metric(f"recall of {name}", parts, _mean)


@dataclass(frozen=True, slots=True)
class Reliability:
    """How often a predictor was right where it was so sure: what a reliability diagram shows.

    `edges` is `(M + 1,)`; `n_faces`, and the mean `confidence` and `accuracy` in 0..1, are `(M,)`. The
    means are NaN in a bin without faces.
    """

    edges: F64
    n_faces: I64
    confidence: F64
    accuracy: F64

    @property
    def ece(self) -> float:
        """Expected calibration error, in 0..1."""
        gaps = np.abs(self.accuracy - self.confidence)
        return float(_share(np.nansum(gaps * self.n_faces), self.n_faces.sum()))


def reliability(probabilities: F32, targets: F32, n_bins: int = N_BINS) -> Reliability:
    """Return how often `(N, K)` probabilities were right in each bin of their largest.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 2.
    """
    _check(probabilities, targets)
    right, confidence, n_faces = np.split(_bin_parts(probabilities, targets, n_bins).sum(axis=0), 3)
    edges = np.linspace(0, 1, n_bins + 1)
    return Reliability(edges, n_faces.astype(np.int64), _share(confidence, n_faces), _share(right, n_faces))


@dataclass(frozen=True, slots=True)
class Truth:
    """What people saw: `targets` `(N, K)` shares of votes; faces of one of `groups` `(N,)` are alike."""

    targets: F32
    groups: Text

    def __post_init__(self) -> None:
        if self.targets.ndim != 2 or self.groups.shape != self.targets.shape[:1]:
            raise ValueError(f"one group for each row of targets: {self.targets.shape=} {self.groups.shape=}")

    def __len__(self) -> int:
        return len(self.groups)


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How an interval is found. The lower end of level 0.9 is a one-sided bound of 95 %."""

    n_resamples: int = 2000
    level: float = 0.95
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Interval:
    """A value on all faces, and where it lies in `level` of the resamples; NaN when that is unknown."""

    value: float
    low: float
    high: float


def interval(
    metric: Metric, probabilities: F32, truth: Truth, bootstrap: Bootstrap | None = None
) -> Interval:
    """Return a metric with the percentile interval of the cluster bootstrap.

    With fewer than about 20 groups it is too narrow; with one group there is none.

    Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3; whole groups as
    in Field & Welsh, "Bootstrapping clustered data", J. R. Stat. Soc. B 2007, section 3.
    """
    return _interval(metric, (probabilities,), truth, bootstrap or Bootstrap())


def difference(
    metric: Metric, pair: tuple[F32, F32], truth: Truth, bootstrap: Bootstrap | None = None
) -> Interval:
    """Return the metric of the first `(N, K)` probabilities less that of the second, with its interval.

    Both are measured on the same resamples: what makes a face hard for both does not widen the interval.
    """
    return _interval(metric, pair, truth, bootstrap or Bootstrap())


def _interval(
    metric: Metric, answers: tuple[F32] | tuple[F32, F32], truth: Truth, bootstrap: Bootstrap
) -> Interval:
    for p in answers:
        _check(p, truth.targets)
    parts = np.stack([metric.parts(p, truth.targets) for p in answers], axis=1)
    value = _less(metric.value(parts.sum(axis=0)))
    resampled = _less(metric.value(_resample(parts, truth.groups, bootstrap)))
    known = resampled[np.isfinite(resampled)]  # a rare class may be missing from a resample
    if len(np.unique(truth.groups)) < 2 or not len(known):
        return Interval(float(value), np.nan, np.nan)
    low, high = np.quantile(known, [(1 - bootstrap.level) / 2, (1 + bootstrap.level) / 2])
    return Interval(float(value), float(low), float(high))


def _resample(parts: F64, groups: Text, bootstrap: Bootstrap) -> F64:
    """Return `(R, ...)` sums of `(N, ...)` parts over as many groups as there are, drawn with replacement."""
    names, group_of = np.unique(groups, return_inverse=True)
    sums = np.zeros((len(names), parts[0].size if len(parts) else 0))
    np.add.at(sums, group_of, parts.reshape(len(parts), -1))
    random = np.random.default_rng(bootstrap.seed)
    at_once = max(DRAWS_AT_ONCE // max(len(names), 1), 1)
    resampled = []
    for start in range(0, bootstrap.n_resamples, at_once):
        n = min(at_once, bootstrap.n_resamples - start)
        drawn = random.integers(0, len(names), (n, len(names))) + np.arange(n)[:, None] * len(names)
        times = np.bincount(drawn.ravel(), minlength=n * len(names)).reshape(n, -1)
        resampled.append(times.astype(np.float64) @ sums)
    return np.concatenate(resampled).reshape(-1, *parts.shape[1:])


def _less(values: F64) -> F64:
    """Return `(...)`: the first of the last axis, less the second where there is one."""
    return values[..., 0] if values.shape[-1] == 1 else values[..., 0] - values[..., 1]


@dataclass(frozen=True, slots=True)
class Subgroup:
    """One row of a table by subgroup: how many faces of how many groups, and metrics by name."""

    name: str
    n_faces: int
    n_groups: int
    intervals: dict[str, Interval]


def subgroup_table(
    probabilities: F32,
    truth: Truth,
    subgroups: Text,
    metrics: Sequence[Metric] = (ACCURACY, MACRO_F1, LOG_LOSS),
    bootstrap: Bootstrap | None = None,
) -> list[Subgroup]:
    """Return a row for every subgroup, in the order of their names.

    Args:
        probabilities: `(N, K)`.
        truth: of the same faces.
        subgroups: `(N,)` any text: age band, camera, data set, light.
        metrics: what to measure.
        bootstrap: how intervals are found.
    """
    if subgroups.shape != truth.groups.shape:
        raise ValueError(f"one subgroup for each face: {subgroups.shape=} {truth.groups.shape=}")
    rows = []
    for name in np.unique(subgroups):
        keep = subgroups == name
        part = Truth(truth.targets[keep], truth.groups[keep])
        intervals = {m.name: interval(m, probabilities[keep], part, bootstrap) for m in metrics}
        rows.append(Subgroup(str(name), len(part), len(np.unique(part.groups)), intervals))
    return rows


def log_loss(logits: F32, targets: F32) -> float:
    """Return the mean cross entropy, in nats, of `(N, K)` logits against `(N, K)` shares of votes."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(-(targets * log_p).sum(axis=1).mean())


def fit_temperature(logits: F32, targets: F32) -> float:
    """Return the T in 0.1..10 for which `(N, K)` `logits / T` has the smallest log loss.

    The loss is convex in 1 / T, so there is one minimum to find.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, eq. 9.
    """
    found = minimize_scalar(
        lambda log_t: log_loss(logits / np.float32(np.exp(log_t)), targets),
        bounds=(np.log(0.1), np.log(10.0)),
        method="bounded",
    )
    return float(np.exp(found.x))


def _check(probabilities: F32, targets: F32) -> None:
    if probabilities.ndim != 2 or probabilities.shape != targets.shape:
        raise ValueError(f"{probabilities.shape=} {targets.shape=}")


def _share(part: npt.ArrayLike, whole: npt.ArrayLike) -> F64:
    """Return `part / whole`, NaN where `whole` is 0."""
    above, below = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    share: F64 = np.divide(above, below, out=np.full(below.shape, np.nan), where=below != 0)
    return share


def _mean_of_known(values: F64) -> F64:
    """Return the mean over the last axis of what is not NaN; NaN when nothing is."""
    known = ~np.isnan(values)
    return _share(np.where(known, values, 0).sum(axis=-1), known.sum(axis=-1))
