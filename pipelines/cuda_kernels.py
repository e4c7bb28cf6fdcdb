"""Chips and the detector's canvas made on the GPU, where the networks read them: the frame goes up once.

Launches `chips.cu` and `pyramid.cu`; what each launch means is said there.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..kernels.cut_table import CutTable, tabulate
from ..kernels.pyramid import MEAN, Layout
from .cropper import Cropper
from .cuda_device import DeviceBuffer, DeviceChips, Gpu
from .cuda_source import compile_cubin
from .registry import DLIB_SCALE, ChipRecipe, Light

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

BLOCK = (32, 8, 1)
Face = tuple[U8, F32]  # a frame and the (N, 5, 2) landmarks of its faces


def load_module(gpu: Gpu, name: str, cache_dir: Path) -> Any:
    """Return the kernels of `name`.cu for `gpu`, compiled first where needed.

    Raises:
        ModelError: no nvcc, and the cache has none of what it would make.
    """
    arch = f"sm_{gpu.compute_capability.replace('.', '')}"
    cubin = compile_cubin(name, arch, cache_dir / "kernels")
    with gpu.current():
        return gpu.cuda.module_from_file(str(cubin))


class CudaCropper:
    """A `Cropper` whose chips stay on the GPU, valid until the next call. Owned by one thread."""

    def __init__(self, gpu: Gpu, cache_dir: Path) -> None:
        """Compile and load the kernels for `gpu`.

        Raises:
            ModelError: see `load_module`.
        """
        self._gpu, self._host = gpu, Cropper()
        module = load_module(gpu, "chips", cache_dir)
        self._halve, self._crop = module.get_function("halve"), module.get_function("crop_f32")
        with gpu.current():
            self._stream = gpu.cuda.Stream()
        self._frame, self._table, self._scratch = (DeviceBuffer(gpu) for _ in range(3))
        self._chips: dict[ChipRecipe, DeviceBuffer] = {}

    def crop_all(
        self, faces: Sequence[Face], recipes: Sequence[ChipRecipe]
    ) -> dict[ChipRecipe, F32 | DeviceChips]:
        """Return the chips of all faces of all frames under every recipe, as `Cropper.crop_all`.

        Recipes with CLAHE are cut on the host.

        Raises:
            ValueError: wrong shapes, or landmarks that are not finite or all coincide.
        """
        on_host = [recipe for recipe in recipes if recipe.light is Light.CLAHE]
        chips: dict[ChipRecipe, F32 | DeviceChips] = dict(self._host.crop_all(faces, on_host))
        n_faces = sum(len(landmarks) for _, landmarks in faces)
        with self._gpu.current():
            for recipe in recipes:
                if recipe not in chips:
                    row = len(recipe.mean) * recipe.size**2 * 4
                    self._chips.setdefault(recipe, DeviceBuffer(self._gpu)).of(max(1, n_faces) * row)
            first = 0
            for rgb, landmarks in faces:
                self._crop_frame(rgb, landmarks, [r for r in recipes if r not in chips], first)
                first += len(landmarks)
            ready = self._gpu.cuda.Event()
            ready.record(self._stream)
        for recipe in recipes:
            if recipe not in chips:
                shape = (n_faces, len(recipe.mean), recipe.size, recipe.size)
                chips[recipe] = DeviceChips(self._gpu, self._chips[recipe].of(0), shape, ready)
        return chips

    def quality(self, rgb: U8, landmarks: F32) -> F32:
        """Return `(N,)` in [0, 1], as `Cropper.quality`."""
        return self._host.quality(rgb, landmarks)

    def _crop_frame(self, rgb: U8, landmarks: F32, recipes: Sequence[ChipRecipe], first: int) -> None:
        """Queue the chips of one frame's faces, as rows `first`, ... of every recipe's chips."""
        if not len(landmarks):
            return
        height, width = rgb.shape[:2]
        frame = self._upload(self._frame, np.ascontiguousarray(rgb))
        for recipe in recipes:
            table = tabulate(landmarks, recipe.size, recipe.padding, height, width)
            self._launch(frame, 3 * width, table, recipe, first)

    def _launch(self, frame: int, stride_bytes: int, table: CutTable, recipe: ChipRecipe, first: int) -> None:
        n_faces, n_channels = len(table.rows), len(recipe.mean)
        rows = self._upload(self._table, table.rows)
        scratch = self._scratch.of(max(1, table.scratch_bytes))
        pointers = np.intp(frame), np.int64(stride_bytes), np.intp(rows), np.intp(scratch)
        for level, (across, down) in enumerate(table.levels, 1):
            grid = grid_of(across, down, n_faces)
            self._halve(*pointers, np.int32(level), block=BLOCK, grid=grid, stream=self._stream)
        chips = self._chips[recipe].of(0) + first * n_channels * recipe.size**2 * 4
        mean = [np.float32(value) for value in (*recipe.mean, 0.0, 0.0)[:3]]
        self._crop(
            *pointers,
            np.intp(chips),
            np.int32(recipe.size),
            np.int32(n_channels),
            *mean,
            np.float32(1 / recipe.scale),
            block=BLOCK,
            grid=grid_of(recipe.size, recipe.size, n_faces),
            stream=self._stream,
        )

    def _upload(self, buffer: DeviceBuffer, values: npt.NDArray[Any]) -> int:
        """Copy `values` to the GPU once what still reads `buffer` has run; return where they are."""
        self._stream.synchronize()
        address = buffer.of(values.nbytes)
        self._gpu.cuda.memcpy_htod(address, values)
        return address


class CudaPainter:
    """`paint_canvas` on the GPU. Owned by one thread; a canvas is valid until the next is painted."""

    def __init__(self, gpu: Gpu, cache_dir: Path) -> None:
        """Compile and load the kernels for `gpu`.

        Raises:
            ModelError: see `load_module`.
        """
        self._gpu = gpu
        module = load_module(gpu, "pyramid", cache_dir)
        self._paint_frame, self._paint_level = (
            module.get_function("paint_frame"),
            module.get_function("paint_level"),
        )
        with gpu.current():
            self._stream = gpu.cuda.Stream()
        self._frame, self._levels, self._canvas = (DeviceBuffer(gpu) for _ in range(3))
        self._layout: Layout | None = None

    def paint(self, rgb: U8, layout: Layout) -> DeviceChips:
        """Return the `(1, 3, H, W)` canvas of `(H, W, 3)` RGB uint8, as `kernels.pyramid.paint_canvas`."""
        shape = (1, 3, layout.height, layout.width)
        with self._gpu.current():
            self._stream.synchronize()
            canvas = self._canvas.of(4 * int(np.prod(shape)))
            if layout != self._layout:  # the gaps stay 0 from frame to frame
                self._gpu.cuda.memset_d32(canvas, 0, int(np.prod(shape)))
                table = np.array(layout.levels, np.int32)
                self._gpu.cuda.memcpy_htod(self._levels.of(table.nbytes), table)
                self._layout = layout
            pixels = np.ascontiguousarray(rgb)
            frame = self._frame.of(pixels.nbytes)
            self._gpu.cuda.memcpy_htod(frame, pixels)
            self._launch(frame, rgb.shape[1], canvas, layout)
            ready = self._gpu.cuda.Event()
            ready.record(self._stream)
        return DeviceChips(self._gpu, canvas, shape, ready)

    def _launch(self, frame: int, width: int, canvas: int, layout: Layout) -> None:
        place = np.intp(canvas), np.int32(layout.height), np.int32(layout.width), np.intp(self._levels.of(0))
        self._paint_frame(
            np.intp(frame),
            np.int64(3 * width),
            *place,
            *(np.float32(value) for value in MEAN),
            np.float32(1 / DLIB_SCALE),
            block=BLOCK,
            grid=grid_of(*layout.levels[0][2:]),
            stream=self._stream,
        )
        for level in range(1, len(layout.levels)):
            steps = [
                np.float64((before - 1) / max(now - 1, 1))
                for before, now in zip(layout.levels[level - 1][2:], layout.levels[level][2:], strict=True)
            ]
            grid = grid_of(*layout.levels[level][2:])
            self._paint_level(*place, np.int32(level), *steps, block=BLOCK, grid=grid, stream=self._stream)


def grid_of(across: int, down: int, n_faces: int = 1) -> tuple[int, int, int]:
    """Return the blocks that cover `across` x `down` px of `n_faces` faces."""
    return -(-across // BLOCK[0]), -(-down // BLOCK[1]), n_faces
