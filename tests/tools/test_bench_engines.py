"""The arithmetic of the engines' bench, and one short run of all of it."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.registry import NETWORKS
from visaged.tools import bench_engines as bench
from visaged.tools.baseline import PlainRecipe

pytestmark = pytest.mark.realtime
U8 = npt.NDArray[np.uint8]


def test_every_call_has_its_turn_in_every_round_and_the_first_does_not_count() -> None:
    order: list[str] = []
    calls = {("a", 1): lambda: order.append("a"), ("b", 1): lambda: order.append("b")}

    spent = bench.interleaved_ms(calls, 2)

    assert order == ["a", "b"] * 3
    assert set(spent) == set(calls) and all(0 <= ms < 50 for ms in spent.values())


def test_figures_are_shown_beside_their_budgets() -> None:
    figures = {
        "embedding": {
            "dlib_ms_per_face": 80.0,
            "rows": [{"engine": "x fp32", "batch": 8, "ms_per_face": 4.0, "ratio_to_dlib": 20.0}],
        },
        "detector": {
            "frame": "640x480",
            "dlib_ms_per_frame": 1900.0,
            "rows": [{"engine": "x fp32", "ms_per_frame": 100.0, "ratio_to_dlib": 19.0}],
        },
        "members": [{"network": "small", "engine": "x fp32", "batch": 1, "ms_per_face": 0.4}],
    }

    rows = list(bench.engines_rows(figures, {"x fp32 batch 8": 12.0, "mmod x fp32": 15.0}))

    assert ("engines, embedding, x fp32, batch 8, a face", "4.00 ms, 20.0 x dlib", "12 x") in rows
    assert ("engines, CNN detector, x fp32", "100.0 ms, 19.0 x dlib", "15 x") in rows
    assert ("engines, small, x fp32, batch 1, a face", "0.40 ms", "") in rows


def test_every_engine_of_this_machine_is_faster_than_dlib(
    store: ModelStore, astronaut: U8, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "ROUNDS", 1)
    monkeypatch.setattr(bench, "DETECTOR_ROUNDS", 1)
    recipe = PlainRecipe.load(
        store.weights_file("shape_predictor_5_face_landmarks.dat"),
        store.weights_file("dlib_face_recognition_resnet_model_v1.dat"),
    )
    chip = np.ascontiguousarray(astronaut[60:210, 150:300])

    figures = bench.bench_engines(astronaut, chip[None], recipe, store)

    names = {row["engine"] for row in figures["embedding"]["rows"]}
    assert {"onnxruntime fp32", "onnxruntime int8"} <= names
    assert all(row["ratio_to_dlib"] > 2 for row in figures["embedding"]["rows"])
    assert all(row["ratio_to_dlib"] > 2 for row in figures["detector"]["rows"])
    assert {row["network"] for row in figures["members"]} == set(NETWORKS) - {"face-resnet"}
    assert Path(store.cache_dir / "plans").is_dir()
