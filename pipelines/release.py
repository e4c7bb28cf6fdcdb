"""A release: the whole ensemble under one content-addressed name, carried by every message."""

import hashlib
from typing import Any

import msgspec
from msgspec import Struct

from .ensemble import Ensemble, EnsembleConfig
from .registry import Network


class ReleaseMember(Struct, frozen=True, kw_only=True):
    """One network of a release and the digest of the file that ran."""

    network: Network
    digest: str


class Release(Struct, frozen=True, kw_only=True):
    """Everything that decides what the ensemble answers."""

    members: tuple[ReleaseMember, ...]
    fusion: str
    embedding_space: str

    @property
    def id(self) -> str:
        """First 12 hex digits of the SHA-256 of the release's canonical JSON."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()[:12]

    def describe(self) -> dict[str, Any]:
        """Return the release as plain values, its id first."""
        return {"id": self.id, **msgspec.to_builtins(self)}


def factory_release(ensemble: Ensemble, config: EnsembleConfig) -> Release:
    """Return the release that `ensemble`, imported from published weights, forms under `config`."""
    return Release(
        members=tuple(ReleaseMember(network=m.network, digest=m.digest) for m in ensemble.members),
        fusion=config.fusion,
        embedding_space=ensemble.embedding_space,
    )
