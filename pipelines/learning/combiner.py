"""How the members of a release are combined, fitted on faces that they were not trained with.

Shape letters: E members, N faces.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from ...kernels.fusion import probabilities
from ..ensemble import Outputs
from ..errors import ConfigError
from ..fuser import CascadeHead, DecisionFusion, FeatureFusion, Fusion, Group
from ..model_store import NetworkFiles
from ..releases.release_store import write_head
from .ensembles import (
    Members,
    fit_cascade,
    fit_committee,
    fit_temperatures,
    learn_gates,
    select_greedily,
    tune_weights,
)
from .metrics import Truth
from .samples import TRAIN, split_of

F32 = npt.NDArray[np.float32]

How = Literal[
    "sum", "vote", "max", "product", "accuracy", "select", "committee", "cascade", "weighted-cascade"
]
"""`accuracy`: weights by a power of each member's accuracy; `select`: each member as often as it helps."""


@dataclass(frozen=True, slots=True)
class Combination:
    """A fusion and, for a feature-level one, the file of its classifier."""

    fusion: Fusion
    heads: Mapping[str, CascadeHead]
    files: tuple[bytes, ...] = ()


def calibrate(
    networks: Mapping[str, NetworkFiles], outputs: Outputs, truth: Truth
) -> tuple[dict[str, NetworkFiles], Outputs]:
    """Return the networks with temperatures that suit the faces, and their outputs with these.

    Args:
        networks: by name.
        outputs: of the N faces, under the temperatures that the networks have.
        truth: what people saw.
    """
    factors = fit_temperatures(outputs.logits, outputs.knows, truth.targets)
    calibrated = dict(networks)
    for name, factor in zip(outputs.names, map(float, factors), strict=True):
        row = networks[name].row
        rows = tuple(
            msgspec.structs.replace(o, temperature=o.temperature * factor) if o.kind == "logits" else o
            for o in row.outputs
        )
        calibrated[name] = replace(networks[name], row=msgspec.structs.replace(row, outputs=rows))
    return calibrated, replace(outputs, logits=outputs.logits / factors[:, None, None])


def fit_combination(how: How, outputs: Outputs, truth: Truth, group: Group | None = None) -> Combination:
    """Return how the members are combined.

    Args:
        how: by which method.
        outputs: of the N faces, calibrated.
        truth: what people saw.
        group: for `committee`: who is in it; None: all members in one group.

    Raises:
        ConfigError: a feature-level combination of fewer than two members that give features.
    """
    if how in ("cascade", "weighted-cascade"):
        return _fit_features(how, outputs, truth)
    members = Members(outputs.names, probabilities(outputs.logits, outputs.knows), outputs.knows)
    if how == "committee":
        everybody = group or Group(name="all", parts=outputs.names)
        return Combination(fit_committee(everybody, members, truth.targets), {})
    if how == "accuracy":
        weights = tune_weights(members, truth.targets).weights
    elif how == "select":
        weights = select_greedily(members, truth.targets).weights
    else:
        return Combination(DecisionFusion(rule=how), {})  # type: ignore[arg-type]  # the others are above
    by_name = dict(zip(outputs.names, map(float, weights), strict=True))
    return Combination(DecisionFusion(weights=by_name), {})


def _fit_features(how: How, outputs: Outputs, truth: Truth) -> Combination:
    names = tuple(outputs.features)
    if len(names) < 2:
        raise ConfigError(
            f"{how} needs two members that give features; these do: {', '.join(names) or 'none'}"
        )
    features = list(outputs.features.values())
    gates = None
    if how == "weighted-cascade":
        held_out = split_of(truth.groups, tune=0.5, test=0.0) != TRAIN
        gates = learn_gates(features, truth.targets, held_out)
    head = fit_cascade(features, truth.targets, gates)
    file = write_head(head)
    digest = hashlib.sha256(file).hexdigest()
    return Combination(FeatureFusion(members=names, head=digest), {digest: head}, (file,))
