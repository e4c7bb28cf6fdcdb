"""Read the faces of a still photo: the stages of the stream, once, without a track."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .cropper import AnyCropper
from .detector import Detector
from .ensemble import Ensemble
from .identity.enrolment import ReadFace

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
