"""The end of an ONNX network, which makes its logits: found, read, put in place of another. A door to onnx.

What comes before the end is its trunk. Its nodes and weights are not touched, so it answers with the same
bits under every end.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper, shape_inference

from ..errors import ModelError

F32 = npt.NDArray[np.float32]

EMBEDDING, LOGITS = "embedding", "logits"
N_CONVOLUTIONS = 2
"""Convolutions that learn beside the dense layers. What they read stays small: 3456 numbers a face in
emotion-vgg13, 5120 in emotion-resnet."""
_DENSE = {"Gemm", "Relu", "Div"}

Attributes = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Node:
    """One step of an end: an operator of ONNX on named values."""

    operator: str
    inputs: tuple[str, ...]
    output: str
    attributes: Attributes


@dataclass(frozen=True, slots=True, eq=False)
class End:
    """What makes the logits of the value `entry`: steps in their order, the last of which gives `logits`.

    `weights` may change, `constants` may not.
    """

    entry: str
    nodes: tuple[Node, ...]
    weights: Mapping[str, F32]
    constants: Mapping[str, F32]

    @property
    def is_dense(self) -> bool:
        """Whether it reads plain features `(N, F)`, not maps `(N, C, H, W)`."""
        return self.nodes[0].operator == "Gemm"


def ends_of(data: bytes) -> tuple[End, ...]:
    """Return the ends of the ONNX file `data` that can learn, the smaller first.

    They are the dense layers, and with them the last `N_CONVOLUTIONS` convolutions. Nothing that an
    embedding is made by is in an end; nor is an operator that `loop.layers` does not run. Where the last
    layer is not dense there is none.
    """
    graph = onnx.load_model_from_string(data).graph
    constants = _constants(graph)
    uses = Counter(name for node in graph.node for name in node.input)
    fixed = {node.output[0] for node in _computing(graph, [EMBEDDING], None)}
    inputs = {value.name for value in graph.input}
    found: dict[bool, End] = {}  # by whether it is dense
    behind: list[NodeProto] = []
    missing = {LOGITS}
    for node in reversed(graph.node):
        if not missing.intersection(node.output) or node.op_type == "Constant":
            continue
        if node.output[0] in fixed or not _can_learn(node, constants, uses):
            break
        missing = (missing - set(node.output)) | {name for name in node.input if name not in constants}
        behind.insert(0, node)
        kinds = Counter(other.op_type for other in behind)
        if len(missing) != 1 or missing & inputs:
            continue
        if node.op_type == "Gemm" and kinds.keys() <= _DENSE:
            found[True] = _end(next(iter(missing)), behind, constants)
        elif found and kinds["Conv"] >= N_CONVOLUTIONS:
            found[False] = _end(next(iter(missing)), behind, constants)
            break
    return tuple(found.values())


def with_weights(data: bytes, weights: Mapping[str, F32]) -> bytes:
    """Return the ONNX file `data` with other values of these weights, and all else as it is.

    Raises:
        ModelError: it has no such weights, they are of another shape, or they are not finite.
    """
    model = onnx.load_model_from_string(data)
    there = {weight.name: weight for weight in model.graph.initializer}
    for name, values in weights.items():
        shape = tuple(there[name].dims) if name in there else None
        if values.shape != shape or not np.isfinite(values).all():
            raise ModelError(f"weights {name}: {values.shape} for {shape}, or numbers that are not finite")
        there[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
    written: bytes = model.SerializeToString()
    return written


def trunk_of(data: bytes, entry: str) -> bytes:
    """Return what makes the value `entry` in the ONNX file `data`, and embeddings where it makes some."""
    names = [output.name for output in onnx.load_model_from_string(data).graph.output]
    return part_of(data, None, [*(name for name in names if name == EMBEDDING), entry])


def end_of(data: bytes, entry: str) -> bytes:
    """Return what the ONNX file `data` makes of the value `entry`: its outputs as there, but for that one."""
    graph = onnx.load_model_from_string(data).graph
    names = [output.name for output in graph.output if output.name not in (EMBEDDING, entry)]
    return part_of(data, entry, names)


def part_of(data: bytes, entry: str | None, outputs: Sequence[str]) -> bytes:
    """Return what makes `outputs` in the ONNX file `data`, of its inputs or of the value `entry`."""
    model = onnx.load_model_from_string(data)
    graph = model.graph
    nodes = _computing(graph, outputs, entry)
    needed = {name for node in nodes for name in node.input}
    known = {output.name: output for output in graph.output}
    values = {
        name: known.get(name) or _value(model, name) for name in (*outputs, *([entry] if entry else []))
    }
    part = helper.make_graph(
        nodes,
        graph.name,
        [values[entry]] if entry else list(graph.input),
        [values[name] for name in outputs],
        [weight for weight in graph.initializer if weight.name in needed],
    )
    model.graph.CopyFrom(part)
    written: bytes = model.SerializeToString()
    return written


def _computing(graph: onnx.GraphProto, outputs: Sequence[str], entry: str | None) -> list[NodeProto]:
    """Return the nodes that make `outputs`, in their order; those before the value `entry` are left out."""
    needed, nodes = set(outputs), []
    for node in reversed(graph.node):
        if needed.intersection(node.output) and entry not in node.output:
            nodes.append(node)
            needed.update(node.input)
    return nodes[::-1]


def _value(model: onnx.ModelProto, name: str) -> onnx.ValueInfoProto:
    """Return name and shape of a value inside the graph."""
    inferred = shape_inference.infer_shapes(model).graph
    for value in (*inferred.value_info, *inferred.input):
        if value.name == name:
            dims = value.type.tensor_type.shape.dim
            return helper.make_tensor_value_info(
                name, TensorProto.FLOAT, ["N", *(d.dim_value for d in dims[1:])]
            )
    raise ModelError(f"nobody can say which shape {name} has; export the network again")


def _constants(graph: onnx.GraphProto) -> dict[str, F32]:
    """Return all values that do not depend on the input."""
    found = {weight.name: numpy_helper.to_array(weight) for weight in graph.initializer}
    for node in graph.node:
        attributes = _attributes(node)
        if node.op_type == "Constant" and "value" in attributes:
            found[node.output[0]] = numpy_helper.to_array(attributes["value"])
    return found


def _end(entry: str, nodes: Sequence[NodeProto], constants: Mapping[str, F32]) -> End:
    steps = tuple(Node(n.op_type, tuple(n.input), n.output[0], _attributes(n)) for n in nodes)
    learned = {name for node in nodes if node.op_type in ("Gemm", "Conv") for name in node.input[1:]}
    named = {name for node in nodes for name in node.input if name in constants}
    return End(
        entry,
        steps,
        {name: constants[name] for name in sorted(learned)},
        {name: constants[name] for name in sorted(named - learned)},
    )


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _can_learn(node: NodeProto, constants: Mapping[str, F32], uses: Mapping[str, int]) -> bool:
    """Whether `loop.layers` computes this node as ONNX does, and its weights are its own."""
    if node.op_type in ("Gemm", "Conv"):
        own = all(
            n in constants and uses[n] == 1 and constants[n].dtype == np.float32 for n in node.input[1:]
        )
        if not own or node.input[0] in constants:
            return False
    fits = _FITS.get(node.op_type)
    return fits is not None and fits(_attributes(node)) and len(node.output) == 1


def _is_plain_window(attributes: Attributes) -> bool:
    pads = attributes.get("pads", [0, 0, 0, 0])
    is_plane = len(attributes.get("kernel_shape", [])) == 2
    return is_plane and pads[:2] == pads[2:] and "auto_pad" not in attributes


def _is_plain_gemm(attributes: Attributes) -> bool:
    is_scaled = attributes.get("alpha", 1.0) != 1 or attributes.get("beta", 1.0) != 1
    return not is_scaled and not attributes.get("transA")


_FITS: dict[str, Callable[[Attributes], bool]] = {
    "Gemm": _is_plain_gemm,
    "Conv": _is_plain_window,
    "MaxPool": _is_plain_window,
    "Flatten": lambda attributes: attributes.get("axis", 1) == 1,
    **dict.fromkeys(("Relu", "Add", "Div", "GlobalAveragePool"), lambda attributes: True),
}
