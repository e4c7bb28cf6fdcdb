"""Plans on the GPU answer as their fp32 networks on ONNX Runtime: every network, precision and batch."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
from visaged.pipelines.engines.ort_engine import OrtEngine
from visaged.pipelines.engines.parity import compare
from visaged.pipelines.engines.parity_inputs import face_chips
from visaged.pipelines.engines.plan import Backend, Precision
from visaged.pipelines.engines.plan_builder import PlanOrder, build_plan, open_engine, verify_stored
from visaged.pipelines.engines.plan_store import PlanStore
from visaged.pipelines.engines.precision import ranges_path
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.registry import DETECTORS, NETWORKS, row_of, tolerances

pytestmark = pytest.mark.gpu

CASES = [
    (network, precision)
    for network in (*NETWORKS, *DETECTORS)
    for precision in Precision
    if precision is not Precision.INT8 or ranges_path(network).exists()
]


@pytest.mark.parametrize(
    ("network", "precision"), CASES, ids=[f"{network}-{precision.value}" for network, precision in CASES]
)
def test_a_plan_is_within_its_tolerance_on_real_faces(
    flavour: Backend, network: str, precision: Precision, store: ModelStore, tmp_path: Path
) -> None:
    order = PlanOrder(network=network, backend=flavour, precision=precision)
    plan = build_plan(order, store, PlanStore(tmp_path))

    report = verify_stored(plan, store)

    assert report.ran == "the plan"
    assert report.is_within, report


@pytest.mark.parametrize("network", NETWORKS)
def test_every_batch_answers_as_one_face_at_a_time(
    flavour: Backend, network: str, store: ModelStore, tmp_path: Path
) -> None:
    """Batches of different sizes run on different kernels, and of different profiles."""
    order = PlanOrder(network=network, backend=flavour, precision=Precision.FP32)
    plan, chips = build_plan(order, store, PlanStore(tmp_path)), face_chips(NETWORKS[network].recipe)
    batches = [np.ascontiguousarray(chips[:n]) for n in range(1, 17)]

    with (
        contextlib.closing(open_engine(plan.path, flavour)) as engine,
        contextlib.closing(OrtEngine(store.ensure(network))) as reference,
    ):
        for _ in range(3):  # TensorRT-RTX: compiled, recorded as a CUDA graph, replayed from it
            report = compare(engine, reference, batches, tolerances(row_of(network), Precision.FP32))
            assert report.is_within, report


def test_a_plan_loads_again_from_what_was_compiled(
    flavour: Backend, store: ModelStore, tmp_path: Path
) -> None:
    order = PlanOrder(network="emotion-xception", backend=flavour, precision=Precision.FP16)
    plan = build_plan(order, store, PlanStore(tmp_path))
    chips = face_chips(NETWORKS["emotion-xception"].recipe)
    answers = []

    for _ in range(2):
        with contextlib.closing(open_engine(plan.path, flavour)) as engine:
            answers.append(engine.infer(chips)["logits"])

    assert answers[1] == pytest.approx(answers[0], abs=0.1)  # fp16; other kernels may be at hand
    kept = list(plan.folder.glob("plan-kernels-*.cache"))
    assert len(kept) == (1 if flavour is Backend.TENSORRT_RTX else 0)
