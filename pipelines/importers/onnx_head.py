"""The emotion head inside an imported face ResNet: read, put in place of another, run apart. A door to onnx.

The trunk's nodes and weights are not touched, so it answers with the same bits under every head.
"""

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..errors import ModelError

F32 = npt.NDArray[np.float32]

Layers = tuple[tuple[F32, F32], ...]
"""Weights `(in, out)` and bias `(out,)` of each linear layer, ReLU between them; the last gives logits."""

FEATURES, LOGITS = "features", "logits"


def layers_of(data: bytes) -> Layers:
    """Return the layers of the head in the ONNX file `data`.

    Raises:
        ModelError: it has no head of linear layers on pooled features.
    """
    model = onnx.load_model_from_string(data)
    weights = {w.name: w for w in model.graph.initializer}
    return tuple(
        (numpy_helper.to_array(weights[node.input[1]]), numpy_helper.to_array(weights[node.input[2]]))
        for node in _linear_nodes(model)
    )


def with_layers(data: bytes, layers: Layers) -> bytes:
    """Return the ONNX file `data` with other weights in its head.

    Raises:
        ModelError: it has no such head, or `layers` are not of its shapes or not finite.
    """
    model = onnx.load_model_from_string(data)
    weights = {w.name: w for w in model.graph.initializer}
    nodes = _linear_nodes(model)
    for node, (values, bias) in zip(nodes, layers, strict=True):
        for name, new in ((node.input[1], values), (node.input[2], bias)):
            old = weights[name]
            if tuple(old.dims) != new.shape or not np.isfinite(new).all():
                raise ModelError(f"weights {new.shape} that are not finite, or not {tuple(old.dims)}")
            old.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(new, np.float32), name))
    written: bytes = model.SerializeToString()
    return written


def hidden_of(layers: Layers, features: F32) -> F32:
    """Return `(N, U)`: what the last layer reads of `(N, F)` features."""
    values = features
    for weights, bias in layers[:-1]:
        values = np.maximum(values @ weights + bias, 0)
    return values


def trunk_of(data: bytes) -> bytes:
    """Return the part of the ONNX file `data` up to the head: outputs `embedding` and `features`."""
    return _extract(data, None, ["embedding", FEATURES])


def head_of(data: bytes) -> bytes:
    """Return the head of the ONNX file `data` alone: input `features`, outputs as there."""
    model = onnx.load_model_from_string(data)
    outputs = [output.name for output in model.graph.output if output.name != "embedding"]
    return _extract(data, FEATURES, outputs)


def _extract(data: bytes, entry: str | None, outputs: list[str]) -> bytes:
    """Return what computes `outputs` from the input, or from the value `entry`."""
    model = onnx.load_model_from_string(data)
    graph, n_features = model.graph, _n_features(model)
    needed, nodes = set(outputs), []
    for node in reversed(graph.node):
        if needed.intersection(node.output) and entry not in node.output:
            nodes.append(node)
            needed.update(node.input)
    shapes = {output.name: output for output in graph.output}
    features = helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["N", n_features])
    part = helper.make_graph(
        nodes[::-1],
        graph.name,
        [features] if entry else list(graph.input),
        [shapes.get(name, features) for name in outputs],
        [weight for weight in graph.initializer if weight.name in needed],
    )
    model.graph.CopyFrom(part)
    written: bytes = model.SerializeToString()
    return written


def _n_features(model: onnx.ModelProto) -> int:
    first = _linear_nodes(model)[0].input[1]
    return next(int(weight.dims[0]) for weight in model.graph.initializer if weight.name == first)


def _linear_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the Gemm nodes from the features to the logits."""
    known = {weight.name for weight in model.graph.initializer}
    found: list[onnx.NodeProto] = []
    value = FEATURES
    for node in model.graph.node:  # in order of computation
        if value not in node.input[:1]:
            continue
        if node.op_type == "Gemm" and len(node.input) == 3 and set(node.input[1:]) <= known:
            found.append(node)
        elif node.op_type != "Relu":
            break
        value = node.output[0]
    shapes = {w.name: tuple(w.dims) for w in model.graph.initializer}
    fits = all(shapes[a.input[1]][1] == shapes[b.input[1]][0] for a, b in pairwise(found))
    if value != LOGITS or not found or not fits:
        raise ModelError(
            "this network has no emotion head of linear layers on the pooled features of a trunk; "
            "only such a head learns from samples, as that of face-resnet"
        )
    return found
