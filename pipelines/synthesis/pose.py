"""How a head is turned, from dlib's 5 landmarks alone: the pose in which the average face fits them best."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from .face_mesh import LANDMARK_VERTICES, face_mesh, rotation

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

YAWS = np.arange(-60.0, 60.1, 2.0)
PITCHES = np.arange(-30.0, 30.1, 2.0)
YAW_PRIOR, PITCH_PRIOR = 5e-7, 5e-6
"""Of the cost, per squared degree, against the residual in squared shares of the landmarks' spread.

Five points say little about pitch: a long nose looks like a head that nods. Most heads do not nod much.
"""


@dataclass(frozen=True, slots=True)
class Pose:
    """Where the average face lies in a picture: `p -> scale_roll * (x + i y of R(yaw, pitch) p) + offset`.

    `yaw` and `pitch` are degrees; `abs(scale_roll)` is px per cm and its angle the roll; `offset` is px.
    `residual` is the root mean square distance, in cm, at which the landmarks are missed.
    """

    yaw: float
    pitch: float
    scale_roll: complex
    offset: complex
    residual: float

    def project(self, points: F64) -> F64:
        """Return `(V, 3)` x, y and depth in px of `(V, 3)` points in cm that are turned already."""
        flat = self.scale_roll * (points[:, 0] + 1j * points[:, 1]) + self.offset
        return np.column_stack([flat.real, flat.imag, abs(self.scale_roll) * points[:, 2]])

    def unproject(self, points: F64) -> F64:
        """Return `(V, 2)` cm, in the turned head's frame, of `(V, 2)` px."""
        flat = (points[:, 0] + 1j * points[:, 1] - self.offset) / self.scale_roll
        return np.column_stack([flat.real, flat.imag])


def fit_pose(landmarks: F32) -> Pose:
    """Return the pose of the face with these `(5, 2)` landmarks in px: a search over yaw and pitch.

    For each pair the rest, scale, roll and place, is one complex regression.

    Raises:
        ValueError: wrong shape, not finite, or all landmarks coincide.
    """
    if landmarks.shape != (5, 2) or not np.isfinite(landmarks).all():
        raise ValueError(f"landmarks must be (5, 2) and finite: {landmarks.shape=}")
    target = landmarks.astype(np.float64) @ [1, 1j]
    spread = target - target.mean()
    power = float(np.vdot(spread, spread).real)
    if power == 0:
        raise ValueError("all landmarks coincide")
    yaw, pitch = (grid.ravel() for grid in np.meshgrid(YAWS, PITCHES))
    turned = _turned_landmarks() @ [1, 1j, 0]  # (grid, 5)
    centred = turned - turned.mean(axis=1, keepdims=True)
    a = (centred.conj() @ spread) / (np.abs(centred) ** 2).sum(axis=1)
    missed = (np.abs(a[:, None] * centred - spread) ** 2).sum(axis=1)
    best = int(np.argmin(missed / power + YAW_PRIOR * yaw**2 + PITCH_PRIOR * pitch**2))
    scale_roll = complex(a[best])
    offset = complex(target.mean() - scale_roll * turned[best].mean())
    residual = float(np.sqrt(missed[best] / 5)) / abs(scale_roll)
    return Pose(float(yaw[best]), float(pitch[best]), scale_roll, offset, residual)


@cache
def _turned_landmarks() -> F64:
    """`(grid, 5, 3)` cm."""
    points = face_mesh().vertices[LANDMARK_VERTICES]
    return np.stack([points @ rotation(yaw, pitch).T for pitch in PITCHES for yaw in YAWS])
