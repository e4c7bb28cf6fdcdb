"""What is exported answers as what was trained: in torch, as a graph, in half-precision weights and back."""

import numpy as np
import pytest
from visaged.pipelines.engines.ort_engine import OrtEngine
from visaged.pipelines.engines.parity_inputs import face_chips
from visaged.pipelines.engines.precision import parse_onnx
from visaged.pipelines.errors import ModelError
from visaged.pipelines.importers.dlib_dat import read_face_resnet
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.registry import FACE_RESNET, ChipRecipe, Colour

torch = pytest.importorskip("torch", reason="torch is not installed (extra `learn`)")
from visaged.pipelines.importers.halved import widen_weights  # noqa: E402
from visaged.pipelines.learning.exporter import export, halve_weights  # noqa: E402
from visaged.pipelines.learning.networks import Network, NetworkConfig, build_network  # noqa: E402
from visaged.pipelines.learning.normalisation import (  # noqa: E402
    Normalisation,
    NormalisedNetwork,
    normalisation_preset,
)

pytestmark = pytest.mark.torch
RECIPE = ChipRecipe(size=32, padding=0.25, colour=Colour.GREY, mean=(127.5,), scale=127.5)
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 1)).astype(np.uint8)


@pytest.fixture
def trained() -> tuple[Network, Normalisation]:
    """A network whose BatchNorm has seen something, and a fitted normalisation."""
    torch.manual_seed(0)
    network = build_network(NetworkConfig(size=32, width=8, units=16), 4)
    normalisation = Normalisation.fit(normalisation_preset("slides"), PIXELS)
    network.train()
    network(torch.randn(16, 1, 32, 32))
    return network.eval(), normalisation


def in_torch(network: Network, normalisation: Normalisation) -> np.ndarray:
    with torch.no_grad():
        seen = NormalisedNetwork(normalisation, network)(
            torch.from_numpy(PIXELS.transpose(0, 3, 1, 2)).float()
        )
    return np.asarray(seen.logits.numpy())


def chips() -> np.ndarray:
    return ((PIXELS.transpose(0, 3, 1, 2).astype(np.float32) - 127.5) / 127.5).astype(np.float32)


def test_the_graph_answers_as_the_trainer_saw_it(trained: tuple[Network, Normalisation]) -> None:
    graph = export(*trained, RECIPE, temperature=2.0)

    outputs = OrtEngine(graph).infer(chips())

    assert np.abs(outputs["logits"] * 2 - in_torch(*trained)).max() < 2e-5
    assert outputs["features"].shape == (5, 16)
    assert len(OrtEngine(graph).infer(chips()[:1])["logits"]) == 1


def test_half_precision_weights_take_half_the_room_and_answer_alike(
    trained: tuple[Network, Normalisation],
) -> None:
    graph = export(*trained, RECIPE)

    halved = halve_weights(graph)
    widened = widen_weights(halved).SerializeToString()

    assert len(halved) < 0.62 * len(graph) < len(graph) < 1.1 * len(widened)
    exact, half, wide = (OrtEngine(data).infer(chips())["logits"] for data in (graph, halved, widened))
    assert np.abs(half - exact).max() < 5e-3
    assert np.array_equal(half, wide)
    assert not any(node.op_type == "Cast" for node in widen_weights(halved).graph.node)


def test_a_network_on_dlibs_trunk_takes_the_chips_of_face_recognition_as_they_are(store: ModelStore) -> None:
    trunk = read_face_resnet(store.weights_file("dlib_face_recognition_resnet_model_v1.dat"))
    config = NetworkConfig(kind="dlib_resnet", size=150, channels=3, units=16)
    network = build_network(config, 4, seed=1, trunk=trunk).eval()
    normalisation = Normalisation.fit(normalisation_preset("dlib"), PIXELS)
    chips = face_chips(FACE_RESNET.recipe)[:3]
    mean = torch.tensor(FACE_RESNET.recipe.mean)[:, None, None]
    pixels = (torch.from_numpy(chips.copy()) * FACE_RESNET.recipe.scale + mean).round()

    graph = export(network, normalisation, FACE_RESNET.recipe)

    with torch.no_grad():
        trained_as = NormalisedNetwork(normalisation, network)(pixels).logits.numpy()
    logits = OrtEngine(graph).infer(chips)["logits"]
    assert np.abs(logits - trained_as).max() < 2e-4 * np.abs(trained_as).max()
    nodes = parse_onnx(graph).graph.node
    assert [node.op_type for node in nodes if "chips" in node.input] == ["Conv"]
    assert not {"Shape", "Slice"} & {node.op_type for node in nodes}  # all sizes are constants


def test_what_is_no_graph_is_refused() -> None:
    with pytest.raises(ModelError, match="no ONNX graph"):
        widen_weights(b"nonsense")
