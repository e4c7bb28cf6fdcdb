"""chips.cu, compiled for this processor, against chips.py: every recipe, border, turn and pyramid level."""

import ctypes
import shutil
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from visaged.kernels.alignment import template
from visaged.kernels.chips import plan_cut
from visaged.kernels.cut_table import CUT, tabulate
from visaged.pipelines.cropper import Cropper
from visaged.pipelines.dlib_faces import HogDetector, LandmarkPredictor
from visaged.pipelines.engines.cuda_source import compile_host
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.registry import EMOTION_XCEPTION, FACE_RESNET, ChipRecipe, Colour

from tests.conftest import skip_or_fail

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
Chips = npt.NDArray[np.float32] | npt.NDArray[np.float16]

BLOCK_X, BLOCK_Y = 32, 8
CANARY, GUARD = 0xA5, 1 << 18  # what lies behind a buffer, and how much of it
# Share of the values of a batch. Measured on noise, the worst frame there is: 0 to 6e-5 a face where OpenCV
# has AVX2, up to 7e-4 where it has only SSE2 and fuses nothing.
MAX_DIFFERING = 2e-3
RECIPES = [FACE_RESNET.recipe, EMOTION_XCEPTION.recipe]


def address(array: npt.NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def threads(length: int, block: int) -> int:
    """Return how many threads a grid has along one axis: whole blocks, so some find nothing to do."""
    return -(-length // block) * block


@dataclass(frozen=True)
class CudaCropper:
    """Launches the kernels as a GPU runtime would, on the library compiled for this processor."""

    library: ctypes.CDLL

    def crop(self, rgb: U8, landmarks: F32, recipe: ChipRecipe, dtype: type = np.float32) -> Chips:
        """Return `(N, C, S, S)`; `rgb` may be part of a larger array, so rows have a stride."""
        assert rgb.strides[1:] == (3, 1)
        table = tabulate(landmarks, recipe.size, recipe.padding, *rgb.shape[:2])
        n_faces, n_channels = len(table.rows), 1 if recipe.colour is Colour.GREY else 3
        scratch = np.full(table.scratch_bytes + GUARD, CANARY, np.uint8)
        length = n_faces * n_channels * recipe.size**2
        chips: Chips = np.full(length + GUARD, np.nan, dtype)
        frame = (address(rgb), ctypes.c_int64(rgb.strides[0]), address(table.rows))
        for level, (width, height) in enumerate(table.levels, start=1):
            grid = (threads(width, BLOCK_X), threads(height, BLOCK_Y), n_faces)
            self.library.halve(*frame, address(scratch), level, *grid)
        mean = [ctypes.c_float(m) for m in (*recipe.mean, 0.0, 0.0)[:3]]
        crop = self.library.crop_f32 if dtype is np.float32 else self.library.crop_f16
        crop(
            *frame, address(scratch), address(chips), recipe.size, n_channels,
            *mean, ctypes.c_float(1 / recipe.scale),
            threads(recipe.size, BLOCK_X), threads(recipe.size, BLOCK_Y), n_faces,
        )  # fmt: skip
        assert (scratch[table.scratch_bytes :] == CANARY).all(), "wrote behind the scratch buffer"
        assert np.isnan(chips[length:]).all(), "wrote behind the chips"
        result: Chips = chips[:length].reshape(n_faces, n_channels, recipe.size, recipe.size)
        return result


@pytest.fixture(scope="session")
def cuda(tmp_path_factory: pytest.TempPathFactory) -> CudaCropper:
    """The kernels of chips.cu."""
    if shutil.which("g++") is None:
        skip_or_fail("g++", "no g++ to compile chips.cu with (Debian: apt install g++)")
    return CudaCropper(ctypes.CDLL(str(compile_host("chips", tmp_path_factory.mktemp("host")))))


@pytest.fixture(scope="module")
def face(astronaut: U8, store: ModelStore) -> F32:
    """`(5, 2)` px, the landmarks of the photo."""
    boxes, _ = HogDetector().boxes(astronaut, 1.0)
    predictor = LandmarkPredictor(store.weights_file("shape_predictor_5_face_landmarks.dat"))
    landmarks: F32 = predictor.place(astronaut, boxes[:1])[0]
    return landmarks


@pytest.fixture(scope="session")
def noise() -> U8:
    """`(720, 960, 3)`: neighbours have nothing in common, so that any error of position shows."""
    return np.random.default_rng(7).integers(0, 256, (720, 960, 3)).astype(np.uint8)


def place(x: float, y: float, scale: float, angle: float = 0.0, size: int = 150) -> F32:
    """Return landmarks of a face around `x`, `y`, `scale` times as large as its chip of `size` px."""
    points = (template(size, 0.25) - size / 2) @ [1, 1j] * scale * np.exp(1j * angle) + complex(x, y)
    return np.stack([points.real, points.imag], axis=1).astype(np.float32)


def grey_levels(chips: Chips, recipe: ChipRecipe) -> npt.NDArray[np.float64]:
    """Undo the normalisation: pixel units."""
    mean = np.array(recipe.mean).reshape(1, -1, 1, 1)
    levels: npt.NDArray[np.float64] = chips.astype(np.float64) * recipe.scale + mean
    return levels


def assert_same(cuda: CudaCropper, rgb: U8, landmarks: F32, recipe: ChipRecipe) -> None:
    """Compare in grey levels: at most one apart, and nearly nowhere."""
    reference = Cropper().crop(rgb, landmarks, recipe)

    single, half = (cuda.crop(rgb, landmarks, recipe, dtype) for dtype in (np.float32, np.float16))

    assert single.shape == reference.shape
    difference = np.abs(grey_levels(single, recipe) - grey_levels(reference, recipe))
    assert difference.max(initial=0) < 1 + 1e-3
    assert difference.size == 0 or (single != reference).mean() <= MAX_DIFFERING
    # The same pixels, rounded at the very end and not before.
    assert np.array_equal(half, single.astype(np.float16))


@pytest.fixture(params=RECIPES, ids=["rgb-150", "grey-64"])
def recipe(request: pytest.FixtureRequest) -> ChipRecipe:
    chosen: ChipRecipe = request.param
    return chosen


def test_the_face_of_a_photo_becomes_the_same_input(
    cuda: CudaCropper, astronaut: U8, face: F32, recipe: ChipRecipe
) -> None:
    assert_same(cuda, astronaut, face[None], recipe)


@pytest.mark.parametrize("n_levels", [0, 1, 2, 3])
def test_large_faces_go_through_every_level_of_the_pyramid(
    cuda: CudaCropper, noise: U8, recipe: ChipRecipe, n_levels: int
) -> None:
    scale = 1.5 * 2**n_levels * recipe.size / 150
    landmarks = place(480, 360, scale, 0.2)
    cut = plan_cut(landmarks, recipe.size, recipe.padding, 720, 960)
    assert cut.n_halvings == n_levels

    assert_same(cuda, noise, landmarks[None], recipe)


@pytest.mark.parametrize("angle", [0.0, 0.4, np.pi / 2, np.pi, -2.2])
def test_turned_faces(cuda: CudaCropper, noise: U8, recipe: ChipRecipe, angle: float) -> None:
    assert_same(cuda, noise, place(480, 360, 1.1, angle)[None], recipe)


@pytest.mark.parametrize("scale", [0.15, 1.0, 3.5])
@pytest.mark.parametrize(("x", "y"), [(0, 0), (960, 720), (0, 360), (955, 10), (-60, 300), (480, 730)])
def test_what_lies_outside_the_frame_is_black(
    cuda: CudaCropper, noise: U8, recipe: ChipRecipe, x: float, y: float, scale: float
) -> None:
    landmarks = place(x, y, scale, 0.3)[None]

    assert_same(cuda, noise, landmarks, recipe)


@pytest.mark.parametrize("n_faces", range(1, 9))
def test_faces_of_all_sizes_share_one_launch(
    cuda: CudaCropper, noise: U8, recipe: ChipRecipe, n_faces: int
) -> None:
    # Levels 2, 0, 3, 1, … for the large chip: in every launch of `halve` some faces have nothing to do.
    scales, spots = (6.0, 1.0, 11.0, 3.0, 0.3, 5.0, 2.5, 20.0), np.random.default_rng(n_faces)
    landmarks = np.stack(
        [place(spots.uniform(0, 960), spots.uniform(0, 720), s, spots.uniform(-3, 3)) for s in scales]
    )[:n_faces]

    assert_same(cuda, noise, landmarks, recipe)


def test_a_face_does_not_change_with_the_others(cuda: CudaCropper, noise: U8, recipe: ChipRecipe) -> None:
    landmarks = np.stack([place(200, 300, 7.0), place(500, 300, 1.0), place(700, 400, 3.0)])

    together = cuda.crop(noise, landmarks, recipe)

    for chip, marks in zip(together, landmarks, strict=True):
        assert np.array_equal(chip, cuda.crop(noise, marks[None], recipe)[0])


def test_rows_of_a_frame_may_lie_apart(cuda: CudaCropper, noise: U8, recipe: ChipRecipe) -> None:
    inner = noise[100:400, 150:600]  # what is around it belongs to somebody else
    landmarks = np.stack([place(5, 5, 1.2, 0.7), place(445, 290, 4.0), place(200, 150, 0.8)])

    assert np.array_equal(
        cuda.crop(inner, landmarks, recipe), cuda.crop(np.ascontiguousarray(inner), landmarks, recipe)
    )
    assert_same(cuda, inner, landmarks, recipe)


def test_no_faces_give_an_empty_batch(cuda: CudaCropper, noise: U8, recipe: ChipRecipe) -> None:
    table = tabulate(np.zeros((0, 5, 2), np.float32), recipe.size, recipe.padding, 720, 960)

    assert (len(table.rows), table.scratch_bytes, table.levels) == (0, 0, ())
    assert_same(cuda, noise, np.zeros((0, 5, 2), np.float32), recipe)


@pytest.mark.parametrize("far", [(5000.0, 0.0), (-5000.0, -5000.0), (1e30, 1e30)])
def test_a_face_fully_outside_the_frame_is_black(
    cuda: CudaCropper, noise: U8, recipe: ChipRecipe, far: tuple[float, float]
) -> None:
    landmarks = place(0, 0, 1.0)[None] + np.array(far, np.float32)

    chips = cuda.crop(noise, landmarks, recipe)

    assert grey_levels(chips, recipe) == pytest.approx(np.zeros(chips.shape), abs=1e-4)
    assert_same(cuda, noise, landmarks, recipe)


@pytest.mark.parametrize("n_px", [4, 700])  # 4: too small to halve, so the matrix itself overflows
@pytest.mark.parametrize(
    "points", [np.zeros((5, 2)), template(150, 0.25) * 2.5e36, template(150, 0.25) * -2.5e36]
)
def test_impossible_faces_neither_crash_nor_differ(
    cuda: CudaCropper, noise: U8, recipe: ChipRecipe, points: npt.NDArray[np.float64], n_px: int
) -> None:
    frame = np.ascontiguousarray(noise[:n_px, :n_px])

    assert_same(cuda, frame, points.astype(np.float32)[None], recipe)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 200), (4, 4), (5, 5), (6, 300)])
def test_frames_smaller_than_the_filter(
    cuda: CudaCropper, noise: U8, recipe: ChipRecipe, height: int, width: int
) -> None:
    frame = np.ascontiguousarray(noise[:height, :width])
    landmarks = np.stack([place(width / 2, height / 2, scale, 0.1) for scale in (0.05, 1.0, 5.0)])

    assert_same(cuda, frame, landmarks, recipe)


def test_the_luma_of_many_colours_is_opencvs(cuda: CudaCropper) -> None:
    """A chip as large as its face, on whole pixels, takes them over: 4096 colours at a time."""
    recipe = EMOTION_XCEPTION.recipe
    landmarks = place(39.5, 39.5, 1.0, size=64)[None]
    frames = np.random.default_rng(3).integers(0, 256, (60, 80, 80, 3)).astype(np.uint8)

    for frame in frames:
        luma = cv2.cvtColor(frame[8:72, 8:72], cv2.COLOR_RGB2GRAY)
        chip = cuda.crop(frame, landmarks, recipe)[0, 0]
        assert np.array_equal(np.rint(chip * recipe.scale + recipe.mean[0]), luma)


@settings(max_examples=60, deadline=None)
@given(
    x=st.floats(-200, 500),
    y=st.floats(-200, 400),
    log_scale=st.floats(-4, 4),
    angle=st.floats(-np.pi, np.pi),
    grey=st.booleans(),
)
def test_any_face_becomes_the_same_input(
    cuda: CudaCropper, noise: U8, x: float, y: float, log_scale: float, angle: float, grey: bool
) -> None:
    landmarks = place(x, y, 2.0**log_scale, angle)[None]

    assert_same(cuda, noise[:200, :300], landmarks, RECIPES[grey])


def test_the_table_has_the_layout_that_the_kernels_read() -> None:
    assert CUT.fields is not None
    offsets = {name: field[1] for name, field in CUT.fields.items()}

    assert CUT.itemsize == 56
    assert offsets == {
        "scratch_at": 0, "matrix": 8, "left": 32, "top": 36, "width": 40, "height": 44, "n_halvings": 48,
    }  # fmt: skip


def test_the_table_counts_scratch_and_the_largest_level() -> None:
    wide, tall = place(480, 360, 3.0), place(480, 360, 6.5)

    both = tabulate(np.stack([wide, tall]), 150, 0.25, 720, 960)

    first, second = (tabulate(marks[None], 150, 0.25, 720, 960) for marks in (wide, tall))
    assert [len(first.levels), len(second.levels)] == [1, 2]
    assert both.levels == second.levels
    assert both.scratch_bytes == first.scratch_bytes + second.scratch_bytes
    assert both.rows["scratch_at"].tolist() == [0, first.scratch_bytes]
    assert second.scratch_bytes == 3 * sum(w * h for w, h in second.levels)


def test_the_astronaut_needs_no_pyramid_and_a_close_up_does(face: F32) -> None:
    assert tabulate(face[None], 150, 0.25, 512, 512).scratch_bytes == 0
    assert tabulate(face[None] * 4, 150, 0.25, 2048, 2048).scratch_bytes > 0
