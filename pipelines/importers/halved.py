"""Networks of our own, which are shipped with their weights in half precision."""

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from ..engines.precision import parse_onnx
from ..errors import ModelError


def widen_weights(data: bytes) -> onnx.ModelProto:
    """Return the graph of `halve_weights` with its weights in fp32, as every builder wants them.

    Raises:
        ModelError: no ONNX graph, or its weights are not whole.
    """
    model = parse_onnx(data)
    halves = {w.name: w for w in model.graph.initializer if w.data_type == TensorProto.FLOAT16}
    nodes = []
    for node in model.graph.node:
        weights = halves.get(node.input[0]) if node.op_type == "Cast" else None
        if weights is None:
            nodes.append(node)
            continue
        try:
            values = numpy_helper.to_array(weights).astype(np.float32)
        except (ValueError, TypeError, OSError, onnx.checker.ValidationError) as error:
            raise ModelError(
                f"this is no network of ours (weights {weights.name!r}: {error}); train or import it again"
            ) from error
        weights.CopyFrom(numpy_helper.from_array(values, node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model
