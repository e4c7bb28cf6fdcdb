"""A frozen trunk is run once, and training is the same; what is not frozen learns, and only that."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from visaged.pipelines.importers.dlib_dat import FaceResnet, read_face_resnet
from visaged.pipelines.learning.samples import Samples
from visaged.pipelines.model_store import ModelStore

torch = pytest.importorskip("torch", reason="torch is not installed (extra `learn`)")
from visaged.pipelines.learning.networks import Network, NetworkConfig, build_network  # noqa: E402
from visaged.pipelines.learning.trainer import Run, TrainingConfig  # noqa: E402
from visaged.pipelines.learning.trunk_features import N_VIEWS, see  # noqa: E402

pytestmark = pytest.mark.torch
CONFIG = TrainingConfig(epochs=3, batch=8, optimiser="adamw", rate=3e-3, freeze_stages=5, threads=1)
SMALL = NetworkConfig(kind="small_resnet", size=32, width=4, units=8, dropout=0.3)
DLIB = NetworkConfig(kind="dlib_resnet", size=150, channels=3, units=8)


class CrossEntropy(torch.nn.Module):  # type: ignore[misc,name-defined]
    """The plainest of losses."""

    def forward(self, logits, features, targets, groups):  # type: ignore[no-untyped-def]
        loss = torch.nn.functional.cross_entropy(logits, targets)
        return loss, {"cross_entropy": loss}


@pytest.fixture(scope="module")
def net(store: ModelStore) -> FaceResnet:
    return read_face_resnet(store.weights_file("dlib_face_recognition_resnet_model_v1.dat"))


def noise(n: int, size: int, channels: int) -> Samples:
    pictures = np.random.default_rng(n).integers(0, 256, (n, size, size, channels)).astype(np.uint8)
    targets = np.eye(2, dtype=np.float32)[np.arange(n) % 2]
    return Samples(pictures, targets, np.array([str(i) for i in range(n)]), ("a", "b"))


class Counting(torch.nn.Module):  # type: ignore[misc,name-defined]
    """A stage that leaves maps as they are and counts how often it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.n_runs = 0

    def forward(self, maps):  # type: ignore[no-untyped-def]
        self.n_runs += 1
        return maps


def trained(folder: Path, stages: int) -> tuple[Network, list[float], int]:
    """Train a head behind 5 frozen stages and one without weights; the first `stages` are frozen."""
    network = build_network(SMALL, 2, seed=1)
    counting = Counting()
    network.stages.append(counting)
    config = msgspec.structs.replace(CONFIG, freeze_stages=stages)
    epochs = Run(network, CrossEntropy(), None, config, folder).train(noise(24, 32, 1), noise(8, 32, 1))
    return network, [epoch.tune_loss for epoch in epochs], counting.n_runs


def test_a_head_learns_the_same_from_kept_features_as_behind_its_running_trunk(tmp_path: Path) -> None:
    running, losses, n_runs = trained(tmp_path / "running", stages=5)
    kept, losses_kept, n_runs_kept = trained(tmp_path / "kept", stages=6)

    assert losses_kept == pytest.approx(losses, abs=1e-5)
    for name, values in running.state_dict().items():
        assert torch.allclose(kept.state_dict()[name], values, atol=1e-4), name
    assert losses[-1] != losses[0]
    assert n_runs == 3 * (3 + 1) and n_runs_kept < n_runs / 2


def test_augmented_samples_are_seen_several_times_and_shown_in_one_view_each() -> None:
    network, samples = build_network(SMALL, 2, seed=1), noise(6, 32, 1)
    shift = iter(range(1, 100))

    features = see(network, samples, lambda pictures, targets: (pictures / next(shift), targets))

    assert features.maps.shape[:2] == (N_VIEWS, 6) and features.targets.shape == (N_VIEWS, 6, 2)
    maps, targets = features.show(np.array([5, 0]), np.array([2, 0, 0, 0, 0, 3]))
    assert torch.equal(maps, torch.stack([features.maps[3, 5], features.maps[2, 0]]))
    assert not torch.equal(features.maps[0], features.maps[1])
    assert targets.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("n_frozen", [15, 13])
def test_only_what_is_not_frozen_of_dlibs_trunk_learns(
    tmp_path: Path, net: FaceResnet, n_frozen: int
) -> None:
    network = build_network(DLIB, 2, seed=1, trunk=net)
    before = {name: values.clone() for name, values in network.state_dict().items()}
    config = msgspec.structs.replace(CONFIG, epochs=1, batch=3, freeze_stages=n_frozen, end_rate_factor=0.1)

    Run(network, CrossEntropy(), lambda p, t: ((p - 110) / 256, t), config, tmp_path).train(
        noise(6, 150, 3), noise(2, 150, 3)
    )

    changed = {name for name, values in network.state_dict().items() if not torch.equal(values, before[name])}
    stages = {int(name.split(".")[1]) for name in changed if name.startswith("stages")}
    assert stages == set(range(n_frozen, 15))
    assert {"last.weight", "neck.2.weight"} <= changed
