"""Find faces with dlib's CNN detector, run by an inference engine instead of by dlib.

Faces of 80 px and more come out as from dlib itself, the same in every coordinate, at a small part of
its time.
"""

import cv2
import numpy as np
import numpy.typing as npt

from ..kernels.pyramid import (
    MIN_CANVAS_PX,
    WINDOW_PX,
    decode,
    lay_out,
    paint_canvas,
    suppress,
)
from .engine import Engine

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]


class MmodDetector:
    """dlib's CNN face detector. Keeps nothing between frames; the engine has one owner, this."""

    def __init__(self, engine: Engine) -> None:
        """Use `engine`: input `(1, 3, H, W)` canvas, output `scores` `(1, 1, h, w)`."""
        self._engine = engine

    def boxes(self, rgb: U8, min_face_px: int = WINDOW_PX, threshold: float = 0.0) -> list[tuple[F32, float]]:
        """Return `(4,)` boxes in px of `rgb` with their scores, most confident first.

        Args:
            rgb: `(H, W, 3)` uint8; an empty or tiny one has no faces.
            min_face_px: side of the smallest face to find; other than 80, the frame is resized first.
                Half the size costs four times the time and memory.
            threshold: score above which something is a face; dlib's is 0.

        Raises:
            ValueError: not `(H, W, 3)` uint8, or `min_face_px` below 1.
        """
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or min_face_px < 1:
            raise ValueError(f"frame must be (H, W, 3) uint8: {rgb.shape=} {rgb.dtype=} {min_face_px=}")
        if rgb.size == 0:
            return []
        scaled = _resize(rgb, WINDOW_PX / min_face_px)
        layout = lay_out(*scaled.shape[:2])
        if min(layout.height, layout.width) < MIN_CANVAS_PX:
            return []
        score_map = self._engine.infer(paint_canvas(scaled, layout))["scores"][0, 0]
        found, scores = decode(score_map, layout, threshold)
        kept = suppress(found)
        back_y, back_x = (a / b for a, b in zip(rgb.shape[:2], scaled.shape[:2], strict=True))
        exclusive = found[kept] + np.array([0, 0, 1, 1])
        boxes = (exclusive * np.array([back_x, back_y, back_x, back_y])).astype(np.float32)
        return [(box, float(score)) for box, score in zip(boxes, scores[kept], strict=True)]

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()


def _resize(rgb: U8, scale: float) -> U8:
    """Return the frame `scale` times as large, at least one pixel a side."""
    height, width = rgb.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size == (width, height):
        return rgb
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(rgb, size, interpolation=interpolation).astype(np.uint8, copy=False)
