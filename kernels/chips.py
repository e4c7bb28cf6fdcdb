"""Cut chips out of a frame the way dlib does, and turn them into network input.

Shape letters: N faces, S chip side, C channels, H W frame.
"""

import cv2
import numpy as np
import numpy.typing as npt

from .alignment import Square, chip_to_frame, face_square

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_TAPS = np.array([1, 4, 6, 4, 1], np.float32)
_MAX_LEVELS = 12  # 2^12 times a chip: no frame is that large


def cut_chip(rgb: U8, landmarks: F32, size: int, padding: float) -> U8:
    """Return the aligned `(S, S, 3)` uint8 chip of one face, as `dlib.get_face_chip` cuts it.

    Where the frame ends the chip is black. Large faces go through dlib's image pyramid first, so that
    they do not alias.

    Args:
        rgb: `(H, W, 3)` uint8 frame.
        landmarks: `(5, 2)` px.
        size: side S in px, > 1.
        padding: border around the face in units of its size; dlib's networks take 0.25.

    Raises:
        ValueError: wrong shapes, landmarks that are not finite or all coincide.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise ValueError(f"frame must be (H, W, 3) uint8: {rgb.shape=} {rgb.dtype=}")
    square = face_square(landmarks, size, padding)
    n_levels = pyramid_levels(square, size)
    patch, origin = _surroundings(rgb, square, n_levels)
    if patch.size == 0:
        return np.zeros((size, size, 3), np.uint8)
    centre, side = square.centre - origin, square.side
    for _ in range(n_levels):
        if min(patch.shape[:2]) < 5:
            break
        patch = _pyramid_down(patch)
        low, high = _point_down(centre - (side - 1) / 2), _point_down(centre + (side - 1) / 2)
        centre, side = (low + high) / 2, float(high[0] - low[0]) + 1
    matrix = chip_to_frame(Square(centre, side, square.angle), size)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    chip = cv2.warpAffine(patch, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_CONSTANT)
    # dlib truncates; the small step up undoes float noise below an exact integer
    truncated: U8 = np.clip(chip + np.float32(1e-3), 0, 255).astype(np.uint8)
    return truncated


def pyramid_levels(square: Square, size: int) -> int:
    """Return how often the frame is halved before the square is cut: once from about twice the chip."""
    low = square.centre - (square.side - 1) / 2
    high = square.centre + (square.side - 1) / 2
    for level in range(_MAX_LEVELS):
        low, high = _point_down(low), _point_down(high)
        if (high[0] - low[0] + 1) * (high[1] - low[1] + 1) <= size * size:
            return level
    return _MAX_LEVELS


def to_input(chips_nhwc: U8, mean: tuple[float, ...], scale: float, *, grey: bool) -> F32:
    """Return `(N, C, S, S)` float32 `(pixel - mean) / scale` of `(N, S, S, 3)` uint8 chips.

    Args:
        chips_nhwc: RGB.
        mean: one entry per channel C, in pixel units.
        scale: > 0, in pixel units.
        grey: C = 1, luma (ITU-R BT.601) of the chip; else C = 3, RGB.

    Raises:
        ValueError: `mean` has not C entries.
    """
    if len(mean) != (1 if grey else 3):
        raise ValueError(f"{len(mean)=} for {'grey' if grey else 'rgb'} chips")
    if grey:
        luma = [cv2.cvtColor(chip, cv2.COLOR_RGB2GRAY) for chip in chips_nhwc]
        planes = np.stack(luma)[:, None] if luma else np.zeros((0, 1, *chips_nhwc.shape[1:3]), np.uint8)
    else:
        planes = chips_nhwc.transpose(0, 3, 1, 2)
    offset = np.array(mean, np.float32).reshape(1, -1, 1, 1)
    return np.ascontiguousarray((planes.astype(np.float32) - offset) * np.float32(1 / scale))


def _surroundings(rgb: U8, square: Square, n_levels: int) -> tuple[F32, F64]:
    """Return the float32 part of the frame around the rotated square, and its left top corner.

    dlib grows the bounding box by 2 px, and by 2 g + 2 for every pyramid level.
    """
    grow = 2.0
    for _ in range(n_levels):
        grow = 2 * grow + 2
    cos, sin = abs(np.cos(square.angle)), abs(np.sin(square.angle))
    reach = (square.side - 1) / 2 * (cos + sin) + grow
    height, width = rgb.shape[:2]
    low = np.clip(np.rint(square.centre - reach), 0, [width, height]).astype(int)
    high = np.clip(np.rint(square.centre + reach) + 1, 0, [width, height]).astype(int)
    patch = rgb[low[1] : high[1], low[0] : high[0]]
    return patch.astype(np.float32), low.astype(np.float64)


def _pyramid_down(patch: F32) -> F32:
    """Halve `(h, w, 3)` with dlib's 5-tap filter, truncated, to `((h - 3) // 2, (w - 3) // 2, 3)`."""
    smooth = cv2.sepFilter2D(patch, cv2.CV_32F, _TAPS, _TAPS, borderType=cv2.BORDER_REPLICATE)
    rows, columns = (patch.shape[0] - 3) // 2, (patch.shape[1] - 3) // 2
    halved: F32 = np.floor(smooth[2 : 2 + 2 * rows : 2, 2 : 2 + 2 * columns : 2] / np.float32(256))
    return halved


def _point_down(point: F64) -> F64:
    """Where dlib says that a point lands one pyramid level down."""
    down: F64 = point / 2 - np.array([1.25, 0.75])
    return down
