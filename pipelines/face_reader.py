"""Read the faces of a still photo: the stages of the stream, once, without a track."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .cropper import AnyCropper
from .detector import Detector
from .ensemble import Ensemble
from .errors import PhotoError
from .identity.enrolment import ReadFace
from .photo import read_photo

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PhotoReader:
    """Detector, cropper and ensemble put in a row for one photo. Owned by one thread."""

    detector: Detector
    cropper: AnyCropper
    ensemble: Ensemble

    def read(self, rgb: U8) -> list[ReadFace]:
        """Return every face of `rgb`, `(H, W, 3)` uint8, largest first."""
        detections = self.detector.detect(rgb)
        if not detections:
            return []
        landmarks: F32 = np.stack([d.landmarks for d in detections])
        chips = self.cropper.crop_all([(rgb, landmarks)], self.ensemble.recipes)
        outputs = self.ensemble.infer(chips)
        quality = self.cropper.quality(rgb, landmarks)
        faces = [
            ReadFace(box=d.box, landmarks=d.landmarks, quality=float(q), embedding=e)
            for d, q, e in zip(detections, quality, outputs.embeddings, strict=True)
        ]
        return sorted(faces, key=lambda face: -float(np.prod(face.box[2:] - face.box[:2])))


def middle_face(path: Path, detector: Detector) -> tuple[U8, F32] | None:
    """Return the photo and the `(5, 2)` px landmarks of the face nearest to its middle; None for no face.

    A file that is no picture has none.
    """
    try:
        rgb = read_photo(path)
    except PhotoError:
        return None
    found = detector.detect(rgb)
    if not found:
        return None
    middle = np.array([rgb.shape[1], rgb.shape[0]]) / 2
    away = [float(np.linalg.norm((d.box[:2] + d.box[2:]) / 2 - middle)) for d in found]
    return rgb, found[int(np.argmin(away))].landmarks
