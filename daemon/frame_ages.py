"""How old frames are when they are published, of all cameras together, as the ledgers tell any process."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..pipelines.errors import RingError
from .ledger import AGES_MS, Ledger, ledger_path

MIN_FRAMES = 100  # below, the 99th percentile is the oldest frame


class FrameAges:
    """Compares the ledgers with what they said before. Owned by the thread that asks."""

    def __init__(self, runtime: Path, cameras: Sequence[str]) -> None:
        self._paths = [ledger_path(runtime, camera) for camera in cameras]
        self._before = self._read()
        self._p99_ms = 0.0

    def p99_ms(self) -> float:
        """Return what 99 of 100 frames published lately are younger than, in ms: an edge of `AGES_MS`.

        Lately: since the last answer that rested on enough frames. 0 when none was published at all.
        """
        now = self._read()
        counts = now - self._before
        n_frames = int(counts.sum())
        if (counts < 0).any() or n_frames == 0:  # begun anew, or nothing to be late with
            self._before, self._p99_ms = now, 0.0
        elif n_frames >= MIN_FRAMES:
            place = int(np.searchsorted(counts.cumsum(), 0.99 * n_frames))
            self._before, self._p99_ms = now, (*AGES_MS, float("inf"))[place]
        return self._p99_ms

    def _read(self) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
        """Return how many frames of each age there have been; a camera without a ledger has none."""
        total = np.zeros(len(AGES_MS) + 1, np.int64)
        for path in self._paths:
            with contextlib.suppress(RingError), Ledger.open(path, create=False) as ledger:
                total += ledger.ages()
        return total
