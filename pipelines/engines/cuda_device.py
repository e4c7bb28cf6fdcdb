"""The NVIDIA GPU: which there is, its memory, and the context that everything on it shares. A door to pycuda.

pycuda is an extra, and importing it without a driver fails: every function here answers on a machine
without a GPU too. Work is queued on streams of one's own, never on CUDA's default stream: it would make the
threads wait for each other, and break the graphs that TensorRT-RTX records.

INVARIANT: what pycuda made is let go of while its context is current. Elsewhere, in another thread than
opened the GPU, pycuda keeps quiet and leaks it.
"""

import atexit
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ModelError
from .plan import Hardware

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

ALIGNMENT_BYTES = 256  # of what TensorRT reads; every allocation has it
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING, for which pycuda has no name: waits for no default stream


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
        """Make the context that of the calling thread for a while; any thread may, also several at once.

        Raises:
            ModelError: the GPU failed inside, or earlier in what was queued, or its memory is used up.
        """
        try:
            self.context.push()
            try:
                yield
            finally:
                self.context.pop()
        except self.cuda.Error as error:
            raise ModelError(
                f"the GPU {self.name} failed ({error}); `nvidia-smi` and `dmesg` say more"
            ) from error

    def new_stream(self) -> Any:
        """Return a queue of its own for work on the GPU. The context must be current."""
        return self.cuda.Stream(NON_BLOCKING)

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

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return 4 * int(np.prod(self.shape))

    def __getitem__(self, rows: slice) -> "DeviceChips":
        start, stop, step = rows.indices(self.shape[0])
        if step != 1:
            raise ValueError(f"chips on a GPU are cut into runs: {rows=}")
        row_bytes = 4 * int(np.prod(self.shape[1:]))
        shape = (max(0, stop - start), *self.shape[1:])
        return DeviceChips(self.gpu, self.pointer + start * row_bytes, shape, self.ready)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> F32:
        if copy is False:
            raise ValueError("chips on a GPU reach the host as a copy only")
        chips: F32 = np.empty(self.shape, np.float32)
        if chips.size:
            with self.gpu.current():
                self.ready.synchronize()
                self.gpu.cuda.memcpy_dtoh(chips, self.pointer)
        return chips if dtype is None else chips.astype(dtype, copy=False)

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
        """Return the address of `n_bytes`, 0 for none; what lay there may be gone.

        The context must be current, and nothing queued may still use what an earlier call returned.
        """
        if n_bytes > self._size:
            self._free_device()
            self._memory = self._gpu.cuda.mem_alloc(n_bytes)
            self._size = n_bytes
        return int(self._memory) if self._memory is not None else 0

    def free(self) -> None:
        """Give the memory back; a second call does nothing. The context must be current."""
        self._free_device()

    def _free_device(self) -> None:
        memory, self._memory, self._size = self._memory, None, 0
        if memory is not None:
            memory.free()


class StagedBuffer(DeviceBuffer):
    """Memory on the GPU, filled and read through page-locked memory on the host. Owned by one thread.

    Copies are queued: the stream must have come to its end before the next one is, and before what
    `read` returned is looked at.
    """

    def __init__(self, gpu: Gpu) -> None:
        super().__init__(gpu)
        self._host: U8 | None = None

    def reserve(self, n_bytes: int) -> None:
        """Take `n_bytes` on both sides now, so that no batch waits for them later."""
        self._host_of(n_bytes)
        self.of(n_bytes)

    def fill(self, arrays: Sequence[npt.NDArray[Any]], stream: Any) -> list[int]:
        """Queue the copy of `arrays` to the GPU; return where each will lie. They may change at once."""
        starts, n_bytes = [], 0
        for array in arrays:
            starts.append(n_bytes)
            n_bytes += max(1, -(-array.nbytes // ALIGNMENT_BYTES)) * ALIGNMENT_BYTES
        host = self._host_of(n_bytes)
        for start, array in zip(starts, arrays, strict=True):
            part = host[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
            part[...] = array
        address = self.of(n_bytes)
        self._gpu.cuda.memcpy_htod_async(address, host[:n_bytes], stream)
        return [address + start for start in starts]

    def read(self, shape: tuple[int, ...], stream: Any) -> F32:
        """Queue the copy of the float32 array at the beginning to the host; return it, not yet filled."""
        n_bytes = 4 * int(np.prod(shape))
        values: F32 = self._host_of(n_bytes)[:n_bytes].view(np.float32).reshape(shape)
        self._gpu.cuda.memcpy_dtoh_async(values, self.of(n_bytes), stream)
        return values

    def free(self) -> None:
        """Give the memory back, the host's too; a second call does nothing. The context must be current."""
        super().free()
        self._free_host()

    def _host_of(self, n_bytes: int) -> U8:
        """Return `n_bytes` or more of page-locked memory; what it held may be gone."""
        if self._host is None or len(self._host) < n_bytes:
            self._free_host()
            host: U8 = self._gpu.cuda.pagelocked_empty(n_bytes, np.uint8)
            self._host = host
        return self._host

    def _free_host(self) -> None:
        host, self._host = self._host, None
        if host is not None:
            allocation: Any = host.base  # what pycuda keeps behind the array
            allocation.free()


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
        ModelError: pycuda is not installed, there is no driver or no such GPU, or another program has it
            to itself.
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
        if index >= count:
            raise ModelError(f"there is no GPU {device}, only {count} in all; set [engine] device to another")
        gpu = cuda.Device(index)
        major, minor = gpu.compute_capability()
        context = gpu.retain_primary_context()
    except cuda.Error as error:
        raise ModelError(
            f"the NVIDIA driver does not answer ({error}); `nvidia-smi` says more, "
            'or set [engine] device = "cpu"'
        ) from error
    atexit.register(context.detach)  # left to its destructor, pycuda calls what is not for primary contexts
    return Gpu(index, gpu.name(), f"{major}.{minor}", cuda, context)


def gpu_hardware(device: str) -> Hardware:
    """Return what a TensorRT plan for `device` depends on.

    Raises:
        ModelError: it cannot be used.
    """
    return hardware_of(open_gpu(device))


def hardware_of(gpu: Gpu) -> Hardware:
    """Return what a TensorRT plan for `gpu` depends on, and what was compiled for it."""
    return Hardware(
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        driver=_dotted(gpu.cuda.get_driver_version()),
        cuda=".".join(str(part) for part in gpu.cuda.get_version()),
    )


def _dotted(version: int) -> str:
    """Return CUDA's version number 13000 as "13.0"."""
    return f"{version // 1000}.{version % 1000 // 10}"
