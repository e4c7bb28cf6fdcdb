"""Samples: faces with what people say they show and who they are, split before anything is done to them.

Shape letters: N samples, S side of a picture, C channels, K classes.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]
Text = npt.NDArray[np.str_]

TRAIN, TUNE, TEST = "train", "tune", "test"
PARTS = (TRAIN, TUNE, TEST)


@dataclass(frozen=True, slots=True)
class Samples:
    """Pictures, their labels and their groups.

    `pictures` is `(N, S, S, C)` uint8, C = 1 grey or 3 RGB. `targets` is `(N, K)`: for each class the share
    of the people who saw it; rows sum to 1. `groups` is `(N,)` text: samples of one group (person, track,
    session) never come into two parts of a split. `classes` are K names. `is_synthetic` is `(N,)`, true for
    what was made from another sample; none is when it is left out.
    """

    pictures: U8
    targets: F32
    groups: Text
    classes: tuple[str, ...]
    is_synthetic: Bool = field(default_factory=lambda: np.zeros(0, np.bool_))

    def __post_init__(self) -> None:
        n = len(self.pictures)
        shapes = f"{self.pictures.shape=} {self.targets.shape=} {self.groups.shape=} {len(self.classes)=}"
        if self.pictures.ndim != 4 or self.pictures.shape[3] not in (1, 3) or self.pictures.dtype != np.uint8:
            raise ValueError(f"pictures must be (N, S, S, 1 or 3) uint8: {shapes}")
        if self.targets.shape != (n, len(self.classes)) or self.groups.shape != (n,):
            raise ValueError(f"one row of targets and one group for each picture: {shapes}")
        if n and not np.allclose(self.targets.sum(axis=1), 1, atol=1e-3):
            raise ValueError("the shares of a sample must sum to 1")
        if not len(self.is_synthetic):
            object.__setattr__(self, "is_synthetic", np.zeros(n, np.bool_))
        if self.is_synthetic.shape != (n,) or self.is_synthetic.dtype != np.bool_:
            raise ValueError(f"one mark for each picture: {self.is_synthetic.shape=} {shapes}")

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """`(N,)` the class with the largest share, the first of several."""
        labels: npt.NDArray[np.int64] = self.targets.argmax(axis=1)
        return labels

    def take(self, keep: npt.NDArray[np.generic] | slice) -> "Samples":
        """Return the samples where `keep` is true, or those at its indices."""
        return replace(
            self,
            pictures=self.pictures[keep],
            targets=self.targets[keep],
            groups=self.groups[keep],
            is_synthetic=self.is_synthetic[keep],
        )

    def with_children(self, pictures: U8, parents: npt.NDArray[np.int64]) -> "Samples":
        """Return these samples and synthetic ones made of them, with their parents' labels and groups.

        Args:
            pictures: `(M, S, S, C)` uint8.
            parents: `(M,)` index of the sample that each was made of.

        Raises:
            ValueError: a parent is synthetic itself, or there are more synthetic samples than real ones.
        """
        if self.is_synthetic[parents].any():
            raise ValueError("synthetic samples are made of real ones only")
        marks = np.concatenate([self.is_synthetic, np.ones(len(parents), np.bool_)])
        if marks.sum() > (~marks).sum():
            raise ValueError(
                f"{marks.sum()} synthetic samples to {(~marks).sum()} real ones: at most as many"
            )
        return replace(
            self,
            pictures=np.concatenate([self.pictures, pictures]),
            targets=np.concatenate([self.targets, self.targets[parents]]),
            groups=np.concatenate([self.groups, self.groups[parents]]),
            is_synthetic=marks,
        )

    def in_classes(self, classes: tuple[str, ...]) -> "Samples":
        """Return the same samples under a network's `classes`; those that they have not get no share.

        Raises:
            ConfigError: they have a class that the network has not.
        """
        check_classes(self.classes, classes)
        targets = np.zeros((len(self), len(classes)), np.float32)
        targets[:, [classes.index(name) for name in self.classes]] = self.targets
        return replace(self, targets=targets, classes=classes)


def check_classes(own: Sequence[str], classes: Sequence[str]) -> None:
    """Check that a network with `classes` knows all of the data's own.

    Raises:
        ConfigError: it does not.
    """
    unknown = [name for name in own if name not in classes]
    if unknown:
        raise ConfigError(
            f"the data have the class {unknown[0]!r}, which the network does not know: it has "
            f"{', '.join(classes)}, from its first stage; rename it, or leave it out"
        )


def split_of(groups: Sequence[str] | Text, tune: float = 0.1, test: float = 0.1) -> Text:
    """Return `(N,)` the part, of `PARTS`, that each group belongs to: decided by its name alone.

    So a group keeps its part when samples are added, and augmented or synthetic children that carry
    their parent's group cannot leak from one part into another.

    Args:
        groups: `(N,)` names.
        tune: share kept to choose by (epoch, temperature, weights).
        test: share kept to be tested on, once.
    """
    parts = np.empty(len(groups), dtype="<U5")
    for index, group in enumerate(groups):
        place = int.from_bytes(hashlib.sha256(str(group).encode()).digest()[:4]) / 2**32
        parts[index] = TEST if place < test else TUNE if place < test + tune else TRAIN
    return parts


def require_real(samples: Samples, part: str) -> None:
    """Refuse synthetic samples in a part that chooses or measures: they would measure the renderer.

    Raises:
        ValueError: there are some.
    """
    if samples.is_synthetic.any():
        raise ValueError(
            f"{samples.is_synthetic.sum()} synthetic samples in the {part} part; they are for training only"
        )


def picture_digests(pictures: U8) -> list[str]:
    """Return a digest of every picture; equal pictures have equal ones."""
    return [hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures]
