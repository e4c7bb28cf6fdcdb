"""Find the people nearest to an embedding: exact in numpy, approximate beyond a size. The door to usearch.

Both return the distances of `k` people per query, so the caller does not see which one answered.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
Intp = npt.NDArray[np.intp]

EXACT_UP_TO = 20_000  # templates; above, an exact search of 6 faces takes over 5 ms of a core
NOBODY = -1


class TemplateIndex(Protocol):
    """Templates of many people, searchable."""

    def nearest(self, queries: F32, k: int) -> tuple[F32, Intp]:
        """Return distances and owners, both `(N, k)`, of the `k` nearest people, nearest first.

        A person's distance is that of the nearest template (Euclidean). Where there are fewer than `k`
        people the distance is infinite and the owner -1.
        """


def build_index(embeddings: F32, owners: Intp, *, exact_up_to: int = EXACT_UP_TO) -> TemplateIndex:
    """Return an index over `embeddings` `(G, D)`; row i belongs to person `owners[i]`, sorted."""
    if len(embeddings) <= exact_up_to:
        return ExactIndex(embeddings, owners)
    return ApproximateIndex(embeddings, owners)


class ExactIndex:
    """Compares with every template."""

    def __init__(self, embeddings: F32, owners: Intp) -> None:
        self._embeddings = embeddings
        self._squares = np.einsum("gd,gd->g", embeddings, embeddings)
        self._people, self._starts = np.unique(owners, return_index=True)

    def nearest(self, queries: F32, k: int) -> tuple[F32, Intp]:
        """Return distances and owners of the nearest people, see `TemplateIndex`."""
        if not len(self._people):
            return _nobody(len(queries), k)
        own = np.einsum("nd,nd->n", queries, queries)
        squared = own[:, None] + self._squares - 2 * queries @ self._embeddings.T
        per_person = np.minimum.reduceat(squared, self._starts, axis=1)
        distances: F32 = np.sqrt(np.maximum(per_person, 0)).astype(np.float32)
        return _first(distances, np.broadcast_to(self._people, distances.shape), k)


class ApproximateIndex:
    """Asks a graph (HNSW) for a few candidates and compares with those exactly."""

    CANDIDATES = 128  # templates; several of them belong to one person

    def __init__(self, embeddings: F32, owners: Intp) -> None:
        # usearch 2.26 loaded before onnxruntime 1.32 makes the latter crash while it is imported
        from ..engines import ort_engine  # noqa: F401  isort: skip
        from usearch.index import Index  # isort: skip

        self._embeddings, self._owners = embeddings, owners
        self._index = Index(ndim=embeddings.shape[1], metric="l2sq", dtype="f32", expansion_search=256)
        self._index.add(np.arange(len(embeddings)), embeddings)

    def nearest(self, queries: F32, k: int) -> tuple[F32, Intp]:
        """Return distances and owners of the nearest people, see `TemplateIndex`."""
        best, owners = _nobody(len(queries), k)
        for row, query in enumerate(queries):
            keys = self._index.search(query, self.CANDIDATES).keys.astype(np.intp)
            distances = np.linalg.norm(self._embeddings[keys] - query, axis=1)
            order = np.argsort(distances)
            people, first = np.unique(self._owners[keys[order]], return_index=True)
            row_best, row_owners = _first(distances[order][first][None], people[None], k)
            best[row], owners[row] = row_best[0], row_owners[0]
        return best, owners


def _nobody(n: int, k: int) -> tuple[F32, Intp]:
    return np.full((n, k), np.inf, np.float32), np.full((n, k), NOBODY, np.intp)


def _first(distances: F32, owners: Intp, k: int) -> tuple[F32, Intp]:
    """Return the `k` smallest of each row, padded with nobody."""
    best, who = _nobody(len(distances), k)
    order = np.argsort(distances, axis=1)[:, :k]
    best[:, : order.shape[1]] = np.take_along_axis(distances, order, axis=1)
    who[:, : order.shape[1]] = np.take_along_axis(owners, order, axis=1)
    return best, who
