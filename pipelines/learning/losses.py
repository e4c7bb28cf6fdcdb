"""What training minimises: losses on vote shares and on features, and any weighted sum of them in one run.

Losses on logits teach what a face shows; those on features also shape the space in front of the last layer,
and `arcface` brings its own last layer. Centres follow their papers' rules, which no optimiser knows, so
they are buffers: checkpoints hold them, and weight decay and momentum leave them alone. What is learned by
gradient (the weights of `arcface`, the reference distance of `tuplet_clusters`) are parameters.

Shape letters: N samples of a batch, K classes, D features.
"""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from msgspec import Meta, Struct
from torch import Tensor, nn
from torch.nn import functional

from ..errors import ConfigError
from .tuplets import tuplet_loss

_SETTINGS = {
    "cross_entropy": {"smoothing", "balance"},
    "generalised_cross_entropy": {"q"},
    "centre": {"alpha"},
    "island": {"alpha", "apart"},
    "tuplet_clusters": {"reference", "gap", "n_positives", "n_negatives"},
    "arcface": {"margin", "scale", "easy_margin"},
}
KINDS = tuple(_SETTINGS)

_SHORT = 1e-3  # a centre below this length counts as this long, so that it is not flung away from 0


class LossConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One loss and its weight in the sum. An unknown kind and a setting of another kind are refused."""

    kind: str
    """On logits: `cross_entropy`, `generalised_cross_entropy`. On features: `centre`, `island`,
    `tuplet_clusters`, `arcface`."""
    weight: Annotated[float, Meta(ge=0)] = 1.0
    """Factor in the sum; 0 only watches. Usual beside `cross_entropy`: `centre` and `island` 0.01."""
    smoothing: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """cross_entropy: share of the target that is spread over all classes; 0.05 is usual."""
    balance: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """cross_entropy: b of the class weights (1 - b) / (1 - b^n); 0: all alike, 0.999 is usual."""
    q: Annotated[float, Meta(gt=0, le=1)] = 0.7
    """generalised_cross_entropy: near 0 it is cross entropy, 1 forgives wrong labels most."""
    alpha: Annotated[float, Meta(gt=0, le=1)] = 0.5
    """centre, island: how far the centres move in one step."""
    apart: Annotated[float, Meta(ge=0)] = 10.0
    """island: weight of the centres' cosines against the distances to them."""
    reference: Annotated[float, Meta(gt=0, lt=4)] = 1.0
    """tuplet_clusters: where T, which is learned, starts; squared distance of unit vectors, 0..4."""
    gap: Annotated[float, Meta(gt=0, lt=4)] = 0.8
    """tuplet_clusters: positives end at T - gap / 2, negatives begin at T + gap / 2."""
    n_positives: Annotated[int, Meta(ge=2, le=64)] = 4
    """tuplet_clusters: N, the query included."""
    n_negatives: Annotated[int, Meta(ge=1, le=64)] = 5
    """tuplet_clusters: M."""
    margin: Annotated[float, Meta(ge=0, lt=1.5)] = 0.5
    """arcface: angle in radians that the right class must be ahead."""
    scale: Annotated[float, Meta(gt=0, le=1000)] = 64.0
    """arcface: what cosines are multiplied by."""
    easy_margin: bool = False
    """arcface: no margin for samples more than 90 degrees from their class, which eases the first epochs."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"there is no loss {self.kind!r}; known: {', '.join(KINDS)}")
        own = {"kind", "weight", *_SETTINGS[self.kind]}
        for field in msgspec.structs.fields(self):
            if field.name not in own and getattr(self, field.name) != field.default:
                raise ValueError(f"{field.name} is no setting of the loss {self.kind!r}")


def parse_losses(rows: object) -> tuple[LossConfig, ...]:
    """Return the configurations in `rows`, as `[{"kind": "island", "weight": 0.01}]`.

    Raises:
        ConfigError: an unknown kind or setting, or a value out of range.
    """
    try:
        return msgspec.convert(rows, tuple[LossConfig, ...])
    except msgspec.ValidationError as error:
        raise ConfigError(f"the losses cannot be used: {error}") from error


class Batch(NamedTuple):
    """What the losses look at: logits `(N, K)`, features `(N, D)`, shares `(N, K)`, groups `(N,)` int64."""

    logits: Tensor
    features: Tensor
    targets: Tensor
    groups: Tensor

    @property
    def labels(self) -> Tensor:
        """`(N,)` int64: the class with the largest share, the first of several."""
        return self.targets.argmax(1)


class WeightedLosses(nn.Module):
    """The weighted sum of several losses. In training mode each call also moves the centres, once.

    Its `parameters` belong into the optimiser and its `state_dict` into the checkpoint. Call `eval` before
    looking at a batch that is not learned from, as for BatchNorm.

    Args:
        configs: at least one, each kind at most once.
        n_classes: K, at least 2.
        n_features: D.
        counts: `(K,)` training samples, or shares, of each class; needed by `balance` only.

    Raises:
        ConfigError: no loss, or a kind that comes twice.
        ValueError: fewer than two classes, or `balance` without one count per class.
    """

    def __init__(
        self,
        configs: Sequence[LossConfig],
        n_classes: int,
        n_features: int,
        counts: Sequence[float] | npt.NDArray[np.floating] | None = None,
    ) -> None:
        super().__init__()
        if n_classes < 2:
            raise ValueError(f"{n_classes=}")
        if not configs:
            raise ConfigError(f"there is no loss to minimise; name at least one of {', '.join(KINDS)}")
        kinds = [config.kind for config in configs]
        twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
        if twice:
            raise ConfigError(f"the loss {twice[0]!r} comes twice; give it once, with the sum of the weights")
        sizes = _Sizes(n_classes, n_features, counts)
        self.weights = {config.kind: config.weight for config in configs}
        self.losses = nn.ModuleDict(
            {config.kind: _BUILDERS[config.kind](config, sizes) for config in configs}
        )

    def forward(
        self, logits: Tensor, features: Tensor, targets: Tensor, groups: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum, and its parts by kind, unweighted and without gradient.

        Args:
            logits: `(N, K)`.
            features: `(N, D)`, of any length.
            targets: `(N, K)` shares; rows sum to 1.
            groups: `(N,)` int64, equal for samples of one person.
        """
        batch = Batch(logits, features, targets, groups)
        if not (logits.shape == targets.shape and len(features) == len(groups) == len(logits)):
            raise ValueError(f"{logits.shape=} {features.shape=} {targets.shape=} {groups.shape=}")
        parts: dict[str, Tensor] = {kind: loss(batch) for kind, loss in self.losses.items()}
        total = torch.stack([self.weights[kind] * part for kind, part in parts.items()]).sum()
        return total, {kind: part.detach() for kind, part in parts.items()}


class CrossEntropy(nn.Module):
    """`soft_cross_entropy` with its smoothing and its class weights `(K,)`."""

    class_weights: Tensor

    def __init__(self, smoothing: float, class_weights: Tensor) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.register_buffer("class_weights", class_weights)

    def forward(self, batch: Batch) -> Tensor:
        """Return the mean over the batch, in nats."""
        return soft_cross_entropy(batch.logits, batch.targets, self.smoothing, self.class_weights)


class GeneralisedCrossEntropy(nn.Module):
    """`generalised_cross_entropy` with its q."""

    def __init__(self, q: float) -> None:
        super().__init__()
        self.q = q

    def forward(self, batch: Batch) -> Tensor:
        """Return the mean over the batch, in 0..1/q."""
        return generalised_cross_entropy(batch.logits, batch.targets, self.q)


def soft_cross_entropy(
    logits: Tensor, targets: Tensor, smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Return the mean of `-sum_k w_k q_k log p_k`, in nats.

    Args:
        logits: `(N, K)`.
        targets: `(N, K)` shares q; one-hot rows give the usual cross entropy.
        smoothing: s in 0..1; q becomes `(1 - s) q + s / K`.
        class_weights: `(K,)`, see `balanced_weights`; None: all 1.

    Source: Barsoum et al., "Training deep networks for facial expression recognition with crowd-sourced
    label distribution", ICMI 2016: the cross entropy loss; smoothing: Szegedy et al., CVPR 2016, section 7.
    """
    shares = (1 - smoothing) * targets + smoothing / targets.shape[1]
    if class_weights is not None:
        shares = shares * class_weights
    return -(shares * logits.log_softmax(1)).sum(1).mean()


def balanced_weights(counts: Sequence[float] | npt.NDArray[np.floating], balance: float) -> Tensor:
    """Return `(K,)` weights `(1 - b) / (1 - b^n_k)`, with mean 1 over the classes that have samples.

    Classes without samples weigh 1.

    Source: Cui et al., "Class-balanced loss based on effective number of samples", CVPR 2019, section 4.
    """
    n = torch.as_tensor(np.asarray(counts, dtype=np.float64))
    is_seen = n > 0
    weights = (1 - balance) / (1 - balance ** n.clamp_min(1))
    return torch.where(is_seen, weights / weights[is_seen].mean(), 1.0).float()


def generalised_cross_entropy(logits: Tensor, targets: Tensor, q: float = 0.7) -> Tensor:
    """Return the mean of `sum_k t_k (1 - p_k^q) / q`: wrong labels weigh less than in cross entropy.

    Args:
        logits: `(N, K)`.
        targets: `(N, K)` shares t.
        q: in 0..1, 0 excluded; 1 gives the mean absolute error, towards 0 it becomes cross entropy.

    Source: Zhang and Sabuncu, "Generalized cross entropy loss for training deep neural networks with noisy
    labels", NeurIPS 2018, section 3.2: L_q.
    """
    return (targets * (1 - (q * logits.log_softmax(1)).exp()) / q).sum(1).mean()


class CentreLoss(nn.Module):
    """Centre loss, and with `apart` above 0 island loss; owns the centres `(K, D)`.

    `1/2 mean_i ||x_i - c_(y_i)||^2 + apart sum_j sum_(k != j) (cos(c_j, c_k) + 1)`. The papers sum over i;
    the mean makes the weight independent of the batch. The second term reaches the features only through the
    centres, which it turns away from each other; it lies in 0..2 K (K - 1) `apart`.

    Source: Wen et al., "A discriminative feature learning approach for deep face recognition", ECCV 2016,
    equation 2; Cai et al., "Island loss for learning discriminative features in facial expression
    recognition", FG 2018, section III.
    """

    centres: Tensor

    def __init__(self, n_classes: int, n_features: int, alpha: float = 0.5, apart: float = 0.0) -> None:
        super().__init__()
        self.alpha, self.apart = alpha, apart
        self.register_buffer("centres", torch.randn(n_classes, n_features))

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss at the present centres; in training mode move them afterwards."""
        centres, labels = self.centres, batch.labels
        features = batch.features.to(centres.dtype)
        loss = (features - centres[labels]).square().sum(1).mean() / 2
        if self.apart:
            loss = loss + self.apart * closeness(centres)
        if self.training:
            change = centre_change(centres, features.detach(), labels, self.apart)
            self.centres = centres - self.alpha * change  # a new tensor: the graph keeps the old one
        return loss


def closeness(centres: Tensor) -> Tensor:
    """Return the sum over ordered pairs of different centres `(K, D)` of their cosine + 1."""
    cosines = _pair_cosines(centres)
    n = len(centres)
    return cosines.sum() + n * (n - 1)


def centre_change(centres: Tensor, features: Tensor, labels: Tensor, apart: float = 0.0) -> Tensor:
    """Return `(K, D)` to be subtracted, times alpha, from the centres.

    `sum_i [y_i = j] (c_j - x_i) / (1 + n_j)`, and for island loss also `apart / (K - 1) sum_(k != j) (c_k /
    (|c_k| |c_j|) - (c_k . c_j) c_j / (|c_k| |c_j|^3))`, half the gradient of `closeness`. The first is 0
    for a class that the batch lacks, the second is not.

    Args:
        centres: `(K, D)`.
        features: `(N, D)`.
        labels: `(N,)` int64.
        apart: weight of the second term.

    Source: Wen et al., equation 4; Cai et al., section III, the update of the centres.
    """
    is_label = functional.one_hot(labels, len(centres)).to(centres.dtype)  # no index_add: repeatable on a GPU
    n_each = is_label.sum(0)[:, None]
    change: Tensor = (n_each * centres - is_label.T @ features) / (1 + n_each)
    if apart:
        length = centres.norm(dim=1, keepdim=True).clamp_min(_SHORT)
        unit = centres / length
        others = unit.sum(0) - unit - _pair_cosines(centres).sum(1, keepdim=True) * unit
        change = change + apart / (len(centres) - 1) * others / length
    return change


def _pair_cosines(centres: Tensor) -> Tensor:
    """Return `(K, K)` cosines, with zeros on the diagonal."""
    unit = centres / centres.norm(dim=1, keepdim=True).clamp_min(_SHORT)
    cosines: Tensor = unit @ unit.T
    return cosines - cosines.diagonal().diag()


class AngularMargin(nn.Module):
    """ArcFace: cross entropy of scaled cosines to learned class weights `(K, D)`, with a handicap.

    The angle to the sample's class counts as `margin` larger than it is. Beyond pi - margin, where the cosine
    would rise again, `cos - margin sin margin` goes on falling; with `easy_margin` the plain cosine
    counts beyond pi/2. A margin of 0 is softmax on normalised features and weights.

    Source: Deng et al., "ArcFace: additive angular margin loss for deep face recognition", CVPR 2019,
    equation 3; what happens beyond, from the authors' code.
    """

    def __init__(
        self,
        n_classes: int,
        n_features: int,
        margin: float = 0.5,
        scale: float = 64.0,
        easy_margin: bool = False,
    ) -> None:
        super().__init__()
        self.margin, self.scale, self.easy_margin = margin, scale, easy_margin
        self.weights = nn.Parameter(nn.init.xavier_uniform_(torch.empty(n_classes, n_features)))

    def forward(self, batch: Batch) -> Tensor:
        """Return the mean over the batch, in nats; the batch's logits are not looked at."""
        features = batch.features.to(self.weights.dtype)
        cosines = functional.normalize(features) @ functional.normalize(self.weights).T
        is_label = functional.one_hot(batch.labels, len(self.weights)).bool()
        cosines = torch.where(is_label, self._handicapped(cosines), cosines)
        return soft_cross_entropy(self.scale * cosines, batch.targets)

    def _handicapped(self, cosines: Tensor) -> Tensor:
        sines = (1 - cosines.square()).clamp_min(1e-9).sqrt()  # the slope of the root at 0 is infinite
        later = cosines * math.cos(self.margin) - sines * math.sin(self.margin)
        if self.easy_margin:
            return torch.where(cosines > 0, later, cosines)
        fallback = cosines - self.margin * math.sin(self.margin)
        return torch.where(cosines > -math.cos(self.margin), later, fallback)


class TupletClusters(nn.Module):
    """(N+M)-tuplet clusters loss on normalised features; owns the reference distance T, a parameter."""

    def __init__(self, reference: float = 1.0, gap: float = 0.8, n_positives: int = 4, n_negatives: int = 5):
        super().__init__()
        self.gap, self.n_positives, self.n_negatives = gap, n_positives, n_negatives
        self.reference = nn.Parameter(torch.tensor(reference))

    def forward(self, batch: Batch) -> Tensor:
        """Return the mean over the queries; every sample is one, see `tuplet_loss`."""
        features = functional.normalize(batch.features.to(self.reference.dtype))
        sizes = self.n_positives, self.n_negatives
        return tuplet_loss(features, batch.labels, batch.groups, self.reference, self.gap, sizes)


class _Sizes(NamedTuple):
    """What a loss may have to know about the task."""

    n_classes: int
    n_features: int
    counts: Sequence[float] | npt.NDArray[np.floating] | None


def _cross_entropy(config: LossConfig, sizes: _Sizes) -> nn.Module:
    weights = torch.ones(sizes.n_classes)
    if config.balance:
        if sizes.counts is None or len(sizes.counts) != sizes.n_classes:
            raise ValueError(f"balance needs one count per class: {sizes.n_classes=} {sizes.counts=}")
        weights = balanced_weights(sizes.counts, config.balance)
    return CrossEntropy(config.smoothing, weights)


_BUILDERS: dict[str, Callable[[LossConfig, _Sizes], nn.Module]] = {
    "cross_entropy": _cross_entropy,
    "generalised_cross_entropy": lambda c, _: GeneralisedCrossEntropy(c.q),
    "centre": lambda c, sizes: CentreLoss(sizes.n_classes, sizes.n_features, c.alpha),
    "island": lambda c, sizes: CentreLoss(sizes.n_classes, sizes.n_features, c.alpha, c.apart),
    "tuplet_clusters": lambda c, _: TupletClusters(c.reference, c.gap, c.n_positives, c.n_negatives),
    "arcface": lambda c, sizes: AngularMargin(
        sizes.n_classes, sizes.n_features, c.margin, c.scale, c.easy_margin
    ),
}
