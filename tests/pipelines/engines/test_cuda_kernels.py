"""Chips and canvases from a GPU made of host memory: the same as from the CPU, and nothing is leaked."""

import logging
import shutil
import threading
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from visaged.kernels.pyramid import lay_out, paint_canvas
from visaged.pipelines.assembly import StageConfigs, assemble
from visaged.pipelines.cropper import Cropper
from visaged.pipelines.detector import DetectorConfig, build_detector
from visaged.pipelines.engines import cuda_kernels
from visaged.pipelines.engines.cuda_device import DeviceBuffer, DeviceChips, StagedBuffer
from visaged.pipelines.engines.cuda_kernels import CudaCropper, CudaPainter, Face
from visaged.pipelines.engines.cuda_source import compile_host
from visaged.pipelines.engines.engine import EngineConfig
from visaged.pipelines.engines.engine_loader import EngineLoader
from visaged.pipelines.engines.ort_engine import OrtEngine
from visaged.pipelines.errors import ModelError
from visaged.pipelines.mmod_detector import MmodDetector
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.registry import EMOTION_XCEPTION, FACE_RESNET, ChipRecipe, Colour, Light

from tests.conftest import skip_or_fail
from tests.pipelines.engines.host_gpu import HostError, HostGpu

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

RECIPES = (FACE_RESNET.recipe, EMOTION_XCEPTION.recipe)
ON_CPU = StageConfigs(engine=EngineConfig(backend="onnxruntime", precision="fp32"))


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that g++ compiles the kernels into, once."""
    if shutil.which("g++") is None:
        skip_or_fail("g++", "no g++ to compile the kernels with (Debian: apt install g++)")
    return tmp_path_factory.mktemp("host")


@pytest.fixture
def host(libraries: Path, monkeypatch: pytest.MonkeyPatch) -> HostGpu:
    """A GPU for which kernels are compiled by g++."""

    def compile_cubin(name: str, arch: str, folder: Path) -> Path:
        assert arch == "sm_86"
        return compile_host(name, libraries)

    monkeypatch.setattr(cuda_kernels, "compile_cubin", compile_cubin)
    return HostGpu()


@pytest.fixture
def cropper(host: HostGpu, tmp_path: Path) -> CudaCropper:
    return CudaCropper(host.gpu(), tmp_path)


@pytest.fixture(scope="module")
def face(astronaut: U8, store: ModelStore) -> F32:
    """`(5, 2)` px, the landmarks of the photo."""
    return build_detector(DetectorConfig(), store).detect(astronaut)[0].landmarks


@pytest.fixture(scope="module")
def faces(astronaut: U8, face: F32) -> list[Face]:
    """Frames of several sizes with 2, 0, 1 and 3 faces, the last so large that they are halved first."""
    wide = np.pad(astronaut, ((0, 100), (0, 300), (0, 0)))
    large = cv2.resize(astronaut, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC).astype(np.uint8)
    part = astronaut[20:400, 30:500]  # rows lie apart
    return [
        (astronaut, np.stack([face, face + 7])),
        (wide, np.zeros((0, 5, 2), np.float32)),
        (part, face[None] - np.array([30, 20], np.float32)),
        (large, np.stack([face * 3, face * 3 + 40, face * 3 - 25])),
    ]


def assert_same(chips: F32 | DeviceChips, reference: F32, recipe: ChipRecipe) -> None:
    """Compare in grey levels: at most one apart, and nearly nowhere."""
    ours = np.asarray(chips)
    assert ours.shape == reference.shape == chips.shape
    difference = np.abs(ours - reference) * recipe.scale
    assert difference.max(initial=0) < 1 + 1e-3
    assert (difference > 1e-3).mean() < 2e-3


def test_chips_of_several_frames_are_the_cpus(cropper: CudaCropper, faces: list[Face]) -> None:
    chips = cropper.crop_all(faces, RECIPES)

    assert list(chips) == list(RECIPES)
    for recipe, reference in Cropper().crop_all(faces, RECIPES).items():
        assert isinstance(chips[recipe], DeviceChips)
        assert len(chips[recipe]) == 6
        assert_same(chips[recipe], reference, recipe)


@pytest.mark.parametrize("light", [Light.CLAHE, Light.HE_BLEND])
def test_a_recipe_with_its_own_light_is_cut_on_the_host(
    cropper: CudaCropper, faces: list[Face], light: Light
) -> None:
    lit = ChipRecipe(size=64, padding=0.25, colour=Colour.GREY, light=light, mean=(127.5,), scale=127.5)

    chips = cropper.crop_all(faces, [RECIPES[1], lit])

    assert isinstance(chips[lit], np.ndarray)
    assert np.array_equal(chips[lit], Cropper().crop_all(faces, [lit])[lit])
    assert_same(chips[RECIPES[1]], Cropper().crop_all(faces, RECIPES)[RECIPES[1]], RECIPES[1])


def test_no_faces_launch_nothing(cropper: CudaCropper, host: HostGpu, astronaut: U8) -> None:
    none = np.zeros((0, 5, 2), np.float32)

    chips = cropper.crop_all([(astronaut, none), (astronaut, none)], RECIPES)

    assert [np.asarray(chips[recipe]).shape for recipe in RECIPES] == [(0, 3, 150, 150), (0, 1, 64, 64)]
    assert not {"halve", "crop_f32"} & set(host.journal)


def test_all_frames_and_tables_go_up_in_one_copy(
    cropper: CudaCropper, host: HostGpu, faces: list[Face]
) -> None:
    np.asarray(cropper.crop_all(faces, RECIPES)[RECIPES[0]])

    ran = [what for what in host.journal if what != "synchronize"]
    assert ran.count("copy in") == 1
    assert ran[0] == "copy in"
    assert ran[-1] == "record"
    assert ran.count("crop_f32") == 6  # three frames with faces, two recipes


def test_many_calls_take_no_more_memory_than_the_largest(
    cropper: CudaCropper, host: HostGpu, faces: list[Face]
) -> None:
    for _ in range(2):
        cropper.crop_all(faces, RECIPES)
    taken, live = dict(host.taken), dict(host.live)

    for index in range(50):
        some = faces[: 1 + index % len(faces)]
        chips = cropper.crop_all(some, RECIPES)
        if index % 10 == 0:
            assert_same(chips[RECIPES[0]], Cropper().crop_all(some, RECIPES)[RECIPES[0]], RECIPES[0])

    assert dict(host.taken) == taken
    assert dict(host.live) == live
    assert host.leaked == []


def test_a_call_does_not_touch_what_the_last_one_still_copies(
    cropper: CudaCropper, astronaut: U8, face: F32
) -> None:
    """Nobody waited for the first call; the page-locked memory would complain."""
    cropper.crop_all([(np.zeros_like(astronaut), face[None])], RECIPES)

    chips = cropper.crop_all([(astronaut, face[None])], RECIPES)

    assert_same(chips[RECIPES[0]], Cropper().crop(astronaut, face[None], RECIPES[0]), RECIPES[0])


def test_a_frame_may_change_as_soon_as_its_chips_are_queued(
    cropper: CudaCropper, astronaut: U8, face: F32
) -> None:
    """Frames lie in a ring that the camera writes on."""
    frame = astronaut.copy()

    chips = cropper.crop_all([(frame, face[None])], RECIPES)
    frame[:] = 0

    assert_same(chips[RECIPES[0]], Cropper().crop(astronaut, face[None], RECIPES[0]), RECIPES[0])


def test_another_thread_may_crop_and_leaks_nothing(host: HostGpu, tmp_path: Path, faces: list[Face]) -> None:
    def work() -> None:
        cropper = CudaCropper(host.gpu(), tmp_path)
        for _ in range(3):
            found.append(np.asarray(cropper.crop_all(faces, RECIPES)[RECIPES[1]]))
        keep.append(cropper)  # a cropper lives as long as the process

    found: list[F32] = []
    keep: list[CudaCropper] = []
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 6
    assert all(np.array_equal(chips, found[0]) for chips in found)
    assert host.leaked == []
    assert host.context.depth == 0


@pytest.mark.parametrize(
    "frame", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3)), np.zeros((9, 9, 4), np.uint8)]
)
def test_what_is_no_frame_is_refused(cropper: CudaCropper, face: F32, frame: U8) -> None:
    with pytest.raises(ValueError, match="frame must be"):
        cropper.crop_all([(frame, face[None])], RECIPES)


def test_landmarks_that_are_not_finite_are_refused(cropper: CudaCropper, astronaut: U8, face: F32) -> None:
    with pytest.raises(ValueError, match="landmarks"):
        cropper.crop_all([(astronaut, face[None] * np.float32(np.nan))], RECIPES)
    assert len(cropper.crop_all([(astronaut, face[None])], RECIPES)[RECIPES[0]]) == 1


def test_memory_that_is_used_up_is_a_sentence(host: HostGpu, tmp_path: Path, faces: list[Face]) -> None:
    host.memory_bytes = 1 << 20
    cropper = CudaCropper(host.gpu(), tmp_path)

    with pytest.raises(
        ModelError, match=r"Host GPU failed \(cuMemAlloc failed: out of memory\); `nvidia-smi"
    ):
        cropper.crop_all(faces, RECIPES)

    host.memory_bytes = 1 << 30
    assert len(cropper.crop_all(faces, RECIPES)[RECIPES[0]]) == 6
    assert host.context.depth == 0


def test_quality_is_the_cpus(cropper: CudaCropper, astronaut: U8, face: F32) -> None:
    assert np.array_equal(cropper.quality(astronaut, face[None]), Cropper().quality(astronaut, face[None]))


def test_chips_on_the_gpu_are_cut_into_runs(cropper: CudaCropper, faces: list[Face]) -> None:
    chips = cropper.crop_all(faces, RECIPES)[RECIPES[0]]
    whole = np.asarray(chips)

    for rows in (slice(0, 2), slice(2, 6), slice(4, 99), slice(-1, None), slice(5, 2), slice(6, 9)):
        part = chips[rows]
        assert len(part) == len(whole[rows])
        assert np.array_equal(np.asarray(part), whole[rows])
        assert np.array_equal(np.asarray(part[1:]), whole[rows][1:])
    with pytest.raises(ValueError, match="cut into runs"):
        chips[::2]


def test_chips_become_arrays_of_any_type_but_never_without_a_copy(
    cropper: CudaCropper, faces: list[Face]
) -> None:
    chips = cropper.crop_all(faces, RECIPES)[RECIPES[0]]

    assert np.asarray(chips, np.float64).dtype == np.float64
    assert np.ascontiguousarray(chips, np.float32).dtype == np.float32
    with pytest.raises(ValueError, match="copy"):
        np.array(chips, copy=False)


@pytest.mark.parametrize("size", [(512, 512), (120, 160), (333, 501)])
def test_the_canvas_is_the_cpus(host: HostGpu, tmp_path: Path, astronaut: U8, size: tuple[int, int]) -> None:
    frame = astronaut[: size[0], : size[1]]  # rows may lie apart
    layout = lay_out(*frame.shape[:2])
    painter = CudaPainter(host.gpu(), tmp_path)

    canvas = painter.paint(frame, layout)

    assert np.array_equal(np.asarray(canvas), paint_canvas(frame, layout))


def test_another_layout_blackens_the_gaps_and_the_same_one_need_not(
    host: HostGpu, tmp_path: Path, astronaut: U8
) -> None:
    painter = CudaPainter(host.gpu(), tmp_path)
    frames = [astronaut, astronaut[:300], astronaut[100:400], astronaut, astronaut[:, :200]]

    for frame in frames:
        layout = lay_out(*frame.shape[:2])
        assert np.array_equal(np.asarray(painter.paint(frame, layout)), paint_canvas(frame, layout))

    assert host.journal.count("fill") == 4
    assert host.leaked == []


def test_a_canvas_that_found_no_memory_is_black_in_its_gaps_later(
    host: HostGpu, tmp_path: Path, astronaut: U8
) -> None:
    painter = CudaPainter(host.gpu(), tmp_path)
    small = astronaut[:100, :100]
    painter.paint(small, lay_out(100, 100))
    host.memory_bytes = 1 << 20
    with pytest.raises(ModelError, match="out of memory"):
        painter.paint(astronaut, lay_out(512, 512))

    canvas = painter.paint(small, lay_out(100, 100))

    assert np.array_equal(np.asarray(canvas), paint_canvas(small, lay_out(100, 100)))


def test_many_canvases_take_no_more_memory(host: HostGpu, tmp_path: Path, astronaut: U8) -> None:
    painter = CudaPainter(host.gpu(), tmp_path)
    painter.paint(astronaut, lay_out(512, 512))
    taken = dict(host.taken)

    for shift in range(50):
        painter.paint(np.roll(astronaut, shift, axis=1), lay_out(512, 512))

    assert dict(host.taken) == taken


@pytest.mark.parametrize("frame", [np.zeros((9, 9, 3), np.uint8), np.zeros((512, 512, 3), np.float32)])
def test_a_layout_of_another_frame_is_refused(host: HostGpu, tmp_path: Path, frame: U8) -> None:
    with pytest.raises(ValueError, match="another frame"):
        CudaPainter(host.gpu(), tmp_path).paint(frame, lay_out(512, 512))


def test_the_detector_finds_the_same_boxes_with_a_canvas_from_the_gpu(
    host: HostGpu, tmp_path: Path, astronaut: U8, store: ModelStore
) -> None:
    engine = OrtEngine(store.ensure("mmod"))
    on_gpu = MmodDetector(engine, CudaPainter(host.gpu(), tmp_path).paint)

    for min_face_px in (80, 60):
        found = on_gpu.boxes(astronaut, min_face_px)
        expected = MmodDetector(engine).boxes(astronaut, min_face_px)

        assert len(found) == len(expected) >= 1
        for (box, score), (expected_box, expected_score) in zip(found, expected, strict=True):
            assert np.array_equal(box, expected_box)
            assert score == expected_score
    engine.close()


def test_stages_beside_a_gpu_read_the_same_faces(
    host: HostGpu, tmp_path: Path, astronaut: U8, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with networks on the CPU, as while their plans are being built."""
    with assemble(ON_CPU, state=tmp_path / "cpu", cache=cache) as stages:
        (expected,) = stages.photo_reader().read(astronaut)
    monkeypatch.setattr(EngineLoader, "gpu", lambda self: host.gpu())
    mmod = StageConfigs(engine=ON_CPU.engine, detector=DetectorConfig(kind="mmod"))

    with assemble(ON_CPU, state=tmp_path / "gpu", cache=cache) as stages:
        assert isinstance(stages.cropper, CudaCropper)
        (face,) = stages.photo_reader().read(astronaut)
    with assemble(mmod, state=tmp_path / "mmod", cache=cache) as stages:
        (other,) = stages.photo_reader().read(astronaut)

    assert face.embedding == pytest.approx(expected.embedding, abs=0.01)
    assert np.linalg.norm(other.embedding - expected.embedding) < 0.4
    assert "paint_level" in host.journal


def test_without_nvcc_the_cpu_cuts_and_the_log_says_so_once(
    host: HostGpu,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def no_nvcc(name: str, arch: str, folder: Path) -> Path:
        raise ModelError("cannot compile CUDA sources: nvcc is not on PATH; install the CUDA toolkit")

    monkeypatch.setattr(cuda_kernels, "compile_cubin", no_nvcc)
    monkeypatch.setattr(EngineLoader, "gpu", lambda self: host.gpu())

    with caplog.at_level(logging.WARNING), assemble(ON_CPU, state=tmp_path, cache=cache) as stages:
        assert isinstance(stages.cropper, Cropper)

    assert [record.getMessage() for record in caplog.records] == [
        "chips are cut on the CPU: cannot compile CUDA sources: nvcc is not on PATH; install the CUDA toolkit"
    ]


def test_the_gpu_of_host_memory_forgives_nothing(host: HostGpu) -> None:
    """The fake must catch what it is there to catch."""
    gpu = host.gpu()
    buffer = DeviceBuffer(gpu)
    with pytest.raises(HostError, match="invalid device context"):
        buffer.of(8)
    with gpu.current():
        staged, stream = StagedBuffer(gpu), gpu.new_stream()
        (address,) = staged.fill([np.arange(4, dtype=np.float32)], stream)
        with pytest.raises(HostError, match="on its way"):
            staged.fill([np.zeros(4, np.float32)], stream)
        stream.synchronize()
        values = staged.read((4,), stream)
    for touch in (values.copy, lambda: values + 1, lambda: values.__setitem__(0, 1)):
        with pytest.raises(HostError, match="on its way"):
            touch()
    with gpu.current():
        stream.synchronize()
        assert values.copy().tolist() == [0, 1, 2, 3]
        staged.free()
        with pytest.raises(HostError, match="illegal memory access"):
            host.memcpy_dtoh(np.zeros(4, np.float32), address)
    del stream
    assert host.leaked == ["HostStream"]
