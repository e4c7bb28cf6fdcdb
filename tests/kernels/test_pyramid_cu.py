"""pyramid.cu, compiled for this processor, against pyramid.py: the same canvas, to the last bit."""

import ctypes
import shutil
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from visaged.kernels.pyramid import MEAN, Layout, lay_out, paint_canvas
from visaged.pipelines.engines.cuda_source import compile_host

from tests.conftest import skip_or_fail

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

BLOCK_X, BLOCK_Y = 32, 8
TOLERANCE = 1e-6


def address(array: npt.NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def threads(length: int, block: int) -> int:
    """Return how many threads a grid has along one axis: whole blocks, so some find nothing to do."""
    return -(-length // block) * block


def step(before: int, now: int) -> ctypes.c_double:
    """Return how far apart in the level before two neighbours of a level lie."""
    return ctypes.c_double((before - 1) / max(now - 1, 1))


@dataclass(frozen=True)
class CudaPainter:
    """Launches the kernels as a GPU runtime would, on the library compiled for this processor."""

    library: ctypes.CDLL

    def paint(self, rgb: U8, layout: Layout, gap: float = 0.0) -> F32:
        """Return the `(1, 3, H, W)` canvas; `rgb` may be part of a larger array, so rows have a stride."""
        assert rgb.strides[1:] == (3, 1)
        levels = np.array(layout.levels, np.int32)
        canvas = np.full((1, 3, layout.height, layout.width), gap, np.float32)
        place = (address(canvas), layout.height, layout.width, address(levels))
        normalise = [ctypes.c_float(value) for value in (*MEAN, 1 / 256)]
        _, _, width, height = layout.levels[0]
        self.library.paint_frame(
            address(rgb), ctypes.c_int64(rgb.strides[0]), *place, *normalise,
            threads(width, BLOCK_X), threads(height, BLOCK_Y),
        )  # fmt: skip
        for level in range(1, len(layout.levels)):
            (_, _, from_width, from_height), (_, _, width, height) = layout.levels[level - 1 : level + 1]
            self.library.paint_level(
                *place, level, step(from_width, width), step(from_height, height),
                threads(width, BLOCK_X), threads(height, BLOCK_Y),
            )  # fmt: skip
        return canvas


@pytest.fixture(scope="session")
def cuda(tmp_path_factory: pytest.TempPathFactory) -> CudaPainter:
    """The kernels of pyramid.cu."""
    if shutil.which("g++") is None:
        skip_or_fail("g++", "no g++ to compile pyramid.cu with (Debian: apt install g++)")
    return CudaPainter(ctypes.CDLL(str(compile_host("pyramid", tmp_path_factory.mktemp("host")))))


def noise(height: int, width: int) -> U8:
    return (
        np.random.default_rng(height * 10_000 + width).integers(0, 256, (height, width, 3)).astype(np.uint8)
    )


def assert_same(cuda: CudaPainter, rgb: U8) -> None:
    layout = lay_out(*rgb.shape[:2])

    difference = np.abs(cuda.paint(rgb, layout) - paint_canvas(rgb, layout))

    assert difference.max() <= TOLERANCE
    assert (difference != 0).mean() <= 1e-3  # measured: none


def test_the_canvas_of_a_photo_is_the_same(cuda: CudaPainter, astronaut: U8) -> None:
    assert_same(cuda, astronaut)


@pytest.mark.parametrize(
    ("height", "width"), [(480, 640), (333, 501), (720, 160), (90, 800), (29, 29), (6, 6), (5, 400), (1, 1)]
)
def test_the_canvas_of_noise_is_the_same(cuda: CudaPainter, height: int, width: int) -> None:
    assert_same(cuda, noise(height, width))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200))
def test_the_canvas_of_any_frame_is_the_same(cuda: CudaPainter, height: int, width: int) -> None:
    assert_same(cuda, noise(height, width))


def test_rows_of_a_frame_may_lie_apart(cuda: CudaPainter) -> None:
    inner = noise(300, 400)[20:220, 30:310]  # what is around it belongs to somebody else

    assert_same(cuda, inner)


def test_gaps_are_neither_written_nor_read(cuda: CudaPainter) -> None:
    layout = lay_out(120, 160)

    canvas = cuda.paint(noise(120, 160), layout, gap=np.nan)

    for left, top, width, height in layout.levels:
        level = canvas[..., top : top + height, left : left + width]
        assert np.isfinite(level).all()
        level[:] = np.nan
    assert np.isnan(canvas).all()


def test_a_level_comes_from_the_one_before_not_from_the_frame(cuda: CudaPainter) -> None:
    """What lies on the canvas in level 1 decides level 2, whatever the frame was."""
    layout = lay_out(120, 160)
    canvas = cuda.paint(noise(120, 160), layout)
    left, top, width, height = layout.levels[1]
    canvas[..., top : top + height, left : left + width] = 0.25
    levels = np.array(layout.levels, np.int32)
    _, _, to_width, to_height = layout.levels[2]

    cuda.library.paint_level(
        address(canvas), layout.height, layout.width, address(levels), 2,
        step(width, to_width), step(height, to_height), to_width, to_height,
    )  # fmt: skip

    left, top, width, height = layout.levels[2]
    assert (canvas[..., top : top + height, left : left + width] == 0.25).all()
