"""Labeled Faces in the Wild: pairs of photos of which it is known whether they show the same person.

Source: Huang et al., "Labeled Faces in the Wild", 2007: the view 2 protocol, `pairs.txt`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..pipelines.errors import SourceError

F32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

THRESHOLDS = np.linspace(0.3, 1.0, 701, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two photos, as person and number of the photo, and the fold they belong to."""

    first: tuple[str, int]
    second: tuple[str, int]
    fold: int

    @property
    def is_same(self) -> bool:
        """Whether both show the same person."""
        return self.first[0] == self.second[0]


def read_pairs(path: Path) -> list[Pair]:
    """Return the pairs in an LFW file: folds, pairs of each kind in a fold, then a line a pair.

    Raises:
        SourceError: missing, or not such a file.
    """
    try:
        header, *lines = path.read_text().splitlines()
        n_folds, n_each = (int(word) for word in header.split())
        if n_folds < 1 or n_each < 1:
            raise ValueError(f"{n_folds} folds of {n_each} pairs")
        pairs = [_pair(line.split("\t"), index // (2 * n_each)) for index, line in enumerate(lines)]
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror}); name LFW's file of pairs") from error
    except ValueError as error:
        raise SourceError(f"{path} is no LFW file of pairs ({error}); name LFW's file of pairs") from error
    if len(pairs) != n_folds * 2 * n_each:
        raise SourceError(
            f"{path} has {len(pairs)} pairs and announces {n_folds * 2 * n_each}; copy it again"
        )
    return pairs


def _pair(words: list[str], fold: int) -> Pair:
    if len(words) == 3:
        return Pair((words[0], int(words[1])), (words[0], int(words[2])), fold)
    if len(words) == 4:
        return Pair((words[0], int(words[1])), (words[2], int(words[3])), fold)
    raise ValueError(f"a line of {len(words)} words")


def people_of_pairs(pairs: list[Pair]) -> set[str]:
    """Return everybody who occurs in `pairs`."""
    return {person for pair in pairs for person, _ in (pair.first, pair.second)}


def photo_path(images: Path, photo: tuple[str, int]) -> Path:
    """Return where a photo lies under the folder of images."""
    person, number = photo
    return images / person / f"{person}_{number:04d}.jpg"


def fold_accuracy(distances: F32, same: Bool, folds: npt.NDArray[np.int64]) -> F32:
    """Return the share of right answers in each fold, at the threshold best on all other folds.

    Args:
        distances: `(P,)` of the pairs.
        same: `(P,)` whether they are of one person.
        folds: `(P,)` fold of each pair.
    """
    right = (distances[:, None] < THRESHOLDS) == same[:, None]  # (P, thresholds)
    accuracy = []
    for fold in np.unique(folds):
        inside = folds == fold
        elsewhere = right[~inside].mean(axis=0)
        best = np.flatnonzero(elsewhere == elsewhere.max())  # often a whole stretch: its middle
        accuracy.append(float(right[inside, best[len(best) // 2]].mean()))
    return np.array(accuracy, np.float32)
