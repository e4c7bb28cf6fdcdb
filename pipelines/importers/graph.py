"""Build ONNX graphs node by node. A door to onnx."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

F32 = npt.NDArray[np.float32]

OPSET = 17
IR_VERSION = 9  # read by every ONNX Runtime since 1.17
Dim = int | str


class GraphBuilder:
    """Collects nodes and weights; every method returns the name of what it computes.

    Owned by the function that builds one model.
    """

    def __init__(self, name: str, input_name: str, input_shape: Sequence[Dim]) -> None:
        self._name = name
        self._inputs = [helper.make_tensor_value_info(input_name, TensorProto.FLOAT, list(input_shape))]
        self._outputs: list[onnx.ValueInfoProto] = []
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def constant(self, values: npt.ArrayLike, dtype: type[np.generic] = np.float32) -> str:
        """Store an array in the graph."""
        name = f"w{len(self._weights)}"
        array = np.ascontiguousarray(values, dtype=dtype)
        self._weights.append(numpy_helper.from_array(array, name))
        return name

    def node(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Apply `operator`; `output` gives the result a public name."""
        name = output or f"{operator.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def conv(
        self,
        x: str,
        weights: F32,
        bias: F32 | None,
        *,
        strides: Sequence[int],
        pads: Sequence[int],
        groups: int = 1,
    ) -> str:
        """Convolve; `pads` is top, left, bottom, right in px."""
        inputs = [x, self.constant(weights)] + ([] if bias is None else [self.constant(bias)])
        window = list(weights.shape[2:])
        return self.node(
            "Conv", *inputs, kernel_shape=window, strides=list(strides), pads=list(pads), group=groups
        )

    def linear(self, x: str, weights: F32, bias: F32 | None = None, *, output: str = "") -> str:
        """Multiply by `weights` `(in, out)` and add `bias`."""
        if bias is None:
            return self.node("MatMul", x, self.constant(weights), output=output)
        return self.node("Gemm", x, self.constant(weights), self.constant(bias), output=output)

    def declare_output(self, name: str, shape: Sequence[Dim]) -> None:
        """Make `name` an output of the model."""
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))

    def build(self) -> onnx.ModelProto:
        """Return the model, checked by onnx's own checker."""
        graph = helper.make_graph(self._nodes, self._name, self._inputs, self._outputs, self._weights)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="visaged"
        )
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model, full_check=True)
        return model
