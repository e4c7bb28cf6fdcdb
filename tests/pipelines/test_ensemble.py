"""The ensemble: members in one batch, classes in one order, releases named by their content."""

from collections.abc import Mapping

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from visaged.pipelines.engines.engine import EngineConfig, Inputs
from visaged.pipelines.engines.engine_loader import EngineInfo, EngineLoader
from visaged.pipelines.engines.plan import Backend, Precision
from visaged.pipelines.ensemble import (
    Ensemble,
    EnsembleConfig,
    Member,
    blank_chips,
    build_ensemble,
    check_members,
)
from visaged.pipelines.errors import ConfigError
from visaged.pipelines.fuser import DecisionFusion, Fuser
from visaged.pipelines.message import EMOTIONS
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.registry import ChipRecipe, Colour, Network, Output
from visaged.pipelines.releases.release import factory_release

F32 = npt.NDArray[np.float32]
RECIPE = ChipRecipe(size=2, padding=0.0, colour=Colour.GREY, mean=(0.0,), scale=1.0)


INFO = EngineInfo(backend=Backend.ONNXRUNTIME, precision=Precision.FP32, device="cpu")


@pytest.fixture
def loader(store: ModelStore) -> EngineLoader:
    return EngineLoader(EngineConfig(), store)


class EchoEngine:
    """Answers every output with the mean of each chip; notes the batches it saw."""

    def __init__(self, outputs: Mapping[str, int]) -> None:
        self.outputs = outputs
        self.batches: list[int] = []

    def infer(self, inputs: Inputs) -> Mapping[str, F32]:
        self.batches.append(len(inputs))
        mean = np.asarray(inputs, np.float32).mean(axis=(1, 2, 3))
        return {name: np.repeat(mean[:, None], dim, axis=1) for name, dim in self.outputs.items()}

    def close(self) -> None:
        """Nothing to free."""


def network(name: str, *outputs: Output) -> Network:
    return Network(
        name=name, recipe=RECIPE, outputs=outputs, source="", licence="", licence_note="", trained_on=""
    )


EMBEDDER = network("embedder", Output(name="e", kind="embedding", dim=4))
TWO_CLASSES = network(
    "two", Output(name="l", kind="logits", dim=2, classes=("anger", "neutral"), temperature=2.0, weight=0.3)
)


def ensemble_of(max_batch: int = 16) -> tuple[Ensemble, EchoEngine]:
    embedder, two = EchoEngine({"e": 4}), EchoEngine({"l": 2})
    members = [Member(EMBEDDER, embedder, "1", INFO), Member(TWO_CLASSES, two, "2", INFO)]
    return Ensemble(members, max_batch=max_batch), two


def test_logits_land_on_their_classes_divided_by_the_temperature() -> None:
    ensemble, _ = ensemble_of()

    outputs = ensemble.infer({RECIPE: np.full((3, 1, 2, 2), 6.0, np.float32)})

    assert outputs.logits.shape == (1, 3, len(EMOTIONS))
    assert outputs.logits[0, 0, EMOTIONS.index("anger")] == 3.0
    assert outputs.knows[0].sum() == 2
    assert outputs.names == ("two",) and not outputs.features
    assert outputs.embeddings.shape == (3, 4)


def test_a_large_batch_is_cut_and_put_together_in_order() -> None:
    ensemble, engine = ensemble_of(max_batch=4)
    chips = np.arange(10, dtype=np.float32)[:, None, None, None] * np.ones((1, 1, 2, 2), np.float32)

    outputs = ensemble.infer({RECIPE: chips})

    assert engine.batches == [4, 4, 2]
    assert outputs.embeddings[:, 0].tolist() == list(range(10))


def test_an_ensemble_needs_exactly_one_embedder() -> None:
    with pytest.raises(ValueError, match="exactly one"):
        Ensemble([Member(TWO_CLASSES, EchoEngine({"l": 2}), "2", INFO)])


def test_the_default_ensemble_runs_and_fuses_to_probabilities(loader: EngineLoader) -> None:
    ensemble = build_ensemble(EnsembleConfig(), loader)

    outputs = ensemble.infer({recipe: blank_chips(recipe, 2) for recipe in ensemble.recipes})
    fused = Fuser(DecisionFusion()).fuse(outputs)

    assert outputs.embeddings.shape == (2, 128)
    assert fused.probabilities.shape == (2, len(EMOTIONS))
    assert fused.probabilities.sum(axis=1) == pytest.approx([1, 1], abs=1e-5)
    assert fused.disagreement.shape == (2,)
    assert fused.members.shape == (len(fused.names), 2, len(EMOTIONS))
    ensemble.close()


def test_an_unknown_member_is_named_with_what_is_known() -> None:
    with pytest.raises(ConfigError, match=r"'face-resnot'.*face-resnet"):
        check_members(EnsembleConfig(members=("face-resnot",)))


def test_members_that_cannot_work_together_are_refused(loader: EngineLoader) -> None:
    with pytest.raises(ConfigError, match="exactly one"):
        build_ensemble(EnsembleConfig(members=("emotion-xception",)), loader)


def test_a_release_is_named_by_everything_that_decides_its_answers() -> None:
    ensemble, _ = ensemble_of()
    release = factory_release(ensemble, "sum")

    assert release.id == factory_release(ensemble, "sum").id
    assert release.id != factory_release(ensemble, "max").id
    assert release.fusion == DecisionFusion(weights={"two": 0.3})
    other = msgspec.structs.replace(release.members[0], onnx="other")
    assert release.id != msgspec.structs.replace(release, members=(other, release.members[1])).id
