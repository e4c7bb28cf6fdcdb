"""Show the same faces to two releases, one after the other: what they say, and how long each takes.

Shape letters: n faces, K classes.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import ModelError
from ..inference import InferencePipeline
from .canary import Look, check_finite
from .release import LoadedRelease

log = logging.getLogger(__name__)

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two releases said about the same n faces, `(n, K)` probabilities each, and how long it took."""

    faces: list[tuple[str, int]]
    """Camera and track of each."""
    ours: F32
    theirs: F32
    ours_s: float
    theirs_s: float


class SideBySide:
    """Takes every so many-th face that was analysed. Owned by the thread that infers."""

    def __init__(self, pipeline: InferencePipeline, share: float) -> None:
        """Show a `share` in 0..1 of the faces."""
        self._pipeline, self._share = pipeline, share
        self._n_seen = self._n_compared = 0

    def compare(self, looks: Sequence[Look], ours: LoadedRelease, theirs: LoadedRelease) -> Comparison | None:
        """Return what both say about the faces whose turn it is; None: nobody's, or `theirs` failed.

        Raises:
            ModelError: an engine of `ours` failed, or said what is no number.
        """
        chosen = [(look, rows) for look in looks if (rows := self._rows_of(look))]
        if not chosen:
            return None
        seen = [(look.rgb, look.landmarks[rows]) for look, rows in chosen]
        faces = [(look.camera, look.tracks[row]) for look, rows in chosen for row in rows]
        self._n_compared += 1
        first = self._ask(ours, seen) if self._n_compared % 2 else None  # nobody is always the first
        try:
            q, q_s = self._ask(theirs, seen)
        except ModelError as error:
            log.warning("could not compare: %s", error)
            return None
        p, p_s = first or self._ask(ours, seen)
        return Comparison(faces, p, q, p_s, q_s)

    def _rows_of(self, look: Look) -> list[int]:
        first = self._n_seen + 1
        self._n_seen += len(look.tracks)
        return [row for row in range(len(look.tracks)) if (first + row) * self._share % 1 < self._share]

    def _ask(self, loaded: LoadedRelease, seen: list[tuple[npt.NDArray[np.uint8], F32]]) -> tuple[F32, float]:
        start_s = time.perf_counter()
        outputs, fused = self._pipeline.ask(loaded, seen)
        took_s = time.perf_counter() - start_s
        check_finite(loaded, fused.probabilities, outputs.logits, outputs.embeddings)
        return fused.probabilities, took_s
