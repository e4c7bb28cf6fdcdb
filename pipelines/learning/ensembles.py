"""Several networks as one: weights, committees and selections fitted on the tuning part; a head for all.

Decision level works on calibrated probabilities, feature level on feature vectors. What is fitted here is
what `kernels/fusion.py` and an ONNX Gemm apply. Fit on the tuning part only: on faces the members were
trained with, the one that knows them by heart wins.

Shape letters: E members, N faces, K classes, D features of one member, F of all.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from ...kernels import fusion
from ..fuser import CascadeHead, CommitteeFusion, Group, fuse_group
from .metrics import ACCURACY, LOG_LOSS, Metric, fit_temperature

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

# The authors' program tries -50 to 150 in steps of 0.1; below 0 the worse members count more.
Q_GRID = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 150.0)
LEAST_ACCURACY = 1e-6  # so that members that are never right do not make weights of 0 / 0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Members:
    """What E networks say about the same N faces.

    `p` is `(E, N, K)` calibrated probabilities, each over the classes that the member `knows` `(E, K)`,
    and 0 for the others. `names` are E different ones.
    """

    names: tuple[str, ...]
    p: F32
    knows: Bool

    def __post_init__(self) -> None:
        shapes = f"{len(self.names)=} {self.p.shape=} {self.knows.shape=}"
        if self.p.ndim != 3 or self.knows.shape != (self.p.shape[0], self.p.shape[2]):
            raise ValueError(f"p must be (E, N, K) and knows (E, K): {shapes}")
        if len(set(self.names)) != len(self.p) or len(self.names) != len(self.p):
            raise ValueError(f"one name, used once, for each member: {self.names} {shapes}")

    def __len__(self) -> int:
        return len(self.names)

    def accuracies(self, targets: F32) -> F32:
        """Return `(E,)` in 0..1, on `(N, K)` shares of votes."""
        return np.array([ACCURACY(p, targets) for p in self.p], np.float32)

    def of(self, name: str) -> tuple[F32, Bool]:
        """Return the `(N, K)` probabilities of one member, and the `(K,)` classes it knows.

        Raises:
            ValueError: there is no such member.
        """
        if name not in self.names:
            raise ValueError(f"no member is called {name}; there are {', '.join(self.names)}")
        index = self.names.index(name)
        return self.p[index], self.knows[index]


def fit_temperatures(logits: F32, knows: Bool, targets: F32) -> F32:
    """Return `(E,)` temperatures, each fitted on the classes the member knows and the faces that show them.

    Args:
        logits: `(E, N, K)`.
        knows: `(E, K)`.
        targets: `(N, K)` shares of votes.
    """
    temperatures = []
    for member, known in zip(logits, knows, strict=True):
        votes = targets[:, known].sum(axis=1)
        seen = votes > 0
        shares = targets[seen][:, known] / votes[seen, None]
        temperatures.append(fit_temperature(member[seen][:, known], shares))
    return np.array(temperatures, np.float32)


@dataclass(frozen=True, slots=True)
class Weighting:
    """Weights `(E,)` with mean 1, which are the members' accuracies to the power of `q`."""

    q: float
    weights: F32


def tune_weights(
    members: Members, targets: F32, metric: Metric = ACCURACY, grid: Sequence[float] = Q_GRID
) -> Weighting:
    """Return the VA-Expo-WA weights `a^q / sum a^q` whose weighted sum is best on the tuning part.

    q = 0 is the mean; a large q leaves the best member alone. Of equally good ones the smallest wins.

    Args:
        members: on the tuning part.
        targets: `(N, K)` shares of votes.
        metric: what q is chosen by.
        grid: what is tried for q.

    Source: Kim et al., "Hierarchical committee of deep CNNs with exponentially-weighted decision fusion
    for static facial expression recognition", ICMI 2015, the VA-Expo-WA rule.
    """
    accuracies = np.maximum(members.accuracies(targets), LEAST_ACCURACY)
    accuracies /= accuracies.max()  # the same weights, and no power of it vanishes for all
    tried = [Weighting(q, fusion.accuracy_weights(accuracies, q)) for q in sorted(grid)]
    values = [metric(fusion.fuse_sum(members.p, members.knows, w.weights), targets) for w in tried]
    return tried[metric.best_of(values)]


def fit_committee(group: Group, members: Members, targets: F32, metric: Metric = ACCURACY) -> CommitteeFusion:
    """Return a committee with the weights of every group tuned, from the members upwards, by `tune_weights`.

    Args:
        group: who is in it; its weights do not matter.
        members: on the tuning part.
        targets: `(N, K)` shares of votes.
        metric: what every q is chosen by.

    Raises:
        ValueError: a member is not known, or two groups have one name.

    Source: Kim et al., ICMI 2015 (see `tune_weights`), the hierarchical committee.
    """
    seen: set[str] = set()

    def tuned(group: Group) -> tuple[Group, F32, Bool]:
        """Return the group with its weights, what it says, and the classes it knows."""
        if group.name in seen:
            raise ValueError(f"two groups of the committee are called {group.name}")
        seen.add(group.name)
        parts: list[Group | str] = []
        said: list[tuple[F32, Bool]] = []
        for part in group.parts:
            if isinstance(part, str):
                parts.append(part)
                said.append(members.of(part))
            else:
                below, p, knows = tuned(part)
                parts.append(below)
                said.append((p, knows))
        names = tuple(part if isinstance(part, str) else part.name for part in parts)
        level = Members(names, np.stack([p for p, _ in said]), np.stack([knows for _, knows in said]))
        weights = tune_weights(level, targets, metric).weights
        whole = Group(name=group.name, parts=tuple(parts), weights=tuple(map(float, weights)))
        return whole, *fuse_group(whole, members.of)

    return CommitteeFusion(top=tuned(group)[0])


@dataclass(frozen=True, slots=True)
class Selection:
    """How often each member was chosen, `(E,)` `counts`, and the metric after each choice up to the best."""

    counts: I64
    path: tuple[str, ...]
    values: tuple[float, ...]

    @property
    def weights(self) -> F32:
        """`(E,)` weights with mean 1, for `fuse_sum`."""
        return _weights_of(self.counts)


def select_greedily(
    members: Members, targets: F32, metric: Metric = LOG_LOSS, n_choices: int = 30
) -> Selection:
    """Return the members, each as often as it helps, whose mean is best on the tuning part.

    The best member comes first; then the one whose addition is best is added, again and again. What was
    best on the way is returned, so it is never worse there than the best single member.

    Args:
        members: on the tuning part.
        targets: `(N, K)` shares of votes.
        metric: what is made as good as possible.
        n_choices: after which the search ends.

    Source: Caruana et al., "Ensemble selection from libraries of models", ICML 2004, sections 2.1 and 2.2.
    """
    chosen: list[int] = []
    values: list[float] = []
    for _ in range(n_choices):
        tried = [
            metric(fusion.fuse_sum(members.p, members.knows, _weights_of(counts)), targets)
            for counts in (_counts([*chosen, index], len(members)) for index in range(len(members)))
        ]
        chosen.append(metric.best_of(tried))
        values.append(tried[chosen[-1]])
    n_best = metric.best_of(values) + 1
    path = tuple(members.names[index] for index in chosen[:n_best])
    return Selection(_counts(chosen[:n_best], len(members)), path, tuple(values[:n_best]))


def _counts(chosen: list[int], n_members: int) -> I64:
    return np.bincount(chosen, minlength=n_members).astype(np.int64)


def _weights_of(counts: I64) -> F32:
    weights: F32 = (counts * (len(counts) / counts.sum())).astype(np.float32)
    return weights


@dataclass(frozen=True, slots=True)
class Pair:
    """How alike the mistakes of two members are; NaN where that is undefined, as for one that makes none.

    `disagreement` 0..1: share of faces that only one says right. `q` -1..1: Yule's Q, 0 for independent
    mistakes, 1 when one's are among the other's. `correlation` -1..1 of being right. `double_fault` 0..1:
    share of faces that both say wrong: their vote cannot mend those.
    """

    first: str
    second: str
    disagreement: float
    q: float
    correlation: float
    double_fault: float


def diversity(members: Members, targets: F32) -> list[Pair]:
    """Return how alike the mistakes of every two members are, on `(N, K)` shares of votes.

    Source: Kuncheva & Whitaker, "Measures of diversity in classifier ensembles", Machine Learning 51,
    2003, the pairwise measures of section 2; Q from Yule, Phil. Trans. A 194, 1900.
    """
    right = members.p.argmax(axis=2) == targets.argmax(axis=1)
    pairs = []
    for i, j in combinations(range(len(members)), 2):
        n11, n00 = int((right[i] & right[j]).sum()), int((~right[i] & ~right[j]).sum())
        n10, n01 = int((right[i] & ~right[j]).sum()), int((~right[i] & right[j]).sum())
        same, other, n = n11 * n00, n10 * n01, max(right.shape[1], 1)
        spread = float(n11 + n10) * (n01 + n00) * (n11 + n01) * (n10 + n00)
        pairs.append(
            Pair(
                members.names[i],
                members.names[j],
                disagreement=(n10 + n01) / n,
                q=(same - other) / (same + other) if same + other else np.nan,
                correlation=(same - other) / spread**0.5 if spread else np.nan,
                double_fault=n00 / n,
            )
        )
    return pairs


def fit_cascade(
    features: Sequence[F32], targets: F32, gates: F32 | None = None, c: float = 3.0
) -> CascadeHead:
    """Return the head with the smallest `c * sum of cross entropies + |weights|^2 / 2`, found by L-BFGS.

    There is one minimum. A member's gate multiplies its features, so a small one makes its weights dear.

    Args:
        features: `(N, D)` of each member, D of its own.
        targets: `(N, K)` shares of votes.
        gates: `(E,)` from `fusion.accuracy_weights` or `learn_gates`; None for the plain cascade.
        c: how much the faces count against small weights, > 0.

    Source: Bargal et al., "Emotion recognition in the wild from videos using images", ICMI 2016, the
    cascade; the loss as in Fan et al., "LIBLINEAR", JMLR 9, 2008, there with two classes.
    """
    joined = fusion.cascade(features).astype(np.float64)
    opened = np.ones(len(features), np.float32) if gates is None else gates
    if len(targets) != len(joined) or opened.shape != (len(features),):
        raise ValueError(f"{joined.shape=} {targets.shape=} {opened.shape=} for {len(features)} members")
    gate_of = np.repeat(opened.astype(np.float64), [f.shape[1] for f in features])[:, None]
    shape, n_weights = (len(gate_of), targets.shape[1]), len(gate_of) * targets.shape[1]
    pull = 1 / (c * max(len(joined), 1))

    def loss(x: F64) -> tuple[float, F64]:
        weights, bias = x[:n_weights].reshape(shape), x[n_weights:]
        value, error = _cross_entropy(joined @ (weights * gate_of) + bias, targets)
        slope = (joined.T @ error) * gate_of + pull * weights
        return value + pull / 2 * float((weights**2).sum()), np.append(slope, error.sum(axis=0))

    x = _least(loss, n_weights + shape[1])
    folded = x[:n_weights].reshape(shape) * gate_of
    return CascadeHead(folded.astype(np.float32), x[n_weights:].astype(np.float32), opened)


def learn_gates(features: Sequence[F32], targets: F32, held_out: Bool, c: float = 3.0) -> F32:
    """Return `(E,)` gates, E times a softmax, that suit faces which the plain cascade was not fitted on.

    The head of the plain cascade is fitted on the others; then each member's part of its logits is
    multiplied by its gate, and all by one scale, so that the log loss of the held-out faces is smallest.
    (Gates learned together with the weights, on the same faces, shut out members that see something:
    one large gate is the cheapest way to make weights small.)

    Args:
        features: `(N, D)` of each member, D of its own.
        targets: `(N, K)` shares of votes.
        held_out: `(N,)`; no person may be on both sides.
        c: as for `fit_cascade`.
    """
    head = fit_cascade([f[~held_out] for f in features], targets[~held_out], c=c)
    ends = np.cumsum([f.shape[1] for f in features])[:-1]
    parts = zip(features, np.split(head.weights.astype(np.float64), ends), strict=True)
    logits = np.stack([fusion.comparable(f[held_out]) @ weights for f, weights in parts])
    shares, n_members = targets[held_out], len(features)

    def loss(x: F64) -> tuple[float, F64]:
        part, scale = softmax(x[:-1]), n_members * np.exp(x[-1])
        mixed = np.tensordot(part, logits, 1)
        value, error = _cross_entropy(scale * mixed + head.bias, shares)
        by_part = scale * (logits * error).sum(axis=(1, 2))
        slope = np.append(part * (by_part - part @ by_part), scale * float((mixed * error).sum()))
        pull = 1 / max(len(shares), 1)
        return value + pull / 2 * float((x**2).sum()), slope + pull * x

    gates: F32 = (n_members * softmax(_least(loss, n_members + 1)[:-1])).astype(np.float32)
    return gates


def _least(loss: Callable[[F64], tuple[float, F64]], n: int) -> F64:
    """Return the `(n,)` numbers with the smallest loss, of which `loss` also returns the slope."""
    found = minimize(loss, np.zeros(n), jac=True, method="L-BFGS-B", options={"maxiter": 2000, "gtol": 1e-6})
    if not found.success:
        log.warning("fit of a cascade ended early: %s", found.message)
    x: F64 = found.x
    return x


def _cross_entropy(logits: F64, targets: F32) -> tuple[float, F64]:
    """Return the mean cross entropy in nats, and its slope by the logits."""
    log_p = log_softmax(logits, axis=1)
    n = max(len(logits), 1)
    return float(-(targets * log_p).sum() / n), (np.exp(log_p) - targets) / n
