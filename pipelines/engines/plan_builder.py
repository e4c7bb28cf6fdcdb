"""From an imported network to a plan that has been built, tried on real faces, and stored.

    order ─► key ─► fp32 ONNX ─► precision ─► backend ─► parity ─► plan store

A plan that is not within its tolerance is never stored.
"""

import hashlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from ...kernels.pyramid import MIN_CANVAS_PX, lay_out
from ..cache_files import sha256_of, write_atomically
from ..errors import ModelError
from ..model_store import ModelStore
from ..registry import DetectorNetwork, Row, licence_of, tolerances
from . import cuda_device
from .engine import Engine
from .hardware import EXTRAS, cpu_hardware, version_of
from .ort_engine import OrtEngine, build_ort_plan
from .parity import ParityReport, compare
from .parity_inputs import parity_inputs
from .plan import Backend, Hardware, PlanKey, PlanRecord, Precision, Profile
from .plan_store import PlanStore, StoredPlan
from .precision import Int8Style, Ranges, read_ranges, to_fp16, to_int8
from .trt_builder import build_trt_plan

F32 = npt.NDArray[np.float32]

BUILDER_VERSION = 1
"""Raised whenever the same network and ranges become another plan here; part of every plan's key."""

ANY_BATCH = 256  # what the CPU backends take; their plans do not depend on it
DETECTOR_FRAMES = ((720, 1280), (1440, 2560))
"""Height and width in px of the frame for which the detector is fastest, and of the largest it takes."""

Progress = Callable[[str], None]
"""Called with what is being done now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOrder:
    """What to build.

    `max_batch` and `opt_batch` are of the profile, for GPU backends; `compute_capabilities` are the GPUs
    a TensorRT-RTX plan is for, as `SM89`, none: its default. `ranges` is a file of INT8 ranges, None: the
    one that is shipped. `device` is the GPU a TensorRT plan is built on.
    """

    network: str
    backend: Backend
    precision: Precision
    max_batch: int = 16
    opt_batch: int = 8
    compute_capabilities: tuple[str, ...] = ()
    ranges: Path | None = None
    device: str = "cuda:0"


def key_of(order: PlanOrder, models: ModelStore) -> PlanKey:
    """Return the key of the plan that `order` asks for on this machine; the network is imported where needed.

    Raises:
        ModelError: the backend is not installed, no such network, or no INT8 ranges for it.
    """
    row = models.row(order.network)
    version = version_of(order.backend)
    if not version:
        raise ModelError(
            f"{order.backend.value} is not installed; "
            f"run `pip install 'visaged[{EXTRAS[order.backend]}]'`, or set another backend"
        )
    ranges = _ranges_of(order, models)
    return PlanKey(
        network=order.network,
        onnx_sha256=sha256_of(models.ensure(order.network)),
        backend=order.backend,
        backend_version=version,
        precision=order.precision,
        profiles=_profiles_of(order, row),
        hardware=_hardware_of(order),
        flags=(f"builder {BUILDER_VERSION}", *(["no TF32"] if order.backend.needs_gpu else [])),
        ranges_sha256=ranges.sha256 if ranges else "",
    )


def find_plan(order: PlanOrder, models: ModelStore, plans: PlanStore) -> StoredPlan | None:
    """Return the stored plan for `order` on this machine, or None; the network is imported where needed.

    Raises:
        ModelError: as `key_of`, or the network cannot be imported.
    """
    return plans.find(key_of(order, models))


def ensure_plan(order: PlanOrder, models: ModelStore, plans: PlanStore) -> StoredPlan:
    """Return the stored plan for `order`, built first when it is missing or damaged.

    Raises:
        ModelError: as `build_plan`.
    """
    return find_plan(order, models, plans) or build_plan(order, models, plans)


def build_plan(
    order: PlanOrder, models: ModelStore, plans: PlanStore, on_progress: Progress = lambda step: None
) -> StoredPlan:
    """Return the stored plan for `order`, built now, also when there was one.

    Raises:
        ModelError: it cannot be built, is too far from fp32, or cannot be stored. What was stored stays.
    """
    on_progress("importing")
    key = key_of(order, models)
    start = time.perf_counter()
    on_progress(f"making it {order.precision.value}")
    graph = _in_precision(order, models)
    on_progress("building")
    data, log = _build(order, key, graph, plans)
    seconds = time.perf_counter() - start
    on_progress("comparing with fp32")
    parity = verify(order, models, graph, data)
    if not parity.is_within:
        raise ModelError(f"{key} is too far from the fp32 network and was not stored: {parity}")
    record = PlanRecord(
        key=key,
        sha256=hashlib.sha256(data).hexdigest(),
        n_bytes=len(data),
        seconds=round(seconds, 3),
        built_at=time.time(),
        parity=parity,
        licence=licence_of(models.row(order.network)),
    )
    on_progress("storing")
    return plans.publish(record, data, "\n".join(log))


def verify(
    order: PlanOrder, models: ModelStore, graph: bytes, data: bytes, inputs: list[F32] | None = None
) -> ParityReport:
    """Return how far the plan `data` is from its fp32 network, over real faces.

    A plan for another GPU, or for any where there is none, is stood for by `graph`, its ONNX in the same
    precision.
    """
    runs_here, row = _runs_here(order), models.row(order.network)
    with tempfile.TemporaryDirectory(prefix="visaged-verify-") as folder:
        path = Path(folder) / "plan"
        path.write_bytes(data if runs_here else graph)
        engine = open_engine(path, order.backend if runs_here else Backend.ONNXRUNTIME, device=order.device)
        reference = OrtEngine(models.ensure(order.network))
        batches = parity_inputs(row) if inputs is None else inputs
        most = order.max_batch  # a GPU's plan takes no more
        try:
            return compare(
                engine,
                reference,
                [batch[start : start + most] for batch in batches for start in range(0, len(batch), most)],
                tolerances(row, order.precision),
                ran="the plan" if runs_here else "its graph on ONNX Runtime",
            )
        finally:
            engine.close()
            reference.close()


def verify_stored(plan: StoredPlan, models: ModelStore, inputs: list[F32] | None = None) -> ParityReport:
    """Return how far a stored plan is from its fp32 network, over `inputs` or the face that is shipped.

    Raises:
        ModelError: the plan is damaged, its network was imported anew since, or it cannot run here and was
            built with other INT8 ranges than those that are shipped.
    """
    key = plan.record.key
    if not plan.is_whole or sha256_of(models.ensure(key.network)) != key.onnx_sha256:
        raise ModelError(f"{key} is damaged or of an older network; build it again with `visaged build`")
    order = PlanOrder(
        network=key.network,
        backend=key.backend,
        precision=key.precision,
        max_batch=key.profiles[-1].maximum[0],
        compute_capabilities=tuple(
            name for name in key.hardware.compute_capability.split(",") if name[:2] == "SM"
        ),
    )
    graph = b""
    if not _runs_here(order):
        shipped = models.ranges_path(key.network)
        if key.ranges_sha256 and not (shipped.exists() and read_ranges(shipped).sha256 == key.ranges_sha256):
            raise ModelError(
                f"{key} was built with INT8 ranges of your own; verify it on a GPU that it is for"
            )
        graph = _in_precision(order, models)
    return verify(order, models, graph, plan.path.read_bytes(), inputs)


def _runs_here(order: PlanOrder) -> bool:
    """Whether the plan itself can run on this machine: there is a GPU, and it is one that it is for."""
    if not order.backend.needs_gpu:
        return True
    if not cuda_device.can_run(order.device):
        return False
    mine = f"SM{cuda_device.open_gpu(order.device).compute_capability.replace('.', '')}"
    return not order.compute_capabilities or mine in order.compute_capabilities


def open_engine(path: Path, backend: Backend, *, threads: int = 1, device: str = "cuda:0") -> Engine:
    """Return the plan at `path` loaded by `backend`.

    Raises:
        ModelError: missing, corrupt, of another version or machine, or no memory for it.
    """
    if backend is Backend.ONNXRUNTIME:
        return OrtEngine(path, threads=threads)
    if backend is Backend.OPENVINO:
        from .openvino_engine import OpenVinoEngine

        return OpenVinoEngine(path, threads=threads)
    from .trt_engine import TrtEngine

    return TrtEngine(path, backend, device=device)


def _in_precision(order: PlanOrder, models: ModelStore) -> bytes:
    data = models.ensure(order.network).read_bytes()
    if order.precision is Precision.FP16:
        return to_fp16(data)
    ranges = _ranges_of(order, models)
    if ranges is None:
        return data
    return to_int8(data, ranges, Int8Style.SYMMETRIC if order.backend.needs_gpu else Int8Style.ASYMMETRIC)


def _ranges_of(order: PlanOrder, models: ModelStore) -> Ranges | None:
    if order.precision is not Precision.INT8:
        return None
    return read_ranges(order.ranges or models.ranges_path(order.network))


def _build(order: PlanOrder, key: PlanKey, graph: bytes, plans: PlanStore) -> tuple[bytes, tuple[str, ...]]:
    if order.backend is Backend.ONNXRUNTIME:
        return build_ort_plan(graph), ()
    if order.backend is Backend.OPENVINO:
        from .openvino_engine import build_openvino_plan

        return build_openvino_plan(graph), ()
    timing = plans.folder / f"timing-{_slug(key.backend_version, key.hardware.gpu)}.cache"
    built = build_trt_plan(
        graph,
        order.backend,
        key.profiles,
        compute_capabilities=order.compute_capabilities,
        timing_cache=timing.read_bytes() if timing.exists() else b"",
    )
    if built.timing_cache:
        plans.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(timing, built.timing_cache)
    return built.data, built.log


def _profiles_of(order: PlanOrder, row: Row) -> tuple[Profile, ...]:
    """Return the shapes the plan takes; on a GPU two buckets of batches, for few faces and for many."""
    if isinstance(row, DetectorNetwork):
        best, largest = (lay_out(*frame) for frame in DETECTOR_FRAMES)
        longest = max(largest.height, largest.width)  # the camera may stand upright
        canvas = Profile(
            minimum=(1, 3, MIN_CANVAS_PX, MIN_CANVAS_PX),
            optimum=(1, 3, best.height, best.width),
            maximum=(1, 3, longest, longest),
        )
        return (canvas,)
    recipe = row.recipe
    chip = (len(recipe.mean), recipe.size, recipe.size)
    if not order.backend.needs_gpu:
        return (Profile(minimum=(1, *chip), optimum=(1, *chip), maximum=(ANY_BATCH, *chip)),)
    best_batch = min(order.opt_batch, order.max_batch)
    many = Profile(minimum=(1, *chip), optimum=(best_batch, *chip), maximum=(order.max_batch, *chip))
    if best_batch == 1:
        return (many,)
    return (Profile(minimum=(1, *chip), optimum=(1, *chip), maximum=(best_batch, *chip)), many)


def _hardware_of(order: PlanOrder) -> Hardware:
    """Return what the plan depends on. TensorRT-RTX compiles for the GPU when it loads, not before."""
    if order.backend is Backend.TENSORRT:
        return cuda_device.gpu_hardware(order.device)
    if order.backend is Backend.TENSORRT_RTX:
        return Hardware(compute_capability=",".join(order.compute_capabilities) or "default")
    return cpu_hardware()


def _slug(*parts: str) -> str:
    return "-".join("".join(c if c.isalnum() or c == "." else "_" for c in part) for part in parts if part)


def describe(plan: StoredPlan) -> dict[str, str]:
    """Return everything known about a plan as text, for people; the order is that of reading."""
    record, key = plan.record, plan.record.key
    hardware = {k: v for k, v in msgspec.structs.asdict(key.hardware).items() if v}
    built = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.built_at))
    return {
        "network": key.network,
        "backend": f"{key.backend.value} {key.backend_version}",
        "precision": key.precision.value,
        "for": "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in hardware.items()),
        "profiles": "; ".join(map(str, key.profiles)),
        "flags": ", ".join(key.flags) or "none",
        "ONNX": key.onnx_sha256[:16],
        "INT8 ranges": key.ranges_sha256[:16] or "none",
        "built": f"{built}, {record.seconds:.2f} s",
        "size": f"{record.n_bytes / 1e6:.1f} MB",
        "parity": f"{record.parity} ({record.parity.ran}, {record.parity.n_inputs} inputs)",
        "licence": record.licence,
        "file": str(plan.path),
        "whole": "yes" if plan.is_whole else "NO: damaged, build it again",
    }
