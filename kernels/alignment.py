"""Where a face lies in a frame, and how a chip's pixels map onto it: similarity transforms.

A chip's geometry is dlib's: its corner pixels, not their outer edges, land on the corners of the rotated
square cut from the frame.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

MEAN_FACE = np.array(
    [
        [0.8595674595992, 0.2134981538014],
        [0.6460604764104, 0.2289674387677],
        [0.1205750620789, 0.2137274526848],
        [0.3340850613712, 0.2290642403242],
        [0.4901123135679, 0.6277975316475],
    ]
)
"""`(5, 2)` dlib's mean face in units of the face's size: eye corners (outer, inner; outer, inner), nose base.

Source: dlib, `get_face_chip_details`.
"""


@dataclass(frozen=True, slots=True)
class Square:
    """A rotated square of a frame: centre `(2,)` px, side in px, angle in radians."""

    centre: F64
    side: float
    angle: float


def template(size: int, padding: float) -> F64:
    """Return `(5, 2)` px where the landmarks land in a chip of side `size` with `padding` around the face."""
    return (padding + MEAN_FACE) / (2 * padding + 1) * size


def similarity(source: F64, target: F64) -> tuple[complex, complex]:
    """Return complex `(a, b)` with `target ~ a * source + b`, x + iy for a point, by least squares.

    `abs(a)` is the scale and the angle of `a` the rotation: Umeyama's solution without reflection.

    Raises:
        ValueError: the shapes disagree, or all source points coincide.

    Source: Umeyama, "Least-squares estimation of transformation parameters between two point
    patterns", PAMI 1991; in the plane it is one complex regression.
    """
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 2:
        raise ValueError(f"{source.shape=} {target.shape=}")
    s, t = source @ [1, 1j], target @ [1, 1j]
    spread = s - s.mean()
    power = float(np.vdot(spread, spread).real)
    if power == 0:
        raise ValueError("all source points coincide")
    a = complex(np.vdot(spread, t - t.mean()) / power)
    return a, complex(t.mean() - a * s.mean())


def face_square(landmarks: F32, size: int, padding: float) -> Square:
    """Return the square of the frame that becomes the chip of a face with these `(5, 2)` landmarks."""
    if landmarks.shape != (5, 2) or not np.isfinite(landmarks).all():
        raise ValueError(f"landmarks must be (5, 2) and finite: {landmarks.shape=}")
    a, b = similarity(template(size, padding), landmarks.astype(np.float64))
    middle = a * complex(size / 2, size / 2) + b
    return Square(np.array([middle.real, middle.imag]), abs(a) * size, float(np.angle(a)))


def chip_to_frame(square: Square, size: int) -> F64:
    """Return the `(2, 3)` affine matrix from chip pixels to the pixels of the frame.

    The square's corner pixels are `side - 1` px apart, a chip's `size - 1`: the effective scale is the
    ratio of the two about the middle of the chip.
    """
    scale = (square.side - 1) / (size - 1)
    cos, sin = np.cos(square.angle) * scale, np.sin(square.angle) * scale
    linear = np.array([[cos, -sin], [sin, cos]])
    middle = np.full(2, (size - 1) / 2)
    return np.column_stack([linear, square.centre - linear @ middle])
