"""Training on drawn shapes: it learns, stops, resumes exactly, and is the same twice."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from visaged.pipelines.errors import ModelError
from visaged.pipelines.learning.samples import Samples

torch = pytest.importorskip("torch", reason="torch is not installed (extra `learn`)")
from visaged.pipelines.learning.networks import NetworkConfig, Seen, build_network  # noqa: E402
from visaged.pipelines.learning.trainer import Epoch, Run, TrainingConfig, infer, score  # noqa: E402

pytestmark = pytest.mark.torch
SIZE = 32
CONFIG = TrainingConfig(epochs=4, batch=16, optimiser="adamw", rate=3e-3, decay=0.0, threads=1)


class CrossEntropy(torch.nn.Module):  # type: ignore[misc,name-defined]
    """The plainest of losses."""

    def forward(self, logits, features, targets, groups):  # type: ignore[no-untyped-def]
        loss = torch.nn.functional.cross_entropy(logits, targets)
        return loss, {"cross_entropy": loss}


def shapes(n: int, seed: int) -> Samples:
    """Bars that stand (class 0) or lie (class 1), somewhere, in noise."""
    random = np.random.default_rng(seed)
    pictures = random.integers(0, 90, (n, SIZE, SIZE, 1)).astype(np.uint8)
    for index, picture in enumerate(pictures):
        at = int(random.integers(4, SIZE - 8))
        if index % 2:
            picture[at : at + 4, 4:-4] = 220
        else:
            picture[4:-4, at : at + 4] = 220
    targets = np.eye(2, dtype=np.float32)[np.arange(n) % 2]
    return Samples(pictures, targets, np.array([str(i) for i in range(n)]), ("standing", "lying"))


def run_in(folder: Path, config: TrainingConfig = CONFIG) -> Run:
    torch.manual_seed(config.seed)
    network = build_network(NetworkConfig(kind="small_resnet", size=SIZE, width=4, units=0, dropout=0.1), 2)
    return Run(network, CrossEntropy(), lambda pictures, targets: (pictures / 255, targets), config, folder)


TRAIN, TUNE = shapes(96, 0), shapes(32, 1)


def test_it_learns_and_leaves_the_network_of_the_best_epoch(tmp_path: Path) -> None:
    run = run_in(tmp_path, msgspec.structs.replace(CONFIG, epochs=12))

    epochs = run.train(TRAIN, TUNE)

    best = min(epochs, key=lambda epoch: epoch.tune_loss)
    assert score(run.network, TUNE)[0] == pytest.approx(best.tune_loss, abs=1e-5)
    assert epochs[-1].train_loss < 0.6 * epochs[0].train_loss
    written = msgspec.json.decode((tmp_path / "curves.json").read_bytes(), type=list[Epoch])
    assert written == epochs


def test_the_same_run_twice_is_the_same_network(tmp_path: Path) -> None:
    first, second = run_in(tmp_path / "a"), run_in(tmp_path / "b")
    first.train(TRAIN, TUNE)
    second.train(TRAIN, TUNE)

    assert np.array_equal(infer(first.network, TUNE), infer(second.network, TUNE))


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole = run_in(tmp_path / "whole")
    expected = whole.train(TRAIN, TUNE)

    def interrupt(epoch: Epoch) -> None:
        if epoch.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in(tmp_path / "cut").train(TRAIN, TUNE, interrupt)
    resumed = run_in(tmp_path / "cut")
    seen: list[int] = []
    epochs = resumed.train(TRAIN, TUNE, lambda epoch: seen.append(epoch.number))

    assert seen == [1, 2, 3, 4]
    assert [e.tune_loss for e in epochs] == [e.tune_loss for e in expected]
    assert np.array_equal(infer(resumed.network, TUNE), infer(whole.network, TUNE))


def test_training_stops_when_the_tuning_loss_no_longer_falls(tmp_path: Path) -> None:
    config = msgspec.structs.replace(CONFIG, epochs=30, patience=2)
    wrong = Samples(TUNE.pictures, TUNE.targets[::-1].copy(), TUNE.groups, TUNE.classes)

    epochs = run_in(tmp_path, config).train(TRAIN, wrong)

    assert len(epochs) < 30
    best = min(epochs, key=lambda epoch: epoch.tune_loss)
    assert epochs[-1].number - best.number == 2


def test_whoever_judges_chooses_the_epoch(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    figures = iter([(0.4, 0.1), (0.2, 0.9), (0.3, 0.3), (0.3, 0.3)])
    states = []

    def judge(seen: Seen, samples: Samples) -> tuple[float, float]:
        assert seen.features.shape[0] == len(samples) == len(TUNE)
        states.append(run.network.last.weight.clone())
        return next(figures)

    run.judge = judge
    epochs = run.train(TRAIN, TUNE)

    assert [(epoch.tune_loss, epoch.tune_accuracy) for epoch in epochs][1] == (0.2, 0.9)
    assert torch.equal(run.network.last.weight, states[1])


def test_the_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    run_in(tmp_path).train(TRAIN, TUNE)

    with pytest.raises(ModelError, match="another configuration"):
        run_in(tmp_path, msgspec.structs.replace(CONFIG, rate=0.01)).train(TRAIN, TUNE)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04broken"])
def test_a_broken_checkpoint_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(content)

    with pytest.raises(ModelError, match="no checkpoint of this run"):
        run_in(tmp_path).train(TRAIN, TUNE)


def test_synthetic_samples_never_choose_nor_measure(tmp_path: Path) -> None:
    spoilt = TUNE.with_children(TUNE.pictures[:3], np.arange(3))

    with pytest.raises(ValueError, match="3 synthetic samples in the tuning part"):
        run_in(tmp_path).train(TRAIN, spoilt)
    with pytest.raises(ValueError, match="3 synthetic samples in the measured part"):
        score(run_in(tmp_path).network, spoilt)
    assert not list(tmp_path.iterdir())


def test_children_of_the_tuning_part_are_refused_in_the_training_part(tmp_path: Path) -> None:
    tune = Samples(TUNE.pictures, TUNE.targets, np.array([f"t{i}" for i in range(32)]), TUNE.classes)
    leaked = tune.with_children(tune.pictures[:2], np.arange(2)).take(np.array([32, 33]))
    mixed = Samples(
        np.concatenate([TRAIN.pictures, leaked.pictures]),
        np.concatenate([TRAIN.targets, leaked.targets]),
        np.concatenate([TRAIN.groups, leaked.groups]),
        TRAIN.classes,
        np.concatenate([TRAIN.is_synthetic, leaked.is_synthetic]),
    )

    with pytest.raises(ValueError, match="made of groups of the tuning part"):
        run_in(tmp_path).train(mixed, tune)


def test_a_synthetic_sample_weighs_less_than_a_real_one(tmp_path: Path) -> None:
    tune = Samples(TUNE.pictures, TUNE.targets, np.array([f"t{i}" for i in range(32)]), TUNE.classes)
    run = run_in(tmp_path, msgspec.structs.replace(CONFIG, epochs=1, synthetic_weight=0.25))
    both = TRAIN.with_children(np.full_like(TRAIN.pictures, 255), np.arange(96))
    shown: list[int] = []

    def count(pictures, targets):  # type: ignore[no-untyped-def]
        shown.append(int((pictures.flatten(1).amin(1) == 255).sum()))
        return pictures / 255, targets

    run.augment = count
    run.train(both, tune)

    assert sum(shown) == 24
