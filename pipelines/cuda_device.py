"""The NVIDIA GPU: which there is, its memory, and the context that everything on it shares. A door to pycuda.

pycuda is an extra, and importing it without a driver fails: every function here answers on a machine
without a GPU too.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import ModelError
from .plan import Hardware

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU with its primary context, which all libraries of the process share; `cuda` is pycuda.driver."""

    index: int
    name: str
    compute_capability: str
    cuda: Any
    context: Any

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make the context that of the calling thread for a while; any thread may, also several at once."""
        self.context.push()
        try:
            yield
        finally:
            self.context.pop()

    def free_bytes(self) -> int:
        """Return how much of its memory is free. The context must be current."""
        free, _ = self.cuda.mem_get_info()
        return int(free)


@dataclass(frozen=True, slots=True)
class DeviceChips:
    """Network input `(N, C, H, W)` float32 that lies on the GPU; valid until its maker makes the next.

    `ready` is the event after which it is there. It can be sliced along N, and copied to the host as an
    array, so that an engine on the CPU may stand in for one on the GPU.
    """

    gpu: Gpu
    pointer: int
    shape: tuple[int, int, int, int]
    ready: Any

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> "DeviceChips":
        start, stop, step = rows.indices(self.shape[0])
        if step != 1:
            raise ValueError(f"chips on a GPU are cut into runs: {rows=}")
        row_bytes = 4 * int(np.prod(self.shape[1:]))
        shape = (max(0, stop - start), *self.shape[1:])
        return DeviceChips(self.gpu, self.pointer + start * row_bytes, shape, self.ready)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> F32:
        chips: F32 = np.empty(self.shape, np.float32)
        with self.gpu.current():
            self.ready.synchronize()
            self.gpu.cuda.memcpy_dtoh(chips, self.pointer)
        return chips

    def wait_on(self, stream: Any) -> None:
        """Let what is queued on `stream` from now on wait until the chips are there."""
        stream.wait_for_event(self.ready)


class DeviceBuffer:
    """Memory on the GPU that grows with what is asked of it. Owned by one thread."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._memory: Any = None
        self._size = 0

    def of(self, n_bytes: int) -> int:
        """Return the address of `n_bytes`; what lay there may be gone. The context must be current."""
        if n_bytes > self._size:
            self.free()
            self._memory = self._gpu.cuda.mem_alloc(n_bytes)
            self._size = n_bytes
        return int(self._memory) if self._memory is not None else 0

    def free(self) -> None:
        """Give the memory back; a second call does nothing."""
        if self._memory is not None:
            self._memory.free()
        self._memory, self._size = None, 0


def can_run(device: str = "cuda:0") -> bool:
    """Whether `device`, as `cuda:0`, can be used now."""
    try:
        open_gpu(device)
    except ModelError:
        return False
    return True


@cache
def open_gpu(device: str) -> Gpu:
    """Return `device`, as `cuda:0`; the same object at every call of this process.

    Raises:
        ModelError: pycuda is not installed, there is no driver or no such GPU.
    """
    index = int(device.partition(":")[2] or 0)
    try:
        import pycuda.driver as cuda
    except (ImportError, OSError) as error:
        raise ModelError(
            f"no GPU can be used ({error}); install NVIDIA's driver, and "
            "`pip install 'visaged[tensorrt-rtx]'`, or set [engine] device = \"cpu\""
        ) from error
    try:
        cuda.init()
        count = cuda.Device.count()
    except cuda.Error as error:
        raise ModelError(
            f"the NVIDIA driver does not answer ({error}); `nvidia-smi` says more, "
            'or set [engine] device = "cpu"'
        ) from error
    if index >= count:
        raise ModelError(f"there is no GPU {device}, only {count} in all; set [engine] device to another")
    gpu = cuda.Device(index)
    major, minor = gpu.compute_capability()
    return Gpu(index, gpu.name(), f"{major}.{minor}", cuda, gpu.retain_primary_context())


def gpu_hardware(device: str) -> Hardware:
    """Return what a TensorRT plan for `device` depends on.

    Raises:
        ModelError: it cannot be used.
    """
    gpu = open_gpu(device)
    return Hardware(
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        driver=_dotted(gpu.cuda.get_driver_version()),
        cuda=".".join(str(part) for part in gpu.cuda.get_version()),
    )


def _dotted(version: int) -> str:
    """Return CUDA's version number 13000 as "13.0"."""
    return f"{version // 1000}.{version % 1000 // 10}"
