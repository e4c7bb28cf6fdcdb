"""Which triangle of a surface is seen at each pixel: a z-buffer over all triangles at once.

Shape letters: V vertices, T triangles, H W picture.
"""

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

SLACK = 1e-6  # of a barycentric weight: pixels on an edge that two triangles share belong to one of them


def rasterise(points: F64, triangles: I64, height: int, width: int) -> tuple[I32, F32]:
    """Return the nearest triangle at every pixel and where in it the pixel lies.

    Args:
        points: `(V, 3)` x and y in px, and depth: larger is nearer to the viewer.
        triangles: `(T, 3)` indices of points; either orientation is drawn.
        height: H.
        width: W.

    Returns:
        `(H, W)` int32 index of the triangle, -1 where there is none; `(H, W, 3)` barycentric weights of its
        corners, 0 where there is none.

    Raises:
        ValueError: wrong shapes, or points that are not finite.
    """
    if points.ndim != 2 or points.shape[1] != 3 or triangles.ndim != 2 or triangles.shape[1] != 3:
        raise ValueError(
            f"points and triangles must be (V, 3) and (T, 3): {points.shape=} {triangles.shape=}"
        )
    if not np.isfinite(points).all():
        raise ValueError("points must be finite")
    a, b, c = points[triangles].transpose(1, 0, 2)  # each (T, 3)
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (c[:, 0] - a[:, 0]) * (b[:, 1] - a[:, 1])
    which, x, y = _candidates(np.stack([a, b, c], axis=1), area != 0, height, width)
    a, b, c, area = a[which], b[which], c[which], area[which]
    weight_b = ((x - a[:, 0]) * (c[:, 1] - a[:, 1]) - (c[:, 0] - a[:, 0]) * (y - a[:, 1])) / area
    weight_c = ((b[:, 0] - a[:, 0]) * (y - a[:, 1]) - (x - a[:, 0]) * (b[:, 1] - a[:, 1])) / area
    weights = np.column_stack([1 - weight_b - weight_c, weight_b, weight_c])
    inside = np.flatnonzero((weights >= -SLACK).all(axis=1))
    depth = (weights[inside] * np.column_stack([a[inside, 2], b[inside, 2], c[inside, 2]])).sum(axis=1)
    far_to_near = inside[np.argsort(depth, kind="stable")]
    seen = np.full(height * width, -1, np.int64)
    seen[y[far_to_near] * width + x[far_to_near]] = far_to_near  # the last, nearest, stays
    is_hole = seen < 0
    triangle = np.where(is_hole, -1, which[seen]).astype(np.int32) if len(which) else seen.astype(np.int32)
    shown = np.zeros((height * width, 3), np.float32)
    shown[~is_hole] = weights[seen[~is_hole]]
    return triangle.reshape(height, width), shown.reshape(height, width, 3)


def _candidates(
    corners: F64, is_solid: npt.NDArray[np.bool_], height: int, width: int
) -> tuple[I64, I64, I64]:
    """Return triangle, x and y of every pixel in the bounding box of every triangle."""
    limit = np.array([width, height])
    low = np.clip(np.ceil(corners[..., :2].min(axis=1)), 0, limit).astype(np.int64)
    high = np.clip(np.floor(corners[..., :2].max(axis=1)) + 1, 0, limit).astype(np.int64)
    sides = np.maximum(high - low, 0) * is_solid[:, None]
    counts = sides.prod(axis=1)
    which = np.repeat(np.arange(len(corners)), counts)
    place = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    x = low[which, 0] + place % sides[which, 0]
    y = low[which, 1] + place // sides[which, 0]
    return which, x, y
