"""The table of cuts that `chips.cu` reads: one row per face, and what its launches need to know.

Shape letters: N faces, H W frame.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .chips import Cut, halved_side, plan_cut

F32 = npt.NDArray[np.float32]

CUT = np.dtype(
    [
        ("scratch_at", np.int64),
        ("matrix", np.float32, 6),
        ("left", np.int32),
        ("top", np.int32),
        ("width", np.int32),
        ("height", np.int32),
        ("n_halvings", np.int32),
    ],
    align=True,
)
"""One face, 56 bytes: byte of the scratch buffer where its halved levels begin, one behind the other,
largest first; the rest as in `chips.Cut`. INVARIANT: the same layout as `struct Cut` of `chips.cu`."""


@dataclass(frozen=True, slots=True)
class CutTable:
    """What `chips.cu` is launched with.

    `rows` are `(N,)` of dtype `CUT`, one per face. The scratch buffer needs `scratch_bytes`. `levels` are
    width and height in px of the largest level 1, 2, … of any face: one launch of `halve` each, in order.
    """

    rows: npt.NDArray[np.void]
    scratch_bytes: int
    levels: tuple[tuple[int, int], ...]


def tabulate(landmarks: F32, size: int, padding: float, height: int, width: int) -> CutTable:
    """Return the table for the chips of N faces in a frame of `height` x `width` px.

    Args:
        landmarks: `(N, 5, 2)` px.
        size: side S of a chip in px, > 1.
        padding: border around a face in units of its size.
        height: H.
        width: W.

    Raises:
        ValueError: landmarks of the wrong shape or not finite.
    """
    rows = np.zeros(len(landmarks), CUT)
    levels: list[tuple[int, int]] = []
    scratch_bytes = 0
    for face, marks in enumerate(landmarks):
        cut = plan_cut(marks, size, padding, height, width)
        with np.errstate(over="ignore"):  # landmarks 1e38 px away: infinite, and the chip is black
            matrix = cut.matrix.astype(np.float32).ravel()
        rows[face] = (scratch_bytes, matrix, cut.left, cut.top, cut.width, cut.height, cut.n_halvings)
        for k, (level_width, level_height) in enumerate(_levels(cut)):
            widest, tallest = levels[k] if k < len(levels) else (0, 0)
            levels[k : k + 1] = [(max(widest, level_width), max(tallest, level_height))]
            scratch_bytes += 3 * level_width * level_height
    return CutTable(rows, scratch_bytes, tuple(levels))


def _levels(cut: Cut) -> Iterator[tuple[int, int]]:
    """Yield width and height in px of level 1, 2, … of a face."""
    width, height = cut.width, cut.height
    for _ in range(cut.n_halvings):
        width, height = halved_side(width), halved_side(height)
        yield width, height
