"""Find faces: in a whole frame, or again around where each should be."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

from ..kernels.boxes import iou
from .dlib_faces import HOG_FACE_PX, HogDetector, LandmarkPredictor, SiteDetector
from .errors import ConfigError, ModelError
from .frame import Detection
from .model_store import PREDICTOR, ModelStore

if TYPE_CHECKING:
    from .mmod_detector import MmodDetector

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

NEAR_REACH = 1.8  # side of the searched square in units of the predicted face's side
NEAR_FACE_PX = 90.0  # the predicted face after scaling: some tolerance above HOG's smallest
NEAR_IOU = 0.25  # overlap with the prediction from which a re-detected face is the same
PHOTO_FACE_PX = 60  # the smallest face looked for in a photo of somebody


class DetectorConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How faces are found."""

    kind: Literal["hog", "mmod", "site"] = "hog"
    """`hog`: dlib's histogram detector, frontal faces, cheap. `mmod`: dlib's CNN, also turned faces, about
    6 times the work of `hog`. `site`: the detector in the file `site`, alone."""
    site: Path | None = None
    """A detector of the site's own, as `visaged train-detector` writes it, for views in which dlib's finds
    nobody; with kind `hog` it looks beside dlib's. Default: none."""
    min_face_px: Annotated[int, Meta(ge=20, le=1000)] = 80
    """px of the frame: side of the smallest face to find. Half the size costs four times the work."""
    threshold: Annotated[float, Meta(ge=-1, le=5)] = 0.0
    """Detector score above which something is a face; higher finds fewer and surer ones."""
    every: Annotated[int, Meta(ge=1, le=300)] = 4
    """Frames from one search of the whole frame to the next; known faces are followed in between."""
    near_per_frame: Annotated[int, Meta(ge=0, le=64)] = 1
    """Known faces that are re-detected per frame around where they should be, in turn."""
    near_threshold: Annotated[float, Meta(ge=-1, le=5)] = -0.3
    """Score from which a re-detected face counts; lower than `threshold`, for a face is expected there."""

    def __post_init__(self) -> None:
        if self.kind == "site" and self.site is None:
            raise ValueError('kind = "site" needs site = FILE, which `visaged train-detector` writes')
        if self.kind == "mmod" and self.site is not None:
            raise ValueError('site looks beside kind = "hog" or alone (kind = "site"), not beside "mmod"')


class Detector(Protocol):
    """Finds faces. `detect` may run in one thread while `detect_near` runs in another."""

    def detect(self, rgb: U8) -> list[Detection]:
        """Return the faces of a whole `(H, W, 3)` uint8 frame, most confident first."""

    def detect_near(self, rgb: U8, boxes: F32, reach: F32 | None = None) -> list[Detection | None]:
        """Return for each of `(N, 4)` expected boxes the face found there, or None.

        `reach` `(N,)` says how far each may have moved on, in units of its side; None: it has not.
        """


@dataclass(frozen=True, slots=True)
class DlibDetector:
    """HOG, the site's own or MMOD for whole frames, HOG around expected faces, 5 landmarks on each.

    Around an expected face HOG is used with either kind: on so small a piece it is faster than MMOD.
    """

    config: DetectorConfig
    hog: HogDetector
    landmarks: LandmarkPredictor
    mmod: "MmodDetector | None"

    def detect(self, rgb: U8) -> list[Detection]:
        """Return the faces of a whole `(H, W, 3)` uint8 frame, most confident first."""
        check_frame(rgb)
        if self.mmod is not None:
            found = self.mmod.boxes(rgb, self.config.min_face_px, self.config.threshold)
            boxes = np.array([box for box, _ in found], np.float32).reshape(-1, 4)
            scores = np.array([score for _, score in found], np.float32)
        else:
            boxes, scores = self.hog.boxes(rgb, HOG_FACE_PX / self.config.min_face_px, self.config.threshold)
        marks = self.landmarks.place(rgb, boxes)
        return [
            Detection(box, float(score), face) for box, score, face in zip(boxes, scores, marks, strict=True)
        ]

    def detect_near(self, rgb: U8, boxes: F32, reach: F32 | None = None) -> list[Detection | None]:
        """Return for each of `(N, 4)` expected boxes the face found there, or None; see `Detector`.

        An expected box that is not finite, empty or outside of the frame gives None.

        Raises:
            ValueError: not a frame, or boxes of another shape.
        """
        check_frame(rgb)
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"boxes must be (N, 4): {boxes.shape=}")
        reaches = [0.0] * len(boxes) if reach is None else reach.tolist()
        found = [self._search(rgb, box, far) for box, far in zip(boxes, reaches, strict=True)]
        # All landmarks in one go: HOG pushes the predictor's 9 MB of trees out of the processor's cache.
        there = [face for face in found if face is not None]
        marks = iter(
            self.landmarks.place(rgb, np.array([box for box, _ in there], np.float32).reshape(-1, 4))
        )
        return [None if face is None else Detection(*face, next(marks)) for face in found]

    def close(self) -> None:
        """Free the engine of `mmod`."""
        if self.mmod is not None:
            self.mmod.close()

    def _search(self, rgb: U8, expected: F32, reach: float) -> tuple[F32, float] | None:
        """Return box and score of the face around `expected`, or None."""
        height, width = rgb.shape[:2]
        corners = expected.astype(np.float64)  # a wild prediction must not overflow
        if not np.isfinite(corners).all():
            return None
        side = float(np.sqrt(max(1.0, float(np.prod(corners[2:] - corners[:2])))))
        middle = (corners[:2] + corners[2:]) / 2
        around = side * (NEAR_REACH / 2 + reach)
        low = np.clip(np.floor(middle - around), 0, [width, height]).astype(int)
        high = np.clip(np.ceil(middle + around), 0, [width, height]).astype(int)
        piece = rgb[low[1] : high[1], low[0] : high[0]]
        if piece.size == 0:
            return None
        found, scores = self.hog.boxes(piece, NEAR_FACE_PX / side, self.config.near_threshold)
        if not len(found):
            return None
        found = found + np.tile(low, 2).astype(np.float32)
        if reach:  # it may be anywhere in the piece: the surest; whose face it is, the tracker decides
            best = int(scores.argmax())
        else:
            overlap = iou(expected[None], found)[0]
            best = int(overlap.argmax())
            if overlap[best] < NEAR_IOU:
                return None
        return found[best], float(scores[best])


def check_frame(rgb: U8) -> None:
    """Refuse what is not a frame.

    Raises:
        ValueError: not `(H, W, 3)` uint8, or empty.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or rgb.size == 0:
        raise ValueError(f"frame must be (H, W, 3) uint8 and not empty: {rgb.shape=} {rgb.dtype=}")


def build_photo_detector(store: ModelStore) -> DlibDetector:
    """Return the detector for photos of people, whose faces may be smaller than those at a door."""
    return build_detector(DetectorConfig(min_face_px=PHOTO_FACE_PX), store)


def build_detector(
    config: DetectorConfig, store: ModelStore, load_mmod: "Callable[[], MmodDetector] | None" = None
) -> DlibDetector:
    """Return the detector `config` asks for, its weights from `store`.

    `load_mmod` gives the detector of kind `mmod`, where that is asked for; None: on ONNX Runtime.

    Raises:
        ModelError: a weights file is missing or corrupt.
        ConfigError: the site's detector is.
    """
    predictor = LandmarkPredictor(store.weights_file(PREDICTOR))
    mmod = None
    if config.kind == "mmod":
        from .engines.ort_engine import OrtEngine
        from .mmod_detector import MmodDetector

        mmod = load_mmod() if load_mmod else MmodDetector(OrtEngine(store.ensure("mmod")))
    hog = HogDetector(site_detector(config), is_frontal=config.kind != "site")
    return DlibDetector(config, hog, predictor, mmod)


def site_detector(config: DetectorConfig) -> SiteDetector | None:
    """Return the detector of the site's own; None: none is configured.

    Raises:
        ConfigError: its file is missing or corrupt.
    """
    if config.site is None:
        return None
    try:
        return SiteDetector(config.site)
    except ModelError as error:
        raise ConfigError(f"[detector] site: {error}") from error
