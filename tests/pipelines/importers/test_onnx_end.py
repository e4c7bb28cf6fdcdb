"""The end of a network: found, run by torch as ONNX does, changed, and put back behind the same trunk."""

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from visaged.pipelines.engines.ort_engine import OrtEngine
from visaged.pipelines.ensemble import blank_chips
from visaged.pipelines.errors import ModelError
from visaged.pipelines.importers.onnx_end import End, end_of, ends_of, part_of, trunk_of, with_weights
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.registry import NETWORKS

pytest.importorskip("torch", reason="torch is not installed (extra `learn`)")
pytestmark = pytest.mark.torch

from visaged.pipelines.loop.layers import answer, tensors  # noqa: E402

F32 = npt.NDArray[np.float32]

SHAPES = {
    "face-resnet": [(7168,)],
    "emotion-vgg13": [(864,), (96, 6, 6)],
    "emotion-resnet": [(80,), (80, 8, 8)],
    "emotion-xception": [],
}


def chips_for(name: str) -> F32:
    recipe = NETWORKS[name].recipe
    noise = np.random.default_rng(0).uniform(0, 255, blank_chips(recipe, 3).shape)
    mean = np.array(recipe.mean)[:, None, None]
    chips: F32 = ((noise - mean) / recipe.scale).astype(np.float32)
    return chips


@pytest.mark.parametrize("name", SHAPES)
def test_ends_answer_in_torch_as_the_whole_network_does(name: str, store: ModelStore) -> None:
    data, chips = store.ensure(name).read_bytes(), chips_for(name)
    whole = OrtEngine(data).infer(chips)
    shapes = []

    for end in ends_of(data):
        trunk = OrtEngine(trunk_of(data, end.entry)).infer(chips)
        logits, _ = answer(end, tensors(end.weights), trunk[end.entry])
        apart = OrtEngine(end_of(data, end.entry)).infer(trunk[end.entry])
        shapes.append(trunk[end.entry].shape[1:])

        assert logits == pytest.approx(whole["logits"], abs=1e-3)
        assert all(values == pytest.approx(whole[output], abs=1e-3) for output, values in apart.items())
        assert "logits" in apart and "embedding" not in apart and end.is_dense == (len(shapes) == 1)
        if "embedding" in whole:
            np.testing.assert_array_equal(trunk["embedding"], whole["embedding"])

    assert shapes == SHAPES[name]


def test_from_maps_to_what_the_dense_layers_read(store: ModelStore) -> None:
    data, chips = store.ensure("emotion-vgg13").read_bytes(), chips_for("emotion-vgg13")
    dense, end = ends_of(data)

    maps, features = (OrtEngine(trunk_of(data, e.entry)).infer(chips)[e.entry] for e in (end, dense))
    found = OrtEngine(part_of(data, end.entry, [dense.entry])).infer(maps)[dense.entry]

    assert found == pytest.approx(features, abs=1e-4)


def test_other_weights_are_put_behind_the_same_trunk(store: ModelStore) -> None:
    data, chips = store.ensure("emotion-resnet").read_bytes(), chips_for("emotion-resnet")
    _, end = ends_of(data)
    changed = {name: values * np.float32(1.1) for name, values in end.weights.items()}

    new = with_weights(data, changed)

    maps = OrtEngine(trunk_of(new, end.entry)).infer(chips)[end.entry]
    expected, _ = answer(end, tensors(changed), maps)
    assert trunk_of(new, end.entry) == trunk_of(data, end.entry)
    assert OrtEngine(new).infer(chips)["logits"] == pytest.approx(expected, abs=1e-3)
    assert len(new) == len(data)
    first = next(iter(changed))
    for wrong in (
        {first: changed[first] * np.float32(np.nan)},
        {first: changed[first][1:]},
        {"w": changed[first]},
    ):
        with pytest.raises(ModelError, match=f"weights {next(iter(wrong))}"):
            with_weights(data, wrong)


def tiny(*middle: onnx.NodeProto, shared: bool = False, embeds: bool = False) -> bytes:
    """Two convolutions, what is in between, and a dense layer on 2 x 8 x 8 maps."""
    nodes = [
        helper.make_node("Relu", ["chips"], ["start"]),
        helper.make_node("Conv", ["start", "w0"], ["a"], kernel_shape=[1, 1]),
        *middle,
        helper.make_node("Conv", ["b", "w0" if shared else "w1"], ["c"], kernel_shape=[1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["features"]),
        helper.make_node("Gemm", ["features", "w2", "b2"], ["logits"]),
        *([helper.make_node("Sigmoid", ["features"], ["embedding"])] if embeds else []),
    ]
    weights = {
        "w0": np.ones((2, 2, 1, 1)),
        "w1": np.ones((2, 2, 1, 1)),
        "w2": np.ones((2, 8)),
        "b2": np.ones(8),
    }
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("chips", TensorProto.FLOAT, ["N", 2, 8, 8])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", n])
            for name, n in (("logits", 8), *([("embedding", 2)] if embeds else []))
        ],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    written: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    return written


@pytest.mark.parametrize(
    ("middle", "n_ends"),
    [
        (helper.make_node("Relu", ["a"], ["b"]), 2),
        (helper.make_node("Sigmoid", ["a"], ["b"]), 1),
        (helper.make_node("MaxPool", ["a"], ["b"], kernel_shape=[3, 3], pads=[1, 1, 0, 0]), 1),
        (helper.make_node("MaxPool", ["a"], ["b"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]), 2),
    ],
)
def test_what_is_not_computed_as_onnx_does_is_in_no_end(middle: onnx.NodeProto, n_ends: int) -> None:
    ends = ends_of(tiny(middle))

    assert len(ends) == n_ends and [end.is_dense for end in ends] == [True, False][:n_ends]
    if n_ends == 2:
        assert ends[1].entry == "start" and list(ends[1].weights) == ["b2", "w0", "w1", "w2"]


def test_weights_that_are_used_twice_are_in_no_end() -> None:
    def conv_weights(ends: tuple[End, ...]) -> list[str]:
        return [name for end in ends for name in end.weights if name.startswith("w")]

    assert conv_weights(ends_of(tiny(helper.make_node("Relu", ["a"], ["b"]), shared=True))) == ["w2"]


def test_what_makes_an_embedding_is_in_no_end() -> None:
    data = tiny(helper.make_node("Relu", ["a"], ["b"]), embeds=True)
    maps = np.random.default_rng(0).normal(0, 1, (3, 2, 8, 8)).astype(np.float32)

    (end,) = ends_of(data)
    trunk = OrtEngine(trunk_of(data, end.entry)).infer(maps)

    assert list(end.weights) == ["b2", "w2"]
    np.testing.assert_array_equal(trunk["embedding"], OrtEngine(data).infer(maps)["embedding"])
