"""A release: the whole ensemble under one name that follows from its content, carried by every message."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
from msgspec import Struct

from ..ensemble import Ensemble, Rule
from ..fuser import DecisionFusion, Fuser, Fusion
from ..registry import Network

FACTORY = "factory"
"""Name of the release that is configured, not kept: its networks are those of the registry."""


class ReleaseMember(Struct, frozen=True, kw_only=True):
    """One network of a release, with the SHA-256 of its ONNX file and of its INT8 ranges, "" for none."""

    network: Network
    onnx: str
    ranges: str = ""


class Release(Struct, frozen=True, kw_only=True):
    """Everything that decides what the ensemble answers, but for what runs it."""

    members: tuple[ReleaseMember, ...]
    fusion: Fusion
    embedding_space: str

    @property
    def id(self) -> str:
        """First 12 hex digits of the SHA-256 of the release's canonical JSON."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()[:12]

    def describe(self) -> dict[str, Any]:
        """Return the release as plain values, its id first."""
        return {"id": self.id, **msgspec.to_builtins(self)}


def factory_release(ensemble: Ensemble, rule: Rule) -> Release:
    """Return the release that `ensemble`, imported from published weights, forms under `rule`."""
    members = [ReleaseMember(network=m.network, onnx=m.onnx_sha256) for m in ensemble.members]
    return published_release(members, rule)


def published_release(members: Sequence[ReleaseMember], rule: Rule) -> Release:
    """Return the release of networks with the weights that the registry gives them, under `rule`."""
    outputs = [(member.network.name, output) for member in members for output in member.network.outputs]
    return Release(
        members=tuple(members),
        fusion=DecisionFusion(rule=rule, weights={n: o.weight for n, o in outputs if o.kind == "logits"}),
        embedding_space=next(name for name, output in outputs if output.kind == "embedding"),
    )


def running_name(release: Release, ensemble: Ensemble) -> str:
    """Return `ID.PLANS`, the name in messages: the release, and 6 hex digits for the plans that run it.

    Another precision or library answers a little differently: whoever compares messages sees it.
    """
    plans = [(m.info.backend.value, m.info.precision.value, m.info.plan) for m in ensemble.members]
    return f"{release.id}.{hashlib.sha256(msgspec.json.encode(plans)).hexdigest()[:6]}"


@dataclass(frozen=True, eq=False)
class LoadedRelease:
    """A release that is loaded: what answers, as a whole. Owned as its ensemble is.

    `key` is its name in the journal: its id, or `FACTORY`.
    """

    key: str
    release: Release
    ensemble: Ensemble
    fuser: Fuser

    @cached_property
    def name(self) -> str:
        """Its name in messages."""
        return running_name(self.release, self.ensemble)

    def close(self) -> None:
        """Free the engines."""
        self.ensemble.close()
