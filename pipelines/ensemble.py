"""Run every member of the ensemble over all faces of all cameras at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

from .engines.engine import Engine, Inputs
from .engines.engine_loader import EngineInfo, EngineLoader
from .errors import ConfigError
from .message import EMOTIONS
from .registry import NETWORKS, ChipRecipe, Network, Output

Rule = Literal["sum", "vote", "max", "product"]

F32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

WARM_UP_RUNS = 3  # a GPU compiles in the first, records its graph in the second, and replays it in the third


class EnsembleConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which networks run, how often, and how their answers are combined."""

    members: tuple[str, ...] = ("face-resnet", "emotion-vgg13", "emotion-resnet")
    """Names of networks in the registry; exactly one must give an embedding."""
    fusion: Rule = "sum"
    """Decision-level rule over the members' calibrated emotion probabilities."""
    release: str = ""
    """Release to serve, by the first digits of its id (`visaged release list`); `members` and `fusion` are
    those of the release then. Empty: the one that was promoted last, and `factory` until there is one.
    `factory`: what is configured here."""
    refresh_every: Annotated[int, Meta(ge=1, le=300)] = 10
    """Frames after which a tracked face is analysed again."""
    max_batch: Annotated[int, Meta(ge=1, le=256)] = 16
    """Faces that one run of a network takes at most."""
    smoothing: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.5
    """Share of a track's earlier emotion kept at each analysis; 0 shows every analysis as it is."""


@dataclass(frozen=True, slots=True)
class Member:
    """One network, its engine, the SHA-256 of its ONNX file, and what runs it."""

    network: Network
    engine: Engine
    onnx_sha256: str
    info: EngineInfo


@dataclass(frozen=True, slots=True)
class Outputs:
    """What the ensemble says about N faces.

    `embeddings` is `(N, D)`. `logits` is `(E, N, K)` in the order of `EMOTIONS`, already divided by each
    member's temperature; `knows` is `(E, K)`: False where a member has no such class (its logit is 0).
    `names` are the E members that give logits. `features` holds `(N, D)` of the members that have some.
    """

    embeddings: F32
    logits: F32
    knows: Bool
    names: tuple[str, ...]
    features: Mapping[str, F32]


class Ensemble:
    """All members, of one release. Owned by the thread that infers; replaced as a whole or not at all."""

    def __init__(self, members: Sequence[Member], *, max_batch: int = 16) -> None:
        """Take `members`, of which exactly one gives an embedding.

        Raises:
            ValueError: none or several members give an embedding.
        """
        self.members = tuple(members)
        self.max_batch = max_batch
        embedders = [m for m in members if output_of(m.network, "embedding")]
        if len(embedders) != 1:
            raise ValueError(f"exactly one member must give an embedding, not {len(embedders)}")
        self._embedder = embedders[0]

    @property
    def recipes(self) -> tuple[ChipRecipe, ...]:
        """Every crop recipe the members need, each once."""
        return tuple(dict.fromkeys(member.network.recipe for member in self.members))

    @property
    def embedding_dim(self) -> int:
        """Length D of an embedding."""
        output = output_of(self._embedder.network, "embedding")
        assert output is not None  # the constructor checked
        return output.dim

    @property
    def embedding_space(self) -> str:
        """Name of the space; embeddings of different spaces are never compared."""
        return self._embedder.network.name

    def infer(self, chips: Mapping[ChipRecipe, Inputs]) -> Outputs:
        """Return what the members say about the faces in `chips`, `(N, C, S, S)` for every recipe."""
        embeddings = np.zeros((0, self.embedding_dim), np.float32)
        logits: list[F32] = []
        knows: list[Bool] = []
        names: list[str] = []
        features: dict[str, F32] = {}
        for member in self.members:
            values = self._run(member, chips[member.network.recipe])
            for output in member.network.outputs:
                if output.kind == "embedding":
                    embeddings = values[output.name]
                elif output.kind == "features":
                    features[member.network.name] = values[output.name]
                elif output.kind == "logits" and output.name in values:
                    spread, known = over_emotions(output, values[output.name])
                    logits.append(spread)
                    knows.append(known)
                    names.append(member.network.name)
        return Outputs(embeddings, np.stack(logits), np.stack(knows), tuple(names), features)

    def warm_up(self) -> None:
        """Run every member at batch 1 and at the largest batch, until nothing is done for the first time."""
        for n in {1, self.max_batch}:
            for _ in range(WARM_UP_RUNS):
                self.infer({recipe: blank_chips(recipe, n) for recipe in self.recipes})

    def close(self) -> None:
        """Free every engine."""
        for member in self.members:
            member.engine.close()

    def _run(self, member: Member, chips: Inputs) -> Mapping[str, F32]:
        parts = [
            member.engine.infer(chips[start : start + self.max_batch])
            for start in range(0, len(chips), self.max_batch)
        ]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def output_of(network: Network, kind: str) -> Output | None:
    """Return the network's first output of `kind`, or None."""
    return next((output for output in network.outputs if output.kind == kind), None)


def over_emotions(output: Output, logits: F32) -> tuple[F32, Bool]:
    """Return `(N, K)` logits over the temperature in the order of `EMOTIONS`, and `(K,)` which are known.

    A class that is not known has 0.
    """
    known = np.array([name in output.classes for name in EMOTIONS])
    spread = np.zeros((len(logits), len(EMOTIONS)), np.float32)
    spread[:, [EMOTIONS.index(name) for name in output.classes]] = logits
    return spread / np.float32(output.temperature), known


def blank_chips(recipe: ChipRecipe, n: int) -> F32:
    """Return `n` chips of zeros in the shape `recipe` asks for."""
    return np.zeros((n, len(recipe.mean), recipe.size, recipe.size), np.float32)


def build_ensemble(config: EnsembleConfig, loader: EngineLoader) -> Ensemble:
    """Load and warm the members named in `config`, importing their networks first where needed.

    Raises:
        ModelError: an unknown member, or a weights file that is missing or corrupt.
        ConfigError: the members do not go together.
    """
    members = [load_member(name, loader) for name in config.members]
    try:
        ensemble = Ensemble(members, max_batch=config.max_batch)
    except ValueError as error:
        raise ConfigError(f"[ensemble] members cannot work together: {error}") from error
    ensemble.warm_up()
    return ensemble


def check_members(config: EnsembleConfig) -> None:
    """Refuse networks that the registry does not have.

    Raises:
        ConfigError: an unknown member.
    """
    for name in config.members:
        if name not in NETWORKS:
            raise ConfigError(
                f"[ensemble] members: no network is called {name!r}; allowed: {', '.join(NETWORKS)}"
            )


def load_member(name: str, loader: EngineLoader) -> Member:
    """Load one network of the registry, importing it first where needed."""
    loaded = loader.load(name)
    row = loader.models.row(name)
    assert isinstance(row, Network)  # a detector is no member: the names were checked
    return Member(row, loaded.engine, loaded.onnx_sha256, loaded.info)
