"""The engine slot under fire, and ONNX Runtime on real and on broken files."""

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper
from visaged.pipelines.engine import EngineSlot
from visaged.pipelines.errors import ModelError
from visaged.pipelines.ort_engine import OrtEngine

F32 = npt.NDArray[np.float32]


class CountingEngine:
    """Answers with its own generation; refuses to run when closed."""

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.is_open = True

    def infer(self, inputs: F32) -> Mapping[str, F32]:
        assert self.is_open, "a closed engine ran"
        return {"y": np.full(len(inputs), self.generation, np.float32)}

    def close(self) -> None:
        self.is_open = False


def test_swaps_under_load_never_mix_generations_or_run_a_closed_engine() -> None:
    slot = EngineSlot(CountingEngine(0))
    wrong: list[str] = []
    done = threading.Event()

    def infer_all_the_time() -> None:
        while not done.is_set():
            outputs, generation = slot.infer(np.zeros(8, np.float32))
            if set(outputs["y"]) != {generation}:
                wrong.append(f"{generation}: {outputs['y']}")

    thread = threading.Thread(target=infer_all_the_time)
    thread.start()
    for generation in range(1, 500):
        slot.swap(CountingEngine(generation))
    done.set()
    thread.join()

    assert wrong == []
    assert slot.infer(np.zeros(1, np.float32))[1] == 499


def test_a_rollback_brings_the_engine_before_the_swap_back_once() -> None:
    slot = EngineSlot(CountingEngine(1))
    slot.swap(CountingEngine(2))

    assert slot.rollback()
    assert slot.infer(np.zeros(1, np.float32))[1] == 1
    assert not slot.rollback()


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
