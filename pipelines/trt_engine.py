"""Run plans of TensorRT or TensorRT-RTX on an NVIDIA GPU; pycuda owns context, stream and memory.

One engine, one execution context, one stream. Buffers are taken once, for the largest batch of the
profile. A batch is one copy in (none when the chips are on the GPU already), one enqueue, one copy out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .cuda_device import DeviceChips, Gpu, open_gpu
from .engine import Inputs
from .errors import ModelError
from .hardware import check_head_room
from .plan import Backend
from .trt_builder import fresh_logger, load_flavour

F32 = npt.NDArray[np.float32]


@dataclass(slots=True)
class _Tensor:
    """An input or output: its place on the GPU and a page-locked copy on the host."""

    name: str
    host: F32
    device: Any


class TrtEngine:
    """A plan on the GPU. Everything but `close` belongs to the thread that calls `infer` first.

    `infer` returns only when the answers are in host memory: nothing of it runs afterwards.
    """

    def __init__(self, path: Path, backend: Backend, *, device: str = "cuda:0") -> None:
        """Load the plan `path` onto `device`.

        Raises:
            ModelError: corrupt, of another version, for another GPU, or no memory for it; with the
                library's reason.
        """
        self._gpu: Gpu = open_gpu(device)
        trt = load_flavour(backend)
        with self._gpu.current():
            try:
                data = path.read_bytes()
            except OSError as error:
                raise ModelError(
                    f"{path} cannot be read ({error.strerror}); build it again with `visaged build`"
                ) from error
            check_head_room(2 * len(data), self._gpu.free_bytes(), f"the plan {path}", self._gpu.name)
            logger, lines = fresh_logger(trt)
            self._runtime = trt.Runtime(logger)
            self._engine = self._runtime.deserialize_cuda_engine(data)
            if self._engine is None:
                raise ModelError(
                    f"{path} cannot be loaded by {backend.value}: {lines.reason()}; "
                    "build it on this machine with `visaged build`"
                )
            activations = int(self._engine.device_memory_size_v2)
            check_head_room(activations, self._gpu.free_bytes(), f"running {path}", self._gpu.name)
            self._context = _make_context(trt, self._engine, path)
            if self._context is None:
                raise ModelError(f"{backend.value} cannot run {path}: {lines.reason()}")
            self._stream = self._gpu.cuda.Stream()
            self._take_buffers(trt)

    def infer(self, inputs: Inputs) -> Mapping[str, F32]:
        """Return every named output for `inputs`, `(N, C, H, W)` on the host or on this GPU.

        Raises:
            ModelError: a shape that the profile does not have, or the GPU failed.
        """
        cuda = self._gpu.cuda
        shape = tuple(inputs.shape)
        with self._gpu.current():
            if not self._context.set_input_shape(self._input.name, shape):
                raise ModelError(
                    f"the plan takes no input of {shape}; build it with a larger `--max-batch`, "
                    "or set [ensemble] max_batch lower"
                )
            if isinstance(inputs, DeviceChips):
                self._context.set_tensor_address(self._input.name, inputs.pointer)
                inputs.wait_on(self._stream)
            else:
                size = int(np.prod(shape))
                self._input.host[:size] = np.asarray(inputs, np.float32).reshape(-1)
                cuda.memcpy_htod_async(self._input.device, self._input.host[:size], self._stream)
                self._context.set_tensor_address(self._input.name, int(self._input.device))
            if not self._context.execute_async_v3(self._stream.handle):
                raise ModelError("the GPU refused a batch; `nvidia-smi` and `dmesg` say more")
            answers = {o.name: self._begin_read(o) for o in self._outputs}
            self._stream.synchronize()
            return {name: values.copy() for name, values in answers.items()}

    def close(self) -> None:
        """Free everything on the GPU, once what runs has ended."""
        with self._gpu.current():
            self._stream.synchronize()
            del self._context, self._engine, self._runtime  # in this order: each needs the next
            for tensor in (self._input, *self._outputs):
                tensor.device.free()

    def _begin_read(self, output: _Tensor) -> F32:
        """Queue the copy of `output` to the host; the values are there once the stream has ended."""
        shape = tuple(self._context.get_tensor_shape(output.name))
        values: F32 = output.host[: int(np.prod(shape))]
        self._gpu.cuda.memcpy_dtoh_async(values, output.device, self._stream)
        return values.reshape(shape)

    def _take_buffers(self, trt: Any) -> None:
        """Take memory for the largest batch, on the GPU and page-locked on the host."""
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        is_input = {n: self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT for n in names}
        entry = next(name for name in names if is_input[name])
        _, _, largest = self._engine.get_tensor_profile_shape(entry, 0)
        self._context.set_input_shape(entry, tuple(largest))
        self._input = self._tensor(entry, tuple(largest))
        self._outputs = []
        for name in names:
            if not is_input[name]:
                tensor = self._tensor(name, tuple(self._context.get_tensor_shape(name)))
                self._context.set_tensor_address(name, int(tensor.device))
                self._outputs.append(tensor)

    def _tensor(self, name: str, shape: tuple[int, ...]) -> _Tensor:
        size = int(np.prod(shape))
        host: F32 = self._gpu.cuda.pagelocked_empty(size, np.float32)
        return _Tensor(name, host, self._gpu.cuda.mem_alloc(host.nbytes))


def _make_context(trt: Any, engine: Any, path: Path) -> Any:
    """Return an execution context; TensorRT-RTX records CUDA graphs itself and keeps what it compiled.

    What it compiles for this GPU at the first batches lies beside the plan, so a restart is warm.
    """
    if not hasattr(engine, "create_runtime_config"):
        return engine.create_execution_context()
    config = engine.create_runtime_config()
    if hasattr(trt, "CudaGraphStrategy"):
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    return engine.create_execution_context(config)
