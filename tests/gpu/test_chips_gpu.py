"""chips.cu and pyramid.cu on a real GPU against NumPy, and engines that read what they made where it lies."""

import contextlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from visaged.kernels.alignment import template
from visaged.kernels.pyramid import lay_out, paint_canvas
from visaged.pipelines.cropper import Cropper
from visaged.pipelines.engines.cuda_device import Gpu
from visaged.pipelines.engines.cuda_kernels import CudaCropper, CudaPainter, Face
from visaged.pipelines.engines.plan import Backend, Precision
from visaged.pipelines.engines.plan_builder import PlanOrder, build_plan, open_engine
from visaged.pipelines.engines.plan_store import PlanStore
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.registry import EMOTION_XCEPTION, FACE_RESNET

pytestmark = pytest.mark.gpu

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

RECIPES = (FACE_RESNET.recipe, EMOTION_XCEPTION.recipe)
MAX_DIFFERING = 2e-3  # share of values, as in tests/kernels/test_chips_cu.py


def noise(height: int, width: int) -> U8:
    return np.random.default_rng(height + width).integers(0, 256, (height, width, 3)).astype(np.uint8)


def faces_in(height: int, width: int, n: int) -> F32:
    """Return the `(n, 5, 2)` landmarks of faces of every size, turn and place, some partly outside."""
    random = np.random.default_rng(n)
    points = (template(150, 0.25) - 75) @ [1, 1j]
    turned = [points * 2 ** random.uniform(-3, 4) * np.exp(1j * random.uniform(-3, 3)) for _ in range(n)]
    placed = [face + complex(random.uniform(0, width), random.uniform(0, height)) for face in turned]
    return np.stack([np.stack([f.real, f.imag], axis=1) for f in placed]).astype(np.float32)


def test_chips_are_those_of_numpy(gpu: Gpu, kernels: Path) -> None:
    cropper = CudaCropper(gpu, kernels)
    sizes = [(720, 960), (1, 1), (333, 501), (1080, 1920)]
    faces: list[Face] = [
        (noise(*size), faces_in(*size, n)) for size, n in zip(sizes, (8, 1, 3, 20), strict=True)
    ]
    faces.append((noise(50, 50), np.zeros((0, 5, 2), np.float32)))
    reference = Cropper().crop_all(faces, RECIPES)

    for _ in range(3):
        chips = cropper.crop_all(faces, RECIPES)
        for recipe in RECIPES:
            difference = np.abs(np.asarray(chips[recipe]) - reference[recipe]) * recipe.scale
            assert difference.shape == (32, len(recipe.mean), recipe.size, recipe.size)
            assert difference.max() < 1 + 1e-3
            assert (difference > 1e-3).mean() <= MAX_DIFFERING


@pytest.mark.parametrize("size", [(720, 1280), (97, 512), (5, 400), (29, 29)])
def test_canvases_are_those_of_numpy(gpu: Gpu, kernels: Path, size: tuple[int, int]) -> None:
    painter, frame, layout = CudaPainter(gpu, kernels), noise(*size), lay_out(*size)

    canvases = [np.asarray(painter.paint(frame, layout)) for _ in range(2)]

    for canvas in canvases:
        assert np.abs(canvas - paint_canvas(frame, layout)).max() <= 1e-6


def test_an_engine_reads_chips_where_they_lie(
    flavour: Backend, gpu: Gpu, kernels: Path, store: ModelStore, tmp_path: Path
) -> None:
    """Also runs of them that do not begin where TensorRT could read."""
    order = PlanOrder(network=FACE_RESNET.name, backend=flavour, precision=Precision.FP32)
    plan = build_plan(order, store, PlanStore(tmp_path))
    frame, recipe = noise(720, 960), FACE_RESNET.recipe
    cropper = CudaCropper(gpu, kernels)

    with contextlib.closing(open_engine(plan.path, flavour)) as engine:
        for n in (16, 3, 7):
            chips = cropper.crop_all([(frame, faces_in(720, 960, n))], [recipe])[recipe]
            there = [engine.infer(part)["embedding"] for part in (chips[:2], chips[1:], chips[2:3])]
            copied = np.asarray(chips)
            here = [engine.infer(part)["embedding"] for part in (copied[:2], copied[1:], copied[2:3])]
            for ours, expected in zip(there, here, strict=True):
                assert np.abs(ours - expected).max() < 1e-3
