"""fp16 and int8 graphs: how far they are from fp32 on real chips, and what TensorRT can read."""

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from visaged.pipelines.engines.ort_engine import OrtEngine
from visaged.pipelines.engines.parity import compare
from visaged.pipelines.engines.parity_inputs import parity_inputs
from visaged.pipelines.engines.plan import Precision
from visaged.pipelines.engines.precision import (
    Int8Style,
    Ranges,
    measure_ranges,
    parse_onnx,
    ranges_path,
    read_ranges,
    to_fp16,
    to_int8,
    weights_digest,
)
from visaged.pipelines.errors import ModelError
from visaged.pipelines.importers.graph import GraphBuilder
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.registry import FACE_RESNET, tolerances

F32 = npt.NDArray[np.float32]
STYLES = pytest.mark.parametrize("style", Int8Style, ids=lambda style: style.value)


@pytest.fixture(scope="module")
def face_resnet(store: ModelStore) -> bytes:
    return store.ensure("face-resnet").read_bytes()


@pytest.fixture(scope="module")
def shipped() -> Ranges:
    return read_ranges(ranges_path("face-resnet"))


def tiny(weight: float = 2.0) -> bytes:
    """A graph that one can compute by hand: relu of `weight` times the pixel minus 1."""
    graph = GraphBuilder("tiny", "x", ["n", 1, "h", "w"])
    weights = np.full((1, 1, 1, 1), weight, np.float32)
    scaled = graph.conv("x", weights, np.array([-1.0], np.float32), strides=(1, 1), pads=(0, 0, 0, 0))
    graph.node("Relu", scaled, output="y")
    graph.declare_output("y", ["n", 1, "h", "w"])
    model: bytes = graph.build().SerializeToString()
    return model


def pixels(*values: float) -> F32:
    return np.array(values, np.float32).reshape(1, 1, 1, -1)


def weights_of(data: bytes) -> dict[str, npt.NDArray[np.generic]]:
    return {w.name: numpy_helper.to_array(w) for w in onnx.load_model_from_string(data).graph.initializer}


def test_fp16_answers_as_fp32_on_real_chips(face_resnet: bytes) -> None:
    fp32, fp16 = OrtEngine(face_resnet), OrtEngine(to_fp16(face_resnet))

    for chips in parity_inputs(FACE_RESNET):
        expected, answered = fp32.infer(chips), fp16.infer(chips)
        for name, values in expected.items():
            largest = max(1.0, float(np.abs(values).max()))
            assert answered[name].dtype == np.float32
            assert np.abs(answered[name] - values).max() < 2e-3 * largest, name
        assert not np.array_equal(answered["embedding"], expected["embedding"]), "this is still fp32"


def test_fp16_weights_take_half_the_room_and_inputs_stay_fp32(face_resnet: bytes) -> None:
    converted = to_fp16(face_resnet)

    before, after = weights_of(face_resnet), weights_of(converted)
    floats = [values for values in after.values() if values.dtype.kind == "f"]
    assert {values.dtype for values in floats} == {np.dtype(np.float16)}
    n_numbers = sum(values.size for values in before.values() if values.dtype == np.float32)
    assert sum(values.size for values in floats) >= n_numbers
    assert len(converted) == pytest.approx(len(face_resnet) / 2, rel=0.02)
    graph = onnx.load_model_from_string(converted).graph
    ends = [*graph.input, *graph.output]
    assert {end.type.tensor_type.elem_type for end in ends} == {TensorProto.FLOAT}


@STYLES
def test_int8_is_within_its_tolerance_on_real_chips(
    style: Int8Style, face_resnet: bytes, shipped: Ranges
) -> None:
    quantised = to_int8(face_resnet, shipped, style)

    allowed = tolerances(FACE_RESNET, Precision.INT8)
    report = compare(
        OrtEngine(quantised),
        OrtEngine(face_resnet),
        parity_inputs(FACE_RESNET),
        allowed,
        ran=style.value,
    )

    assert report.is_within, str(report)
    assert report.outputs[0].max_abs > 1e-4, "this is still fp32"
    assert len(quantised) < 0.75 * len(face_resnet)


def quantisers_of(data: bytes) -> list[tuple[str, npt.NDArray[np.generic]]]:
    """Return operator and zero point of every node that goes to or comes from integers."""
    weights = weights_of(data)
    return [
        (node.op_type, weights[node.input[2]])
        for node in onnx.load_model_from_string(data).graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    ]


def test_the_symmetric_graph_has_only_what_tensorrt_reads(face_resnet: bytes, shipped: Ranges) -> None:
    zero_points = quantisers_of(to_int8(face_resnet, shipped, Int8Style.SYMMETRIC))

    assert len(zero_points) > 50
    assert all(not zero.any() for _, zero in zero_points), "TensorRT refuses zero points"
    assert {zero.dtype for _, zero in zero_points} == {np.dtype(np.int8)}, "no uint8, and no int32 biases"


@STYLES
def test_every_output_channel_of_a_convolution_has_its_own_scale(
    style: Int8Style, face_resnet: bytes, shipped: Ranges
) -> None:
    quantised = to_int8(face_resnet, shipped, style)

    weights = weights_of(quantised)
    channels = {
        node.input[0]: (len(weights[node.input[0]]), weights[node.input[1]].size)
        for node in onnx.load_model_from_string(quantised).graph.node
        if node.op_type == "DequantizeLinear" and weights.get(node.input[0], np.zeros(0)).ndim == 4
    }
    assert len(channels) > 15
    assert all(n_scales == n for n, n_scales in channels.values()), channels


def test_the_asymmetric_graph_uses_all_of_uint8_for_activations(face_resnet: bytes, shipped: Ranges) -> None:
    zero_points = quantisers_of(to_int8(face_resnet, shipped, Int8Style.ASYMMETRIC))

    activations = [zero for operator, zero in zero_points if operator == "QuantizeLinear"]
    assert {zero.dtype for zero in activations} == {np.dtype(np.uint8)}
    assert any(zero.any() for zero in activations), "relu and its input have other zero points"


def test_quantising_says_nothing_and_leaves_the_logger_as_it_was(
    face_resnet: bytes, shipped: Ranges, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    to_int8(face_resnet, shipped, Int8Style.SYMMETRIC)

    assert caplog.records == []
    assert logging.getLogger().level == logging.INFO


def test_ranges_are_the_smallest_and_the_largest_over_all_batches() -> None:
    batches = [pixels(0.0, 3.0), pixels(-2.0, 1.0), pixels(0.5)]

    ranges = measure_ranges("tiny", tiny(), iter(batches), "numbers")

    conv = next(name for name in ranges.tensors if name.startswith("conv"))
    assert ranges.tensors == {"x": (-2.0, 3.0), conv: (-5.0, 5.0), "y": (0.0, 5.0)}
    assert (ranges.network, ranges.source, ranges.n_chips) == ("tiny", "numbers", 3)
    assert ranges.weights_sha256 == weights_digest(parse_onnx(tiny()))


def test_zero_is_in_every_range_so_that_padding_is_exact() -> None:
    ranges = measure_ranges("tiny", tiny(), [pixels(2.0, 3.0)], "numbers")

    assert ranges.tensors["x"] == (0.0, 3.0)


@STYLES
def test_a_tiny_int8_graph_computes_what_one_computes_by_hand(style: Int8Style) -> None:
    data = tiny()
    ranges = measure_ranges("tiny", data, [pixels(0.0, 2.0)], "numbers")

    answered = OrtEngine(to_int8(data, ranges, style)).infer(pixels(0.0, 1.0, 1.5, 2.0, 9.0))["y"]

    assert answered.ravel() == pytest.approx([0.0, 1.0, 2.0, 3.0, 3.0], abs=0.05), "9 is out of range"


def test_no_chips_to_measure_on_is_one_sentence() -> None:
    with pytest.raises(ModelError, match="no chip to measure the INT8 ranges of tiny on; name a folder"):
        measure_ranges("tiny", tiny(), [], "nothing")


def test_ranges_come_back_from_a_file_as_they_were(tmp_path: Path) -> None:
    ranges = measure_ranges("tiny", tiny(), [pixels(0.1, -0.3)], "numbers")
    path = tmp_path / "tiny.ranges.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(ranges), indent=1))

    again = read_ranges(path)

    assert again == ranges and again.sha256 == ranges.sha256


def test_the_digest_of_ranges_is_that_of_the_numbers_in_any_order() -> None:
    ranges = measure_ranges("tiny", tiny(), [pixels(0.1, -0.3)], "numbers")
    turned = dict(reversed(ranges.tensors.items()))
    wider = {**ranges.tensors, "x": (-0.4, ranges.tensors["x"][1])}

    assert msgspec.structs.replace(ranges, source="others", tensors=turned).sha256 == ranges.sha256
    assert msgspec.structs.replace(ranges, tensors=wider).sha256 != ranges.sha256


@STYLES
def test_ranges_of_other_weights_are_refused(style: Int8Style) -> None:
    ranges = measure_ranges("tiny", tiny(), [pixels(1.0)], "numbers")

    with pytest.raises(ModelError, match=r"measured with other weights; .*`visaged calibrate"):
        to_int8(tiny(weight=2.001), ranges, style)


def test_missing_ranges_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as refused:
        read_ranges(tmp_path / "mmod.ranges.json")

    sentence = str(refused.value)
    assert "there are no INT8 ranges" in sentence and "mmod.ranges.json" in sentence
    assert "choose another precision" in sentence and "\n" not in sentence


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"not JSON", b"\xff\xfe", b'{"network": "tiny"}', b"[1, 2]", "cut", "words"],
    ids=["empty", "brace", "text", "not UTF-8", "fields missing", "a list", "cut", "words for numbers"],
)
def test_corrupt_ranges_are_one_sentence(content: bytes | str, tmp_path: Path) -> None:
    path = tmp_path / "face-resnet.ranges.json"
    whole = ranges_path("face-resnet").read_bytes()
    if isinstance(content, str):
        content = whole[:-20] if content == "cut" else whole.replace(b"0.0,", b'"zero",')
    path.write_bytes(content)

    with pytest.raises(
        ModelError, match=r"ranges\.json is no file of INT8 ranges \(.*`visaged calib"
    ) as error:
        read_ranges(path)
    assert "\n" not in str(error.value)


def test_the_shipped_ranges_fit_the_imported_network(face_resnet: bytes, shipped: Ranges) -> None:
    model = parse_onnx(face_resnet)

    assert shipped.network == "face-resnet" and shipped.n_chips >= 200
    assert shipped.weights_sha256 == weights_digest(model), "run `visaged calibrate` again"
    computed = {output for node in model.graph.node for output in node.output}
    assert set(shipped.tensors) == {model.graph.input[0].name, *computed}
    assert all(low <= 0 <= high and np.isfinite([low, high]).all() for low, high in shipped.tensors.values())


def test_the_shipped_ranges_hold_the_face_that_is_shipped(face_resnet: bytes, shipped: Ranges) -> None:
    seen = measure_ranges("face-resnet", face_resnet, parity_inputs(FACE_RESNET), "one face")

    wide = {name: high - low for name, (low, high) in shipped.tensors.items()}
    beyond = {
        name: max(low - seen.tensors[name][0], seen.tensors[name][1] - high) / wide[name]
        for name, (low, high) in shipped.tensors.items()
    }
    assert max(beyond.values()) < 0.25, beyond  # 0.15 of the range, at the blurred and brightened ones


CONVERTERS: dict[str, Callable[[bytes], object]] = {
    "parsed": parse_onnx,
    "to fp16": to_fp16,
    "to int8": lambda data: to_int8(
        data, measure_ranges("tiny", tiny(), [pixels(1.0)], ""), Int8Style.SYMMETRIC
    ),
    "measured": lambda data: measure_ranges("tiny", data, [pixels(1.0)], ""),
}


@pytest.mark.parametrize("cut", [0, 1, 2, 20, 0.25, 0.5, 0.75, -20, -6, -1])
@pytest.mark.parametrize("converter", CONVERTERS)
def test_a_truncated_graph_is_one_sentence(converter: str, cut: float) -> None:
    data = tiny()
    part = data[: int(len(data) * cut)] if isinstance(cut, float) else data[: int(cut)]

    with pytest.raises(ModelError, match=r"this is no ONNX graph \(.+\); import it again") as refused:
        CONVERTERS[converter](part)
    assert "\n" not in str(refused.value)
