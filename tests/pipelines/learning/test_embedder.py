"""Embedders: features of length 1, losses that share the last layer, and people never seen told apart."""

from pathlib import Path

import numpy as np
import pytest
from visaged.pipelines.engines.ort_engine import OrtEngine
from visaged.pipelines.errors import ConfigError
from visaged.pipelines.learning.samples import Samples
from visaged.pipelines.registry import ChipRecipe, Colour

torch = pytest.importorskip("torch", reason="torch is not installed (extra `learn`)")
from visaged.pipelines.learning.embedder import PairJudge, know_people, make_embedder  # noqa: E402
from visaged.pipelines.learning.exporter import export_embedder  # noqa: E402
from visaged.pipelines.learning.losses import LossConfig  # noqa: E402
from visaged.pipelines.learning.networks import Network, NetworkConfig, build_network  # noqa: E402
from visaged.pipelines.learning.normalisation import (  # noqa: E402
    Normalisation,
    NormalisedNetwork,
    normalisation_preset,
)
from visaged.pipelines.learning.trainer import Epoch, Run, TrainingConfig, ask  # noqa: E402

pytestmark = pytest.mark.torch
SIZE = 32
ARCFACE = (LossConfig(kind="arcface", margin=0.2, scale=16.0),)


def embedder(kind: str = "small_resnet", units: int = 16) -> Network:
    config = NetworkConfig(kind=kind, size=SIZE, width=4, units=units, dropout=0.0)  # type: ignore[arg-type]
    network = build_network(config, 2, seed=1)
    make_embedder(network)
    return network


def people(names: range, each: int = 6) -> Samples:
    """Each person a grating of an own direction and fineness, each photo with an own phase, in noise."""
    random = np.random.default_rng(names.start)
    y, x = np.mgrid[:SIZE, :SIZE]
    pictures, who = [], []
    for name in names:
        person = np.random.default_rng(name)
        angle, fineness = person.uniform(0, np.pi), person.uniform(0.3, 1.2)
        for _ in range(each):
            wave = np.sin(fineness * (x * np.cos(angle) + y * np.sin(angle)) + random.uniform(0, 6.3))
            pictures.append(127 + 90 * wave + random.normal(0, 8, wave.shape))
            who.append(name - names.start)
    pixels = np.clip(np.array(pictures), 0, 255).astype(np.uint8)[..., None]
    classes = tuple(f"p{name}" for name in names)
    return Samples(pixels, np.eye(len(names), dtype=np.float32)[who], np.array(classes)[who], classes)


TRAIN, TUNE = people(range(100, 140)), people(range(900, 912))


@pytest.mark.parametrize("kind", ["vgg13", "small_resnet", "mini_xception"])
@pytest.mark.parametrize("units", [0, 16])
def test_the_features_of_every_network_become_signed_and_of_length_1(kind: str, units: int) -> None:
    network = embedder(kind, units)
    network.train()

    features = network(torch.randn(8, 1, SIZE, SIZE)).features

    assert features.norm(dim=1).tolist() == pytest.approx([1.0] * 8, abs=1e-5)
    assert (features < 0).any() and features.shape[1] == network.last.in_features


def test_the_last_layer_is_what_arcface_learns() -> None:
    network = embedder()
    losses = know_people(network, ARCFACE, [1.0] * 40)
    seen = network(torch.randn(8, 1, SIZE, SIZE))
    targets = torch.eye(40)[:8]

    losses(seen.logits, seen.features, targets, torch.arange(8))[0].backward()

    assert network.last.weight.grad is not None and network.last.weight.grad.abs().sum() > 0
    assert seen.logits.shape == (8, 40) and seen.logits.abs().max() <= 16.0001


def test_a_loss_that_cannot_teach_an_embedding_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="'tuplet_clusters' teaches no embedding; take arcface"):
        know_people(embedder(), (LossConfig(kind="tuplet_clusters"),), [1.0, 1.0])


@pytest.mark.parametrize("losses", [ARCFACE, (LossConfig(kind="cross_entropy"),)], ids=["arcface", "softmax"])
def test_people_who_were_never_seen_are_told_apart(tmp_path: Path, losses: tuple[LossConfig, ...]) -> None:
    normalisation = Normalisation.fit(normalisation_preset("slides"), TRAIN.pictures)
    network = embedder()
    whole = NormalisedNetwork(normalisation, network)
    judge = PairJudge.of(TUNE)
    before, _ = judge(ask(whole, TUNE), TUNE)  # type: ignore[arg-type]
    config = TrainingConfig(epochs=10, batch=24, optimiser="adamw", rate=5e-3, decay=0.0, threads=1)
    run = Run(whole, know_people(network, losses, [6.0] * 40), None, config, tmp_path, "", judge)  # type: ignore[arg-type]

    epochs = run.train(TRAIN, TUNE)

    best = min(epochs, key=lambda epoch: epoch.tune_loss)
    assert best.tune_loss < 0.7 * before and best.tune_accuracy > 0.75
    assert epochs[-1].train_accuracy > 0.5 > epochs[0].train_accuracy  # of 40 people
    after, _ = judge(ask(whole, TUNE), TUNE)  # type: ignore[arg-type]
    assert after == pytest.approx(best.tune_loss)  # the best epoch's is left

    recipe = ChipRecipe(size=SIZE, padding=0.25, colour=Colour.GREY, mean=(0.0,), scale=1.0)
    engine = OrtEngine(export_embedder(network, normalisation, recipe, length=0.5))
    outputs = engine.infer(TUNE.pictures.transpose(0, 3, 1, 2).astype(np.float32))
    assert list(outputs) == ["embedding"]  # and nothing of the people that were learned from
    expected = 0.5 * ask(whole, TUNE).features.numpy()  # type: ignore[arg-type]
    assert outputs["embedding"] == pytest.approx(expected, abs=1e-4)


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    config = TrainingConfig(epochs=2, batch=40, optimiser="adamw", rate=5e-3, threads=1)

    def run_in(folder: Path, stop_after: int = 0) -> list[Epoch]:
        network = embedder()
        run = Run(
            network, know_people(network, ARCFACE, [6.0] * 40), None, config, folder, "", PairJudge.of(TUNE)
        )

        def tell(epoch: Epoch) -> None:
            if epoch.number == stop_after:
                raise KeyboardInterrupt

        return run.train(TRAIN, TUNE, tell)

    whole = run_in(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_in(tmp_path / "cut", stop_after=1)

    assert [e.tune_loss for e in run_in(tmp_path / "cut")] == [e.tune_loss for e in whole]


def test_synthetic_faces_judge_nobody() -> None:
    spoilt = TUNE.with_children(TUNE.pictures[:2], np.arange(2))

    with pytest.raises(ValueError, match="2 synthetic samples in the measured part"):
        PairJudge.of(TUNE)(ask(embedder(), spoilt), spoilt)
