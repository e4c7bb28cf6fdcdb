"""Bends of the face: some expressions, and what age does to its shape, as hand-made displacements.

They change the shape, not the skin: a smile without its folds. So they are augmentation that keeps the label
of the photo, not a way to another label.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .face_mesh import face_mesh

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pull:
    """One place that is pulled: a vertex of the left half of the picture, cm to the right, down and forward.

    Neighbours follow as a Gaussian of their distance, `reach` cm; the other half of the face does the same,
    mirrored.
    """

    vertex: int
    by: tuple[float, float, float]
    reach: float


MOUTH_CORNER, UPPER_LIP, LOWER_LIP, CHEEK, FOLD = 61, 0, 17, 50, 205
INNER_BROW, MIDDLE_BROW, OUTER_BROW, LOWER_LID, NOSE_TIP, JOWL, CHIN = 107, 105, 70, 145, 1, 136, 152

EXPRESSIONS: dict[str, tuple[Pull, ...]] = {
    "smile": (
        Pull(MOUTH_CORNER, (-0.8, -0.8, -0.35), 1.1),
        Pull(CHEEK, (0.0, -0.4, 0.3), 1.4),
        Pull(LOWER_LID, (0.0, -0.18, 0.0), 0.6),
    ),
    "frown": (
        Pull(MOUTH_CORNER, (0.2, 0.9, 0.0), 1.0),
        Pull(INNER_BROW, (0.3, 0.35, 0.1), 0.9),
        Pull(CHIN, (0.0, -0.3, 0.2), 1.2),
    ),
    "brows up": (
        Pull(INNER_BROW, (0.0, -0.7, 0.0), 1.1),
        Pull(MIDDLE_BROW, (0.0, -0.4, 0.0), 1.1),
        Pull(OUTER_BROW, (0.0, -0.4, 0.0), 1.0),
    ),
    "brows down": (Pull(INNER_BROW, (0.45, 0.55, 0.1), 1.0), Pull(MIDDLE_BROW, (0.15, 0.35, 0.0), 0.9)),
    "pout": (Pull(MOUTH_CORNER, (1.0, 0.0, 0.3), 1.0), Pull(LOWER_LIP, (0.0, -0.1, 0.6), 0.9)),
}

SAG = (
    Pull(JOWL, (-0.3, 0.4, 0.0), 1.6),
    Pull(FOLD, (-0.1, 0.3, 0.0), 1.5),
    Pull(MOUTH_CORNER, (0.0, 0.15, 0.0), 0.9),
    Pull(OUTER_BROW, (0.0, 0.2, 0.0), 1.1),
    Pull(NOSE_TIP, (0.0, 0.12, 0.05), 1.1),
)
"""What gravity does to a face in some decades."""


def bend(pulls: tuple[Pull, ...], amount: float = 1.0) -> F64:
    """Return `(468, 3)` cm by which each vertex of the face moves; `amount` 1 is the whole of it."""
    mesh = face_mesh()
    face = mesh.vertices[: mesh.n_face]
    moved = np.zeros_like(face)
    for pull in pulls:
        place, by = face[pull.vertex], np.array(pull.by)
        sides = ([1, 1, 1], [-1, 1, 1]) if abs(place[0]) > 0.1 else ([1, 1, 1],)
        for mirror in sides:
            apart = np.linalg.norm(face - place * mirror, axis=1)
            moved += np.exp(-0.5 * (apart / pull.reach) ** 2)[:, None] * (by * mirror)
    return moved * amount
