"""The plain `face_recognition` recipe, to compare with. The bench's door to dlib.

`face_locations` and `face_encodings` of the package `face_recognition` 1.3.0 with their defaults, step by
step: dlib's HOG detector on the RGB frame, upsampled once; boxes cut to the frame; the 5-point predictor;
`compute_face_descriptor` without jitter, for every face of every frame.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import dlib
import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

UPSAMPLE = 1  # `number_of_times_to_upsample` of `face_locations`


@dataclass(frozen=True, slots=True)
class PlainRecipe:
    """dlib's three objects as `face_recognition` holds them. Owned by one thread."""

    detector: Any
    predictor: Any
    encoder: Any

    @classmethod
    def load(cls, predictor_path: Path, encoder_path: Path) -> Self:
        """Load dlib's published weights: the 5-point predictor and the face ResNet."""
        return cls(
            dlib.get_frontal_face_detector(),
            dlib.shape_predictor(str(predictor_path)),
            dlib.face_recognition_model_v1(str(encoder_path)),
        )

    def run(self, rgb: U8) -> tuple[F32, F32]:
        """Return boxes `(N, 4)` in visaged's convention and embeddings `(N, 128)` of one frame."""
        boxes = self.locate(rgb)
        rows = [self.encode(rgb, box) for box in boxes]
        return boxes, np.array(rows, dtype=np.float32).reshape(-1, 128)

    def locate(self, rgb: U8, upsample: int = UPSAMPLE) -> F32:
        """Return the boxes `(N, 4)` of the faces in `rgb`, right and bottom exclusive, px."""
        height, width = rgb.shape[:2]
        found = [
            (max(r.left(), 0), max(r.top(), 0), min(r.right() + 1, width), min(r.bottom() + 1, height))
            for r in self.detector(rgb, upsample)
        ]
        return np.array(found, dtype=np.float32).reshape(-1, 4)

    def encode(self, rgb: U8, box: F32) -> F32:
        """Return the embedding `(128,)` of the face in `box`."""
        left, top, right, bottom = (round(float(edge)) for edge in box)
        marks = self.predictor(rgb, dlib.rectangle(left, top, right - 1, bottom - 1))
        return np.array(self.encoder.compute_face_descriptor(rgb, marks, 1), dtype=np.float32)

    def encode_chip(self, chip: U8) -> F32:
        """Return the embedding `(128,)` of one chip `(150, 150, 3)`: the network alone."""
        return np.array(self.encoder.compute_face_descriptor(chip), dtype=np.float32)


def cnn_detector(path: Path) -> Any:
    """Return dlib's CNN face detector, its weights read; called with a frame and 0, no upsampling."""
    return dlib.cnn_face_detection_model_v1(str(path))


def build() -> dict[str, str | bool]:
    """Return how this dlib was built, as far as it decides its speed."""
    return {
        "version": str(dlib.__version__),
        "blas": bool(dlib.DLIB_USE_BLAS),
        "cuda": bool(dlib.DLIB_USE_CUDA),
        "avx": bool(dlib.USE_AVX_INSTRUCTIONS),
    }
