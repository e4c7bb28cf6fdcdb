"""A network that tells people apart: its features are the embedding, of unit length.

Shape letters: N faces, D features, P people.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from ..errors import ConfigError
from .losses import AngularMargin, LossConfig, WeightedLosses
from .networks import Network, Seen
from .samples import Samples, require_real
from .verification import Pairs, accuracy_at, best_threshold, equal_error_rate, pairs_of

SCALE = 16.0  # of the cosines in the last layer: at 1 softmax cannot be sure of one of many people
LOSSES = ("arcface", "cross_entropy", "generalised_cross_entropy", "centre", "island")
"""What teaches an embedding. Tuplets compare what different people show: here that is who they are."""


class UnitLength(nn.Module):
    """Features `(N, D)` of length 1."""

    def forward(self, features: Tensor) -> Tensor:
        """Return them."""
        return functional.normalize(features)


class CosineLayer(nn.Linear):
    """Cosines of features `(N, D)` with a direction for each person, times `SCALE`.

    Source: Wang et al., "NormFace: L2 hypersphere embedding for face verification", ACM MM 2017.
    """

    def __init__(self, n_features: int, n_people: int) -> None:
        super().__init__(n_features, n_people, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return `(N, P)`."""
        return SCALE * functional.normalize(features) @ functional.normalize(self.weight).T


def make_embedder(network: Network) -> None:
    """Let the features of `network` be an embedding: signed, normalised over the batch, of length 1.

    Source: Deng et al., "ArcFace", CVPR 2019, section 3.1: BatchNorm behind the last layer, no ReLU.
    """
    layers = list(network.neck.children())
    while isinstance(layers[-1], nn.ReLU | nn.Dropout):
        layers.pop()
    network.neck = nn.Sequential(*layers, nn.BatchNorm1d(network.last.in_features), UnitLength())


def know_people(network: Network, configs: Sequence[LossConfig], counts: Sequence[float]) -> WeightedLosses:
    """Give `network` a last layer for the people it is to learn from; return the losses, which share it.

    Args:
        network: of `make_embedder`.
        configs: the losses.
        counts: `(P,)` photos of each person.

    Raises:
        ConfigError: a loss that cannot teach an embedding.
    """
    strange = [config.kind for config in configs if config.kind not in LOSSES]
    if strange:
        raise ConfigError(f"the loss {strange[0]!r} teaches no embedding; take {', '.join(LOSSES)}")
    n_features = network.last.in_features
    network.last = CosineLayer(n_features, len(counts))
    losses = WeightedLosses(configs, len(counts), n_features, counts)
    for loss in losses.losses.values():
        if isinstance(loss, AngularMargin):
            loss.weights = network.last.weight  # type: ignore[assignment]  # so that the accuracy on who is learned from means something
    return losses


@dataclass(frozen=True, slots=True)
class PairJudge:
    """Judges an embedder by pairs of people of the tuning part, of whom none is learned from."""

    pairs: Pairs

    @classmethod
    def of(cls, tune: Samples) -> "PairJudge":
        """Return the judge by `tune`.

        Raises:
            SourceError: nobody in it has two photos.
        """
        return cls(pairs_of(tune.groups, "tune"))

    def __call__(self, seen: Seen, samples: Samples) -> tuple[float, float]:
        """Return the equal error rate, and the accuracy at the threshold that is best for these pairs."""
        require_real(samples, "measured")
        distances = self.pairs.distances(seen.features.numpy())
        threshold = best_threshold(distances, self.pairs.same)
        return (
            equal_error_rate(distances, self.pairs.same),
            accuracy_at(distances, self.pairs.same, threshold),
        )

    def threshold(self, seen: Seen) -> float:
        """Return the distance that decides these pairs best."""
        return best_threshold(self.pairs.distances(seen.features.numpy()), self.pairs.same)
