"""Cut chips out of a frame the way dlib does, and turn them into network input.

Shape letters: N faces, S chip side, C channels, H W frame.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from .alignment import Square, chip_to_frame, face_square

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_TAPS = np.array([1, 4, 6, 4, 1], np.float32)
_MAX_LEVELS = 12  # 2^12 times a chip: no frame is that large
_MIN_HALVED_PX = 5  # the taps reach no further down


@dataclass(frozen=True, slots=True)
class Cut:
    """How one chip is cut: a patch of the frame, halved some times, then warped.

    The patch is `width` x `height` px, its left top corner `left`, `top` px into the frame and all of it
    inside; without pixels the chip is black. `matrix` is `(2, 3)` float64, from px of the chip to px of
    the patch after the last halving.
    """

    left: int
    top: int
    width: int
    height: int
    n_halvings: int
    matrix: F64


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
    cut = plan_cut(landmarks, size, padding, rgb.shape[0], rgb.shape[1])
    patch = rgb[cut.top : cut.top + cut.height, cut.left : cut.left + cut.width].astype(np.float32)
    if patch.size == 0:
        return np.zeros((size, size, 3), np.uint8)
    for _ in range(cut.n_halvings):
        patch = _pyramid_down(patch)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    chip = cv2.warpAffine(patch, cut.matrix, (size, size), flags=flags, borderMode=cv2.BORDER_CONSTANT)
    # dlib truncates; the small step up undoes float noise below an exact integer
    truncated: U8 = np.clip(chip + np.float32(1e-3), 0, 255).astype(np.uint8)
    return truncated


def plan_cut(landmarks: F32, size: int, padding: float, height: int, width: int) -> Cut:
    """Return how the chip of one face is cut out of a frame of `height` x `width` px.

    Everything about a chip that is not pixel arithmetic is decided here, for the CPU and for `chips.cu`.

    Args:
        landmarks: `(5, 2)` px.
        size: side S of the chip in px, > 1.
        padding: border around the face in units of its size.
        height: H.
        width: W.

    Raises:
        ValueError: landmarks of the wrong shape or not finite.
    """
    square = face_square(landmarks, size, padding)
    n_levels = pyramid_levels(square, size)
    low, high = _surroundings(square, n_levels, height, width)
    patch_width, patch_height = int(high[0] - low[0]), int(high[1] - low[1])
    centre, side = square.centre - low.astype(np.float64), square.side
    n_halvings, shortest = 0, min(patch_width, patch_height)
    while n_halvings < n_levels and shortest >= _MIN_HALVED_PX:
        shortest = halved_side(shortest)
        low_corner, high_corner = _point_down(centre - (side - 1) / 2), _point_down(centre + (side - 1) / 2)
        centre, side = (low_corner + high_corner) / 2, float(high_corner[0] - low_corner[0]) + 1
        n_halvings += 1
    matrix = chip_to_frame(Square(centre, side, square.angle), size)
    return Cut(int(low[0]), int(low[1]), patch_width, patch_height, n_halvings, matrix)


def pyramid_levels(square: Square, size: int) -> int:
    """Return how often the frame is halved before the square is cut: once from about twice the chip."""
    low = square.centre - (square.side - 1) / 2
    high = square.centre + (square.side - 1) / 2
    for level in range(_MAX_LEVELS):
        low, high = _point_down(low), _point_down(high)
        if (high[0] - low[0] + 1) * (high[1] - low[1] + 1) <= size * size:
            return level
    return _MAX_LEVELS


def halved_side(length_px: int) -> int:
    """Return how many px a side has one pyramid level down: the 5 taps must fit, and two more px go."""
    return (length_px - 3) // 2


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


def _surroundings(square: Square, n_levels: int, height: int, width: int) -> tuple[I64, I64]:
    """Return the corners, x and y, high ones exclusive, of the part of the frame around the rotated square.

    dlib grows the bounding box by 2 px, and by 2 g + 2 for every pyramid level.
    """
    grow = 2.0
    for _ in range(n_levels):
        grow = 2 * grow + 2
    cos, sin = abs(np.cos(square.angle)), abs(np.sin(square.angle))
    reach = (square.side - 1) / 2 * (cos + sin) + grow
    low = np.clip(np.rint(square.centre - reach), 0, [width, height]).astype(np.int64)
    high = np.clip(np.rint(square.centre + reach) + 1, 0, [width, height]).astype(np.int64)
    return low, high


def _pyramid_down(patch: F32) -> F32:
    """Halve `(h, w, 3)` with dlib's 5-tap filter, truncated, to `((h - 3) // 2, (w - 3) // 2, 3)`."""
    smooth = cv2.sepFilter2D(patch, cv2.CV_32F, _TAPS, _TAPS, borderType=cv2.BORDER_REPLICATE)
    rows, columns = halved_side(patch.shape[0]), halved_side(patch.shape[1])
    halved: F32 = np.floor(smooth[2 : 2 + 2 * rows : 2, 2 : 2 + 2 * columns : 2] / np.float32(256))
    return halved


def _point_down(point: F64) -> F64:
    """Where dlib says that a point lands one pyramid level down."""
    down: F64 = point / 2 - np.array([1.25, 0.75])
    return down
