"""Run and build plans with ONNX Runtime's CPU provider: the embedded default. The door to onnxruntime."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

# Since 1.29 the wheels for Linux report to their maker unless told otherwise before they are loaded.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime as ort

from ..errors import ModelError
from .engine import Inputs

F32 = npt.NDArray[np.float32]


class OrtEngine:
    """An ONNX file loaded on the CPU; one input, dynamic batch, any number of named outputs.

    `run` of a session may be called from several threads, but visaged gives each engine one owner.
    """

    def __init__(self, source: Path | bytes, *, threads: int = 1) -> None:
        """Load `source`.

        Args:
            source: ONNX file, or its content, with exactly one input.
            threads: cores one call may use.

        Raises:
            ModelError: the file is missing, truncated, not ONNX or uses operators unknown here.
        """
        self._session = open_session(source, threads)
        self._input = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs()]

    def infer(self, inputs: Inputs) -> Mapping[str, F32]:
        """Return every named output for `inputs`.

        Raises:
            ModelError: ONNX Runtime failed; its reason is in the sentence.
        """
        try:
            values = self._session.run(self._outputs, {self._input: np.ascontiguousarray(inputs, np.float32)})
        except Exception as error:  # onnxruntime has one exception class per status and no common base
            raise ModelError(
                f"ONNX Runtime cannot run {inputs.shape}: {str(error).splitlines()[0]}"
            ) from error
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        """Free the session."""
        del self._session


def open_session(
    source: Path | bytes, threads: int = 1, remedy: str = "delete it and run `visaged models import`"
) -> ort.InferenceSession:
    """Return ONNX Runtime's session of a graph with any inputs, on the CPU.

    Args:
        source: ONNX file, or its content.
        threads: cores one call may use.
        remedy: what to do when it cannot be loaded, as the end of a sentence.

    Raises:
        ModelError: the file is missing, truncated, not ONNX or uses operators unknown here.
    """
    options = _options(threads)
    # Idle threads must not spin: the cores belong to capture and detection.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Arena memory is kept for the largest batch ever seen; a few MB slower growth beats 100s of MB held.
    options.enable_cpu_mem_arena = False
    try:
        model = source if isinstance(source, bytes) else str(source)
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has one exception class per status and no common base
        reason = str(error).splitlines()[0]
        what = "the network" if isinstance(source, bytes) else source
        raise ModelError(f"{what} cannot be loaded as ONNX: {reason}; {remedy}") from error


def build_ort_plan(data: bytes) -> bytes:
    """Return the ONNX graph `data` as ONNX Runtime has optimised it for this processor, as ONNX.

    It answers the same, bit for bit, and loads four times as fast.

    Raises:
        ModelError: ONNX Runtime refuses the graph; its reason is in the sentence.
    """
    options = _options(threads=1)
    with tempfile.TemporaryDirectory(prefix="visaged-plan-") as folder:
        path = Path(folder) / "plan.onnx"
        options.optimized_model_filepath = str(path)
        try:
            ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            return path.read_bytes()
        except Exception as error:  # onnxruntime has one exception class per status and no common base
            reason = str(error).splitlines()[0]
            raise ModelError(f"ONNX Runtime cannot build this network: {reason}") from error


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # its warnings are about graph optimisations, not for operators
    return options
