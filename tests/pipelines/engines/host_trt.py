"""What our code uses of the modules tensorrt and tensorrt_rtx, over a `HostGpu`.

A plan is JSON. Its network has one input, `chips`, and tells of every row the mean (`mean`, one number) and
the smallest and largest value (`extremes`, two).
"""

import json
import weakref
from collections.abc import Mapping
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from visaged.pipelines.engines import trt_engine

from tests.pipelines.engines.host_gpu import DeviceAllocation, HostError, HostGpu, HostStream

F32 = npt.NDArray[np.float32]
Shape = tuple[int, ...]

CHIP = (3, 5, 7)  # 420 bytes: in a batch only the first row begins where TensorRT can read
WHOLE = ((1, *CHIP), (8, *CHIP), (16, *CHIP))
SMALL = ((1, *CHIP), (1, *CHIP), (4, *CHIP))


class Mode(Enum):
    INPUT = 0
    OUTPUT = 1


class GraphStrategy(Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class Severity(Enum):
    ERROR = 1


class HostTrt:
    """Stands for the module. `is_rtx`: it compiles at the first batches, and can keep what it compiled."""

    TensorIOMode = Mode
    __version__ = "1.2.3"

    class ILogger:
        """What loggers derive from."""

        def log(self, severity: Any, message: str) -> None:
            raise NotImplementedError

    def __init__(self, host: HostGpu, *, is_rtx: bool = True) -> None:
        self.host, self.gpu = host, host.gpu()
        self.activation_bytes = 1 << 12
        self.refuses_batches = self.refuses_contexts = False
        self.batches: list[tuple[int, Shape]] = []  # profile and shape, in the order of their enqueuing
        self.n_compiled = self.n_deserialised = 0
        if is_rtx:
            self.CudaGraphStrategy = GraphStrategy

    def Runtime(self, logger: Any) -> "Runtime":  # noqa: N802
        return Runtime(self, logger)


def use(trt: HostTrt, monkeypatch: pytest.MonkeyPatch) -> HostTrt:
    """Let our code find `trt` and its GPU where it looks for them."""
    monkeypatch.setattr(trt_engine, "open_gpu", lambda device: trt.gpu)
    monkeypatch.setattr(trt_engine, "load_flavour", lambda backend: trt)
    return trt


def make_plan(*profiles: tuple[Shape, Shape, Shape]) -> bytes:
    """Return a plan of the shapes it takes: smallest, best, largest."""
    return json.dumps(profiles).encode()


class Runtime:
    """Loads plans."""

    def __init__(self, trt: HostTrt, logger: Any) -> None:
        self._trt, self._logger = trt, logger

    def deserialize_cuda_engine(self, data: bytes) -> "HostEngine | None":
        self._trt.host.context.require()
        self._trt.n_deserialised += 1
        try:
            return HostEngine(self._trt, json.loads(data))
        except ValueError:
            self._logger.log(Severity.ERROR, "Error Code 1: the magic tag does not match\n  and more")
            return None


class HostEngine:
    """A plan with its weights on the GPU."""

    num_io_tensors = 3

    def __init__(self, trt: HostTrt, profiles: list[list[list[int]]]) -> None:
        self._trt = trt
        self.profiles = [[tuple(shape) for shape in profile] for profile in profiles]
        self.num_optimization_profiles = len(profiles)
        self.device_memory_size_v2 = trt.activation_bytes
        self._weights = trt.host.mem_alloc(1 << 10)

    def get_tensor_name(self, index: int) -> str:
        return ("extremes", "chips", "mean")[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name == "chips" else Mode.OUTPUT

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[Shape]:
        assert name == "chips"
        return list(self.profiles[profile])

    def create_runtime_config(self) -> "RuntimeConfig":
        return RuntimeConfig(self._trt)

    def create_execution_context(self, config: "RuntimeConfig | None" = None) -> "ExecutionContext | None":
        return None if self._trt.refuses_contexts else ExecutionContext(self._trt, self, config)


class RuntimeCache:
    """What was compiled, by shape. The bytes say for which GPU."""

    def __init__(self) -> None:
        self.kernels: set[str] = set()

    def serialize(self) -> bytearray:
        return bytearray(json.dumps(["Host GPU", sorted(self.kernels)]).encode())

    def deserialize(self, data: bytes) -> bool:
        gpu, kernels = json.loads(data)
        self.kernels = set(kernels) if gpu == "Host GPU" else set()
        return bool(gpu == "Host GPU")


class RuntimeConfig:
    """How a context is to run; does not keep the cache alive, as the real one."""

    def __init__(self, trt: HostTrt) -> None:
        self.cuda_graph_strategy = GraphStrategy.DISABLED
        self.cache: weakref.ref[RuntimeCache] | None = None

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = weakref.ref(cache)
        return True


class ExecutionContext:
    """Runs the network, on one profile."""

    def __init__(self, trt: HostTrt, engine: HostEngine, config: RuntimeConfig | None) -> None:
        self._trt, self._engine, self._profile = trt, engine, 0
        self._cache = config.cache if config else None
        self._activations: DeviceAllocation = trt.host.mem_alloc(trt.activation_bytes)
        self._shape: Shape = ()
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert self._trt.host.streams[stream]
        self._profile = profile
        return True

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        smallest, _, largest = self._engine.profiles[self._profile]
        is_taken = all(a <= b <= c for a, b, c in zip(smallest, shape, largest, strict=True))
        if is_taken:
            self._shape = shape
        return is_taken and name == "chips"

    def get_tensor_shape(self, name: str) -> list[int]:
        return [self._shape[0], {"mean": 1, "extremes": 2}[name]]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return address % 256 == 0 and type(address) is int

    def execute_async_v3(self, stream_handle: int) -> bool:
        stream: HostStream = self._trt.host.streams[stream_handle]
        if self._trt.refuses_batches:
            return False
        shape, addresses = self._shape, dict(self._addresses)
        self._trt.batches.append((self._profile, shape))
        if self._cache is not None:
            cache = self._cache()
            if cache is None:
                raise HostError("segmentation fault: the runtime cache is gone")
            self._trt.n_compiled += str(shape) not in cache.kernels
            cache.kernels.add(str(shape))
        stream.push("network", lambda: self._run(shape, addresses))
        return True

    def _run(self, shape: Shape, addresses: dict[str, int]) -> None:
        at = self._trt.host.at
        rows = at(addresses["chips"], 4 * int(np.prod(shape))).view(np.float32).reshape(shape[0], -1)
        at(addresses["mean"], 4 * shape[0]).view(np.float32)[:] = rows.mean(axis=1)
        extremes = np.stack([rows.min(axis=1), rows.max(axis=1)], axis=1)
        at(addresses["extremes"], 8 * shape[0]).view(np.float32)[:] = extremes.ravel()


def chips_of(n: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).normal(size=(n, *CHIP)).astype(np.float32)


def assert_answers(answers: Mapping[str, F32], chips: F32) -> None:
    """Compare with what the network tells of `chips`."""
    rows = chips.reshape(len(chips), -1)
    assert set(answers) == {"mean", "extremes"}
    assert answers["mean"] == pytest.approx(rows.mean(axis=1, keepdims=True), abs=1e-6)
    assert np.array_equal(answers["extremes"], np.stack([rows.min(axis=1), rows.max(axis=1)], axis=1))
