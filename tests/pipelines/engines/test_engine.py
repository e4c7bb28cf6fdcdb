"""ONNX Runtime on real and on broken files."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from visaged.pipelines.engines.ort_engine import OrtEngine
from visaged.pipelines.errors import ModelError


@pytest.fixture
def doubling(tmp_path: Path) -> Path:
    """An ONNX file that doubles its input."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "double",
        [value("x", TensorProto.FLOAT, ["n", 2])],
        [value("y", TensorProto.FLOAT, ["n", 2])],
    )
    path = tmp_path / "double.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, str(path))
    return path


def test_onnx_runtime_takes_any_batch(doubling: Path) -> None:
    engine = OrtEngine(doubling)

    for n in (1, 5):
        assert np.array_equal(engine.infer(np.ones((n, 2), np.float32))["y"], np.full((n, 2), 2.0))


@pytest.mark.parametrize("cut", [0, 1, 20])
def test_a_truncated_or_missing_file_is_named(doubling: Path, cut: int) -> None:
    doubling.write_bytes(doubling.read_bytes()[:cut])

    with pytest.raises(ModelError, match=r"double\.onnx"):
        OrtEngine(doubling)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gone\.onnx"):
        OrtEngine(tmp_path / "gone.onnx")
