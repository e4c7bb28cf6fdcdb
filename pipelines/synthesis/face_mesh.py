"""The average face in three dimensions, and what is put around it so that the whole picture can be turned.

Coordinates are those of a picture: x to the right, y down, z towards the viewer, in cm. Yaw is positive
when the face looks to the right of the picture, pitch when it looks up.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

MESH_PATH = Path(__file__).parents[1] / "weights" / "canonical_face.npz"

LANDMARK_VERTICES = np.array([263, 362, 33, 133, 2])
"""The vertices at dlib's landmarks: outer and inner corner of the one eye, of the other, base of the nose."""
EARS = (234, 454)
PIVOT_BEHIND_EARS_CM = 2.0  # a head turns about its neck, which is behind the middle of the ears
RINGS = ((1.1, 1.5, 1.0), (1.3, 4.0, 0.6), (1.6, 7.0, 0.15))
"""Rings around the face, for hair, ears and neck: how much larger than its outline, cm behind it, and by what
share of the face's turn they turn. A head keeps its width when it turns, and shoulders stay put.

Source: Zhu et al., "Face alignment across large poses: a 3D solution", CVPR 2016, where the
background turns too.
"""


@dataclass(frozen=True, slots=True)
class FaceMesh:
    """The canonical face of MediaPipe with rings around it.

    `vertices` is `(468 + R, 3)` cm, the face first; `triangles` `(898, 3)` those of the face; `outline`
    `(36,)` the face's border in order; `pivot` `(3,)` the point about which the head turns; `shares`
    `(468 + R,)` how much of the head's turn each vertex follows.
    """

    vertices: F64
    triangles: I64
    outline: I64
    pivot: F64
    shares: F64

    @property
    def n_face(self) -> int:
        """Return how many vertices, from the first, belong to the face itself."""
        return len(self.vertices) - len(RINGS) * len(self.outline)


@cache
def face_mesh() -> FaceMesh:
    """Return the mesh, read once; nobody may change it."""
    with np.load(MESH_PATH, allow_pickle=False) as file:
        face = file["vertices"].astype(np.float64) * [1, -1, 1]
        triangles = file["triangles"].astype(np.int64)
    outline = border(triangles)
    edge, middle = face[outline], face[outline].mean(axis=0)
    rings = [middle + (edge - middle) * [size, size, 1] - [0, 0, behind] for size, behind, _ in RINGS]
    shares = np.concatenate([np.ones(len(face)), np.repeat([share for *_, share in RINGS], len(outline))])
    pivot = face[list(EARS)].mean(axis=0) - [0, 0, PIVOT_BEHIND_EARS_CM]
    vertices = np.concatenate([face, *rings])
    for array in (vertices, triangles, outline, pivot, shares):
        array.flags.writeable = False
    return FaceMesh(vertices, triangles, outline, pivot, shares)


def border(triangles: I64) -> I64:
    """Return the vertices of the one closed border of a surface, in order around it."""
    edges = triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
    inner = {(b, a) for a, b in edges.tolist()}
    after = {a: b for a, b in edges.tolist() if (a, b) not in inner}
    ordered = [min(after)]
    while after[ordered[-1]] != ordered[0]:
        ordered.append(after[ordered[-1]])
    return np.array(ordered)


def rotation(yaw: float, pitch: float) -> F64:
    """Return the `(3, 3)` matrix that turns a frontal head by `yaw` and `pitch` degrees; see the module."""
    sin_yaw, sin_pitch = np.sin(np.radians([yaw, pitch]))
    cos_yaw, cos_pitch = np.cos(np.radians([yaw, pitch]))
    about_y = np.array([[cos_yaw, 0, sin_yaw], [0, 1, 0], [-sin_yaw, 0, cos_yaw]])
    about_x = np.array([[1, 0, 0], [0, cos_pitch, -sin_pitch], [0, sin_pitch, cos_pitch]])
    turned: F64 = about_y @ about_x
    return turned
