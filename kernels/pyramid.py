"""The tiled pyramid of dlib's CNN face detector: frame → canvas, score map → boxes.

The network sees one size of face. So the frame and ever smaller copies of it lie side by side on one
canvas, which the network crosses once. Every rule here is dlib's, down to the rounding: its boxes come
out the same in every coordinate.

Shape letters: H W frame or canvas, L levels, N boxes.
Source: dlib 20.0, dlib/image_transforms/image_pyramid.h, dlib/dnn/input.h and loss.h (`loss_mmod_`).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

MEAN = (122.782, 117.001, 104.298)  # red, green, blue: input_rgb_image_pyramid in the weights file
GAP_PX, MARGIN_PX = 10, 11  # between levels; around them
MIN_LEVEL_PX = 5  # height of the smallest level
WINDOW_PX = 80  # side of the face the network knows, in px of a level
CELL_PX, CELL_ORIGIN_PX = 8, 14  # cell (r, c) of the score map lies at 14 + 8c, 14 + 8r of the canvas
MIN_CANVAS_PX = 29  # below it the strided convolutions leave no cell
MAX_OVERLAP = 0.3382761351109955  # overlaps_nms in the weights file


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each level lies on the canvas.

    `levels` are left, top, width, height in px, the frame itself first; `height` and `width` are the
    canvas's.
    """

    levels: tuple[tuple[int, int, int, int], ...]
    height: int
    width: int


def lay_out(height: int, width: int) -> Layout:
    """Return where the levels of a frame of `height` x `width` px lie.

    The first column goes down from the top left; as soon as the next level fits beside the last one and
    half of the rest has found its place, the others go up along the right edge.

    Raises:
        ValueError: the frame has no pixels.
    """
    if height < 1 or width < 1:
        raise ValueError(f"a frame must have pixels: {height=} {width=}")
    sizes = _level_sizes(height, width)
    column_height = _first_column(sizes)
    levels: list[tuple[int, int, int, int]] = []
    y = MARGIN_PX
    while y < column_height + MARGIN_PX and len(levels) < len(sizes):
        h, w = sizes[len(levels)]
        levels.append((MARGIN_PX, y, w, h))
        y += h + GAP_PX
    y -= GAP_PX
    for h, w in sizes[len(levels) :]:
        top = y - h
        if top < MARGIN_PX + height:  # it would run into the frame itself: the smallest levels are left out
            break
        levels.append((MARGIN_PX + width - w, top, w, h))
        y -= h + GAP_PX
    return Layout(tuple(levels), column_height + 2 * MARGIN_PX, width + 2 * MARGIN_PX)


def _level_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Return (height, width) of every level, each 5/6 of the one before."""
    sizes = [(height, width)]
    while True:
        height, width = height * 5 // 6, width * 5 // 6
        if height < MIN_LEVEL_PX or width == 0:
            return sizes
        sizes.append((height, width))


def _first_column(sizes: list[tuple[int, int]]) -> int:
    """Return the height in px of the first column, gaps between its levels included."""
    first_height, first_width = sizes[0]
    total = sum(h + GAP_PX for h, _ in sizes) - 2 * GAP_PX
    column, previous_width = 0, 0
    for h, w in sizes:
        fits_beside = w <= first_width - previous_width - GAP_PX
        if fits_beside and (column - first_height) * 2 >= total - first_height:
            break
        column += h + GAP_PX
        previous_width = w
    return column - GAP_PX


def paint_canvas(rgb: U8, layout: Layout) -> F32:
    """Return the `(1, 3, H, W)` canvas of `(H, W, 3)` RGB uint8: `(pixel - mean) / 256`, gaps 0.

    Raises:
        ValueError: `layout` is not that of this frame.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or layout.levels[0][:1:-1] != rgb.shape[:2]:
        raise ValueError(f"the layout is for another frame: {rgb.shape=} {layout.levels[0]=}")
    canvas = np.zeros((1, 3, layout.height, layout.width), np.float32)
    mean = np.array(MEAN, np.float32)[:, None, None]
    level = (rgb.transpose(2, 0, 1).astype(np.float32, order="C") - mean) * np.float32(1 / 256)
    for x, y, w, h in layout.levels:
        level = resize_between_corners(level, h, w)  # from the level before, not from the frame
        canvas[0, :, y : y + h, x : x + w] = level
    return canvas


def resize_between_corners(planes: F32, height: int, width: int) -> F32:
    """Return `(C, height, width)` planes whose corner pixels are those of `(C, H, W)` planes.

    Bilinear, with weights in full precision: OpenCV's `remap` rounds them to 1/32, and its `resize`
    aligns the outer edges of the corner pixels, not their centres.
    """
    if planes.shape[1:] == (height, width):
        return planes
    return _blend(_blend(planes, height, axis=1), width, axis=2)


def _blend(planes: F32, n: int, axis: int) -> F32:
    """Return `planes` with `n` rows (axis 1) or columns (axis 2), each a blend of its two neighbours."""
    last = planes.shape[axis] - 1
    at = np.arange(n) * (last / max(n - 1, 1))
    low = np.minimum(at.astype(np.int64), last)
    share = (at - low).astype(np.float32)
    blended: F32 = np.take(planes, low, axis=axis)
    other: F32 = np.take(planes, np.minimum(low + 1, last), axis=axis)
    other -= blended
    other *= share[:, None] if axis == 1 else share
    blended += other
    return blended


def decode(scores: F32, layout: Layout, threshold: float) -> tuple[I64, F32]:
    """Return boxes and scores of the cells above `threshold`, most confident first, none suppressed.

    Args:
        scores: `(h, w)` score map of the canvas.
        layout: that of the canvas.
        threshold: score above which a cell is a candidate.

    Returns:
        `(N, 4)` left, top, right, bottom in px of the frame, **right and bottom inclusive**, as dlib
        rounds them; `(N,)` scores.
    """
    if scores.ndim != 2:
        raise ValueError(f"the score map must be (h, w): {scores.shape=}")
    rows, columns = np.nonzero(scores > threshold)
    found = scores[rows, columns]
    order = np.argsort(-found, kind="stable")
    centres = np.stack([columns, rows], axis=1)[order] * CELL_PX + CELL_ORIGIN_PX
    level = _level_of(centres, layout)
    origins = np.array(layout.levels, np.int64)[level, :2]
    half = (WINDOW_PX - 1) / 2
    corners = (centres - origins)[:, [0, 1, 0, 1]] + np.array([-half, -half, half, half])
    for step in range(int(level.max(initial=0))):
        corners = np.where((level > step)[:, None], corners * (6 / 5) + 0.3, corners)
    rounded = np.copysign(np.floor(np.abs(corners) + 0.5), corners)  # halves away from zero
    return rounded.astype(np.int64), found[order].astype(np.float32)


def _level_of(points: I64, layout: Layout) -> I64:
    """Return `(N,)` index of the first level that holds each of `(N, 2)` canvas px, else of the nearest."""
    levels = np.array(layout.levels, np.int64)
    low, high = levels[:, :2], levels[:, :2] + levels[:, 2:] - 1
    away = points[:, None] - np.clip(points[:, None], low, high)
    nearest: I64 = (away**2).sum(axis=2).argmin(axis=1)
    return nearest


def suppress(boxes: I64) -> I64:
    """Return the indices of the boxes that stay, a box going when a better one covers too much of it.

    dlib measures the shared area against the box around both, not against their union: boxes that lie
    diagonally suppress each other less.

    Args:
        boxes: `(N, 4)` inclusive boxes, most confident first.
    """
    kept: list[int] = []
    left = np.arange(len(boxes))
    while left.size:
        best, others = boxes[left[0]], boxes[left]
        shared = np.clip(_sides(np.maximum(best, others)[:, :2], np.minimum(best, others)[:, 2:]), 0, None)
        around = _sides(np.minimum(best, others)[:, :2], np.maximum(best, others)[:, 2:])
        overlap = shared.prod(axis=1) / around.prod(axis=1)
        overlap[0] = 1  # itself
        kept.append(int(left[0]))
        left = left[overlap <= MAX_OVERLAP]
    return np.array(kept, np.int64)


def _sides(low: I64, high: I64) -> I64:
    return high - low + 1
