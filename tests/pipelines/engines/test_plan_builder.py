"""Every plan that can be built is built here, tried, stored and found again; what cannot be is a sentence."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from onnx import TensorProto, helper
from visaged.pipelines.cache_files import write_atomically
from visaged.pipelines.engines import cuda_device, plan_builder, trt_builder
from visaged.pipelines.engines.engine import Inputs
from visaged.pipelines.engines.hardware import cpu_hardware, version_of
from visaged.pipelines.engines.openvino_engine import build_openvino_plan
from visaged.pipelines.engines.ort_engine import OrtEngine, build_ort_plan
from visaged.pipelines.engines.parity import Tolerance
from visaged.pipelines.engines.parity_inputs import parity_inputs
from visaged.pipelines.engines.plan import Backend, Precision, Profile
from visaged.pipelines.engines.plan_builder import (
    PlanOrder,
    build_plan,
    describe,
    key_of,
    open_engine,
    verify_stored,
)
from visaged.pipelines.engines.plan_store import PlanStore
from visaged.pipelines.engines.precision import measure_ranges, ranges_path
from visaged.pipelines.engines.trt_builder import build_trt_plan, load_flavour
from visaged.pipelines.errors import ModelError
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.registry import DETECTORS, NETWORKS, row_of, tolerances

F32 = npt.NDArray[np.float32]

BUILDABLE = (Backend.ONNXRUNTIME, Backend.OPENVINO, Backend.TENSORRT_RTX)  # TensorRT itself needs a GPU
ORDERS = [
    PlanOrder(network=network, backend=backend, precision=precision)
    for network in (*NETWORKS, *DETECTORS)
    for backend in BUILDABLE
    for precision in Precision
    if precision is not Precision.INT8 or ranges_path(network).exists()
]
SMALL = PlanOrder(network="emotion-xception", backend=Backend.ONNXRUNTIME, precision=Precision.FP16)
PROFILE = Profile(minimum=(1, 1, 8, 8), optimum=(2, 1, 8, 8), maximum=(4, 1, 8, 8))


def name_of(order: PlanOrder) -> str:
    return f"{order.network}-{order.backend.value}-{order.precision.value}"


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> PlanStore:
    return PlanStore(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def own_plans(tmp_path: Path) -> PlanStore:
    return PlanStore(tmp_path)


def tiny(operator: str = "Relu", *, domain: str = "", producer: str = "tests") -> bytes:
    """An ONNX graph of one operator; `domain` other than "" is known to nobody."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"], domain=domain)],
        "tiny",
        [value("x", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [value("y", TensorProto.FLOAT, ["n", 1, 8, 8])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("nobody", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9, producer_name=producer)
    data: bytes = model.SerializeToString()
    return data


@pytest.mark.parametrize("order", ORDERS, ids=name_of)
def test_a_plan_is_built_within_its_tolerance_stored_and_found_again(
    order: PlanOrder, store: ModelStore, plans: PlanStore
) -> None:
    steps: list[str] = []

    built = build_plan(order, store, plans, steps.append)

    key = key_of(order, store)
    assert plans.find(key) == built
    record = built.record
    assert record.key == key and record.n_bytes == built.path.stat().st_size > 1000
    assert key.backend_version == version_of(order.backend) != ""
    assert record.parity.is_within and record.parity.n_inputs >= 2
    assert {o.name: o.tolerance for o in record.parity.outputs} == tolerances(
        row_of(order.network), order.precision
    )
    assert bool(key.ranges_sha256) == (order.precision is Precision.INT8)
    assert steps == [
        "importing", f"making it {order.precision.value}", "building", "comparing with fp32", "storing",
    ]  # fmt: skip


@pytest.mark.parametrize("order", [o for o in ORDERS if not o.backend.needs_gpu], ids=name_of)
def test_a_cpu_plan_is_for_this_processor_and_any_batch(
    order: PlanOrder, store: ModelStore, plans: PlanStore
) -> None:
    plan = plans.find(key_of(order, store)) or build_plan(order, store, plans)

    assert plan.record.key.hardware == cpu_hardware() and plan.record.parity.ran == "the plan"
    engine = open_engine(plan.path, order.backend)
    row = parity_inputs(row_of(order.network))[0][:1]
    n = 1 if order.network in DETECTORS else 19
    for name, values in engine.infer(np.repeat(row, n, axis=0)).items():
        assert len(values) == n and np.isfinite(values).all(), name
    engine.close()


@pytest.mark.parametrize("order", [o for o in ORDERS if o.backend.needs_gpu], ids=name_of)
def test_a_plan_for_gpus_says_which_and_that_its_graph_was_tried_elsewhere(
    order: PlanOrder, store: ModelStore, plans: PlanStore
) -> None:
    plan = plans.find(key_of(order, store)) or build_plan(order, store, plans)

    if not cuda_device.can_run():
        assert plan.record.parity.ran == "its graph on ONNX Runtime"
    assert plan.record.n_bytes > 100_000
    assert plan.record.key.hardware.compute_capability == "default" and not plan.record.key.hardware.cpu
    assert "no TF32" in plan.record.key.flags
    assert "Engine generation completed" in plan.log(), "the library's log is not kept"
    assert describe(plan)["for"] == "compute capability default"


def test_verifying_a_stored_plan_gives_what_was_recorded(store: ModelStore, plans: PlanStore) -> None:
    plan = build_plan(SMALL, store, plans)

    assert verify_stored(plan, store) == plan.record.parity
    few = verify_stored(plan, store, parity_inputs(row_of(SMALL.network))[:1])
    assert few.n_inputs == 8 and few.is_within


def test_a_damaged_plan_or_one_of_an_older_network_is_not_verified(
    store: ModelStore, own_plans: PlanStore
) -> None:
    plan = build_plan(SMALL, store, own_plans)
    older = msgspec.structs.replace(plan.record.key, onnx_sha256="0" * 64)
    old = own_plans.publish(msgspec.structs.replace(plan.record, key=older), plan.path.read_bytes(), "")
    plan.path.write_bytes(b"damaged")

    for refused in (old, plan):
        with pytest.raises(ModelError, match="is damaged or of an older network; build it again"):
            verify_stored(refused, store)


@pytest.mark.parametrize("backend", BUILDABLE)
def test_ranges_of_ones_own_are_used_and_named_in_the_key(
    backend: Backend, store: ModelStore, own_plans: PlanStore, tmp_path: Path
) -> None:
    network = "emotion-xception"  # none are shipped
    data = store.ensure(network).read_bytes()
    ranges = measure_ranges(network, data, parity_inputs(row_of(network)), "one face")
    path = tmp_path / "own.json"
    write_atomically(path, msgspec.json.encode(ranges))
    order = PlanOrder(network=network, backend=backend, precision=Precision.INT8, ranges=path)

    plan = build_plan(order, store, own_plans)

    assert plan.record.key.ranges_sha256 == ranges.sha256
    if backend.needs_gpu and not cuda_device.can_run():
        with pytest.raises(ModelError, match="was built with INT8 ranges of your own; verify it on a GPU"):
            verify_stored(plan, store)
    else:
        assert verify_stored(plan, store) == plan.record.parity


def test_fp32_for_a_gpu_that_has_none_fails_with_the_librarys_reason(
    store: ModelStore, own_plans: PlanStore
) -> None:
    order = PlanOrder(
        network="face-resnet",
        backend=Backend.TENSORRT_RTX,
        precision=Precision.FP32,
        compute_capabilities=("SM75",),
    )

    with pytest.raises(ModelError, match="Fold"):  # the reason of an earlier failure must not stick
        build_trt_plan(tiny("Fold", domain="nobody"), Backend.TENSORRT_RTX, PROFILE)

    with pytest.raises(ModelError, match=r"Turing \(SM75\): FP32 GEMM is not supported") as refused:
        build_plan(order, store, own_plans)

    assert str(refused.value).startswith("tensorrt_rtx cannot build this network: ")
    assert "\n" not in str(refused.value)
    assert list(own_plans.plans()) == [] and not list(own_plans.folder.rglob("plan"))


def test_gpus_that_are_named_are_in_the_key(store: ModelStore, own_plans: PlanStore) -> None:
    order = PlanOrder(
        network="mmod",
        backend=Backend.TENSORRT_RTX,
        precision=Precision.FP16,
        compute_capabilities=("SM86", "SM89"),
    )

    plan = build_plan(order, store, own_plans)

    assert plan.record.key.hardware.compute_capability == "SM86,SM89"
    assert plan.record.n_bytes > 100_000


def test_a_plan_is_never_tried_on_more_faces_than_it_takes(
    store: ModelStore, own_plans: PlanStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    class Counting(OrtEngine):
        def infer(self, inputs: Inputs) -> Mapping[str, F32]:
            sizes.append(len(inputs))
            return super().infer(inputs)

    monkeypatch.setattr(plan_builder, "open_engine", lambda path, backend, device: Counting(path))
    order = PlanOrder(
        network="emotion-xception",
        backend=Backend.TENSORRT_RTX,
        precision=Precision.FP16,
        max_batch=3,
        opt_batch=2,
    )

    plan = build_plan(order, store, own_plans)
    built_with = sizes.copy()
    verify_stored(plan, store)

    assert plan.record.key.profiles[-1].maximum[0] == 3
    assert built_with == sizes[len(built_with) :] == [3, 3, 2, 3, 3, 2]


def test_on_a_machine_with_another_gpu_the_graph_is_tried_instead(
    store: ModelStore, own_plans: PlanStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = cuda_device.Gpu(0, "a GPU of another kind", "9.0", cuda=None, context=None)
    monkeypatch.setattr(cuda_device, "open_gpu", lambda device: other)
    order = PlanOrder(
        network="emotion-xception",
        backend=Backend.TENSORRT_RTX,
        precision=Precision.FP16,
        compute_capabilities=("SM89",),
    )

    plan = build_plan(order, store, own_plans)

    assert plan.record.parity.ran == "its graph on ONNX Runtime"
    assert verify_stored(plan, store) == plan.record.parity


def test_an_unknown_gpu_is_one_sentence_with_those_known(store: ModelStore, own_plans: PlanStore) -> None:
    order = PlanOrder(
        network="emotion-xception",
        backend=Backend.TENSORRT_RTX,
        precision=Precision.FP16,
        compute_capabilities=("SM89", "RTX 4090"),
    )

    with pytest.raises(ModelError, match=r"^tensorrt_rtx knows no GPU 'RTX 4090'; it knows SM75, .*SM89"):
        build_plan(order, store, own_plans)
    assert list(own_plans.plans()) == []


BUILDERS: dict[str, Callable[[bytes], object]] = {
    "onnxruntime": build_ort_plan,
    "openvino": build_openvino_plan,
    "tensorrt_rtx": lambda data: build_trt_plan(data, Backend.TENSORRT_RTX, PROFILE),
}


@pytest.mark.parametrize("builder", BUILDERS)
def test_the_tiny_graph_itself_can_be_built(builder: str) -> None:
    assert BUILDERS[builder](tiny())


@pytest.mark.parametrize("cut", [0, 1, 0.5, -20, -1, "text"])
@pytest.mark.parametrize("builder", BUILDERS)
def test_a_truncated_or_foreign_graph_is_refused_with_a_reason(builder: str, cut: float | str) -> None:
    data = tiny()
    if isinstance(cut, str):
        data = b"[engine]\nbackend = 1\n" * 20
    else:
        data = data[: int(len(data) * cut)] if isinstance(cut, float) else data[:cut]

    with pytest.raises(ModelError, match=r"cannot (build|read) this network: .{10}") as refused:
        BUILDERS[builder](data)
    assert "\n" not in str(refused.value) and "no reason" not in str(refused.value)


@pytest.mark.parametrize("builder", BUILDERS)
def test_an_operator_that_is_not_supported_is_named(builder: str) -> None:
    with pytest.raises(ModelError, match=r"cannot (build|read) this network: .*Fold") as refused:
        BUILDERS[builder](tiny("Fold", domain="nobody"))
    assert "\n" not in str(refused.value)


def test_two_builds_in_one_process_have_each_its_own_log() -> None:
    first = build_trt_plan(tiny(producer="Alpha"), Backend.TENSORRT_RTX, PROFILE)
    second = build_trt_plan(tiny(producer="Beta"), Backend.TENSORRT_RTX, PROFILE)

    for built, own, other in ((first, "Alpha", "Beta"), (second, "Beta", "Alpha")):
        text = "\n".join(built.log)
        assert own in text and other not in text
        assert "Engine generation completed" in text


def test_a_build_that_failed_leaves_nothing_in_the_log_of_the_next() -> None:
    for operator in ("Fold", "Crease"):
        with pytest.raises(ModelError, match=operator):
            build_trt_plan(tiny(operator, domain="nobody"), Backend.TENSORRT_RTX, PROFILE)

    built = build_trt_plan(tiny(), Backend.TENSORRT_RTX, PROFILE)

    assert not any(line.startswith("error") or "Fold" in line for line in built.log)


def test_tensorrt_that_is_not_installed_is_one_sentence(
    store: ModelStore, own_plans: PlanStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(
        ModelError, match=r"^tensorrt cannot be loaded .*`pip install 'visaged\[tensorrt\]'`$"
    ):
        load_flavour(Backend.TENSORRT)

    monkeypatch.setattr(plan_builder, "version_of", lambda backend: "")
    for backend, extra in ((Backend.TENSORRT, "tensorrt"), (Backend.TENSORRT_RTX, "tensorrt-rtx")):
        order = PlanOrder(network="mmod", backend=backend, precision=Precision.FP16)
        with pytest.raises(ModelError, match=rf"{backend.value} is not installed; run .*\[{extra}\]'`"):
            build_plan(order, store, own_plans)


def test_gpus_cannot_be_named_to_tensorrt() -> None:
    flavour_without_capabilities = object()

    with pytest.raises(ModelError, match="tensorrt builds for the GPU of this machine; leave --compute-cap"):
        trt_builder._target(flavour_without_capabilities, None, Backend.TENSORRT, ("SM89",))


def test_an_unknown_network_or_int8_without_ranges_is_one_sentence(
    store: ModelStore, own_plans: PlanStore
) -> None:
    unknown = PlanOrder(network="face-net", backend=Backend.ONNXRUNTIME, precision=Precision.FP32)
    with pytest.raises(ModelError, match="no network is called 'face-net'; known are face-resnet"):
        build_plan(unknown, store, own_plans)
    int8 = PlanOrder(network="mmod", backend=Backend.ONNXRUNTIME, precision=Precision.INT8)
    with pytest.raises(ModelError, match=r"no INT8 ranges .*mmod\.ranges\.json .*choose another precision"):
        build_plan(int8, store, own_plans)


def test_a_plan_out_of_its_tolerance_is_refused_and_the_one_before_stays(
    store: ModelStore, own_plans: PlanStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = build_plan(SMALL, store, own_plans)
    written = before.path.stat().st_mtime_ns
    tight = {"logits": Tolerance(max_abs=1e-9, l2=1e-9, top1=1.0)}
    monkeypatch.setattr(plan_builder, "tolerances", lambda network, precision: tight)

    with pytest.raises(
        ModelError, match=r"too far from the fp32 network and was not stored: logits: max abs"
    ):
        build_plan(SMALL, store, own_plans)

    assert own_plans.find(before.record.key) == before
    assert before.path.stat().st_mtime_ns == written


def test_a_plan_that_answers_something_else_is_refused(
    store: ModelStore, own_plans: PlanStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that lost its sign stands for whatever a library may do wrong."""
    right = store.ensure(SMALL.network).read_bytes()
    seen: list[bytes] = []

    def wrong(graph: bytes) -> bytes:
        seen.append(graph)
        return build_ort_plan(right.replace(b"Relu", b"Sqrt"))

    monkeypatch.setattr(plan_builder, "build_ort_plan", wrong)
    with pytest.raises(ModelError, match="too far from the fp32 network and was not stored"):
        build_plan(SMALL, store, own_plans)
    assert seen and list(own_plans.plans()) == []
