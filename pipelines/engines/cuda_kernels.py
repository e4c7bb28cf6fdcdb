"""Chips and the detector's canvas made on the GPU, where the networks read them: the frame goes up once.

Launches `chips.cu` and `pyramid.cu`; what each launch means is said there. Everything is queued on one
stream, so that what is launched later finds what was launched before; the host waits only before it writes
again what a copy may still read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...kernels.cut_table import CutTable, tabulate
from ...kernels.pyramid import MEAN, Layout
from ..cropper import Cropper
from ..registry import DLIB_SCALE, ChipRecipe, Light
from .cuda_device import DeviceBuffer, DeviceChips, Gpu, StagedBuffer
from .cuda_source import compile_cubin

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


@dataclass(frozen=True, slots=True)
class _Job:
    """The faces of one frame under one recipe: rows `first`, ... of that recipe's chips."""

    frame: int  # among the frames that have faces
    width: int  # of it, px
    recipe: ChipRecipe
    table: CutTable
    first: int


class CudaCropper:
    """A `Cropper` whose chips stay on the GPU, valid until the next call. Owned by one thread."""

    def __init__(self, gpu: Gpu, cache_dir: Path) -> None:
        """Compile and load the kernels for `gpu`.

        Raises:
            ModelError: see `load_module`, or the GPU has no memory left.
        """
        self._gpu, self._host = gpu, Cropper()
        module = load_module(gpu, "chips", cache_dir)
        with gpu.current():
            self._halve, self._crop = module.get_function("halve"), module.get_function("crop_f32")
            self._stream, self._ready = gpu.new_stream(), gpu.cuda.Event()
        self._inputs, self._scratch = StagedBuffer(gpu), DeviceBuffer(gpu)
        self._chips: dict[ChipRecipe, DeviceBuffer] = {}

    def crop_all(
        self, faces: Sequence[Face], recipes: Sequence[ChipRecipe]
    ) -> dict[ChipRecipe, F32 | DeviceChips]:
        """Return the chips of all faces of all frames under every recipe, as `Cropper.crop_all`.

        Recipes with a light normalisation are cut on the host.

        Raises:
            ValueError: wrong shapes, or landmarks that are not finite or all coincide.
            ModelError: the GPU failed.
        """
        for rgb, _ in faces:
            if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
                raise ValueError(f"frame must be (H, W, 3) uint8: {rgb.shape=} {rgb.dtype=}")
        on_host = [recipe for recipe in recipes if recipe.light is not Light.NONE]
        on_gpu = [recipe for recipe in recipes if recipe.light is Light.NONE]
        return {**self._host.crop_all(faces, on_host), **self._cut(faces, on_gpu)}

    def quality(self, rgb: U8, landmarks: F32) -> F32:
        """Return `(N,)` in [0, 1], as `Cropper.quality`."""
        return self._host.quality(rgb, landmarks)

    def _cut(self, faces: Sequence[Face], recipes: Sequence[ChipRecipe]) -> dict[ChipRecipe, DeviceChips]:
        """Queue one copy to the GPU, all frames and tables in it, and the launches that make the chips."""
        frames = [rgb for rgb, landmarks in faces if len(landmarks)]
        jobs = list(_jobs(faces, recipes))
        n_faces = sum(len(landmarks) for _, landmarks in faces)
        with self._gpu.current():
            self._stream.synchronize()  # nothing of the last call may still read what is written now
            chips = {recipe: self._room(recipe, n_faces) for recipe in recipes}
            if jobs:
                scratch = self._scratch.of(max(1, *(job.table.scratch_bytes for job in jobs)))
                lie_at = self._inputs.fill([*frames, *(job.table.rows for job in jobs)], self._stream)
                for job, rows in zip(jobs, lie_at[len(frames) :], strict=True):
                    self._launch(job, lie_at[job.frame], rows, scratch, chips[job.recipe])
            self._ready.record(self._stream)
        return chips

    def _room(self, recipe: ChipRecipe, n_faces: int) -> DeviceChips:
        """Return where the chips of `n_faces` will be."""
        shape = (n_faces, len(recipe.mean), recipe.size, recipe.size)
        buffer = self._chips.setdefault(recipe, DeviceBuffer(self._gpu))
        address = buffer.of(4 * int(np.prod((max(1, n_faces), *shape[1:]))))
        return DeviceChips(self._gpu, address, shape, self._ready)

    def _launch(self, job: _Job, frame: int, rows: int, scratch: int, chips: DeviceChips) -> None:
        """Queue the kernels for `job`, all but the chips being addresses on the GPU."""
        recipe, n_faces = job.recipe, len(job.table.rows)
        pointers = np.intp(frame), np.int64(3 * job.width), np.intp(rows), np.intp(scratch)
        for level, (across, down) in enumerate(job.table.levels, 1):
            grid = grid_of(across, down, n_faces)
            self._halve(*pointers, np.int32(level), block=BLOCK, grid=grid, stream=self._stream)
        self._crop(
            *pointers,
            np.intp(chips[job.first :].pointer),
            np.int32(recipe.size),
            np.int32(len(recipe.mean)),
            *(np.float32(value) for value in (*recipe.mean, 0.0, 0.0)[:3]),
            np.float32(1 / recipe.scale),
            block=BLOCK,
            grid=grid_of(recipe.size, recipe.size, n_faces),
            stream=self._stream,
        )


def _jobs(faces: Sequence[Face], recipes: Sequence[ChipRecipe]) -> Iterator[_Job]:
    """Yield what is to be cut, frame by frame; frames without faces are left out."""
    first = 0
    for frame, (rgb, landmarks) in enumerate((rgb, marks) for rgb, marks in faces if len(marks)):
        height, width = rgb.shape[:2]
        for recipe in recipes:
            table = tabulate(landmarks, recipe.size, recipe.padding, height, width)
            yield _Job(frame, width, recipe, table, first)
        first += len(landmarks)


class CudaPainter:
    """`paint_canvas` on the GPU. Owned by one thread; a canvas is valid until the next is painted."""

    def __init__(self, gpu: Gpu, cache_dir: Path) -> None:
        """Compile and load the kernels for `gpu`.

        Raises:
            ModelError: see `load_module`, or the GPU has no memory left.
        """
        self._gpu = gpu
        module = load_module(gpu, "pyramid", cache_dir)
        with gpu.current():
            self._paint_frame = module.get_function("paint_frame")
            self._paint_level = module.get_function("paint_level")
            self._stream, self._ready = gpu.new_stream(), gpu.cuda.Event()
        self._inputs, self._canvas = StagedBuffer(gpu), DeviceBuffer(gpu)
        self._layout: Layout | None = None  # of the canvas as it lies there

    def paint(self, rgb: U8, layout: Layout) -> DeviceChips:
        """Return the `(1, 3, H, W)` canvas of `(H, W, 3)` RGB uint8, as `kernels.pyramid.paint_canvas`.

        Raises:
            ValueError: `layout` is not that of this frame.
            ModelError: the GPU failed.
        """
        wrong_dtype = rgb.dtype != np.uint8
        if rgb.ndim != 3 or rgb.shape[2] != 3 or wrong_dtype or layout.levels[0][:1:-1] != rgb.shape[:2]:
            raise ValueError(
                f"the layout is for another frame: {rgb.shape=} {rgb.dtype=} {layout.levels[0]=}"
            )
        shape = (1, 3, layout.height, layout.width)
        n_values = int(np.prod(shape))
        with self._gpu.current():
            self._stream.synchronize()  # nothing of the last call may still read what is written now
            if layout != self._layout:
                self._layout = None
            canvas = self._canvas.of(4 * n_values)
            if self._layout is None:  # the gaps are not painted: they stay 0 from frame to frame
                self._gpu.cuda.memset_d32_async(canvas, 0, n_values, self._stream)
                self._layout = layout
            frame, levels = self._inputs.fill([rgb, np.array(layout.levels, np.int32)], self._stream)
            self._launch(frame, levels, canvas, layout)
            self._ready.record(self._stream)
        return DeviceChips(self._gpu, canvas, shape, self._ready)

    def _launch(self, frame: int, levels: int, canvas: int, layout: Layout) -> None:
        """Queue the kernels, the first three being addresses on the GPU."""
        place = np.intp(canvas), np.int32(layout.height), np.int32(layout.width), np.intp(levels)
        sizes = [(width, height) for _, _, width, height in layout.levels]
        self._paint_frame(
            np.intp(frame),
            np.int64(3 * sizes[0][0]),
            *place,
            *(np.float32(value) for value in MEAN),
            np.float32(1 / DLIB_SCALE),
            block=BLOCK,
            grid=grid_of(*sizes[0]),
            stream=self._stream,
        )
        for level, (before, now) in enumerate(pairwise(sizes), 1):
            steps = [np.float64((a - 1) / max(b - 1, 1)) for a, b in zip(before, now, strict=True)]
            grid = grid_of(*now)
            self._paint_level(*place, np.int32(level), *steps, block=BLOCK, grid=grid, stream=self._stream)


def grid_of(across: int, down: int, n_faces: int = 1) -> tuple[int, int, int]:
    """Return the blocks that cover `across` x `down` px of `n_faces` faces."""
    return -(-across // BLOCK[0]), -(-down // BLOCK[1]), n_faces
