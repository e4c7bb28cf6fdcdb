"""Choose what runs each network on this machine, and load it; on the CPU for the time being if need be.

A plan that is missing, damaged, or made for another machine never stops the daemon: the network runs
from its imported ONNX file on ONNX Runtime until the plan is there.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from msgspec import Struct

from ..cache_files import sha256_of
from ..errors import ConfigError, ModelError
from ..model_store import ModelStore
from . import cuda_device
from .engine import Engine, EngineConfig
from .hardware import EXTRAS, check_head_room, free_memory_bytes, has_int8_instructions, version_of
from .ort_engine import OrtEngine
from .plan import Backend, Precision
from .plan_builder import PlanOrder, build_plan, key_of, open_engine
from .plan_store import PlanStore, StoredPlan

log = logging.getLogger(__name__)

CPU = "cpu"
LOADING_FACTOR = 3  # the file, its copy in the library, and the first batch


class EngineInfo(Struct, frozen=True, kw_only=True):
    """What runs a network. `plan` is a fingerprint, "" for the imported ONNX file itself.

    `is_fallback`: it stands in for a plan that is not there or cannot be loaded; `reason` says why.
    """

    backend: Backend
    precision: Precision
    device: str
    plan: str = ""
    is_fallback: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A network ready to run, and the SHA-256 of its ONNX file."""

    engine: Engine
    onnx_sha256: str
    info: EngineInfo


@dataclass(frozen=True, slots=True)
class Choice:
    """What is to run the networks here."""

    backend: Backend
    precision: Precision
    device: str


def choose(config: EngineConfig) -> Choice:
    """Return what `config` comes to on this machine.

    Raises:
        ConfigError: it asks for a GPU or a library that is not here.
    """
    backend = _backend(config)
    if backend.needs_gpu:
        device = "cuda:0" if config.device == "auto" else config.device
        try:
            cuda_device.open_gpu(device)
        except ModelError as error:
            raise ConfigError(f"[engine] asks for a GPU: {error}") from error
    else:
        device = CPU
    if config.precision != "auto":
        return Choice(backend, Precision(config.precision), device)
    if backend.needs_gpu:
        return Choice(backend, Precision.FP16, device)
    return Choice(backend, Precision.INT8 if has_int8_instructions() else Precision.FP32, device)


def _backend(config: EngineConfig) -> Backend:
    """Return the backend `config` comes to; its library is installed."""
    gpu_backends = [b for b in (Backend.TENSORRT, Backend.TENSORRT_RTX) if version_of(b)]
    if config.backend == "auto":
        if config.device == "auto":
            usable = gpu_backends and cuda_device.can_run()
            return gpu_backends[0] if usable else Backend.ONNXRUNTIME
        if config.device == CPU:
            return Backend.ONNXRUNTIME
        if not gpu_backends:
            raise ConfigError(
                f"[engine] device {config.device} needs TensorRT; run `pip install 'visaged[tensorrt-rtx]'`"
            )
        return gpu_backends[0]
    backend = Backend(config.backend)
    if not version_of(backend):
        raise ConfigError(
            f"[engine] backend {backend.value} is not installed; "
            f"run `pip install 'visaged[{EXTRAS[backend]}]'`, or set another"
        )
    wants_gpu = config.device.startswith("cuda")
    if (wants_gpu and not backend.needs_gpu) or (config.device == CPU and backend.needs_gpu):
        raise ConfigError(
            f'[engine] backend {backend.value} does not run on device "{config.device}"; '
            'set device = "auto", or another backend'
        )
    return backend


class EngineLoader:
    """Loads networks as `[engine]` says. Keeps nothing loaded; any thread may use it."""

    def __init__(self, config: EngineConfig, models: ModelStore, *, max_batch: int = 16) -> None:
        """Load for batches of up to `max_batch`.

        Raises:
            ConfigError: `config` asks for what this machine has not.
        """
        self.choice = choose(config)
        self.models = models
        self.plans = PlanStore(models.cache_dir)
        self._max_batch, self._threads = max_batch, config.threads

    def gpu(self) -> cuda_device.Gpu | None:
        """Return the GPU the networks run on; None for the CPU."""
        return None if self.choice.device == CPU else cuda_device.open_gpu(self.choice.device)

    def order(self, network: str) -> PlanOrder:
        """Return the plan that is to run `network`; int8 only where its ranges are shipped."""
        precision = self.choice.precision
        if precision is Precision.INT8 and not self.models.ranges_path(network).exists():
            precision = Precision.FP16 if self.choice.backend.needs_gpu else Precision.FP32
        return PlanOrder(
            network=network,
            backend=self.choice.backend,
            precision=precision,
            max_batch=self._max_batch,
            opt_batch=min(8, self._max_batch),
            device=self.choice.device,
        )

    def is_plan_missing(self, network: str) -> bool:
        """Whether `network` would run on something else than its plan until that is built."""
        order = self.order(network)
        return not _runs_from_onnx(order) and self._find(order) is None

    def build(self, network: str) -> None:
        """Build the plan of `network`, also when there is one.

        Raises:
            ModelError: it cannot be built; nothing has changed.
        """
        build_plan(self.order(network), self.models, self.plans)

    def build_missing(self, networks: Iterable[str]) -> list[str]:
        """Build the plans that are missing of `networks`, and return of which.

        Raises:
            ModelError: one cannot be built; those before it are kept.
        """
        missing = [network for network in networks if self.is_plan_missing(network)]
        for network in missing:
            self.build(network)
        return missing

    def load(self, network: str) -> Loaded:
        """Return `network` on its plan, or on ONNX Runtime when that cannot be had.

        Raises:
            ModelError: the network cannot be imported either.
        """
        order = self.order(network)
        if _runs_from_onnx(order):
            return self._load_onnx(network, "")
        plan = self._find(order)
        if plan is None:
            if self._is_damaged(order):
                log.warning(
                    "the plan of %s is damaged; ONNX Runtime stands in until it is built again", network
                )
                return self._load_onnx(network, "its plan is damaged")
            return self._load_onnx(network, "its plan is not built for this machine yet")
        try:
            loaded = self._load_plan(plan, order)
        except ModelError as error:
            log.warning("could not load a plan, ONNX Runtime stands in: %s", error)
            return self._load_onnx(network, str(error))
        try:
            self.plans.promote(plan)
        except ModelError as error:  # a cache that is read only serves as well
            log.warning("could not note which plan is in use: %s", error)
        return loaded

    def _find(self, order: PlanOrder) -> StoredPlan | None:
        self.models.ensure(order.network)  # a network that cannot be had is another error than a plan
        try:
            return self.plans.find(key_of(order, self.models))
        except ModelError as error:  # as when the INT8 ranges are damaged: the build will say it again
            log.warning("could not look for a plan: %s", error)
            return None

    def _is_damaged(self, order: PlanOrder) -> bool:
        try:
            return self.plans.is_damaged(key_of(order, self.models))
        except ModelError:  # `_find` has said so
            return False

    def _load_plan(self, plan: StoredPlan, order: PlanOrder) -> Loaded:
        record = plan.record
        if not order.backend.needs_gpu:  # the GPU's head-room is looked after where its memory is known
            check_head_room(LOADING_FACTOR * record.n_bytes, free_memory_bytes(), str(record.key), "memory")
        engine = open_engine(plan.path, order.backend, threads=self._threads, device=order.device)
        info = EngineInfo(
            backend=order.backend,
            precision=order.precision,
            device=self.choice.device,
            plan=record.key.fingerprint,
        )
        return Loaded(engine, record.key.onnx_sha256, info)

    def _load_onnx(self, network: str, reason: str) -> Loaded:
        path = self.models.ensure(network)
        info = EngineInfo(
            backend=Backend.ONNXRUNTIME,
            precision=Precision.FP32,
            device=CPU,
            is_fallback=bool(reason),
            reason=reason,
        )
        return Loaded(OrtEngine(path, threads=self._threads), sha256_of(path), info)


def _runs_from_onnx(order: PlanOrder) -> bool:
    """Whether the imported ONNX file is as good as a plan."""
    return order.backend is Backend.ONNXRUNTIME and order.precision is Precision.FP32
