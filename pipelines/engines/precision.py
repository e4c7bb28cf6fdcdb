"""The same network in other numbers: fp16, or int8 with known ranges. A door to onnx and onnxruntime.

Precision lives in the graph: TensorRT 11 has no flag for it, and every backend reads the same graph.
"""

import hashlib
from collections.abc import Iterable
from enum import Enum
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
from msgspec import Struct
from onnx import TensorProto, helper, numpy_helper

from ..errors import MALFORMED, ModelError
from .ort_engine import OrtEngine

F32 = npt.NDArray[np.float32]

QUANTISED = ("Conv", "MaxPool", "AveragePool", "Relu", "Pad")
"""Operators that become int8. Not Add: the sums of the residual blocks carry the answer to the end."""

FP32_TAIL_CONVS = 4
"""So many convolutions at the end, and all behind the first of them, stay fp32: on maps of 4 x 4 px there is
little to gain, and what is rounded there is never averaged out. Measured in docs/engines.md."""


class Int8Style(Enum):
    """How activations become int8.

    `ASYMMETRIC`: uint8 with a zero point, what processors with VNNI multiply fastest (ONNX Runtime,
    OpenVINO). `SYMMETRIC`: int8 around 0 with fp32 biases, the only one that TensorRT reads.
    """

    ASYMMETRIC = "asymmetric"
    SYMMETRIC = "symmetric"


class Ranges(Struct, frozen=True, kw_only=True):
    """Smallest and largest value of every tensor of a network over faces: its INT8 calibration.

    `weights_sha256` is of the weights the ranges were measured with; `source` says on what.
    """

    network: str
    weights_sha256: str
    source: str
    n_chips: int
    tensors: dict[str, tuple[float, float]]

    @property
    def sha256(self) -> str:
        """Digest of what decides the int8 graph: the numbers, not where they are from."""
        return hashlib.sha256(msgspec.json.encode(self.tensors, order="deterministic")).hexdigest()


def ranges_path(network: str) -> Path:
    """Return where the ranges of `network` are shipped; there may be none."""
    return Path(__file__).parents[1] / "weights" / f"{network}.ranges.json"


def read_ranges(path: Path) -> Ranges:
    """Return the ranges in `path`.

    Raises:
        ModelError: missing, or not a file of ranges.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Ranges)
    except OSError as error:
        raise ModelError(
            f"there are no INT8 ranges {path} ({error.strerror}); "
            "choose another precision, or measure them with `visaged calibrate FOLDER_OF_PHOTOS`"
        ) from error
    except MALFORMED as error:
        raise ModelError(
            f"{path} is no file of INT8 ranges ({error}); measure them with `visaged calibrate`"
        ) from error


def measure_ranges(network: str, data: bytes, batches: Iterable[F32], source: str) -> Ranges:
    """Return the ranges of every float tensor of the ONNX graph `data` over `batches` of its input.

    Smallest and largest, not a percentile: on faces it moved the embedding least (docs/engines.md).
    """
    model = parse_onnx(data)
    spied = onnx.ModelProto()
    spied.CopyFrom(model)
    names = [output for node in model.graph.node for output in node.output]
    known = {output.name for output in model.graph.output}
    spied.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in known
    )
    engine = OrtEngine(spied.SerializeToString())
    entry = model.graph.input[0].name
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    n_chips = 0
    for batch in batches:
        n_chips += len(batch)
        for name, values in {entry: batch, **engine.infer(batch)}.items():
            low[name] = min(low.get(name, 0.0), float(values.min()))  # 0 is always in: padding is exact
            high[name] = max(high.get(name, 0.0), float(values.max()))
    if not n_chips:
        raise ModelError(f"no chip to measure the INT8 ranges of {network} on; name a folder with faces")
    return Ranges(
        network=network,
        weights_sha256=weights_digest(model),
        source=source,
        n_chips=n_chips,
        tensors={name: (low[name], high[name]) for name in low},
    )


def weights_digest(model: onnx.ModelProto) -> str:
    """Return the SHA-256 of the weights of the layers that become int8."""
    weights = {w.name: w for w in model.graph.initializer}
    digest = hashlib.sha256()
    for node in model.graph.node:
        if node.op_type == "Conv":
            for name in node.input[1:]:
                digest.update(numpy_helper.to_array(weights[name]).tobytes())
    return digest.hexdigest()


def to_fp16(data: bytes) -> bytes:
    """Return the ONNX graph `data` computing in fp16; inputs and outputs stay fp32.

    Raises:
        ModelError: `data` is no ONNX graph.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16  # 0.5 s; few need it

    converted: bytes = convert_float_to_float16(parse_onnx(data), keep_io_types=True).SerializeToString()
    return converted


def to_int8(data: bytes, ranges: Ranges, style: Int8Style) -> bytes:
    """Return the ONNX graph `data` with its convolutions in int8 (QDQ), weights per channel.

    Raises:
        ModelError: `data` is no ONNX graph, or `ranges` were measured on other weights.
    """
    model = parse_onnx(data)
    if ranges.weights_sha256 != weights_digest(model):
        raise ModelError(
            f"the INT8 ranges of {ranges.network} were measured with other weights; "
            "measure them again with `visaged calibrate FOLDER_OF_PHOTOS`"
        )
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType
    from onnxruntime.quantization.calibrate import TensorsData

    is_symmetric = style is Int8Style.SYMMETRIC
    pairs = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.tensors.items()}
    quantizer = QDQQuantizer(
        model=model,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8 if is_symmetric else QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, pairs),
        nodes_to_quantize=[],
        nodes_to_exclude=_tail(model),
        op_types_to_quantize=list(QUANTISED),
        extra_options={"ActivationSymmetric": is_symmetric, "QuantizeBias": not is_symmetric},
    )
    quantizer.quantize_model()
    quantised: bytes = quantizer.model.model.SerializeToString()
    return quantised


def _tail(model: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes that stay fp32."""
    convolutions = [i for i, node in enumerate(model.graph.node) if node.op_type == "Conv"]
    first = convolutions[-FP32_TAIL_CONVS] if len(convolutions) > FP32_TAIL_CONVS else len(model.graph.node)
    return [node.name for node in model.graph.node[first:]]


def parse_onnx(data: bytes) -> onnx.ModelProto:
    """Return the ONNX graph in `data`, checked.

    Raises:
        ModelError: truncated, or no ONNX graph.
    """
    try:
        model = onnx.load_model_from_string(data)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf and the checker share no class of error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"this is no ONNX graph ({reason}); import it again with `visaged models import`"
        ) from error
    return model
