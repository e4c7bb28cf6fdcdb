"""Bench a GPU: plans against torch on the same network, `chips.cu` against a plain copy. A door to torch.

Everything is measured in one run on the same faces, which lie on the GPU already; the answers come to the
host. torch is optional, and has its defaults (TF32 among them, which the plans do without).
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ..kernels.cut_table import tabulate
from ..pipelines.engines.cuda_device import DeviceChips, Gpu, StagedBuffer, hardware_of, open_gpu
from ..pipelines.engines.cuda_kernels import BLOCK, grid_of, load_module
from ..pipelines.engines.hardware import version_of
from ..pipelines.engines.parity_inputs import LANDMARKS, face_chips
from ..pipelines.engines.plan import Backend, Precision
from ..pipelines.engines.plan_builder import PlanOrder, build_plan, open_engine
from ..pipelines.engines.plan_store import PlanStore
from ..pipelines.errors import ModelError
from ..pipelines.importers.dlib_dat import FaceResnet, read_face_resnet
from ..pipelines.model_store import ModelStore
from ..pipelines.registry import FACE_RESNET
from .bench_embedding import median_ms

F32 = npt.NDArray[np.float32]

BATCHES = (1, 8, 32, 128)
ROUNDS = 50
WEIGHTS = "dlib_face_recognition_resnet_model_v1.dat"
CROPPED_FACES = 64


def bench_gpu(models: ModelStore, device: str = "cuda:0", *, rounds: int = ROUNDS) -> dict[str, Any]:
    """Return faces per second of every plan and of torch at every batch, and GB/s of the crop kernel.

    Raises:
        ModelError: no GPU, no TensorRT, or no nvcc.
    """
    gpu = open_gpu(device)
    backends = [backend for backend in Backend if backend.needs_gpu and version_of(backend)]
    if not backends:
        raise ModelError("no TensorRT is installed; run `pip install 'visaged[tensorrt-rtx]'`")
    chips = np.resize(face_chips(FACE_RESNET.recipe), (max(BATCHES), 3, 150, 150)).astype(np.float32)
    hardware = {name: value for name, value in msgspec.structs.asdict(hardware_of(gpu)).items() if value}
    figures: dict[str, Any] = {"gpu": hardware, "network": FACE_RESNET.name}
    with on_gpu(gpu, chips) as inputs:
        for backend in backends:
            for precision in Precision:
                order = PlanOrder(
                    network=FACE_RESNET.name, backend=backend, precision=precision,
                    max_batch=max(BATCHES), opt_batch=32, device=device,
                )  # fmt: skip
                figures[f"{backend.value} {precision.value}"] = bench_plan(order, models, inputs, rounds)
    figures |= bench_torch(read_face_resnet(models.weights_file(WEIGHTS)), chips, device, rounds)
    figures["chips.cu"] = bench_chips(gpu, models.cache_dir, rounds)
    return figures


def gpu_rows(figures: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield what was measured, the figure and an empty budget, ready to print."""
    yield "gpu", ", ".join(figures["gpu"].values()), ""
    for name, part in figures.items():
        if not isinstance(part, dict) or name == "gpu":
            continue
        if "note" in part:
            yield f"gpu, {name}", part["note"], ""
        for batch, rate in part.get("faces_per_s", {}).items():
            yield f"gpu, {name}, {batch.replace('_', ' ')}", f"{rate} faces/s", ""
        for what, value in part.items():
            if what.endswith("gb_per_s"):
                yield f"gpu, {name}, {what.replace('_', ' ')}", f"{value:g}", ""


def bench_plan(order: PlanOrder, models: ModelStore, inputs: DeviceChips, rounds: int) -> dict[str, Any]:
    """Return faces per second of the plan of `order`, built for it, or a note why there are none."""
    with tempfile.TemporaryDirectory(prefix="visaged-bench-") as folder:
        try:
            plan = build_plan(order, models, PlanStore(Path(folder)))
            with contextlib.closing(open_engine(plan.path, order.backend, device=order.device)) as engine:
                rates = faces_per_s(engine.infer, inputs, rounds)
        except ModelError as error:
            return {"note": f"not measured: {error}"}
    return {"version": version_of(order.backend), "faces_per_s": rates}


def faces_per_s(run: Callable[[Any], object], chips: Any, rounds: int) -> dict[str, int]:
    """Return the faces per second of `run` over the first `chips`, at every batch."""
    return {f"batch_{n}": round(1e3 * n / median_ms(partial(run, chips[:n]), rounds)) for n in BATCHES}


@contextlib.contextmanager
def on_gpu(gpu: Gpu, chips: F32) -> Iterator[DeviceChips]:
    """Give `chips` on the GPU."""
    with gpu.current():
        buffer, stream, ready = StagedBuffer(gpu), gpu.new_stream(), gpu.cuda.Event()
        (pointer,) = buffer.fill([chips], stream)
        ready.record(stream)
        stream.synchronize()
        n, channels, height, width = chips.shape
        try:
            yield DeviceChips(gpu, pointer, (n, channels, height, width), ready)
        finally:
            buffer.free()


def bench_torch(net: FaceResnet, chips: F32, device: str, rounds: int = ROUNDS) -> dict[str, Any]:
    """Return faces per second of `net` in torch, eager and compiled, or a note why there are none."""
    try:
        import torch

        from ..pipelines.learning.networks import DlibTrunk
    except ImportError as error:
        return {"torch": {"note": f"not measured: {error}; run `pip install 'visaged[learn]'`"}}
    if not torch.cuda.is_available():
        return {"torch": {"note": "not measured: this torch sees no GPU"}}
    figures: dict[str, Any] = {}
    for precision in ("float32", "float16"):
        inputs = torch.tensor(chips).to(device, getattr(torch, precision))
        eager = DlibTrunk(net).to(device, getattr(torch, precision)).eval()
        for form, run in (("eager", eager), ("compiled", torch.compile(eager))):
            with torch.inference_mode():
                rates = faces_per_s(partial(_to_host, run), inputs, rounds)
            figures[f"torch {form} {precision}"] = {"version": str(torch.__version__), "faces_per_s": rates}
    return figures


def _to_host(run: Callable[[Any], Any], chips: Any) -> Any:
    return run(chips).cpu()


def bench_chips(gpu: Gpu, cache_dir: Path, rounds: int = ROUNDS) -> dict[str, float | int]:
    """Return GB/s of `crop_f32`, every px of patches and chips counted once, and of a copy as large.

    Raises:
        ModelError: no nvcc, or the GPU failed.
    """
    recipe, frame = FACE_RESNET.recipe, np.zeros((720, 1280, 3), np.uint8)
    places = np.random.default_rng(0).uniform((0, 0), (1100, 560), (CROPPED_FACES, 1, 2))
    table = tabulate((LANDMARKS + places).astype(np.float32), recipe.size, recipe.padding, 720, 1280)
    chips_bytes = 4 * CROPPED_FACES * 3 * recipe.size**2
    moved_bytes = chips_bytes + 3 * int((table.rows["width"] * table.rows["height"]).sum())
    module = load_module(gpu, "chips", cache_dir)
    with gpu.current():
        crop = module.get_function("crop_f32")
        stream, inputs, outputs = gpu.new_stream(), StagedBuffer(gpu), StagedBuffer(gpu)
        frame_at, rows_at = inputs.fill([frame, table.rows], stream)
        chips_at = outputs.of(2 * chips_bytes)
        pointers = [np.intp(frame_at), np.int64(3 * 1280), np.intp(rows_at), np.intp(rows_at)]  # no scratch
        numbers = [np.int32(recipe.size), np.int32(3), *map(np.float32, (*recipe.mean, 1 / recipe.scale))]
        grid = grid_of(recipe.size, recipe.size, CROPPED_FACES)

        def launch() -> None:
            crop(*pointers, np.intp(chips_at), *numbers, block=BLOCK, grid=grid, stream=stream)

        def copy() -> None:
            gpu.cuda.memcpy_dtod_async(chips_at + chips_bytes, chips_at, chips_bytes, stream)

        crop_ms, copy_ms = (queued_ms(gpu, stream, queue, rounds) for queue in (launch, copy))
        inputs.free()
        outputs.free()
    return {
        "faces": CROPPED_FACES,
        "us_per_face": round(1e3 * crop_ms / CROPPED_FACES, 2),
        "gb_per_s": round(moved_bytes / crop_ms / 1e6, 1),
        "copy_gb_per_s": round(2 * chips_bytes / copy_ms / 1e6, 1),
    }


def queued_ms(gpu: Gpu, stream: Any, queue: Callable[[], None], rounds: int) -> float:
    """Return the milliseconds that what `queue` puts on `stream` takes, by the clock of the GPU."""
    begin, end = gpu.cuda.Event(), gpu.cuda.Event()
    queue()  # does not count
    begin.record(stream)
    for _ in range(rounds):
        queue()
    end.record(stream)
    end.synchronize()
    return float(begin.time_till(end)) / rounds
