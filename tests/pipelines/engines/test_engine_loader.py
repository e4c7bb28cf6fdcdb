"""What runs a network here: the plan when there is a good one, else ONNX Runtime, and a reason for it."""

import hashlib
import logging
import sys
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from visaged.pipelines.engines import cuda_device, engine_loader
from visaged.pipelines.engines.engine import Engine, EngineConfig
from visaged.pipelines.engines.engine_loader import EngineLoader, Loaded, choose
from visaged.pipelines.engines.hardware import has_int8_instructions, version_of
from visaged.pipelines.engines.ort_engine import OrtEngine
from visaged.pipelines.engines.parity import compare
from visaged.pipelines.engines.parity_inputs import parity_inputs
from visaged.pipelines.engines.plan import Backend, Precision
from visaged.pipelines.engines.plan_builder import build_plan, key_of
from visaged.pipelines.engines.plan_store import PlanStore, StoredPlan
from visaged.pipelines.errors import ConfigError, ModelError
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.registry import row_of, tolerances

F32 = npt.NDArray[np.float32]
NETWORK = "emotion-xception"  # small; where int8 counts, face-resnet
FP16 = EngineConfig(backend="onnxruntime", precision="fp16", device="cpu")
INT8 = EngineConfig(backend="onnxruntime", precision="int8", device="cpu")
OPENVINO = EngineConfig(backend="openvino", precision="fp16")
CONFIGS = pytest.mark.parametrize("config", [FP16, OPENVINO], ids=["onnxruntime", "openvino"])


@pytest.fixture
def models(store: ModelStore, tmp_path: Path) -> ModelStore:
    """The imported networks, in a cache without plans."""
    for network in ("face-resnet", "emotion-xception", "mmod"):
        store.ensure(network)
    for folder in ("models", "archives"):
        (tmp_path / folder).symlink_to(store.cache_dir / folder)
    return ModelStore(tmp_path)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without pycuda, whatever this one has."""
    cuda_device.open_gpu.cache_clear()
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)


def answers(engine: Engine, network: str = NETWORK) -> F32:
    return np.concatenate([engine.infer(chips)["logits"] for chips in parity_inputs(row_of(network))])


def assert_stands_in(loaded: Loaded, models: ModelStore, reason: str) -> None:
    """`loaded` is the imported network itself, in fp32 on ONNX Runtime, and says why."""
    onnx_path = models.ensure(NETWORK)
    info = loaded.info
    assert info.is_fallback and reason in info.reason and "\n" not in info.reason
    assert (info.backend, info.precision, info.device) == (Backend.ONNXRUNTIME, Precision.FP32, "cpu")
    assert info.plan == ""
    assert loaded.onnx_sha256 == hashlib.sha256(onnx_path.read_bytes()).hexdigest()
    assert np.array_equal(answers(loaded.engine), answers(OrtEngine(onnx_path)))


def build(loader: EngineLoader, network: str = NETWORK) -> StoredPlan:
    assert loader.is_plan_missing(network)
    loader.build(network)
    assert not loader.is_plan_missing(network)
    (plan,) = loader.plans.plans()
    return plan


def test_left_to_itself_it_chooses_what_this_machine_is_good_at(
    no_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = choose(EngineConfig())

    assert (chosen.backend, chosen.device) == (Backend.ONNXRUNTIME, "cpu")
    assert chosen.precision is (Precision.INT8 if has_int8_instructions() else Precision.FP32)
    for has_vnni, precision in ((True, Precision.INT8), (False, Precision.FP32)):
        monkeypatch.setattr(engine_loader, "has_int8_instructions", lambda answer=has_vnni: answer)
        for config in (EngineConfig(), EngineConfig(device="cpu"), EngineConfig(backend="onnxruntime")):
            assert choose(config).precision is precision


def test_what_is_configured_wins_over_what_is_chosen(no_gpu: None) -> None:
    for backend in ("onnxruntime", "openvino"):
        for precision in ("fp32", "fp16", "int8"):
            for device in ("auto", "cpu"):
                config = EngineConfig(backend=backend, precision=precision, device=device)
                chosen = choose(config)
                assert (chosen.backend.value, chosen.precision.value) == (backend, precision)
                assert chosen.device == "cpu"


def test_int8_is_only_for_networks_whose_ranges_are_known(models: ModelStore) -> None:
    loader = EngineLoader(INT8, models)

    assert loader.order("face-resnet").precision is Precision.INT8
    assert loader.order("emotion-xception").precision is Precision.FP32
    assert not loader.is_plan_missing("emotion-xception"), "fp32 on ONNX Runtime needs no plan"


def test_the_largest_batch_is_that_of_the_ensemble(models: ModelStore) -> None:
    for max_batch, opt_batch in ((4, 4), (32, 8)):
        order = EngineLoader(FP16, models, max_batch=max_batch).order(NETWORK)
        assert (order.max_batch, order.opt_batch) == (max_batch, opt_batch)


@CONFIGS
def test_without_a_plan_onnx_runtime_stands_in_and_answers_as_fp32(
    config: EngineConfig, models: ModelStore
) -> None:
    loader = EngineLoader(config, models)
    assert loader.is_plan_missing(NETWORK)

    loaded = loader.load(NETWORK)

    assert_stands_in(loaded, models, "its plan is not built for this machine yet")
    assert not list(models.cache_dir.glob("plans/*/*")), "loading built something"


@CONFIGS
def test_once_built_the_plan_runs_and_is_the_current_one(config: EngineConfig, models: ModelStore) -> None:
    loader = EngineLoader(config, models)
    plan = build(loader)

    loaded = loader.load(NETWORK)

    info = loaded.info
    assert (info.plan, info.is_fallback, info.reason) == (plan.folder.name, False, "")
    assert (info.backend.value, info.precision, info.device) == (config.backend, Precision.FP16, "cpu")
    assert loaded.onnx_sha256 == plan.record.key.onnx_sha256
    assert loader.plans.pins(NETWORK) == {"current": plan.folder.name}
    reference = OrtEngine(models.ensure(NETWORK))
    report = compare(
        loaded.engine, reference, parity_inputs(row_of(NETWORK)), tolerances(row_of(NETWORK), Precision.FP16)
    )
    assert report.is_within and report.outputs[0].max_abs > 0, "this is not the fp16 plan"


def test_int8_of_the_face_network_is_built_and_runs(models: ModelStore) -> None:
    loader = EngineLoader(INT8, models)
    plan = build(loader, "face-resnet")

    info = loader.load("face-resnet").info

    assert (info.precision, info.plan, info.is_fallback) == (Precision.INT8, plan.folder.name, False)


def test_only_what_is_missing_is_built(models: ModelStore) -> None:
    loader = EngineLoader(FP16, models)

    assert loader.build_missing(["emotion-xception", "mmod"]) == ["emotion-xception", "mmod"]
    assert loader.build_missing(["emotion-xception", "mmod"]) == []
    assert len(list(loader.plans.plans())) == 2


def test_fp32_on_onnx_runtime_needs_no_plan_and_is_no_fallback(
    models: ModelStore, monkeypatch: pytest.MonkeyPatch, no_gpu: None
) -> None:
    monkeypatch.setattr(engine_loader, "has_int8_instructions", lambda: False)
    loader = EngineLoader(EngineConfig(), models)
    assert not loader.is_plan_missing("face-resnet") and loader.gpu() is None

    info = loader.load("face-resnet").info

    assert (info.backend, info.precision) == (Backend.ONNXRUNTIME, Precision.FP32)
    assert (info.plan, info.is_fallback, info.reason) == ("", False, "")


@CONFIGS
def test_a_damaged_plan_counts_as_none(config: EngineConfig, models: ModelStore) -> None:
    loader = EngineLoader(config, models)
    path = build(loader).path
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])

    assert_stands_in(loader.load(NETWORK), models, "its plan is damaged")

    assert loader.is_plan_missing(NETWORK), "it would never be built again"
    loader.build(NETWORK)
    assert loader.load(NETWORK).info.plan


@CONFIGS
def test_a_plan_of_another_onnx_file_or_machine_counts_as_none(
    config: EngineConfig, models: ModelStore
) -> None:
    loader = EngineLoader(config, models)
    plan = build(loader)
    key = plan.record.key
    loader.plans.prune()
    for other in (
        msgspec.structs.replace(key, onnx_sha256="0" * 64),
        msgspec.structs.replace(key, backend_version="0.1"),
        msgspec.structs.replace(key, hardware=msgspec.structs.replace(key.hardware, cpu="another")),
    ):
        record = msgspec.structs.replace(plan.record, key=other, sha256=hashlib.sha256(b"x").hexdigest())
        loader.plans.publish(record, b"x", "")

    assert_stands_in(loader.load(NETWORK), models, "its plan is not built for this machine yet")


FOREIGN = {
    "text": b"[engine]\nbackend = 1\n" * 100,
    "empty": b"",
    "zeros": bytes(10_000),
    "half": b"",
}


@CONFIGS
@pytest.mark.parametrize("content", FOREIGN)
def test_a_file_that_the_library_refuses_is_a_warning_and_onnx_runtime_stands_in(
    content: str, config: EngineConfig, models: ModelStore, caplog: pytest.LogCaptureFixture
) -> None:
    loader = EngineLoader(config, models)
    plan = build(loader)
    whole = plan.path.read_bytes()
    data = whole[: len(whole) // 2] if content == "half" else FOREIGN[content]
    record = msgspec.structs.replace(plan.record, sha256=hashlib.sha256(data).hexdigest(), n_bytes=len(data))
    loader.plans.publish(record, data, "")

    loaded = loader.load(NETWORK)

    assert_stands_in(loaded, models, "cannot be loaded")
    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert (
        warning.name == "visaged.pipelines.engines.engine_loader" and str(plan.path) in warning.getMessage()
    )
    assert loader.plans.pins(NETWORK) == {}, "it became current"


def test_a_plan_that_does_not_fit_into_memory_is_not_loaded(
    models: ModelStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loader = EngineLoader(FP16, models)
    build(loader)
    monkeypatch.setattr(engine_loader, "free_memory_bytes", lambda: 1 << 20)

    loaded = loader.load(NETWORK)

    assert_stands_in(loaded, models, "MB of memory and 1 MB are free; stop other programs")
    assert "ONNX Runtime stands in" in caplog.text
    monkeypatch.setattr(engine_loader, "free_memory_bytes", lambda: 0)  # the kernel does not say
    assert loader.load(NETWORK).info.plan


def test_a_cache_that_cannot_be_written_serves_as_well(
    models: ModelStore, caplog: pytest.LogCaptureFixture
) -> None:
    loader = EngineLoader(FP16, models)
    plan = build(loader)
    lock = plan.folder.parent / ".lock"
    lock.unlink()
    lock.mkdir()  # what a read-only file system comes to, also for root

    loaded = loader.load(NETWORK)

    assert loaded.info.plan == plan.folder.name and not loaded.info.is_fallback
    assert "could not note which plan is in use" in caplog.text


def test_a_network_that_cannot_be_imported_is_an_error(models: ModelStore) -> None:
    with pytest.raises(ModelError, match="no network is called 'face-net'"):
        EngineLoader(FP16, models).load("face-net")


@pytest.mark.parametrize(
    ("backend", "extra"),
    [("tensorrt", "tensorrt"), ("tensorrt_rtx", "tensorrt-rtx"), ("openvino", "openvino")],
)
def test_a_backend_that_is_not_installed_is_one_sentence(
    backend: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        engine_loader, "version_of", lambda asked: "" if asked.value == backend else version_of(asked)
    )

    with pytest.raises(ConfigError, match=rf"backend {backend} is not installed; run .*\[{extra}\]'`") as no:
        choose(msgspec.convert({"backend": backend}, EngineConfig))
    assert "\n" not in str(no.value)


@pytest.mark.parametrize("backend", ["auto", "tensorrt_rtx"])
def test_a_gpu_that_is_not_there_is_one_sentence(backend: str, no_gpu: None) -> None:
    config = msgspec.convert({"backend": backend, "device": "cuda:0"}, EngineConfig)

    with pytest.raises(
        ConfigError, match=r"^\[engine\] asks for a GPU: no GPU can be used .*device = "
    ) as no:
        choose(config)
    assert "\n" not in str(no.value) and no.value.exit_code == 78


def test_a_gpu_without_a_library_for_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_loader, "version_of", lambda backend: "")

    with pytest.raises(ConfigError, match=r"device cuda:1 needs TensorRT; run .*\[tensorrt-rtx\]"):
        choose(EngineConfig(device="cuda:1"))


@pytest.mark.parametrize(
    ("backend", "device"),
    [("onnxruntime", "cuda:0"), ("openvino", "cuda:3"), ("tensorrt_rtx", "cpu")],
)
def test_a_backend_on_a_device_it_does_not_know_is_one_sentence(backend: str, device: str) -> None:
    config = msgspec.convert({"backend": backend, "device": device}, EngineConfig)

    with pytest.raises(
        ConfigError, match=rf'^\[engine\] backend {backend} does not run on device "{device}"; set device = '
    ):
        choose(config)


def test_two_loaders_share_what_was_built(models: ModelStore) -> None:
    plan = build(EngineLoader(FP16, models))

    other = EngineLoader(FP16, models)

    assert other.load(NETWORK).info.plan == plan.folder.name
    order = other.order(NETWORK)
    assert PlanStore(models.cache_dir).find(key_of(order, models)) == plan
    assert build_plan(order, models, other.plans).folder == plan.folder
