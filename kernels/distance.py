"""Distances between embeddings. dlib's are compared by Euclidean distance; cosine means nothing for them."""

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


def distances(a: F32, b: F32) -> F32:
    """Return the `(N, G)` Euclidean distances of `(N, D)` and `(G, D)` embeddings.

    Raises:
        ValueError: the embeddings differ in length D.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"{a.shape=} {b.shape=}")
    squared = (a * a).sum(1)[:, None] - 2 * (a @ b.T) + (b * b).sum(1)[None, :]
    result: F32 = np.sqrt(np.maximum(squared, 0)).astype(np.float32)
    return result
