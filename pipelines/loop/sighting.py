"""One analysed face, with everything that a sample keeps of it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...kernels.alignment import chip_to_frame, face_square
from ...kernels.chips import cut_chip
from ..message import EMOTIONS, Identity

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

SIDE_PX, PADDING = 200, 0.5
"""Side of the kept chip, and the border around the face in units of its size. A face has 100 px in it, as in
the largest chip any network takes (150 px, padding 0.25): chips are cut from it again without growing."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """A face of one frame as it was analysed.

    `chip` is `(200, 200, 3)` uint8 RGB, aligned, with `landmarks` `(5, 2)` in its px. `embedding` `(D,)` is
    None where the camera does not say who is there; `probabilities` `(K,)`, fused and smoothed as published,
    is None where it does not say what faces show, and `members` (name -> `(K,)`) is empty. `captured_at` is
    wall-clock seconds since 1970, `captured_ns` monotonic. `face_px` is the side of the face in the frame.
    """

    camera: str
    track: int
    seq: int
    captured_ns: int
    captured_at: float
    chip: U8
    landmarks: F32
    face_px: float
    quality: float
    embedding: F32 | None
    space: str
    probabilities: F32 | None
    members: Mapping[str, F32]
    disagreement: float
    identity: Identity
    release: str

    @property
    def id(self) -> str:
        """Name of the sample that this sighting becomes: the same however often it is flagged.

        It is made from what was seen, not drawn: a request that is repeated after a crash finds its sample.
        `seq` and `track` begin anew with every start of the daemon; `captured_at` tells the starts apart.
        """
        seen = f"{self.camera}/{self.track}/{self.seq}/{self.captured_at!r}"
        return hashlib.sha256(seen.encode()).hexdigest()[:16]

    @property
    def emotion(self) -> str:
        """What the ensemble said that the face shows; empty where it was not asked."""
        return "" if self.probabilities is None else EMOTIONS[int(self.probabilities.argmax())]


def cut_sample_chip(rgb: U8, landmarks: F32) -> tuple[U8, F32]:
    """Return the chip that is kept of a face, and its `(5, 2)` landmarks in px of the chip.

    Args:
        rgb: `(H, W, 3)` uint8 frame.
        landmarks: `(5, 2)` px of the frame.

    Raises:
        ValueError: wrong shapes, landmarks that are not finite or all coincide.
    """
    chip = cut_chip(rgb, landmarks, SIDE_PX, PADDING)
    to_frame = chip_to_frame(face_square(landmarks, SIDE_PX, PADDING), SIDE_PX)
    inside = (landmarks - to_frame[:, 2]) @ np.linalg.inv(to_frame[:, :2]).T
    return chip, inside.astype(np.float32)
