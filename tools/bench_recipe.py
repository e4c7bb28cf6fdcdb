"""Bench visaged end to end against the plain `face_recognition` recipe: same video, same run."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ..kernels.boxes import iou
from ..pipelines.assembly import Stages
from ..pipelines.errors import SourceError
from .baseline import PlainRecipe, build
from .replay import Replayer

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

MIN_IOU = 0.4  # HOG boxes are squares of few sizes; 0.4 still means the same face
BORDER_PX = 8  # a true face that reaches farther out of the frame is neither wanted nor wrong


def bench_recipe(
    scene: Path, truth: list[F32], recipe: PlainRecipe, stages: Stages, n: int
) -> dict[str, Any]:
    """Return frames per second and face recall of both on the video `scene`, and their ratio.

    Args:
        scene: the video.
        truth: boxes `(F, 4)` of the faces in each of its frames.
        recipe: the plain recipe, loaded.
        stages: visaged's stages, loaded.
        n: frames for the plain recipe, evenly spread: it treats every frame alike and is slow.
            visaged runs over all frames, because it lives from what it remembers.
    """
    plain = run_plain(scene, truth, recipe, n)
    ours = run_visaged(scene, truth, stages)
    return {
        "visaged": ours,
        "face_recognition": {**plain, "dlib": build()},
        "ratio": round(ours["fps"] / plain["fps"], 1),
        "note": "the dlib wheels on PyPI are built without BLAS; a dlib built with it encodes faster",
    }


def run_visaged(scene: Path, truth: list[F32], stages: Stages) -> dict[str, Any]:
    """Return frames per second and recall of visaged over every frame, reading the file included."""
    found: list[F32] = []
    start = time.perf_counter()
    for result, _ in Replayer(stages, str(scene)).results():
        found.append(boxes_of([face.box for face in result.faces]))
    seconds = time.perf_counter() - start
    return {"frames": len(found), "fps": round(len(found) / seconds, 2), **score(truth, found)}


def run_plain(scene: Path, truth: list[F32], recipe: PlainRecipe, n: int) -> dict[str, Any]:
    """Return frames per second and recall of the plain recipe over `n` frames, reading them included."""
    wanted = set(np.linspace(0, len(truth) - 1, min(n, len(truth))).round().astype(int).tolist())
    capture = cv2.VideoCapture(str(scene))
    found: list[F32] = []
    seconds = 0.0
    for index in range(max(wanted) + 1):
        start = time.perf_counter()
        is_good, bgr = capture.read()
        if not is_good:
            raise SourceError(f"{scene} ends at frame {index}; is the disk full?")
        if index in wanted:
            rgb: U8 = np.ascontiguousarray(bgr[..., ::-1], dtype=np.uint8)
            boxes, _ = recipe.run(rgb)
            seconds += time.perf_counter() - start
            found.append(boxes)
    capture.release()
    kept = [truth[index] for index in sorted(wanted)]
    return {"frames": len(found), "fps": round(len(found) / seconds, 3), **score(kept, found)}


def boxes_of(boxes: Iterable[tuple[float, float, float, float]]) -> F32:
    """Return boxes as `(N, 4)`."""
    return np.array(list(boxes), dtype=np.float32).reshape(-1, 4)


def score(truth: list[F32], found: list[F32], size: tuple[int, int] = (1280, 720)) -> dict[str, float]:
    """Return the share of true faces that were found, and the wrong boxes per frame."""
    n_true = n_found = n_wrong = 0
    for true, boxes in zip(truth, found, strict=True):
        overlap = iou(true, boxes) >= MIN_IOU  # (F, N)
        inside = (true[:, :2] >= -BORDER_PX).all(axis=1) & (true[:, 2:] <= np.array(size) + BORDER_PX).all(
            axis=1
        )
        n_true += int(inside.sum())
        n_found += int((overlap.any(axis=1) & inside).sum())
        n_wrong += int((~overlap.any(axis=0)).sum())
    return {
        "recall": round(n_found / max(1, n_true), 4),
        "wrong_per_frame": round(n_wrong / max(1, len(found)), 4),
    }
