"""A release beside the serving one: which faces it answers for, and what it must not say."""

import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..ensemble import Ensemble
from ..errors import ModelError
from .release import LoadedRelease

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Canary:
    """A release that answers for a share (0..1) of the tracks: always the same ones, more as it grows."""

    loaded: LoadedRelease
    share: float

    def takes(self, camera: str, track: int) -> bool:
        """Return whether it answers for this track."""
        return lot_of(camera, track) < self.share


@dataclass(frozen=True, slots=True)
class Look:
    """Faces of one frame that were analysed: `landmarks` `(n, 5, 2)` of `tracks`, and which release did."""

    camera: str
    rgb: U8
    tracks: tuple[int, ...]
    landmarks: F32
    loaded: LoadedRelease


def lot_of(camera: str, track: int) -> float:
    """Return a number in 0..1, drawn once for ever for a track of a camera."""
    return zlib.crc32(f"{camera}:{track}".encode()) / 2**32


def check_space(ensemble: Ensemble, serving: Ensemble) -> None:
    """Refuse networks whose embeddings cannot be compared with those in the gallery.

    Raises:
        ModelError: they are of another space than those of `serving`.
    """
    if ensemble.embedding_space != serving.embedding_space:
        raise ModelError(
            f"the embeddings of {ensemble.embedding_space} cannot be compared with those of "
            f"{serving.embedding_space} in the gallery; enrol the people again, then restart"
        )


def check_finite(loaded: LoadedRelease, *said: F32) -> None:
    """Refuse answers that are no numbers.

    Raises:
        ModelError: one is NaN or infinite.
    """
    if not all(np.isfinite(values).all() for values in said):
        raise ModelError(f"release {loaded.name} said what is no number; look at its networks")
