"""The slot for a generator: one that keeps the contract draws and is judged; every other is one sentence."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from visaged.pipelines.errors import ConfigError, ModelError
from visaged.pipelines.synthesis.admission import Admission, KnownFace
from visaged.pipelines.synthesis.generator import Generator

SIDE = 96


def write(
    path: Path,
    nodes: list[onnx.NodeProto] | None = None,
    inputs: tuple[str, ...] = ("pictures", "classes"),
    shape: tuple[int | str, ...] = ("N", 3, SIDE, SIDE),
    classes: str = "as it is, inverted",
    kind: int = TensorProto.FLOAT,
) -> Path:
    """A generator that gives a face back, or its negative."""
    constant = [helper.make_node("Constant", [], ["white"], value_float=255.0)]
    split = [
        helper.make_node("Split", ["classes"], ["same", "inverse"], axis=1, num_outputs=2),
        helper.make_node("Constant", [], ["axes"], value_ints=[2, 3]),
        helper.make_node("Unsqueeze", ["same", "axes"], ["same4"]),
        helper.make_node("Unsqueeze", ["inverse", "axes"], ["inverse4"]),
        helper.make_node("Sub", ["white", "pictures"], ["negative"]),
        helper.make_node("Mul", ["pictures", "same4"], ["a"]),
        helper.make_node("Mul", ["negative", "inverse4"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["made"]),
    ]
    shapes: dict[str, list[int | str]] = {"pictures": list(shape), "classes": ["N", 2]}
    graph = helper.make_graph(
        constant + (split if nodes is None else nodes),
        "g",
        [helper.make_tensor_value_info(name, kind, shapes.get(name, ["N", 2])) for name in inputs],
        [helper.make_tensor_value_info("made", kind, ["N", "C", "H", "W"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"classes": classes} if classes else {})
    path.write_bytes(model.SerializeToString())
    return path


def test_a_generator_that_gives_the_face_back_is_admitted_and_its_negative_is_not(
    tmp_path: Path, known: KnownFace, admission: Admission
) -> None:
    generator = Generator.load(write(tmp_path / "g.onnx"))

    same, verdict = generator.draw(known, "as it is", admission)
    inverted, refused = generator.draw(known, "inverted", admission)

    assert generator.classes == ("as it is", "inverted")
    assert verdict.is_admitted and verdict.distance < 0.3
    assert not refused.is_admitted
    assert np.array_equal(inverted, 255 - same)


def test_a_class_it_does_not_know_is_one_sentence(tmp_path: Path) -> None:
    generator = Generator.load(write(tmp_path / "g.onnx"))

    with pytest.raises(ConfigError, match="'old'; it knows as it is, inverted"):
        generator.run(np.zeros((1, 3, SIDE, SIDE), np.float32), "old")


def scaled(by: float) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Constant", [], ["by"], value_float=by),
        helper.make_node("Mul", ["pictures", "by"], ["made"]),
    ]


IDENTITY = [helper.make_node("Identity", ["pictures"], ["made"])]
HALVED = [helper.make_node("AveragePool", ["pictures"], ["made"], kernel_shape=[2, 2])]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"inputs": ("pictures", "noise")}, "its inputs are pictures, noise"),
        ({"classes": ""}, "names? the classes ''"),
        ({"classes": "only one"}, "names? the classes 'only one'"),
        ({"shape": ("N", 1, SIDE, SIDE)}, r"its pictures are \['N', 1"),
        ({"shape": ("N", 3, 8, 8)}, "a side of 8 px"),
        ({"kind": TensorProto.DOUBLE, "nodes": IDENTITY}, r"is tensor\(double\)"),
        ({"nodes": scaled(1 / 255)}, r"gives pixels in 0.5\.\.0.5"),
        ({"nodes": scaled(9.5)}, "gives pixels in"),
        ({"nodes": [helper.make_node("Log", ["white"], ["c"]), helper.make_node("Sub", ["c", "c"], ["z"]),
                    helper.make_node("Div", ["pictures", "z"], ["made"])]}, "not finite"),
        ({"nodes": HALVED}, "its output is"),
    ],
)  # fmt: skip
def test_a_generator_that_breaks_the_contract_is_refused_with_what_is_wrong(
    tmp_path: Path, wrong: dict[str, object], said: str
) -> None:
    extra = scaled(1.0) if "inputs" in wrong or "kind" in wrong or "shape" in wrong else None
    path = write(tmp_path / "g.onnx", **({"nodes": extra} | wrong))  # type: ignore[arg-type]

    with pytest.raises(ModelError, match=said) as caught:
        Generator.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_onnx_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(b"nonsense")

    with pytest.raises(ModelError, match="give the ONNX file of a generator"):
        Generator.load(tmp_path / "g.onnx")
