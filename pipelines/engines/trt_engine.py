"""Run plans of TensorRT or TensorRT-RTX on an NVIDIA GPU; pycuda owns context, stream and memory.

One engine, one stream, and one execution context per optimisation profile of the plan, so that small and
large batches each run on the kernels made for them. A batch is one copy in (none when the chips are on the
GPU already), one enqueue, one copy out.
"""

import contextlib
import hashlib
import logging
import math
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..cache_files import write_atomically
from ..errors import ModelError
from .cuda_device import ALIGNMENT_BYTES, DeviceChips, Gpu, StagedBuffer, hardware_of, open_gpu
from .engine import Inputs
from .hardware import check_head_room
from .plan import Backend
from .trt_builder import fresh_logger, load_flavour

F32 = npt.NDArray[np.float32]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Lane:
    """An execution context, and the shapes of input that its profile takes."""

    context: Any
    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether an input of `shape` lies within the profile."""
        sides = zip(self.minimum, shape, self.maximum, strict=False)
        return len(shape) == len(self.minimum) and all(low <= side <= high for low, side, high in sides)

    def misfit(self, shape: tuple[int, ...]) -> float:
        """Return how far `shape` is from what this profile is fastest at: 0 for just that."""
        return abs(math.log(math.prod(shape) / math.prod(self.optimum)))


class TrtEngine:
    """A plan on the GPU. Everything but `close` belongs to the thread that calls `infer` first.

    `infer` returns only when the answers are in host memory: nothing of it runs afterwards.
    """

    def __init__(self, path: Path, backend: Backend, *, device: str = "cuda:0") -> None:
        """Load the plan `path` onto `device`.

        Raises:
            ModelError: missing, corrupt, of another version, for another GPU, or no memory for it; with
                the library's reason.
        """
        trt = load_flavour(backend)
        self._gpu: Gpu = open_gpu(device)
        self._path = path
        self._runtime: Any = None
        self._engine: Any = None
        self._lanes: list[_Lane] = []
        self._kernels: _KernelCache | None = None
        self._stream: Any = None
        self._input, self._outputs = StagedBuffer(self._gpu), dict[str, StagedBuffer]()
        with self._gpu.current():
            try:
                self._load(trt, backend)
            except BaseException as error:
                traceback.clear_frames(error.__traceback__)  # their locals would outlive what they need
                self._free()
                raise

    def infer(self, inputs: Inputs) -> Mapping[str, F32]:
        """Return every named output for `inputs`, `(N, C, H, W)` on the host or on this GPU.

        Raises:
            ModelError: a shape that no profile has, or the GPU failed.
        """
        shape = tuple(inputs.shape)
        fitting = [lane for lane in self._lanes if lane.takes(shape)]
        if not fitting:
            raise self._too_large(shape)
        lane = min(fitting, key=lambda lane: lane.misfit(shape))
        with self._gpu.current():
            try:
                answers = self._queue(lane.context, shape, inputs)
            finally:
                self._stream.synchronize()  # also when something was refused: copies may be on their way
            copies = {name: values.copy() for name, values in answers.items()}
            if self._kernels is not None and not self._kernels.is_kept:
                self._kernels.keep()
        return copies

    def close(self) -> None:
        """Free everything on the GPU, once what runs has ended; a second call does nothing."""
        if self._stream is None:
            return
        with self._gpu.current():
            try:
                self._stream.synchronize()
                if self._kernels is not None:
                    self._kernels.keep()
            finally:
                self._free()

    def _load(self, trt: Any, backend: Backend) -> None:
        """Take the plan to the GPU, ready to run."""
        try:
            data = self._path.read_bytes()
        except OSError as error:
            raise ModelError(
                f"{self._path} cannot be read ({error.strerror}); build it again with `visaged build`"
            ) from error
        gpu = self._gpu
        check_head_room(2 * len(data), gpu.free_bytes(), f"the plan {self._path}", gpu.name)
        logger, lines = fresh_logger(trt)
        self._runtime = trt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise ModelError(
                f"{self._path} cannot be loaded by {backend.value}: {lines.reason()}; "
                "build it on this machine with `visaged build`"
            )
        n_profiles = int(self._engine.num_optimization_profiles)
        activations = n_profiles * int(self._engine.device_memory_size_v2)
        check_head_room(activations, gpu.free_bytes(), f"running {self._path}", gpu.name)
        self._stream = gpu.new_stream()
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        is_input = {n: self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT for n in names}
        (self._entry,) = (name for name in names if is_input[name])
        self._outputs = {name: StagedBuffer(gpu) for name in names if not is_input[name]}
        for profile in range(n_profiles):
            context = self._new_context(trt, profile)
            if context is None:
                raise ModelError(f"{backend.value} cannot run {self._path}: {lines.reason()}")
            self._add_lane(context, profile)

    def _new_context(self, trt: Any, profile: int) -> Any:
        """Return an execution context for `profile`, or None.

        TensorRT-RTX compiles here and at the first batches, for this GPU; what it compiled is kept. It
        records CUDA graphs itself, from the third batch of a shape on.
        """
        if hasattr(trt, "CudaGraphStrategy"):
            config = self._engine.create_runtime_config()
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            if self._kernels is None:
                self._kernels = _KernelCache(
                    config.create_runtime_cache(), _cache_file(trt, self._gpu, self._path)
                )
            config.set_runtime_cache(self._kernels.cache)
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context()
        if context is not None and profile > 0:
            context.set_optimization_profile_async(profile, self._stream.handle)
            self._stream.synchronize()
        return context

    def _add_lane(self, context: Any, profile: int) -> None:
        """Let `context` run what `profile` takes, and take memory for the answers to its largest batch."""
        shapes = self._engine.get_tensor_profile_shape(self._entry, profile)
        minimum, optimum, maximum = (tuple(int(side) for side in shape) for shape in shapes)
        context.set_input_shape(self._entry, maximum)
        for name, buffer in self._outputs.items():
            buffer.reserve(4 * int(np.prod(tuple(context.get_tensor_shape(name)))))
        self._lanes.append(_Lane(context, minimum, optimum, maximum))

    def _too_large(self, shape: tuple[int, ...]) -> ModelError:
        """Return the error for an input that no profile has."""
        if not self._lanes:
            return ModelError(f"the engine of {self._path} was closed; load it again")
        largest = max(lane.maximum for lane in self._lanes)
        if shape[1:] == largest[1:]:
            advice = "set [ensemble] max_batch lower, or build it with a larger `--max-batch`"
        else:
            advice = "give the detector smaller frames, or set [detector] min_face_px higher"
        return ModelError(f"the plan {self._path} takes no input of {shape}, at most {largest}; {advice}")

    def _queue(self, context: Any, shape: tuple[int, ...], inputs: Inputs) -> dict[str, F32]:
        """Queue one batch; return where its answers will be once the stream has ended."""
        is_taken = context.set_input_shape(self._entry, shape)
        is_taken &= context.set_tensor_address(self._entry, self._feed(inputs))
        for name, buffer in self._outputs.items():
            is_taken &= context.set_tensor_address(name, buffer.of(0))
        if not is_taken or not context.execute_async_v3(self._stream.handle):
            raise ModelError(
                f"the GPU {self._gpu.name} refused a batch of {shape}; `nvidia-smi` and `dmesg` say more"
            )
        return {
            name: buffer.read(tuple(context.get_tensor_shape(name)), self._stream)
            for name, buffer in self._outputs.items()
        }

    def _feed(self, inputs: Inputs) -> int:
        """Return the address of `inputs` on the GPU, copied there or to an aligned place if need be."""
        if not isinstance(inputs, DeviceChips) or inputs.gpu is not self._gpu:
            return self._input.fill([np.asarray(inputs, np.float32)], self._stream)[0]
        inputs.wait_on(self._stream)
        if inputs.pointer % ALIGNMENT_BYTES == 0:
            return inputs.pointer
        address = self._input.of(inputs.nbytes)
        self._gpu.cuda.memcpy_dtod_async(address, inputs.pointer, inputs.nbytes, self._stream)
        return address

    def _free(self) -> None:
        """Let go of everything on the GPU, each before what it needs. The context must be current."""
        self._lanes.clear()
        self._kernels = None
        self._engine = None
        self._runtime = None
        for buffer in (self._input, *self._outputs.values()):
            buffer.free()
        self._stream = None


class _KernelCache:
    """What TensorRT-RTX compiled for this GPU, in a file beside the plan, so that a restart is warm.

    The file is the SHA-256 of the library's bytes, then these. INVARIANT: kept alive as long as the
    contexts made with `cache`, which do not do it themselves.
    """

    def __init__(self, cache: Any, file: Path) -> None:
        """Fill `cache` from `file`, unless that is missing, damaged or of another machine."""
        self.cache, self._file = cache, file
        self._digest = b""
        self.is_kept = False
        with contextlib.suppress(OSError):
            content = file.read_bytes()
            digest, data = content[:32], content[32:]
            if hashlib.sha256(data).digest() == digest and cache.deserialize(data):
                self._digest = digest
            else:
                log.info("ignored %s, which is damaged or of another GPU or driver", file)

    def keep(self) -> None:
        """Write the file if anything was compiled since; a folder that takes no files is not an error."""
        self.is_kept = True
        data = self.cache.serialize()
        if data is None:
            return
        content = bytes(data)
        digest = hashlib.sha256(content).digest()
        if digest == self._digest:
            return
        try:
            write_atomically(self._file, digest + content)
        except OSError as error:
            log.info("could not keep what was compiled for this GPU in %s: %s", self._file, error)
        else:
            self._digest = digest


def _cache_file(trt: Any, gpu: Gpu, plan: Path) -> Path:
    """Return where what `trt` compiles for `gpu` from `plan` is kept."""
    key = f"{plan.name}-kernels-{gpu.name}-{hardware_of(gpu).driver}-{trt.__version__}.cache"
    return plan.with_name("".join(c if c.isalnum() or c in ".-" else "_" for c in key))
