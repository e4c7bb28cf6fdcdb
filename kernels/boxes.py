"""Arithmetic of boxes `(..., 4)`: left, top, right, bottom in px, right and bottom exclusive."""

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


def centre_form(boxes: F32) -> F64:
    """Return `(..., 4)` centre x, centre y, width, height of `(..., 4)` left, top, right, bottom."""
    b = boxes.astype(np.float64)
    size = b[..., 2:] - b[..., :2]
    return np.concatenate([b[..., :2] + size / 2, size], axis=-1)


def corner_form(centred: F64) -> F32:
    """Return `(..., 4)` left, top, right, bottom of `(..., 4)` centre x, centre y, width, height."""
    half = centred[..., 2:] / 2
    return np.concatenate([centred[..., :2] - half, centred[..., :2] + half], axis=-1).astype(np.float32)


def iou(a: F32, b: F32) -> F32:
    """Return `(N, M)` intersection over union of `(N, 4)` and `(M, 4)` boxes; 0 where both are empty."""
    shared, area_a, area_b = _areas(a, b)
    union = area_a[:, None] + area_b[None, :] - shared
    ratio: F32 = (shared / np.maximum(union, 1e-9)).astype(np.float32)
    return ratio


def overlap_of_smaller(a: F32, b: F32) -> F32:
    """Return `(N, M)` intersection over the smaller of the two areas: 1 when one box holds the other."""
    shared, area_a, area_b = _areas(a, b)
    smaller = np.minimum(area_a[:, None], area_b[None, :])
    ratio: F32 = (shared / np.maximum(smaller, 1e-9)).astype(np.float32)
    return ratio


def _areas(a: F32, b: F32) -> tuple[F64, F64, F64]:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1:] != (4,) or b.shape[1:] != (4,):
        raise ValueError(f"boxes must be (N, 4): {a.shape=} {b.shape=}")
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    low = np.maximum(a64[:, None, :2], b64[None, :, :2])
    high = np.minimum(a64[:, None, 2:], b64[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=-1)
    area_a = np.prod(np.clip(a64[:, 2:] - a64[:, :2], 0, None), axis=-1)
    area_b = np.prod(np.clip(b64[:, 2:] - b64[:, :2], 0, None), axis=-1)
    return shared, area_a, area_b
