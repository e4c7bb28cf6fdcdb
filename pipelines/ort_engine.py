"""Run ONNX files on ONNX Runtime's CPU provider: the embedded default. The door to onnxruntime."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

# Since 1.29 the wheels for Linux report to their maker unless told otherwise before they are loaded.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime as ort

from .errors import ModelError

F32 = npt.NDArray[np.float32]


class OrtEngine:
    """An ONNX file loaded on the CPU; one input, dynamic batch, any number of named outputs.

    `run` of a session may be called from several threads, but visaged gives each engine one owner.
    """

    def __init__(self, path: Path, *, threads: int = 1, generation: int = 0) -> None:
        """Load `path`.

        Args:
            path: ONNX file with exactly one input.
            threads: cores one call may use.
            generation: number of the weights, see `Engine.generation`.

        Raises:
            ModelError: the file is missing, truncated, not ONNX or uses operators unknown here.
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # its warnings are about graph optimisations, not for operators
        # Idle threads must not spin: the cores belong to capture and detection.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Arena memory is kept for the largest batch ever seen; a few MB slower growth beats 100s of MB held.
        options.enable_cpu_mem_arena = False
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has one exception class per status and no common base
            reason = str(error).splitlines()[0]
            raise ModelError(
                f"{path} cannot be loaded as ONNX: {reason}; delete it and run `visaged models import`"
            ) from error
        self._input = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._generation = generation

    @property
    def generation(self) -> int:
        """Growing number of the weights."""
        return self._generation

    def infer(self, inputs: F32) -> Mapping[str, F32]:
        """Return every named output for `inputs`."""
        values = self._session.run(self._outputs, {self._input: np.ascontiguousarray(inputs)})
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        """Free the session."""
        del self._session
