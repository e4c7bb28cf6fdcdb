"""A GPU made of host memory: what our code uses of pycuda.driver, and stricter than any GPU.

A stream runs nothing until somebody waits for it, so whatever forgets to wait finds memory that nobody has
written. What CUDA leaves undefined raises: memory that was freed, work without a context, an empty grid,
page-locked memory that is touched while a copy is on its way. What pycuda leaks silently, because it is let
go of while the context is not current, is counted. The kernels are the real ones, compiled by g++.
"""

import ctypes
import gc
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
from visaged.pipelines.engines.cuda_device import Gpu
from visaged.pipelines.engines.cuda_source import FOLDER

U8 = npt.NDArray[np.uint8]

ALIGNMENT, GUARD = 256, 4096  # bytes; what lies behind an allocation must stay as it is
FRESH, CANARY = 0xFF, 0xA5  # new memory reads as NaN
SIZES = {"int": "i4", "int64_t": "i8", "float": "f4", "double": "f8"}
C_TYPES = {"i4": ctypes.c_int, "i8": ctypes.c_int64, "f4": ctypes.c_float, "f8": ctypes.c_double}


class HostError(Exception):
    """Stands for pycuda.driver.Error."""


class HostGpu:
    """Stands for the module pycuda.driver; `context` for the GPU's primary context."""

    Error = HostError

    def __init__(self, memory_bytes: int = 1 << 30) -> None:
        self.memory_bytes = memory_bytes
        self.memory: WeakValueDictionary[int, DeviceAllocation] = WeakValueDictionary()  # by address
        self.streams: WeakValueDictionary[int, HostStream] = WeakValueDictionary()  # by handle
        self.live: Counter[str] = Counter()  # objects, by kind
        self.taken: Counter[str] = Counter()  # the same, ever
        self.leaked: list[str] = []
        self.journal: list[str] = []  # what ran, in order
        self.context = Context()

    def gpu(self) -> Gpu:
        """Return it as our code sees it."""
        return Gpu(0, "Host GPU", "8.6", self, self.context)

    def Stream(self, flags: int = 0) -> "HostStream":  # noqa: N802
        if flags != 1:
            raise HostError("this stream and the default stream wait for each other")
        return HostStream(self)

    def Event(self) -> "HostEvent":  # noqa: N802
        return HostEvent(self)

    def mem_alloc(self, n_bytes: int) -> "DeviceAllocation":
        return DeviceAllocation(self, n_bytes)

    def mem_get_info(self) -> tuple[int, int]:
        self.context.require()
        used = sum(allocation.n_bytes for allocation in list(self.memory.values()))
        return self.memory_bytes - used, self.memory_bytes

    def get_driver_version(self) -> int:
        return 13010

    def get_version(self) -> tuple[int, int, int]:
        return 13, 0, 0

    def module_from_file(self, path: str) -> "Module":
        self.context.require()
        return Module(self, Path(path))

    def pagelocked_empty(self, shape: int, dtype: Any) -> "PageLocked":
        n_bytes = shape * np.dtype(dtype).itemsize
        kind = type("PagelockedHostAllocation", (_HostAllocation, ctypes.c_ubyte * n_bytes), {})
        array = np.ndarray.__new__(PageLocked, (shape,), dtype, kind(self))
        array.view(np.ndarray).view(np.uint8)[:] = FRESH
        return array

    def memcpy_dtoh(self, target: npt.NDArray[Any], address: int) -> None:
        self.context.require()
        target.view(np.uint8).reshape(-1)[:] = self.at(address, target.nbytes)

    def memcpy_htod_async(self, address: int, source: "PageLocked", stream: "HostStream") -> None:
        allocation = source.begin()
        self.at(address, source.nbytes)

        def run() -> None:
            self.at(address, source.nbytes)[:] = source.raw()
            allocation.n_copies -= 1

        stream.push("copy in", run)

    def memcpy_dtoh_async(self, target: "PageLocked", address: int, stream: "HostStream") -> None:
        target.raw()[:] = FRESH
        allocation = target.begin()
        self.at(address, target.nbytes)

        def run() -> None:
            target.raw()[:] = self.at(address, target.nbytes)
            allocation.n_copies -= 1

        stream.push("copy out", run)

    def memcpy_dtod_async(self, target: int, source: int, n_bytes: int, stream: "HostStream") -> None:
        def run() -> None:
            self.at(target, n_bytes)[:] = self.at(source, n_bytes)

        self.at(target, n_bytes), self.at(source, n_bytes)
        stream.push("copy across", run)

    def memset_d32_async(self, address: int, value: int, n_values: int, stream: "HostStream") -> None:
        def run() -> None:
            self.at(address, 4 * n_values).view(np.uint32)[:] = value

        stream.push("fill", run)

    def at(self, address: int, n_bytes: int) -> U8:
        """Return the bytes of the GPU at `address`; there must be such memory now."""
        for start, allocation in list(self.memory.items()):
            if start <= address and address + n_bytes <= start + allocation.n_bytes:
                return allocation.bytes[address - start : address - start + n_bytes]
        raise HostError(f"illegal memory access: {n_bytes} bytes at {address:#x} were freed or never taken")


class Context:
    """The primary context: current or not, in each thread."""

    def __init__(self) -> None:
        self._local = threading.local()

    @property
    def depth(self) -> int:
        return getattr(self._local, "depth", 0)

    def push(self) -> None:
        self._local.depth = self.depth + 1

    def pop(self) -> None:
        self.require()
        self._local.depth = self.depth - 1

    def require(self) -> None:
        if not self.depth:
            raise HostError("invalid device context: none is current in this thread")


class _Owned:
    """What pycuda makes, and leaks when it is let go of without the context."""

    def __init__(self, host: HostGpu) -> None:
        host.context.require()
        self.host, self.is_valid = host, True
        host.live[type(self).__name__] += 1
        host.taken[type(self).__name__] += 1

    def release(self) -> None:
        if not self.is_valid:
            raise HostError(f"{type(self).__name__} freed twice")
        self.is_valid = False
        if self.host.context.depth:
            self.host.live[type(self).__name__] -= 1
        else:
            self.host.leaked.append(type(self).__name__)

    def __del__(self) -> None:
        if getattr(self, "is_valid", False):
            self.release()


class DeviceAllocation(_Owned):
    """Memory of the GPU."""

    def __init__(self, host: HostGpu, n_bytes: int) -> None:
        if n_bytes < 1 or type(n_bytes) is not int:
            raise HostError(f"cuMemAlloc failed: invalid value {n_bytes!r}")
        super().__init__(host)
        if n_bytes > host.mem_get_info()[0]:
            self.release()
            raise HostError("cuMemAlloc failed: out of memory")
        self.n_bytes = n_bytes
        self._memory = np.full(n_bytes + GUARD + ALIGNMENT, CANARY, np.uint8)
        start = -self._memory.ctypes.data % ALIGNMENT
        self.bytes: U8 = self._memory[start : start + n_bytes]
        self.bytes[:] = FRESH
        self._behind: U8 = self._memory[start + n_bytes :]
        self._address = int(self.bytes.ctypes.data)
        host.memory[self._address] = self

    def __int__(self) -> int:
        return self._address

    def free(self) -> None:
        self.release()

    def release(self) -> None:
        super().release()
        if hasattr(self, "_behind"):
            self.host.memory.pop(self._address, None)
            assert (self._behind == CANARY).all(), "something wrote behind memory of the GPU"


class _HostAllocation(_Owned):
    """Page-locked memory; a ctypes array, so that it can be the base of a NumPy array, as pycuda's is."""

    n_copies = 0  # on their way

    def free(self) -> None:
        if self.n_copies:
            raise HostError("page-locked memory freed while a copy is on its way")
        self.release()


class PageLocked(np.ndarray[Any, np.dtype[Any]]):
    """An array in page-locked memory: not to be read or written while a copy is on its way."""

    allocation: Any

    def __array_finalize__(self, parent: Any) -> None:
        self.allocation = getattr(parent, "allocation", None) or self.base

    def raw(self) -> U8:
        """Return its bytes, unguarded."""
        return self.view(np.ndarray).view(np.uint8).reshape(-1)

    def begin(self) -> Any:
        """Note that a copy begins."""
        if not self.flags.c_contiguous or not self.allocation.is_valid:
            raise HostError("the copy needs contiguous page-locked memory")
        self.allocation.n_copies += 1
        return self.allocation

    def _settled(self) -> npt.NDArray[Any]:
        if self.allocation.n_copies or not self.allocation.is_valid:
            raise HostError("page-locked memory touched while a copy is on its way, or freed")
        return self.view(np.ndarray)

    def copy(self, order: Any = "C") -> Any:
        return self._settled().copy(order)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._settled()[key] = value

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        plain = [i._settled() if isinstance(i, PageLocked) else i for i in inputs]
        return getattr(ufunc, method)(*plain, **kwargs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        raise HostError(f"{function.__name__} on page-locked memory: copy it first")


class HostStream(_Owned):
    """Work that waits until somebody waits for it."""

    def __init__(self, host: HostGpu) -> None:
        super().__init__(host)
        self.handle = 0x5000 + host.taken[type(self).__name__]
        self._work: list[tuple[str, Callable[[], None]]] = []
        self._n_done = 0
        host.streams[self.handle] = self

    def push(self, what: str, run: Callable[[], None]) -> int:
        """Queue `run`; return how much is queued now."""
        self.host.context.require()
        self._work.append((what, run))
        return len(self._work)

    def run_until(self, n: int) -> None:
        while self._n_done < n:
            what, run = self._work[self._n_done]
            self._work[self._n_done] = ("done", lambda: None)
            self._n_done += 1
            self.host.journal.append(what)
            run()

    def synchronize(self) -> None:
        self.host.context.require()
        self.run_until(len(self._work))
        self.host.journal.append("synchronize")

    def wait_for_event(self, event: "HostEvent") -> None:
        self.push("wait", event.reach())


class HostEvent(_Owned):
    """A place in a stream."""

    def __init__(self, host: HostGpu) -> None:
        super().__init__(host)
        self._place: tuple[HostStream, int] | None = None
        self._reached_s = 0.0

    def record(self, stream: HostStream) -> "HostEvent":
        def run() -> None:
            self._reached_s = time.perf_counter()

        self._place = stream, stream.push("record", run)
        return self

    def reach(self) -> Callable[[], None]:
        """Return what runs the stream up to the place as it is now."""
        place = self._place
        return (lambda: place[0].run_until(place[1])) if place else (lambda: None)

    def synchronize(self) -> "HostEvent":
        self.host.context.require()
        self.reach()()
        return self

    def time_till(self, end: "HostEvent") -> float:
        return (end._reached_s - self._reached_s) * 1e3


class Module:
    """The kernels of one source."""

    def __init__(self, host: HostGpu, library: Path) -> None:
        self._host, self._library = host, ctypes.CDLL(str(library))
        self._source = (FOLDER / f"{library.name.partition('-')[0]}.cu").read_text()

    def get_function(self, name: str) -> "Function":
        self._host.context.require()
        on_gpu = self._arguments(f'extern "C" __global__ void {name}')
        n_extents = len(self._arguments(f'extern "C" void {name}')) - len(on_gpu)
        types = ["pointer" if "*" in a else SIZES[a.split()[0]] for a in on_gpu]
        return Function(self._host, getattr(self._library, name), types, n_extents)

    def _arguments(self, declaration: str) -> list[str]:
        found = re.search(re.escape(declaration) + r"\((.*?)\)", self._source, re.DOTALL)
        assert found is not None, declaration
        return [argument.strip() for argument in found[1].split(",")]


class Function:
    """A kernel, with the types of its arguments on the GPU as the source says them."""

    def __init__(self, host: HostGpu, run: Any, types: Sequence[str], n_extents: int) -> None:
        self._host, self._run, self._types, self._n_extents = host, run, types, n_extents

    def __call__(self, *args: Any, block: tuple[int, ...], grid: tuple[int, ...], stream: HostStream) -> None:
        assert len(args) == len(self._types), (self._run.__name__, args)
        assert all(type(n) is int for n in (*block, *grid)), "Boost.Python takes no NumPy integers here"
        limits = (1 << 31) - 1, 65535, 65535
        if not all(1 <= n <= limit for n, limit in zip(grid, limits, strict=True)) or np.prod(block) > 1024:
            raise HostError(f"cuLaunchKernel failed: invalid configuration {grid=} {block=}")
        packed = [_packed(value, kind) for value, kind in zip(args, self._types, strict=True)]
        pointers = [int(value) for value, kind in zip(args, self._types, strict=True) if kind == "pointer"]
        extents = [b * g for b, g in zip(block, grid, strict=True)][: self._n_extents]

        def run() -> None:
            for pointer in pointers:
                self._host.at(pointer, 1)
            self._run(*packed, *extents)

        for pointer in pointers:
            self._host.at(pointer, 1)
        stream.push(self._run.__name__, run)


def _packed(value: Any, kind: str) -> Any:
    """Return an argument as C gets it; pycuda packs scalars as they are, so types must be right."""
    assert isinstance(value, np.generic), f"pycuda takes no {type(value)}"
    if kind == "pointer":
        assert value.dtype.kind in "iu" and value.dtype.itemsize == 8, value.dtype
        return ctypes.c_void_p(int(value))
    assert value.dtype == np.dtype(kind), (value.dtype, kind)
    return C_TYPES[kind](value.item())


def assert_all_is_free(host: HostGpu) -> None:
    """Fail when anything of the GPU is still taken, or was leaked, or a context is current here."""
    gc.collect()
    assert +host.live == {}
    assert host.leaked == []
    assert host.context.depth == 0
