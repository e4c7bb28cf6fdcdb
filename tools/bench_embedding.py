"""Bench the embedding of a face on one core: our engine against dlib's own code, same chips, same run."""

import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ..pipelines.ensemble import Ensemble, output_of
from ..pipelines.frame import Detection
from ..pipelines.registry import ChipRecipe
from .baseline import PlainRecipe

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

ROUNDS = 40  # of our engine; dlib is slower and gets a quarter
BATCHES = (1, 6)


def bench_embedding(chips: U8, ensemble: Ensemble, recipe: PlainRecipe) -> dict[str, Any]:
    """Return milliseconds per face for both, and how far the embeddings lie apart.

    Args:
        chips: `(N, 150, 150, 3)` RGB, N >= 6.
        ensemble: with its engines limited to one thread.
        recipe: the plain recipe, loaded; dlib without BLAS uses one thread anyway.
    """
    member = next(m for m in ensemble.members if output_of(m.network, "embedding"))
    name = next(o.name for o in member.network.outputs if o.kind == "embedding")
    inputs = to_inputs(chips, member.network.recipe)
    ours = {
        f"batch_{n}": round(median_ms(lambda n=n: member.engine.infer(inputs[:n]), ROUNDS) / n, 3)  # type: ignore[misc]
        for n in BATCHES
    }
    dlib_ms = median_ms(lambda: recipe.encode_chip(chips[0]), ROUNDS // 4)
    embeddings = member.engine.infer(inputs)[name]
    truth: F32 = np.stack([recipe.encode_chip(chip) for chip in chips])
    return {
        "visaged_ms_per_face": ours,
        "dlib_ms_per_face": round(dlib_ms, 2),
        "ratio": round(dlib_ms / ours["batch_1"], 1),
        "largest_distance": float(np.linalg.norm(embeddings - truth, axis=1).max()),
        "network": member.network.name,
        "threads": 1,
    }


def to_inputs(chips: U8, recipe: ChipRecipe) -> F32:
    """Return chips `(N, S, S, 3)` as the network wants them, `(N, 3, S, S)`."""
    mean = np.array(recipe.mean, dtype=np.float32)
    scaled = (chips.astype(np.float32) - mean) / np.float32(recipe.scale)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def chips_of(rgb: U8, detections: list[Detection], size: int = 150) -> U8:
    """Return the square around every detection, `(N, 150, 150, 3)`: good enough to measure speed with."""
    cut = []
    for detection in detections:
        left, top, right, bottom = (max(0, round(float(edge))) for edge in detection.box)
        cut.append(cv2.resize(rgb[top:bottom, left:right], (size, size), interpolation=cv2.INTER_LINEAR))
    return np.stack(cut).astype(np.uint8)


def median_ms(call: Callable[[], object], rounds: int) -> float:
    """Return the median milliseconds of `call` over `rounds`, after two that do not count."""
    spent = []
    for index in range(rounds + 2):
        start = time.perf_counter()
        call()
        if index >= 2:
            spent.append((time.perf_counter() - start) * 1e3)
    return float(np.median(spent))
