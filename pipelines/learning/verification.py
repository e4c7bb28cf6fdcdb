"""Do two photos show one person? Figures from pairs of embeddings, of people who were not learned from.

Shape letters: N faces, P pairs, D features.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from ..errors import SourceError

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Text = npt.NDArray[np.str_]

MOST_EACH = 10  # pairs of one person: who has hundreds of photos would decide alone


@dataclass(frozen=True, slots=True)
class Pairs:
    """Rows `first` and `second` `(P,)` of the faces that are compared; `same` `(P,)` where of one person."""

    first: I64
    second: I64
    same: Bool

    def __len__(self) -> int:
        return len(self.same)

    def distances(self, embeddings: F32) -> F64:
        """Return `(P,)` Euclidean distances of `(N, D)` embeddings."""
        apart = embeddings[self.first].astype(np.float64) - embeddings[self.second]
        distances: F64 = np.linalg.norm(apart, axis=1)
        return distances


def pairs_of(people: Text, part: str, seed: int = 0) -> Pairs:
    """Return pairs of faces of one person, and as many of two people; each pair once.

    Args:
        people: `(N,)` who is seen.
        part: what they are, for the message.
        seed: of the draw: which pairs of a person with many photos, and who is compared with whom.

    Raises:
        SourceError: nobody has two photos, or there is one person only.
    """
    random = np.random.default_rng(seed)
    same: list[tuple[int, int]] = []
    names, person_of = np.unique(people, return_inverse=True)
    for person in range(len(names)):
        own = list(combinations(np.flatnonzero(person_of == person).tolist(), 2))
        same += [own[index] for index in random.permutation(len(own))[:MOST_EACH]]
    if not same or len(names) < 2:
        raise SourceError(
            f"the part {part} has {len(names)} people and {len(same)} pairs of photos of one of them; an "
            "embedding is measured on two people at least, one with two photos"
        )
    different: dict[tuple[int, int], None] = {}
    n_possible = (len(people) ** 2 - int(np.square(np.bincount(person_of)).sum())) // 2
    while len(different) < min(len(same), n_possible):
        low, high = sorted(random.integers(0, len(people), 2).tolist())
        if person_of[low] != person_of[high]:
            different[low, high] = None
    both = np.array([*same, *different], np.int64)
    return Pairs(both[:, 0], both[:, 1], np.arange(len(both)) < len(same))


def best_threshold(distances: F64, same: Bool) -> float:
    """Return the distance below which to say "the same" for the fewest errors; the middle of its stretch."""
    order = np.argsort(distances, kind="stable")
    edges = np.concatenate([[0.0], distances[order], [distances.max(initial=0.0) + 1e-6]])
    right = np.concatenate([[0], np.cumsum(np.where(same[order], 1, -1))])  # of saying so of the nearest 0..P
    is_cut = edges[1:] > edges[:-1]  # between equal distances no threshold fits
    best = int(np.where(is_cut, right, right.min() - 1).argmax())
    return float(edges[best] + edges[best + 1]) / 2


def accuracy_at(distances: F64, same: Bool, threshold: float) -> float:
    """Return the share of pairs that `threshold` decides rightly, in 0..1."""
    return float(((distances < threshold) == same).mean())


def equal_error_rate(distances: F64, same: Bool) -> float:
    """Return the share of errors, in 0..1, at the threshold where both kinds of pair have as many."""
    thresholds = np.unique(distances)
    accepted_wrongly = _share_below(distances[~same], thresholds)
    refused_wrongly = 1 - _share_below(distances[same], thresholds)
    nearest = int(np.abs(accepted_wrongly - refused_wrongly).argmin())
    return float(accepted_wrongly[nearest] + refused_wrongly[nearest]) / 2


def true_accepts(distances: F64, same: Bool, false_accepts: float = 0.01) -> float:
    """Return the share of one person's pairs that are accepted where so many of two people's are, in 0..1."""
    strangers = np.sort(distances[~same])
    threshold = strangers[min(int(false_accepts * len(strangers)), len(strangers) - 1)]
    return float((distances[same] < threshold).mean())


def _share_below(distances: F64, thresholds: F64) -> F64:
    """Return the share of `distances` at or below each threshold."""
    shares: F64 = np.searchsorted(np.sort(distances), thresholds, side="right") / max(1, len(distances))
    return shares
