"""An ageing filter: the shape sags, creases deepen, colour fades. Always the same; nothing in it is learned.

It makes a face look older or younger to a network and to a passing glance. It knows nothing of how the person
in the photo will age, turns no hair grey, and is no GAN.
"""

import cv2
import numpy as np
import numpy.typing as npt

from .expressions import SAG, bend
from .face_mesh import face_mesh, rotation
from .renderer import Rendering, Source, View, render

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

FINE_CM, COARSE_CM = 0.1, 0.4  # standard deviations between which wrinkles lie
SMOOTHING = 0.75  # share of the band that is taken away from a younger face at most
DARK_GAIN, BRIGHT_GAIN = 1.3, 0.5  # of the band: creases deepen more than ridges shine
MAX_BAND = 18.0  # grey levels: what differs more is the edge of something, such as hair, not a wrinkle
FADING = 0.18  # share of the colour
EDGE_CM, SOFT_CM = 0.9, 0.6  # how far inside of the face's outline the filter begins, and how gently
FEATURES = ((263, 362), (33, 133), (61, 291))  # corners of the eyes and of the mouth, whose dark is no crease
FEATURE_KEEP = 0.7  # share of the filter that they are spared


def aged(source: Source, amount: float) -> Rendering:
    """Return the face older, or younger when `amount` is negative.

    Args:
        source: whose face.
        amount: -1 to 1.2; 0 changes nothing.

    Raises:
        ValueError: amount out of range.
    """
    if not -1 <= amount <= 1.2:
        raise ValueError(f"{amount=} is not in -1..1.2")
    sagged = render(source, View(bend=bend(SAG, amount)))
    photo = _creased(sagged.photo, _skin(source), amount, abs(source.pose.scale_roll))
    return Rendering(photo, sagged.yaw, sagged.pitch, sagged.hole_share, sagged.landmarks)


def _creased(photo: U8, skin: F32, amount: float, px_per_cm: float) -> U8:
    """Return the photo with the band of wrinkles raised, or lowered, and its colour faded, on `skin`."""
    rgb = photo.astype(np.float32)
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    fine, coarse = (cv2.GaussianBlur(grey, (0, 0), cm * px_per_cm) for cm in (FINE_CM, COARSE_CM))
    band = np.clip(fine - coarse, -MAX_BAND, MAX_BAND)
    change = amount * np.where(band < 0, DARK_GAIN, BRIGHT_GAIN) * band
    if amount < 0:  # pores stay, or the face looks painted
        change = np.clip(change, -SMOOTHING * np.abs(band), SMOOTHING * np.abs(band))
    rgb += (skin * change)[..., None]
    faded = (FADING * max(amount, 0.0) * skin)[..., None]
    rgb += faded * (cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)[..., None] - rgb)
    return np.asarray(np.clip(rgb, 0, 255).round(), np.uint8)


def _skin(source: Source) -> F32:
    """Return `(H, W)` in [0, 1]: where the skin of the face is."""
    mesh, pose = face_mesh(), source.pose
    points = pose.project(mesh.vertices @ rotation(pose.yaw, pose.pitch).T)[:, :2].astype(np.float32)
    mask = np.zeros(source.photo.shape[:2], np.float32)
    outline = np.round(cv2.convexHull(points[mesh.outline])).astype(np.int32)
    cv2.fillPoly(mask, [outline], 1.0)
    inward = 2 * round(EDGE_CM * abs(pose.scale_roll)) + 1
    skin = cv2.erode(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (inward, inward)))
    for corners in FEATURES:
        one, other = points[list(corners)]
        axes = float(np.linalg.norm(other - one)) * np.array([0.75, 0.4])
        angle = float(np.degrees(np.arctan2(*(other - one)[::-1])))
        middle = tuple(float(value) for value in (one + other) / 2)
        cv2.ellipse(skin, (middle, tuple(float(2 * axis) for axis in axes), angle), 1 - FEATURE_KEEP, -1)
    soft = cv2.GaussianBlur(skin, (0, 0), SOFT_CM * abs(pose.scale_roll))
    return np.asarray(soft, np.float32)
