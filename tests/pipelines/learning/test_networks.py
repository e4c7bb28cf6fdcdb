"""The zoo: shapes, what can be configured, what it costs, and dlib's trunk with dlib's own answers."""

import numpy as np
import pytest
from visaged.pipelines.engines.ort_engine import OrtEngine
from visaged.pipelines.engines.parity_inputs import face_chips
from visaged.pipelines.importers.dlib_dat import read_face_resnet
from visaged.pipelines.importers.emotion_head import DEFAULT_TAPS
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.registry import FACE_RESNET

torch = pytest.importorskip("torch", reason="torch is not installed (extra `learn`)")
from visaged.pipelines.learning.networks import (  # noqa: E402
    DlibTrunk,
    NetworkConfig,
    build_network,
    summary,
)

pytestmark = pytest.mark.torch
KINDS = ("vgg13", "small_resnet", "mini_xception")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "channels", "units"), [(48, 1, 64), (64, 3, 0)])
def test_every_network_gives_logits_and_features(kind: str, size: int, channels: int, units: int) -> None:
    config = NetworkConfig(kind=kind, size=size, channels=channels, units=units, width=8)  # type: ignore[arg-type]

    seen = build_network(config, 7)(torch.zeros(3, channels, size, size))

    assert seen.logits.shape == (3, 7)
    assert seen.features.ndim == 2 and seen.features.shape[0] == 3
    assert not units or seen.features.shape[1] == units


def test_the_first_filters_are_as_many_as_the_width_says() -> None:
    narrow, wide = (summary(build_network(NetworkConfig(width=w), 8), (1, 48, 48)) for w in (8, 16))

    assert (narrow[0].output, wide[0].output) == ((8, 48, 48), (16, 48, 48))
    assert sum(row.macs for row in wide) > 3 * sum(row.macs for row in narrow)


def test_parameters_and_multiplications_are_those_one_counts_by_hand() -> None:
    rows = summary(build_network(NetworkConfig(width=8, units=16), 8), (1, 48, 48))

    assert [rows[0].parameters, rows[0].macs] == [8 * 9, 8 * 9 * 48 * 48]
    assert rows[-1].parameters == 16 * 8 + 8
    assert rows[-2].macs == 32 * 3 * 3 * 16
    assert len([row for row in rows if row.kind == "Conv2d"]) == 10


def test_frozen_stages_learn_nothing_and_keep_their_statistics() -> None:
    network = build_network(NetworkConfig(width=4, units=8), 3)
    before = {name: values.clone() for name, values in network.state_dict().items()}
    network.train()
    network.freeze(2)

    trained = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=0.1)
    network(torch.randn(4, 1, 48, 48)).logits.sum().backward()
    optimiser.step()

    changed = {name for name, values in network.state_dict().items() if not torch.equal(values, before[name])}
    assert not [name for name in changed if name.startswith(("stages.0", "stages.1"))]
    assert any(name.startswith("stages.2") for name in changed)
    assert any(name.startswith("last") for name in changed)


def test_dlibs_trunk_gives_dlibs_embeddings_and_the_heads_features(store: ModelStore) -> None:
    trunk = DlibTrunk(read_face_resnet(store.weights_file("dlib_face_recognition_resnet_model_v1.dat")))
    chips = face_chips(FACE_RESNET.recipe)[:4].copy()

    with torch.no_grad():
        ours = trunk(torch.from_numpy(chips)).numpy()
        shapes = [trunk.blocks_of(torch.from_numpy(chips))[tap.block].shape[1] for tap in DEFAULT_TAPS]

    assert np.abs(ours - OrtEngine(store.ensure("face-resnet")).infer(chips)["embedding"]).max() < 1e-5
    assert shapes == [64, 128, 256]


def test_one_class_is_no_classification() -> None:
    with pytest.raises(ValueError, match="n_classes=1"):
        build_network(NetworkConfig(), 1)
