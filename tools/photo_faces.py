"""The faces in folders of photos, as the networks see them: to measure ranges and accuracy with."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from ..pipelines.cropper import Cropper
from ..pipelines.detector import Detector, build_photo_detector
from ..pipelines.errors import PhotoError
from ..pipelines.model_store import ModelStore
from ..pipelines.photo import SUFFIXES, photos_below, read_photo
from ..pipelines.registry import ChipRecipe

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PhotoFace:
    """The face of one photo: `(H, W, 3)` uint8 RGB and `(5, 2)` landmarks in px of it."""

    path: Path
    rgb: U8
    landmarks: F32

    def chip(self, recipe: ChipRecipe) -> F32:
        """Return `(1, C, S, S)` network input."""
        return Cropper().crop(self.rgb, self.landmarks[None], recipe)


def photos_under(folder: Path) -> list[Path]:
    """Return every photo in `folder` and below, in order of their paths.

    Raises:
        PhotoError: there is none.
    """
    photos = photos_below(folder)
    if not photos:
        raise PhotoError(f"{folder} holds no photo ({', '.join(sorted(SUFFIXES))}); name another folder")
    return photos


def faces_of(photos: Iterable[Path], store: ModelStore) -> Iterator[PhotoFace | None]:
    """Yield for every photo the face nearest to its middle, or None: no face, or no picture."""
    cv2.setNumThreads(1)
    detector = build_photo_detector(store)
    for path in photos:
        yield _face_of(path, detector)


def _face_of(path: Path, detector: Detector) -> PhotoFace | None:
    try:
        rgb = read_photo(path)
    except PhotoError:
        return None
    found = detector.detect(rgb)
    if not found:
        return None
    middle = np.array([rgb.shape[1], rgb.shape[0]]) / 2
    away = [float(np.linalg.norm((d.box[:2] + d.box[2:]) / 2 - middle)) for d in found]
    return PhotoFace(path, rgb, found[int(np.argmin(away))].landmarks)
