"""Real faces to try an engine on, wherever it is built: variations of one photo that is shipped.

NASA's portrait of Eileen Collins (public domain), moved, mirrored, darkened, brightened and blurred, so that
a wrong colour order, scale or layout cannot hide. `visaged plans verify --photos` tries more people.
"""

from functools import cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from ...kernels.pyramid import lay_out, paint_canvas
from ..cropper import Cropper
from ..errors import ModelError, PhotoError
from ..photo import read_photo
from ..registry import ChipRecipe, DetectorNetwork, Row

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

PHOTO = Path(__file__).parents[1] / "weights" / "parity_face.jpg"
LANDMARKS = np.array([[135, 94], [117, 95], [75, 91], [92, 93], [104, 125]], np.float32)
"""`(5, 2)` px in `PHOTO`, as dlib's predictor placed them in the whole portrait."""
N_CHIPS = 16
JITTER_PX = 4.0  # standard deviation: as far as landmarks move from frame to frame
BATCH = 8
DETECTOR_SCALES = (1.0, 2.0)  # of the photo, for a detector: one face of 88 px, one of 176 px


def parity_inputs(row: Row) -> list[F32]:
    """Return batches of real input for a network, the same at every call."""
    if isinstance(row, DetectorNetwork):
        return [_canvas(scale) for scale in DETECTOR_SCALES]
    chips = face_chips(row.recipe)
    return [chips[start : start + BATCH] for start in range(0, len(chips), BATCH)]


@cache
def face_chips(recipe: ChipRecipe) -> F32:
    """Return `N_CHIPS` chips `(N, C, S, S)` of the face under `recipe`; not to be modified."""
    random = np.random.default_rng(0)
    cropper, photo = Cropper(), _photo()
    chips = []
    for index in range(N_CHIPS):
        rgb, landmarks = _variation(photo, index)
        moved = landmarks + random.normal(0, JITTER_PX / 2, (5, 2)).astype(np.float32)
        chips.append(cropper.crop(rgb, moved[None], recipe))
    stacked: F32 = np.concatenate(chips)
    stacked.flags.writeable = False
    return stacked


def _variation(photo: U8, index: int) -> tuple[U8, F32]:
    """Return variation `index` of the photo and its landmarks."""
    landmarks = LANDMARKS
    if index & 1:
        photo = np.ascontiguousarray(photo[:, ::-1])
        mirrored = landmarks * np.array([-1, 1], np.float32) + np.array([photo.shape[1] - 1, 0], np.float32)
        landmarks = mirrored[[2, 3, 0, 1, 4]]  # the eyes change places
    gain = (1.0, 0.5, 1.4, 0.75)[index // 2 % 4]
    lit = np.clip(photo.astype(np.float32) * np.float32(gain), 0, 255).astype(np.uint8)
    if index >= N_CHIPS // 2:
        lit = cv2.GaussianBlur(lit, (0, 0), 1.5).astype(np.uint8)
    return lit, landmarks


def _canvas(scale: float) -> F32:
    photo = cv2.resize(_photo(), None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR).astype(np.uint8)
    return paint_canvas(photo, lay_out(*photo.shape[:2]))


def _photo() -> U8:
    try:
        return read_photo(PHOTO)
    except PhotoError as error:
        raise ModelError(f"{PHOTO} cannot be read; install visaged again") from error
