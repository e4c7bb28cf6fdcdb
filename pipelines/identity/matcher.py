"""Compare embeddings with the gallery: whom they are nearest to, and whether that is near enough."""

from typing import Annotated

import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

from ..message import Identity
from .person import Templates
from .template_index import NOBODY, build_index

F32 = npt.NDArray[np.float32]

Distance = Annotated[float, Meta(gt=0, le=2)]
CONSIDERED = 8  # nearest people looked at: vetoes may strike out some


class IdentityConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a face has a name. Distances are Euclidean, of dlib embeddings (their author uses 0.6)."""

    known_distance: Distance = 0.5
    """Distance to the nearest template below which a face is that person."""
    uncertain_distance: Distance = 0.6
    """Distance up to which it may be that person: published as uncertain."""
    gap: Annotated[float, Meta(ge=0, le=2)] = 0.05
    """How much farther the second-best person must be, or the face is uncertain."""
    hysteresis: Annotated[float, Meta(ge=0, le=1)] = 0.05
    """How much farther than `known_distance` a track that has a name may drift before it loses it."""
    evidence: Annotated[int, Meta(ge=1, le=100)] = 5
    """Embeddings of a track that are averaged before comparing."""
    min_quality: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """Quality below which an embedding is used only when a track has no better one."""
    stranger_distance: Distance = 0.42
    """Distance below which an unknown face is a stranger seen before; small, so that strangers are rather
    split than mixed."""
    stranger_quality: Annotated[float, Meta(ge=0, le=1)] = 0.2
    """Quality from which an unknown face is given a number."""
    stranger_ttl_s: Annotated[float, Meta(ge=0)] = 86_400.0
    """Seconds after which a stranger who was not seen again is deleted."""
    require_consent: bool = False
    """Whether to enrol and to publish only names with a note of consent that has not expired."""
    exact_up_to: Annotated[int, Meta(ge=0)] = 20_000
    """Templates up to which the search is exact."""


class Matcher:
    """The templates and negatives of one embedding space, as they were when it was built. Immutable."""

    def __init__(self, templates: Templates, negatives: Templates, config: IdentityConfig) -> None:
        self._config = config
        self._names = templates.names
        self._index = build_index(templates.embeddings, templates.owners, exact_up_to=config.exact_up_to)
        self._negatives = {
            name: negatives.embeddings[negatives.owners == owner]
            for owner, name in enumerate(negatives.names)
        }

    @property
    def names(self) -> frozenset[str]:
        """Whoever can be recognised."""
        return frozenset(self._names)

    def match(self, embeddings: F32) -> list[Identity]:
        """Return who each of `(N, D)` embeddings is; strangers have no name yet.

        `distance` and `margin` are -1 when the gallery is empty, and `margin` when it has one person.
        """
        if not self._names or not len(embeddings):
            return [Identity(state="unknown")] * len(embeddings)
        distances, owners = self._index.nearest(embeddings, CONSIDERED)
        return [self._judge(e, d, o) for e, d, o in zip(embeddings, distances, owners, strict=True)]

    def _judge(self, embedding: F32, distances: F32, owners: npt.NDArray[np.intp]) -> Identity:
        left = [
            (float(distance), self._names[owner])
            for distance, owner in zip(distances, owners, strict=True)
            if owner != NOBODY and not self._is_vetoed(embedding, self._names[owner], float(distance))
        ]
        if not left:
            return Identity(state="unknown")
        distance, name = left[0]
        margin = left[1][0] - distance if len(left) > 1 else -1.0
        is_clear = len(left) == 1 or margin >= self._config.gap
        if distance < self._config.known_distance and is_clear:
            return Identity(state="known", person=name, distance=distance, margin=margin)
        if distance < self._config.uncertain_distance:
            return Identity(state="uncertain", person=name, distance=distance, margin=margin)
        return Identity(state="unknown", distance=distance, margin=margin)

    def _is_vetoed(self, embedding: F32, name: str, distance: float) -> bool:
        """Return whether the face is nearer to one that is not `name` than to one that is."""
        negatives = self._negatives.get(name)
        return negatives is not None and float(np.linalg.norm(negatives - embedding, axis=1).min()) < distance
