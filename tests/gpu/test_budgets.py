"""How long each stage may take on a GPU that was measured; on others generous limits hold.

`BUDGETS_MS` is the table: name of the GPU, then stage, then milliseconds, p50. Measure with
`visaged bench` on an idle GPU, write down 1.3 times what it says, and name the date beside it.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from visaged.kernels.pyramid import lay_out
from visaged.pipelines.engines.cuda_device import Gpu
from visaged.pipelines.engines.cuda_kernels import CudaCropper, CudaPainter
from visaged.pipelines.engines.parity_inputs import LANDMARKS
from visaged.pipelines.engines.plan import Backend, Precision
from visaged.pipelines.engines.plan_builder import PlanOrder, build_plan, open_engine
from visaged.pipelines.engines.plan_store import PlanStore
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.registry import EMOTION_XCEPTION, FACE_RESNET
from visaged.tools.bench_embedding import median_ms

pytestmark = pytest.mark.gpu

ROUNDS = 50
NOT_MEASURED_YET = {  # on any GPU; several times what the slowest should need
    "crop 8 faces": 10.0,
    "canvas 720p": 20.0,
    "face-resnet batch 1": 10.0,
    "face-resnet batch 8": 20.0,
    "mmod 720p": 100.0,
}
BUDGETS_MS: dict[str, dict[str, float]] = {}  # no GPU was measured yet

FRAME = np.zeros((720, 1280, 3), np.uint8)
EIGHT = np.stack([LANDMARKS + np.array([130 * i, 200], np.float32) for i in range(8)])


def check(gpu: Gpu, stage: str, run: Callable[[], object]) -> None:
    """Hold the median of `run` against the budget of `stage`."""
    budgets = BUDGETS_MS.get(gpu.name, NOT_MEASURED_YET)
    spent_ms = median_ms(run, ROUNDS)
    said = "measured" if gpu.name in BUDGETS_MS else "not measured yet"
    assert spent_ms <= budgets[stage], f"{stage} took {spent_ms:.2f} ms on {gpu.name} ({said})"


def test_every_gpu_in_the_table_has_every_stage() -> None:
    assert all(set(stages) == set(NOT_MEASURED_YET) for stages in BUDGETS_MS.values())


def test_eight_faces_are_cropped_in_time(gpu: Gpu, kernels: Path) -> None:
    cropper, recipes = CudaCropper(gpu, kernels), (FACE_RESNET.recipe, EMOTION_XCEPTION.recipe)

    def crop() -> None:
        chips = cropper.crop_all([(FRAME, EIGHT)], recipes)[recipes[0]]
        np.asarray(chips[:1])  # waits for all

    check(gpu, "crop 8 faces", crop)


def test_a_canvas_is_painted_in_time(gpu: Gpu, kernels: Path) -> None:
    painter, layout = CudaPainter(gpu, kernels), lay_out(720, 1280)

    def paint() -> None:
        canvas = painter.paint(FRAME, layout)
        with gpu.current():
            canvas.ready.synchronize()

    check(gpu, "canvas 720p", paint)


@pytest.mark.parametrize("batch", [1, 8])
def test_faces_are_embedded_in_time(
    flavour: Backend, gpu: Gpu, kernels: Path, store: ModelStore, tmp_path: Path, batch: int
) -> None:
    order = PlanOrder(network=FACE_RESNET.name, backend=flavour, precision=Precision.FP16)
    plan = build_plan(order, store, PlanStore(tmp_path))
    cropper, recipe = CudaCropper(gpu, kernels), FACE_RESNET.recipe
    chips = cropper.crop_all([(FRAME, EIGHT[:batch])], [recipe])[recipe]  # the cropper's, as long as it lives

    with contextlib.closing(open_engine(plan.path, flavour)) as engine:
        check(gpu, f"face-resnet batch {batch}", lambda: engine.infer(chips))


def test_a_frame_is_searched_in_time(
    flavour: Backend, gpu: Gpu, kernels: Path, store: ModelStore, tmp_path: Path
) -> None:
    order = PlanOrder(network="mmod", backend=flavour, precision=Precision.FP16)
    plan = build_plan(order, store, PlanStore(tmp_path))
    painter, layout = CudaPainter(gpu, kernels), lay_out(720, 1280)

    with contextlib.closing(open_engine(plan.path, flavour)) as engine:
        check(gpu, "mmod 720p", lambda: engine.infer(painter.paint(FRAME, layout)))
