"""Run and build plans with OpenVINO on the CPU. The door to openvino, an extra.

It reads the same int8 graphs as ONNX Runtime and runs them faster; measured in docs/benchmarks.md.
"""

import io
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import ModelError
from .engine import Inputs

# openvino reports every import to its maker through this package, unless that is not there.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
try:
    import openvino as ov
except ModuleNotFoundError as missing:
    raise ModelError(
        "openvino is not installed; run `pip install 'visaged[openvino]'`, or set [engine] backend to another"
    ) from missing

F32 = npt.NDArray[np.float32]

CONFIG = {
    # Left alone it computes in bf16 where the processor can, which moves an embedding by 0.011.
    "INFERENCE_PRECISION_HINT": "f32",
    "NUM_STREAMS": "1",
}
ADVICE = "To facilitate the conversion"  # how one would write an extension of OpenVINO


class OpenVinoEngine:
    """An exported OpenVINO model loaded on the CPU; one input, dynamic batch."""

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        """Load the plan `path`.

        Args:
            path: what `build_openvino_plan` returned, with this version on this kind of processor.
            threads: cores one call may use.

        Raises:
            ModelError: the file is missing, corrupt, or another version's.
        """
        try:
            blob = path.read_bytes()
            compiled = ov.Core().import_model(io.BytesIO(blob), "CPU", _config(threads))
        except (OSError, RuntimeError) as error:
            raise ModelError(
                f"{path} cannot be loaded by OpenVINO: {_reason(error)}; build it again with `visaged build`"
            ) from error
        self._request = compiled.create_infer_request()
        self._names = [output.get_any_name() for output in compiled.outputs]

    def infer(self, inputs: Inputs) -> Mapping[str, F32]:
        """Return every named output for `inputs`.

        Raises:
            ModelError: OpenVINO failed; its reason is in the sentence.
        """
        try:
            values = self._request.infer({0: np.ascontiguousarray(inputs, np.float32)})
        except RuntimeError as error:
            raise ModelError(f"OpenVINO cannot run {inputs.shape}: {_reason(error)}") from error
        return {name: values[index].copy() for index, name in enumerate(self._names)}

    def close(self) -> None:
        """Free the model."""
        del self._request


def build_openvino_plan(data: bytes) -> bytes:
    """Return the ONNX graph `data` compiled for this processor.

    Raises:
        ModelError: OpenVINO refuses the graph; its reason is in the sentence.
    """
    core = ov.Core()
    try:
        compiled = core.compile_model(core.read_model(data), "CPU", _config(threads=1))
    except RuntimeError as error:
        raise ModelError(f"OpenVINO cannot build this network: {_reason(error)}") from error
    exported: bytes = compiled.export_model().getvalue()
    return exported


def _reason(error: Exception) -> str:
    """Return the line of OpenVINO's message that says what is wrong: the last, but for its advice."""
    lines = [line.strip(" -") for line in str(error).splitlines()]
    return next(
        (line for line in reversed(lines) if line and not line.startswith(ADVICE)), "it gave no reason"
    )


def _config(threads: int) -> dict[str, str]:
    return {**CONFIG, "INFERENCE_NUM_THREADS": str(threads)}
