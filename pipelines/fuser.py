"""One answer per face out of what the members say: how they are combined, as a release says it.

Shape letters: E members, N faces, K classes, D features of one member, F of all.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from ..kernels import fusion
from .ensemble import Outputs, Rule

F32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

RULES: dict[Rule, Callable[[F32, Bool, F32 | None], F32]] = {
    "sum": fusion.fuse_sum,
    "vote": fusion.fuse_vote,
    "max": fusion.fuse_max,
    "product": fusion.fuse_product,
}


class DecisionFusion(Struct, frozen=True, kw_only=True, tag="decision", tag_field="level"):
    """One rule over the members' probabilities; a member that `weights` does not name counts as 1."""

    rule: Rule = "sum"
    weights: dict[str, float] = {}

    def __str__(self) -> str:
        parts = (f"{name} {weight:.2f}" for name, weight in self.weights.items())
        return f"{self.rule} of {', '.join(parts)}" if self.weights else self.rule


class Group(Struct, frozen=True, kw_only=True):
    """One level of a committee: members by name, or groups of them, and a weight for each part.

    Three levels: `all = (faces = (grey = (a, b), c), lines = (d,))`. Every group has a name of its own.
    """

    name: str
    parts: "tuple[Group | str, ...]"
    weights: tuple[float, ...] = ()

    def __str__(self) -> str:
        weights = self.weights or (1.0,) * len(self.parts)
        parts = (f"{part} {weight:.2f}" for part, weight in zip(self.parts, weights, strict=True))
        return f"{self.name} ({', '.join(parts)})"


class CommitteeFusion(Struct, frozen=True, kw_only=True, tag="committee", tag_field="level"):
    """A hierarchy of weighted means over the members' probabilities.

    Source: Kim et al., "Hierarchical committee of deep CNNs with exponentially-weighted decision fusion
    for static facial expression recognition", ICMI 2015.
    """

    top: Group

    def __str__(self) -> str:
        return f"committee: {self.top}"


class FeatureFusion(Struct, frozen=True, kw_only=True, tag="features", tag_field="level"):
    """A classifier on the features of `members` side by side; `head` is the SHA-256 of its file."""

    members: tuple[str, ...]
    head: str

    def __str__(self) -> str:
        return f"classifier on the features of {', '.join(self.members)}"


Fusion = DecisionFusion | CommitteeFusion | FeatureFusion


@dataclass(frozen=True, slots=True, eq=False)
class CascadeHead:
    """A multinomial logistic classifier on the members' features side by side.

    `weights` `(F, K)` and `bias` `(K,)` belong to the plain `fusion.cascade`: the members' weights
    `gates` `(E,)` are already in them. They are B and C of an ONNX Gemm without transposition.
    """

    weights: F32
    bias: F32
    gates: F32

    def probabilities(self, features: Sequence[F32]) -> F32:
        """Return `(N, K)` for the members' `(N, D)` features, in the order they were fitted in."""
        logits = fusion.cascade(features) @ self.weights + self.bias
        p: F32 = fusion.probabilities(logits[None], np.ones((1, len(self.bias)), bool))[0]
        return p


def fuse_group(group: Group, of: Callable[[str], tuple[F32, Bool]]) -> tuple[F32, Bool]:
    """Return the `(N, K)` probabilities of a group, and the `(K,)` classes that any of it knows.

    Args:
        group: with a weight for each part.
        of: the same of a member, by name.
    """
    answers = [of(part) if isinstance(part, str) else fuse_group(part, of) for part in group.parts]
    p, knows = np.stack([p for p, _ in answers]), np.stack([knows for _, knows in answers])
    known: Bool = np.logical_or.reduce(knows)
    return fusion.fuse_sum(p, knows, np.array(group.weights, np.float32)), known


@dataclass(frozen=True, slots=True)
class Fused:
    """What the ensemble says of N faces, K classes in the order of `EMOTIONS`.

    `probabilities` is `(N, K)`, fused; `disagreement` `(N,)` in [0, 1]; `members` `(E, N, K)` what each
    of the E members called `names` said, 0 for a class that it does not know.
    """

    probabilities: F32
    disagreement: F32
    members: F32
    names: tuple[str, ...]

    def rows(self, rows: slice) -> "Fused":
        """Return what is said of some of the faces."""
        return Fused(self.probabilities[rows], self.disagreement[rows], self.members[:, rows], self.names)


class Fuser:
    """Combines the members of one release. Owns nothing that changes."""

    def __init__(self, how: Fusion, heads: Mapping[str, CascadeHead] = {}) -> None:
        """Combine as `how` says; `heads` are the classifiers of a feature-level fusion, by digest."""
        self._how = how
        self._head = heads[how.head] if isinstance(how, FeatureFusion) else None

    def fuse(self, outputs: Outputs) -> Fused:
        """Return one answer per face."""
        p = fusion.probabilities(outputs.logits, outputs.knows)
        return Fused(self._fuse(outputs, p), fusion.disagreement(p, outputs.knows), p, outputs.names)

    def _fuse(self, outputs: Outputs, p: F32) -> F32:
        how = self._how
        if isinstance(how, DecisionFusion):
            weights = np.array([how.weights.get(name, 1.0) for name in outputs.names], np.float32)
            return RULES[how.rule](p, outputs.knows, weights)
        if isinstance(how, CommitteeFusion):
            by_name = {n: (p[i], outputs.knows[i]) for i, n in enumerate(outputs.names)}
            return fuse_group(how.top, by_name.__getitem__)[0]
        assert self._head is not None  # the constructor looked it up
        return self._head.probabilities([outputs.features[name] for name in how.members])
