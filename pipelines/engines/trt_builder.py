"""Build plans with TensorRT or TensorRT-RTX, which share one interface. A door to both.

TensorRT-RTX needs no GPU to build, so this is really tested everywhere; TensorRT builds for the GPU of
the machine. Neither raises: a failure is a None, and the reason is in the log, which is kept.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

from ..errors import ModelError
from .hardware import EXTRAS
from .plan import Backend, Profile

WORKSPACE_BYTES = 1 << 30
MAX_LINES = 10_000  # of a log that is kept; an engine that runs for months may warn at every batch


@dataclass(frozen=True, slots=True)
class BuiltPlan:
    """A serialised plan, the log of its build and the timing cache afterwards, empty where there is none."""

    data: bytes
    log: tuple[str, ...]
    timing_cache: bytes = b""


@dataclass(slots=True)
class _Lines:
    """What the library said; errors apart."""

    all: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def reason(self) -> str:
        """Return the first error without its decoration, or what to say when there is none."""
        first = next((line for line in self.errors if line.strip()), "it gave no reason")
        return first.strip().splitlines()[0]


def load_flavour(backend: Backend) -> ModuleType:
    """Return the module `tensorrt` or `tensorrt_rtx`.

    Raises:
        ModelError: it is not installed.
    """
    try:
        return importlib.import_module(backend.value)
    except (ImportError, OSError) as error:  # OSError: its shared libraries are missing
        raise ModelError(
            f"{backend.value} cannot be loaded ({error}); run `pip install 'visaged[{EXTRAS[backend]}]'`"
        ) from error


@cache
def _logger(trt: ModuleType) -> tuple[Any, _Lines]:
    """Return the process's one logger of the library `trt` and what it collects.

    The library keeps to the first logger that it ever saw: a second one would hear nothing.
    """
    lines = _Lines()

    class Collector(trt.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity.name in ("ERROR", "INTERNAL_ERROR") and len(lines.errors) < MAX_LINES:
                lines.errors.append(message)
            if severity.name != "VERBOSE" and len(lines.all) < MAX_LINES:
                lines.all.append(f"{severity.name.lower()}: {message}")

    return Collector(), lines


def fresh_logger(trt: ModuleType) -> tuple[Any, _Lines]:
    """Return the library's logger and its lines, emptied."""
    logger, lines = _logger(trt)
    lines.all.clear()
    lines.errors.clear()
    return logger, lines


def build_trt_plan(
    data: bytes,
    backend: Backend,
    profile: Profile | Sequence[Profile],
    *,
    compute_capabilities: Sequence[str] = (),
    timing_cache: bytes = b"",
) -> BuiltPlan:
    """Return the ONNX graph `data` as a plan of `backend`; precision is what the graph says.

    Args:
        data: an ONNX graph with one input.
        backend: TENSORRT or TENSORRT_RTX.
        profile: shapes the plan takes; of several, each has kernels of its own, and a batch runs on that
            whose optimum is nearest.
        compute_capabilities: TensorRT-RTX only: GPUs to build for, as `SM89`; none: those of its default.
        timing_cache: TensorRT only: what an earlier build learned about this GPU.

    Raises:
        ModelError: not installed, no GPU where one is needed, or the library refused; with its reason.
    """
    trt = load_flavour(backend)
    logger, lines = fresh_logger(trt)
    builder = trt.Builder(logger)
    if not builder:
        raise ModelError(f"{backend.value} cannot build here: {lines.reason()}; it needs an NVIDIA GPU")
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(data):
        raise ModelError(f"{backend.value} cannot read this network: {_parser_reason(parser, lines)}")
    if network.num_inputs != 1:  # an empty file parses well
        raise ModelError(
            f"{backend.value} cannot read this network: it has {network.num_inputs} inputs, not 1"
        )
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    _clear_flag(trt, config, "TF32")  # fp32 is to mean fp32
    _target(trt, config, backend, compute_capabilities)
    for one in (profile,) if isinstance(profile, Profile) else profile:
        shapes = builder.create_optimization_profile()
        shapes.set_shape(network.get_input(0).name, one.minimum, one.optimum, one.maximum)
        config.add_optimization_profile(shapes)
    cache = _use_timing_cache(config, backend, timing_cache)
    serialised = builder.build_serialized_network(network, config)
    if serialised is None:
        raise ModelError(f"{backend.value} cannot build this network: {lines.reason()}")
    learned = bytes(cache.serialize()) if cache is not None else b""
    return BuiltPlan(bytes(serialised), tuple(lines.all), learned)


def _network_flags(trt: Any) -> int:
    """Strongly typed, where that is not the only way (TensorRT 10)."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _clear_flag(trt: Any, config: Any, name: str) -> None:
    if hasattr(trt.BuilderFlag, name):
        config.clear_flag(getattr(trt.BuilderFlag, name))


def _target(trt: Any, config: Any, backend: Backend, names: Sequence[str]) -> None:
    """Say which GPUs the plan is for, which only TensorRT-RTX can be told."""
    if not names:
        return
    if not hasattr(trt, "ComputeCapability"):
        raise ModelError(
            f"{backend.value} builds for the GPU of this machine; leave --compute-capability out"
        )
    known = [name for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        if name not in known:
            raise ModelError(f"{backend.value} knows no GPU {name!r}; it knows {', '.join(known)}")
        if not config.set_compute_capability(trt.ComputeCapability.__members__[name], index):
            raise ModelError(f"{backend.value} refused to build for {name}; leave --compute-capability out")


def _use_timing_cache(config: Any, backend: Backend, data: bytes) -> Any:
    """Let the build use and extend `data`; TensorRT-RTX times nothing when it builds."""
    if backend is not Backend.TENSORRT:
        return None
    cache = config.create_timing_cache(data)
    return cache if config.set_timing_cache(cache, ignore_mismatch=False) else None


def _parser_reason(parser: Any, lines: _Lines) -> str:
    if not parser.num_errors:
        return lines.reason()
    error = parser.get_error(0)
    what = str(error.desc()).strip().splitlines()[0]
    return f"operator {error.node_operator()}: {what}" if error.node_operator() else what
