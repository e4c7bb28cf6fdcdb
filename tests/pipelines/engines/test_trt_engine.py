"""TrtEngine over a GPU made of host memory and a TensorRT that tells mean and extremes of every row."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from visaged.pipelines.engines import cuda_device, trt_engine
from visaged.pipelines.engines.cuda_device import DeviceBuffer, DeviceChips, Gpu, StagedBuffer
from visaged.pipelines.engines.plan import Backend, Profile
from visaged.pipelines.engines.trt_builder import build_trt_plan
from visaged.pipelines.engines.trt_engine import TrtEngine
from visaged.pipelines.errors import ModelError
from visaged.pipelines.model_store import ModelStore

from tests.conftest import skip_or_fail
from tests.pipelines.engines.host_gpu import HostGpu, assert_all_is_free
from tests.pipelines.engines.host_trt import (
    CHIP,
    SMALL,
    WHOLE,
    HostTrt,
    assert_answers,
    chips_of,
    make_plan,
    use,
)

F32 = npt.NDArray[np.float32]
Load = Callable[..., TrtEngine]


def on_gpu(gpu: Gpu, chips: F32) -> DeviceChips:
    """Return `chips` on the GPU, queued on a stream that nobody has waited for."""
    with gpu.current():
        buffer, stream, ready = StagedBuffer(gpu), gpu.new_stream(), gpu.cuda.Event()
        (pointer,) = buffer.fill([chips], stream)
        ready.record(stream)
    KEPT.append((buffer, stream))
    return DeviceChips(gpu, pointer, (len(chips), *CHIP), ready)


KEPT: list[object] = []  # what lies behind chips on the GPU, as a cropper would keep it


@pytest.fixture
def host() -> HostGpu:
    KEPT.clear()
    return HostGpu(1 << 28)


@pytest.fixture
def trt(host: HostGpu, monkeypatch: pytest.MonkeyPatch) -> HostTrt:
    return use(HostTrt(host), monkeypatch)


@pytest.fixture
def gpu(trt: HostTrt) -> Gpu:
    """The GPU that engines are loaded onto."""
    return trt.gpu


@pytest.fixture
def load(trt: HostTrt, tmp_path: Path) -> Load:
    """Loads a plan of some profiles, by default one for 1 to 16 chips."""

    def load_plan(*profiles: tuple[tuple[int, ...], ...]) -> TrtEngine:
        path = tmp_path / "plan"
        path.write_bytes(make_plan(*(profiles or (WHOLE,))))  # type: ignore[arg-type]
        return TrtEngine(path, Backend.TENSORRT_RTX)

    return load_plan


def test_every_batch_up_to_the_largest_is_answered(load: Load) -> None:
    engine = load()

    for n in range(1, 17):
        assert_answers(engine.infer(chips_of(n, seed=n)), chips_of(n, seed=n))


def test_a_batch_goes_in_runs_comes_out_and_is_waited_for(load: Load, host: HostGpu) -> None:
    engine = load()
    host.journal.clear()

    engine.infer(chips_of(3))

    assert host.journal == ["copy in", "network", "copy out", "copy out", "synchronize"]


def test_answers_are_ours_to_keep(load: Load) -> None:
    engine = load()
    first, kept = engine.infer(chips_of(2, seed=1)), chips_of(2, seed=1)

    engine.infer(chips_of(2, seed=2))

    assert_answers(first, kept)


def test_input_of_another_type_is_converted(load: Load) -> None:
    chips = np.arange(2 * 3 * 5 * 7).reshape(2, *CHIP)

    assert_answers(load().infer(chips), chips.astype(np.float32))  # type: ignore[arg-type]


def test_chips_on_the_gpu_are_waited_for_and_read_where_they_lie(load: Load, gpu: Gpu, host: HostGpu) -> None:
    engine, chips = load(), chips_of(16)
    lying = on_gpu(gpu, chips)
    host.journal.clear()

    answers = engine.infer(lying)

    assert_answers(answers, chips)
    assert host.journal[:4] == ["wait", "copy in", "record", "network"]
    assert "copy across" not in host.journal


def test_runs_of_chips_that_are_not_aligned_are_moved_first(load: Load, gpu: Gpu, host: HostGpu) -> None:
    """TensorRT reads from multiples of 256 bytes only; a chip of 150 x 150 px begins at any."""
    engine, chips = load(), chips_of(16)
    lying = on_gpu(gpu, chips)

    for start in range(16):
        assert_answers(engine.infer(lying[start : start + 3]), chips[start : start + 3])

    assert host.journal.count("copy across") == 15


def test_chips_of_another_gpu_travel_over_the_host(load: Load) -> None:
    elsewhere = HostGpu().gpu()

    assert_answers(load().infer(on_gpu(elsewhere, chips_of(5))), chips_of(5))


def test_too_large_a_batch_is_a_sentence(load: Load, host: HostGpu) -> None:
    engine = load()

    with pytest.raises(
        ModelError, match=r"takes no input of \(17, 3, 5, 7\), at most \(16, 3, 5, 7\); set \[ensemble\]"
    ):
        engine.infer(chips_of(17))
    with pytest.raises(ModelError, match=r"takes no input of \(0, 3, 5, 7\)"):
        engine.infer(chips_of(0))
    with pytest.raises(ModelError, match=r"\(1, 3, 9, 9\).*smaller frames"):
        engine.infer(np.zeros((1, 3, 9, 9), np.float32))

    assert_answers(engine.infer(chips_of(16)), chips_of(16))


def test_each_batch_runs_on_the_profile_made_for_it(load: Load, trt: HostTrt) -> None:
    engine = load(SMALL, WHOLE)  # best at 1, and at 8

    for n in (1, 2, 3, 4, 5, 16, 1):
        assert_answers(engine.infer(chips_of(n)), chips_of(n))

    assert [(profile, shape[0]) for profile, shape in trt.batches] == [
        (0, 1), (0, 2), (1, 3), (1, 4), (1, 5), (1, 16), (0, 1),
    ]  # fmt: skip


def test_a_batch_that_is_refused_leaves_nothing_running(load: Load, trt: HostTrt, host: HostGpu) -> None:
    engine = load()
    trt.refuses_batches = True
    with pytest.raises(ModelError, match=r"the GPU Host GPU refused a batch of \(2, 3, 5, 7\)"):
        engine.infer(chips_of(2))
    assert host.journal[-2:] == ["copy in", "synchronize"]

    trt.refuses_batches = False

    assert_answers(engine.infer(chips_of(2)), chips_of(2))


def test_a_damaged_plan_is_refused_with_the_librarys_reason(
    trt: HostTrt, tmp_path: Path, host: HostGpu
) -> None:
    (tmp_path / "plan").write_bytes(b"no plan")

    with pytest.raises(
        ModelError,
        match=r"plan cannot be loaded by tensorrt_rtx: Error Code 1: the magic tag does not match; build it",
    ):
        TrtEngine(tmp_path / "plan", Backend.TENSORRT_RTX)

    assert_all_is_free(host)


def test_a_missing_plan_is_a_sentence(trt: HostTrt, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        TrtEngine(tmp_path / "plan", Backend.TENSORRT_RTX)


def test_a_context_that_cannot_be_had_is_a_sentence(load: Load, trt: HostTrt, host: HostGpu) -> None:
    trt.refuses_contexts = True

    with pytest.raises(ModelError, match="tensorrt_rtx cannot run"):
        load()

    assert_all_is_free(host)


def test_a_plan_without_head_room_is_refused_before_it_is_loaded(
    load: Load, trt: HostTrt, host: HostGpu
) -> None:
    host.memory_bytes = 1 << 20

    with pytest.raises(
        ModelError, match=r"the plan .* needs .* MB of Host GPU and 1 MB are free; stop other"
    ):
        load()

    assert trt.n_deserialised == 0


def test_activations_without_head_room_are_refused_before_they_are_taken(
    load: Load, trt: HostTrt, host: HostGpu
) -> None:
    trt.activation_bytes = 120 << 20  # fits once beside the reserve, not twice

    engine = load()
    engine.close()
    with pytest.raises(ModelError, match=r"running .* needs 252 MB of Host GPU"):
        load(SMALL, WHOLE)

    assert_all_is_free(host)


def test_memory_that_runs_out_on_the_way_is_a_sentence_and_all_is_freed(
    load: Load, trt: HostTrt, host: HostGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trt_engine, "check_head_room", lambda *args: None)
    host.memory_bytes = trt.activation_bytes + (1 << 10) + 100  # no room for the answers

    with pytest.raises(ModelError, match="out of memory"):
        load()

    assert_all_is_free(host)


def test_closing_frees_everything_once_from_any_thread(load: Load, host: HostGpu) -> None:
    engine = load(SMALL, WHOLE)
    for n in (1, 16, 3):
        engine.infer(chips_of(n))

    def close_twice() -> None:
        engine.close()
        engine.close()

    thread = threading.Thread(target=close_twice)
    thread.start()
    thread.join()

    assert_all_is_free(host)
    with pytest.raises(ModelError, match="was closed"):
        engine.infer(chips_of(1))


def test_batches_take_no_memory_once_the_largest_was_seen(load: Load, host: HostGpu) -> None:
    engine = load()
    engine.infer(chips_of(16))
    taken = dict(host.taken)

    for n in (*range(1, 17), *range(16, 0, -1)):
        engine.infer(chips_of(n))

    assert dict(host.taken) == taken


def test_answers_have_room_before_the_first_batch(load: Load, gpu: Gpu, host: HostGpu) -> None:
    engine, lying = load(), on_gpu(gpu, chips_of(16))
    taken = dict(host.taken)

    engine.infer(lying)

    assert dict(host.taken) == taken  # chips on the GPU need no room for the input either


def test_engines_are_made_and_freed_beside_one_that_runs(load: Load, host: HostGpu) -> None:
    def prepare() -> None:
        for seed in range(20):
            other = load()
            assert_answers(other.infer(chips_of(4, seed)), chips_of(4, seed))
            other.close()
            done.append(seed)

    done: list[int] = []
    engine = load()
    thread = threading.Thread(target=prepare)
    thread.start()
    while thread.is_alive():
        assert_answers(engine.infer(chips_of(7, 100)), chips_of(7, 100))
    thread.join()
    engine.close()

    assert len(done) == 20
    assert_all_is_free(host)


def test_tensorrt_itself_needs_no_file_of_kernels(
    host: HostGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = use(HostTrt(host, is_rtx=False), monkeypatch)
    (tmp_path / "plan").write_bytes(make_plan(SMALL, WHOLE))

    engine = TrtEngine(tmp_path / "plan", Backend.TENSORRT)
    for n in (1, 9):
        assert_answers(engine.infer(chips_of(n)), chips_of(n))
    engine.close()

    assert [profile for profile, _ in trt.batches] == [0, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["plan"]
    assert_all_is_free(host)


def test_a_buffer_grows_and_is_freed_once(gpu: Gpu, host: HostGpu) -> None:
    buffer = DeviceBuffer(gpu)
    with gpu.current():
        assert buffer.of(0) == 0
        small = buffer.of(100)
        assert buffer.of(50) == small
        large = buffer.of(1000)
        assert host.at(large, 1000).size == 1000
        assert host.live["DeviceAllocation"] == 1
        buffer.free()
        buffer.free()
    assert_all_is_free(host)


@pytest.fixture(scope="module")
def real_plan(store: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real plan of TensorRT-RTX with two profiles, which needs no GPU to be built."""
    pytest.importorskip("tensorrt_rtx")
    small, whole = (
        Profile(minimum=(1, 1, 64, 64), optimum=(best, 1, 64, 64), maximum=(largest, 1, 64, 64))
        for best, largest in ((1, 4), (8, 16))
    )
    data = store.ensure("emotion-xception").read_bytes()
    built = build_trt_plan(data, Backend.TENSORRT_RTX, [small, whole])
    path = tmp_path_factory.mktemp("plan") / "plan"
    path.write_bytes(built.data)
    return path


def test_the_real_tensorrt_rtx_without_a_gpu_gives_its_reason(
    real_plan: Path, host: HostGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it loads onto is our GPU of host memory, of which it knows nothing."""
    if cuda_device.can_run():
        skip_or_fail("no-gpu", "there is a GPU, so a plan can be loaded")
    monkeypatch.setattr(trt_engine, "open_gpu", lambda device: host.gpu())

    with pytest.raises(
        ModelError, match=r"cannot be loaded by tensorrt_rtx: .*(?i:cuda).*; build it on this machine"
    ):
        TrtEngine(real_plan, Backend.TENSORRT_RTX)

    assert_all_is_free(host)


def test_without_a_driver_the_sentence_names_it(real_plan: Path) -> None:
    if cuda_device.can_run():
        skip_or_fail("no-gpu", "there is a GPU")

    with pytest.raises(ModelError, match=r"no GPU can be used|driver does not answer"):
        TrtEngine(real_plan, Backend.TENSORRT_RTX)
