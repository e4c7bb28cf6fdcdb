"""Find faces with dlib's CNN detector, run by an inference engine instead of by dlib.

Faces of 80 px and more come out as from dlib itself, the same in every coordinate, at a small part of
its time.
"""

import threading
from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from ..kernels.pyramid import (
    MIN_CANVAS_PX,
    WINDOW_PX,
    Layout,
    decode,
    lay_out,
    paint_canvas,
    suppress,
)
from .engines.engine import Engine, Inputs

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

WARM_UP_FRAME = (480, 640)  # height, width in px


class MmodDetector:
    """dlib's CNN face detector. Keeps nothing between frames; the engine has one owner, this.

    `boxes` may be called from several threads, which take turns: replayed frames are scanned in another
    thread than live ones.
    """

    def __init__(self, engine: Engine, paint: Callable[[U8, Layout], Inputs] = paint_canvas) -> None:
        """Use `engine`: input `(1, 3, H, W)` canvas, output `scores` `(1, 1, h, w)`.

        `paint` makes the canvas: on the host, or on the GPU that the engine runs on.
        """
        self._engine = engine
        self._paint = paint
        self._next: Engine | None = None
        self._turn = threading.Lock()

    def swap(self, engine: Engine) -> None:
        """Warm `engine` up and use it from the next frame on; any thread may ask for it."""
        blank = np.zeros((*WARM_UP_FRAME, 3), np.uint8)
        engine.infer(paint_canvas(blank, lay_out(*WARM_UP_FRAME)))
        self._next = engine

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
        with self._turn:
            if self._next is not None:  # taken over here, between two frames
                retired, self._engine, self._next = self._engine, self._next, None
                retired.close()
            score_map = self._engine.infer(self._paint(scaled, layout))["scores"][0, 0]
        found, scores = decode(score_map, layout, threshold)
        kept = suppress(found)
        back_y, back_x = (a / b for a, b in zip(rgb.shape[:2], scaled.shape[:2], strict=True))
        exclusive = found[kept] + np.array([0, 0, 1, 1])
        boxes = (exclusive * np.array([back_x, back_y, back_x, back_y])).astype(np.float32)
        return [(box, float(score)) for box, score in zip(boxes, scores[kept], strict=True)]

    def close(self) -> None:
        """Free the engine, and the one that waits."""
        self._engine.close()
        if self._next is not None:
            self._next.close()


def _resize(rgb: U8, scale: float) -> U8:
    """Return the frame `scale` times as large, at least one pixel a side."""
    height, width = rgb.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size == (width, height):
        return rgb
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(rgb, size, interpolation=interpolation).astype(np.uint8, copy=False)
