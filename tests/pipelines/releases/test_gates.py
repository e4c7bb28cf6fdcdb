"""Every gate of a promotion: what it stops, what it lets pass, and that too little evidence is no pass."""

import dataclasses
from collections.abc import Callable

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper
from visaged.pipelines.assembly import parity_of
from visaged.pipelines.engines.engine_loader import EngineInfo
from visaged.pipelines.engines.ort_engine import OrtEngine
from visaged.pipelines.engines.parity import OutputParity, ParityReport, Tolerance
from visaged.pipelines.engines.plan import Backend, Precision
from visaged.pipelines.ensemble import Ensemble, Member
from visaged.pipelines.fuser import DecisionFusion
from visaged.pipelines.learning.metrics import Truth
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.registry import EMOTION_XCEPTION, FACE_RESNET, Network
from visaged.pipelines.releases import gates
from visaged.pipelines.releases.gates import GATES, Cost, Facts, GateReport, GateResult, HoldOut, judge, mid_p
from visaged.pipelines.releases.release import Release, ReleaseMember

F32 = npt.NDArray[np.float32]
K = 8


def release(*networks: Network, space: str = "face-resnet") -> Release:
    members = tuple(
        ReleaseMember(network=n, onnx=n.name) for n in networks or (FACE_RESNET, EMOTION_XCEPTION)
    )
    return Release(members=members, fusion=DecisionFusion(), embedding_space=space)


def says(labels: npt.NDArray[np.int64], sure: float = 0.8) -> F32:
    """`(N, K)` probabilities that say these classes."""
    p = np.full((len(labels), K), (1 - sure) / (K - 1), np.float32)
    p[np.arange(len(labels)), labels] = sure
    return p


def hold_out(n: int, *, wrong: float = 0.2, candidate_wrong: float = 0.2, group_of: int = 1) -> HoldOut:
    """Faces on which the champion is wrong in the first share, and the candidate in the last."""
    labels = np.arange(n) % K
    targets = np.eye(K, dtype=np.float32)[labels]
    order = np.random.default_rng(0).permutation(n)
    champion, candidate = labels.copy(), labels.copy()
    bad = order[: int(wrong * n)]
    champion[bad] = (labels[bad] + 1) % K
    bad = order[: int(candidate_wrong * n)]
    candidate[bad] = (labels[bad] + 1) % K
    groups = np.array([f"g{i // group_of}" for i in range(n)])
    return HoldOut(Truth(targets, groups), says(candidate), says(champion), says(champion))


COST = Cost(np.full(200, 0.010), np.full(200, 0.010), 100, 1000)
FACTS = Facts(release(), release(), {}, hold_out(800), COST, hold_out(100, candidate_wrong=0.1))


def with_candidate(said: F32) -> Facts:
    return dataclasses.replace(FACTS, base=dataclasses.replace(FACTS.base, candidate=said))


def failed(facts: Facts) -> list[str]:
    return [result.name for result in judge(facts) if not result.passed]


def test_a_release_that_is_as_good_and_mends_what_was_flagged_passes_every_gate() -> None:
    results = judge(FACTS)

    assert failed(FACTS) == []
    names = {result.name for result in results}
    assert {"compatibility", "accuracy against champion", "macro F1 against anchor", "target gain"} <= names
    assert {"recall of fear", "calibration", "forgetting", "latency", "memory"} <= names


def _no_licence() -> Facts:
    return dataclasses.replace(FACTS, candidate=release(msgspec.structs.replace(FACE_RESNET, licence=" ")))


def _lost_class() -> Facts:
    small = msgspec.structs.replace(FACE_RESNET, outputs=(FACE_RESNET.outputs[0], *EMOTION_XCEPTION.outputs))
    return dataclasses.replace(FACTS, candidate=release(small))


def _worse_than_the_anchor() -> Facts:
    best = says(FACTS.base.truth.targets.argmax(axis=1))
    return dataclasses.replace(FACTS, base=dataclasses.replace(FACTS.base, anchor=best))


def _parity(largest: float) -> Facts:
    output = OutputParity(
        name="logits", max_abs=largest, l2_max=0, l2_mean=0, top1=1, tolerance=Tolerance(max_abs=0.1, l2=1)
    )
    return dataclasses.replace(FACTS, parity={"x": ParityReport(ran="it", n_inputs=4, outputs=(output,))})


def _loses_fear() -> Facts:
    said = FACTS.base.candidate.copy()
    fear = FACTS.base.truth.targets.argmax(axis=1) == 6
    said[fear] = says(np.zeros(int(fear.sum()), np.int64))
    said[~fear] = FACTS.base.truth.targets[~fear]  # better elsewhere: the sum is no worse
    return with_candidate(said)


def _too_sure() -> Facts:
    return with_candidate(says(FACTS.base.candidate.argmax(axis=1), 0.999))


def _forgot() -> Facts:
    return dataclasses.replace(FACTS, base=hold_out(800, wrong=0.2, candidate_wrong=0.23))


def _breaks_as_much() -> Facts:
    return dataclasses.replace(FACTS, target=hold_out(100))


def _few_fixes() -> Facts:
    return dataclasses.replace(FACTS, target=hold_out(40, wrong=0.2, candidate_wrong=0.15))


PLANTED: list[tuple[Callable[[], Facts], Callable[[Facts], list[GateResult]], str]] = [
    (_no_licence, gates.compatibility, "compatibility"),
    (_lost_class, gates.compatibility, "compatibility"),
    (lambda: dataclasses.replace(FACTS, candidate=release(space="b")), gates.compatibility, "compatibility"),
    (lambda: _parity(0.2), gates.parity, "parity of x"),
    (lambda: _parity(float("inf")), gates.parity, "parity of x"),
    (lambda: dataclasses.replace(FACTS, base=hold_out(399)), gates.non_inferiority, "non-inferiority"),
    (_worse_than_the_anchor, gates.non_inferiority, "accuracy against anchor"),
    (_breaks_as_much, gates.target_gain, "target gain"),
    (_few_fixes, gates.target_gain, "target gain"),
    (_loses_fear, gates.per_class, "recall of fear"),
    (_too_sure, gates.calibration, "calibration"),
    (_forgot, gates.forgetting, "forgetting"),
    (
        lambda: dataclasses.replace(FACTS, cost=dataclasses.replace(COST, candidate_s=np.full(200, 0.0106))),
        gates.latency,
        "latency",
    ),
    (
        lambda: dataclasses.replace(FACTS, cost=dataclasses.replace(COST, candidate_bytes=2000)),
        gates.memory,
        "memory",
    ),
]


@pytest.mark.parametrize(("plant", "gate", "name"), PLANTED)
def test_each_gate_stops_what_it_is_for(
    plant: Callable[[], Facts], gate: Callable[[Facts], list[GateResult]], name: str
) -> None:
    assert gate in GATES
    assert name in [result.name for result in gate(plant()) if not result.passed]


def test_every_gate_has_a_planted_fault() -> None:
    assert {gate for _, gate, _ in PLANTED} == set(GATES)


def test_the_margin_follows_from_the_number_of_faces() -> None:
    bounds = {
        n: gates.non_inferiority(dataclasses.replace(FACTS, base=hold_out(n)))[0].bound for n in (400, 800)
    }

    assert bounds == {400: -0.03, 800: -0.02}


def test_as_many_faces_of_one_person_alone_are_no_evidence() -> None:
    alone = hold_out(800, wrong=0.2, candidate_wrong=0.205)
    alike = hold_out(800, wrong=0.2, candidate_wrong=0.205, group_of=800)

    assert gates.non_inferiority(dataclasses.replace(FACTS, base=alone))[0].passed
    assert not gates.non_inferiority(dataclasses.replace(FACTS, base=alike))[0].passed


def test_a_few_clear_fixes_are_enough_when_few_were_flagged() -> None:
    few = dataclasses.replace(FACTS, target=hold_out(40, wrong=0.2, candidate_wrong=0.1))

    assert gates.target_gain(few)[0].passed
    assert gates.target_gain(dataclasses.replace(FACTS, target=None)) == []


def test_mid_p_is_that_of_the_binomial() -> None:
    assert mid_p(5, 0) == pytest.approx(0.5**5 / 2)
    assert mid_p(3, 3) == pytest.approx(0.5)
    assert mid_p(0, 0) == 1.0


def test_a_report_without_results_is_no_pass_and_survives_json() -> None:
    report = GateReport(release="a", champion="b", anchor="b", at=1.0, data=("x",), results=judge(FACTS))

    assert msgspec.json.decode(msgspec.json.encode(report), type=GateReport) == report
    assert report.passed and not msgspec.structs.replace(report, results=()).passed


def bgr(data: bytes) -> bytes:
    """The network with the colours of its input exchanged, as when it was converted for BGR."""
    model = onnx.load_from_string(data)
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    weights = next(value for value in model.graph.initializer if value.name == first.input[1])
    turned = np.ascontiguousarray(numpy_helper.to_array(weights)[:, ::-1])
    weights.CopyFrom(numpy_helper.from_array(turned, weights.name))
    return bytes(model.SerializeToString())


def test_an_engine_that_was_converted_for_bgr_is_stopped_by_parity(store: ModelStore) -> None:
    path = store.ensure("face-resnet")
    info = EngineInfo(backend=Backend.ONNXRUNTIME, precision=Precision.FP32, device="cpu", plan="built")

    def parity(data: bytes) -> list[GateResult]:
        ensemble = Ensemble([Member(FACE_RESNET, OrtEngine(data), "", info)])
        reports = parity_of(ensemble, store)
        ensemble.close()
        return gates.parity(dataclasses.replace(FACTS, parity=reports))

    assert [result.passed for result in parity(path.read_bytes())] == [True]
    assert [result.passed for result in parity(bgr(path.read_bytes()))] == [False]
