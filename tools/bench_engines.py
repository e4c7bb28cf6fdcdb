"""Bench the engines of this machine's CPU against dlib's own code: same faces, same run, one thread.

Everything takes its turn in every round, so that a machine that slows down slows all of them down.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ..pipelines.engines.engine import Engine
from ..pipelines.engines.hardware import has_int8_instructions, version_of
from ..pipelines.engines.plan import Backend, Precision
from ..pipelines.engines.plan_builder import PlanOrder, ensure_plan, open_engine
from ..pipelines.engines.plan_store import PlanStore
from ..pipelines.engines.precision import ranges_path
from ..pipelines.mmod_detector import MmodDetector
from ..pipelines.model_store import ModelStore
from ..pipelines.registry import FACE_RESNET, NETWORKS
from .baseline import PlainRecipe, build, cnn_detector
from .bench_embedding import to_inputs

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

ROUNDS = 15
DETECTOR_ROUNDS = 3  # dlib's takes seconds
BATCHES = (1, 8)
DETECTOR_FRAME = (640, 480)  # width, height in px
CPU_BACKENDS = (Backend.ONNXRUNTIME, Backend.OPENVINO)


def bench_engines(still: U8, chips: U8, recipe: PlainRecipe, models: ModelStore) -> dict[str, Any]:
    """Return milliseconds per face and per frame of every engine, and the ratios to dlib's.

    Args:
        still: `(H, W, 3)` RGB with faces, for the detector.
        chips: `(N, 150, 150, 3)` RGB, N >= 1.
        recipe: dlib's own objects.
        models: the imported networks; plans are built first where they are missing.
    """
    cv2.setNumThreads(1)
    plans = PlanStore(models.cache_dir)
    eight = np.resize(chips, (max(BATCHES), *chips.shape[1:]))
    return {
        "dlib": build(),
        "vnni": has_int8_instructions(),
        "threads": 1,
        "embedding": _embedding(to_inputs(eight, FACE_RESNET.recipe), eight, recipe, models, plans),
        "detector": _detector(still, models, plans),
        "members": _members(models, plans),
    }


def _embedding(
    inputs: F32, chips: U8, recipe: PlainRecipe, models: ModelStore, plans: PlanStore
) -> dict[str, Any]:
    """Return milliseconds per face of dlib and of every engine at every batch."""
    calls: dict[tuple[str, int], Callable[[], object]] = {("dlib", 1): lambda: recipe.encode_chip(chips[0])}
    engines = dict(_engines(FACE_RESNET.name, models, plans))
    for name, engine in engines.items():
        for n in BATCHES:
            calls[name, n] = partial(engine.infer, inputs[:n])
    spent = interleaved_ms(calls, ROUNDS)
    for engine in engines.values():
        engine.close()
    dlib_ms = spent.pop(("dlib", 1))
    rows = [
        {"engine": name, "batch": n, "ms_per_face": ms / n, "ratio_to_dlib": dlib_ms / (ms / n)}
        for (name, n), ms in spent.items()
    ]
    return {"dlib_ms_per_face": dlib_ms, "rows": rows}


def _detector(still: U8, models: ModelStore, plans: PlanStore) -> dict[str, Any]:
    """Return milliseconds per 640x480 frame of dlib's CNN detector and of ours, boxes included."""
    frame = cv2.resize(still, DETECTOR_FRAME, interpolation=cv2.INTER_AREA).astype(np.uint8)
    original = cnn_detector(models.weights_file("mmod_human_face_detector.dat"))
    detectors = {name: MmodDetector(engine) for name, engine in _engines("mmod", models, plans)}
    calls: dict[tuple[str, int], Callable[[], object]] = {("dlib", 1): partial(original, frame, 0)}
    calls |= {(name, 1): partial(detector.boxes, frame) for name, detector in detectors.items()}
    spent = interleaved_ms(calls, DETECTOR_ROUNDS)
    for detector in detectors.values():
        detector.close()
    dlib_ms = spent.pop(("dlib", 1))
    rows = [
        {"engine": name, "ms_per_frame": ms, "ratio_to_dlib": dlib_ms / ms} for (name, _), ms in spent.items()
    ]
    return {"frame": "640x480", "dlib_ms_per_frame": dlib_ms, "rows": rows}


def _members(models: ModelStore, plans: PlanStore) -> list[dict[str, Any]]:
    """Return milliseconds per face of every other member, alone."""
    rows: list[dict[str, Any]] = []
    for network in NETWORKS.values():
        if network is FACE_RESNET:
            continue
        shape = (max(BATCHES), len(network.recipe.mean), network.recipe.size, network.recipe.size)
        inputs = np.zeros(shape, np.float32)
        for name, engine in _engines(network.name, models, plans):
            calls = {(name, n): partial(engine.infer, inputs[:n]) for n in BATCHES}
            spent = interleaved_ms(calls, ROUNDS)
            engine.close()
            rows += [
                {"network": network.name, "engine": name, "batch": n, "ms_per_face": ms / n}
                for (_, n), ms in spent.items()
            ]
    return rows


def _engines(network: str, models: ModelStore, plans: PlanStore) -> Iterator[tuple[str, Engine]]:
    """Yield every CPU engine that `network` can have here, by name, loaded."""
    precisions = [Precision.FP32, *([Precision.INT8] if ranges_path(network).exists() else [])]
    for backend in CPU_BACKENDS:
        for precision in precisions:
            if version_of(backend):
                order = PlanOrder(network=network, backend=backend, precision=precision)
                plan = ensure_plan(order, models, plans)
                yield f"{backend.value} {precision.value}", open_engine(plan.path, backend)


def interleaved_ms(
    calls: Mapping[tuple[str, int], Callable[[], object]], rounds: int
) -> dict[tuple[str, int], float]:
    """Return the median milliseconds of every call; each has its turn in each round, the first for warmth."""
    spent: dict[tuple[str, int], list[float]] = {key: [] for key in calls}
    for index in range(rounds + 1):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            if index:
                spent[key].append((time.perf_counter() - start) * 1e3)
    return {key: float(np.median(values)) for key, values in spent.items()}


def engines_rows(figures: dict[str, Any], budgets: dict[str, float]) -> Iterator[tuple[str, str, str]]:
    """Yield what was measured, the figure and its budget, ready to print."""
    embedding, detector = figures["embedding"], figures["detector"]
    yield "engines, dlib's embedding", f"{embedding['dlib_ms_per_face']:.1f} ms", ""
    for row in embedding["rows"]:
        budget = budgets.get(f"{row['engine']} batch {row['batch']}")
        yield (
            f"engines, embedding, {row['engine']}, batch {row['batch']}, a face",
            f"{row['ms_per_face']:.2f} ms, {row['ratio_to_dlib']:.1f} x dlib",
            f"{budget:g} x" if budget else "",
        )
    yield f"engines, dlib's CNN detector, {detector['frame']}", f"{detector['dlib_ms_per_frame']:.0f} ms", ""
    for row in detector["rows"]:
        budget = budgets.get(f"mmod {row['engine']}")
        yield (
            f"engines, CNN detector, {row['engine']}",
            f"{row['ms_per_frame']:.1f} ms, {row['ratio_to_dlib']:.1f} x dlib",
            f"{budget:g} x" if budget else "",
        )
    for row in figures["members"]:
        name = f"engines, {row['network']}, {row['engine']}, batch {row['batch']}, a face"
        yield name, f"{row['ms_per_face']:.2f} ms", ""
