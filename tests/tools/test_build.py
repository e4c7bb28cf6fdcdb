"""`visaged build`, `plans` and `calibrate` as an operator uses them, on a cache of their own."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from typer.testing import CliRunner
from visaged.pipelines.engines.ort_engine import OrtEngine
from visaged.pipelines.engines.plan import Backend, Precision
from visaged.pipelines.engines.plan_store import PlanStore, StoredPlan
from visaged.pipelines.engines.precision import Ranges, read_ranges
from visaged.pipelines.errors import ModelError, PhotoError, SourceError, VisagedError
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.registry import NETWORKS
from visaged.tools import cli
from visaged.tools.photo_faces import faces_of, photos_under

U8 = npt.NDArray[np.uint8]
Run = Callable[..., str]


@pytest.fixture
def own_cache(tmp_path: Path, store: ModelStore) -> Path:
    """A cache with the imported networks and no plan; the session's stays as it is."""
    store.ensure_all()
    folder = tmp_path / "cache"
    folder.mkdir()
    for name in ("models", "archives"):
        (folder / name).symlink_to(store.cache_dir / name)
    return folder


@pytest.fixture
def run(tmp_path: Path, own_cache: Path) -> Run:
    """Run a command of visaged with a configuration of its own, and return what it printed."""
    config = tmp_path / "visaged.toml"
    config.write_text(f'[paths]\ncache = "{own_cache}"\nstate = "{tmp_path}/state"\n')

    def invoke(*words: str, exit_code: int = 0) -> str:
        line = [*words, "--config", str(config)]
        result = CliRunner().invoke(cli.build_app(words[0]), line, env={"COLUMNS": "80"})
        if isinstance(result.exception, VisagedError):
            raise result.exception
        assert result.exit_code == exit_code, (result.output, result.exception)
        return result.output

    return invoke


@pytest.fixture
def photos(tmp_path: Path, astronaut: U8) -> Path:
    """Three photos of one person, one of nobody, and a file that is none."""
    folder = tmp_path / "photos"
    for name, rgb in {
        "Eileen/1.png": astronaut,
        "Eileen/2.png": astronaut[:, ::-1],
        "Mirrored/3.png": (astronaut * 0.7).astype(np.uint8),
        "Nobody/4.png": np.zeros((64, 64, 3), np.uint8),
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), np.ascontiguousarray(rgb[..., ::-1]))
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("no photo either")
    return folder


def plans_in(cache: Path) -> list[StoredPlan]:
    return list(PlanStore(cache).plans())


def kinds_in(cache: Path) -> set[tuple[str, str, str]]:
    keys = [plan.record.key for plan in plans_in(cache)]
    return {(key.network, key.backend.value, key.precision.value) for key in keys}


def test_without_words_everything_that_is_configured_is_built(run: Run, own_cache: Path) -> None:
    printed = run("build")

    assert kinds_in(own_cache) == {
        ("face-resnet", "onnxruntime", "fp32"),
        ("face-resnet", "onnxruntime", "int8"),
        ("emotion-vgg13", "onnxruntime", "fp32"),
        ("emotion-resnet", "onnxruntime", "fp32"),
        ("mmod", "onnxruntime", "fp32"),
    }
    assert printed.count(": built in ") == 5 and printed.count("(the plan)") == 5
    for plan in plans_in(own_cache):
        assert f"{plan.record.key}: built in" in printed


def test_what_is_there_already_is_built_again_only_when_forced(run: Run, own_cache: Path) -> None:
    words = ("build", "mmod", "--precision", "fp16")
    assert ": built in " in run(*words)
    (first,) = plans_in(own_cache)

    assert ": there already, " in run(*words)
    assert plans_in(own_cache) == [first]
    assert ": built in " in run(*words, "--force")

    (again,) = plans_in(own_cache)
    assert again.folder == first.folder and again.record.built_at > first.record.built_at


def test_backends_and_precisions_may_be_given_several_times(run: Run, own_cache: Path) -> None:
    run(
        "build", "emotion-xception", "--backend", "openvino", "--backend", "tensorrt_rtx",
        "--precision", "fp16", "--precision", "fp32",
        "--compute-capability", "SM89", "--max-batch", "4", "--opt-batch", "8",
    )  # fmt: skip

    assert kinds_in(own_cache) == {
        ("emotion-xception", backend, precision)
        for backend in ("openvino", "tensorrt_rtx")
        for precision in ("fp32", "fp16")
    }
    for plan in plans_in(own_cache):
        if plan.record.key.backend is Backend.TENSORRT_RTX:
            assert plan.record.key.hardware.compute_capability == "SM89"
            few, many = map(str, plan.record.key.profiles)
            assert few == "1x1x64x64 / 1x1x64x64 / 4x1x64x64"
            assert many == "1x1x64x64 / 4x1x64x64 / 4x1x64x64"


def test_the_list_fits_a_terminal_and_shows_fingerprints_and_roles(run: Run, own_cache: Path) -> None:
    assert run("plans", "list").strip() == "no plans yet; `visaged build` makes some"
    run("build", "mmod", "emotion-xception", "--precision", "fp16", "--backend", "tensorrt_rtx")
    store = PlanStore(own_cache)
    emotion, mmod = store.plans()
    store.promote(mmod)
    store.pin(mmod, "previous")

    lines = run("plans", "list").splitlines()

    assert max(map(len, lines)) <= 80
    for plan, role in ((emotion, ""), (mmod, "current")):
        (line,) = [line for line in lines if plan.folder.name in line]
        assert plan.record.key.network in line and "fp16" in line and role in line


def test_inspecting_shows_everything_and_the_log(run: Run, own_cache: Path) -> None:
    run("build", "mmod", "--precision", "fp16", "--backend", "tensorrt_rtx")
    (plan,) = plans_in(own_cache)

    printed = run("plans", "inspect", plan.folder.name[:6])

    for text in ("mmod", "tensorrt_rtx", "fp16", "compute capability default", "no TF32", "CC0-1.0", "yes"):
        assert text in printed
    assert plan.record.key.onnx_sha256[:16] in printed
    assert "build log" in printed and "Engine generation completed" in printed
    plan.path.write_bytes(b"damaged")
    assert "NO: damaged, build it again" in run("plans", "inspect", plan.folder.name)


def test_verifying_on_the_shipped_face_and_on_photos(run: Run, own_cache: Path, photos: Path) -> None:
    run("build", "face-resnet", "--precision", "int8")
    (plan,) = plans_in(own_cache)

    assert "16 inputs" in run("plans", "verify", plan.folder.name)
    printed = run("plans", "verify", plan.folder.name[:5], "--photos", str(photos))

    assert f"{plan.record.key}: embedding: max abs" in printed and "(the plan, 3 inputs)" in printed
    with pytest.raises(PhotoError, match="no face was found in the first 1 photos"):
        run("plans", "verify", plan.folder.name, "--photos", str(photos / "Nobody"))
    with pytest.raises(PhotoError, match="holds no photo"):
        run("plans", "verify", plan.folder.name, "--photos", str(own_cache / "plans"))


def test_a_plan_that_is_too_far_from_fp32_fails_its_verification(
    run: Run, own_cache: Path, store: ModelStore
) -> None:
    run("build", "emotion-xception", "--precision", "fp16")
    (plan,) = plans_in(own_cache)
    wrong = store.ensure("emotion-xception").read_bytes().replace(b"Relu", b"Sqrt")
    assert OrtEngine(wrong)
    record = plan.record
    changed = msgspec.structs.replace(record, sha256=hashlib.sha256(wrong).hexdigest(), n_bytes=len(wrong))
    PlanStore(own_cache).publish(changed, wrong, "")

    with pytest.raises(ModelError, match="is too far from fp32; build it again with `visaged build --force`"):
        run("plans", "verify", plan.folder.name)


def test_verifying_a_detector_on_photos_is_refused(run: Run, own_cache: Path, photos: Path) -> None:
    run("build", "mmod", "--precision", "fp32")
    (plan,) = plans_in(own_cache)

    assert "2 inputs" in run("plans", "verify", plan.folder.name)
    with pytest.raises(ModelError, match="mmod is no network for single faces; leave --photos out"):
        run("plans", "verify", plan.folder.name, "--photos", str(photos))


def test_pruning_keeps_what_the_daemon_uses(run: Run, own_cache: Path) -> None:
    run("build", "emotion-xception", "--precision", "fp32", "--precision", "fp16")
    run("build", "mmod", "--precision", "fp32")
    store = PlanStore(own_cache)
    used = next(plan for plan in store.plans() if plan.record.key.precision is Precision.FP16)
    store.promote(used)

    assert run("plans", "prune", "--keep", "1").strip() == "0 plans deleted, 0.0 MB"
    printed = run("plans", "prune")

    assert printed.count("deleted emotion-xception fp32") == 1 and "2 plans deleted, 1.0 MB" in printed
    assert plans_in(own_cache) == [used]


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_plan_that_is_not_there_is_one_sentence(command: str, run: Run) -> None:
    with pytest.raises(ModelError, match="no plans begin with 'beef'; `visaged plans list` shows them"):
        run("plans", command, "beef")


def test_wrong_names_are_refused_with_what_is_allowed(run: Run, own_cache: Path) -> None:
    with pytest.raises(ModelError, match="no network is called 'face-net'; known are face-resnet"):
        run("build", "face-net")
    assert "openvino" in run("build", "mmod", "--backend", "onnx", exit_code=2)
    assert "fp16" in run("build", "mmod", "--precision", "fp8", exit_code=2)
    run("build", "mmod", "--max-batch", "0", exit_code=2)
    with pytest.raises(ModelError, match=r"no INT8 ranges .*mmod\.ranges\.json .*choose another"):
        run("build", "mmod", "--precision", "int8")
    with pytest.raises(ModelError, match="knows no GPU 'SM1'; it knows SM75"):
        run(
            "build", "mmod", "--backend", "tensorrt_rtx", "--compute-capability", "SM1", "--precision", "fp16"
        )
    assert plans_in(own_cache) == []


def test_what_was_built_before_the_first_failure_is_kept(run: Run, own_cache: Path) -> None:
    with pytest.raises(ModelError, match=r"no INT8 ranges .*emotion-xception\.ranges\.json"):
        run("build", "emotion-xception", "mmod", "--precision", "fp16", "--precision", "int8")

    assert kinds_in(own_cache) == {("emotion-xception", "onnxruntime", "fp16")}


def calibrated(run: Run, photos: Path, out: Path, *words: str) -> Ranges:
    out.mkdir(exist_ok=True)
    run("calibrate", str(photos), "--out", str(out), *words)
    (path,) = out.iterdir()
    return read_ranges(path)


def test_ranges_are_measured_on_photos_and_build_an_int8_plan(
    run: Run, own_cache: Path, photos: Path, tmp_path: Path, store: ModelStore
) -> None:
    ranges = calibrated(run, photos, tmp_path / "out", "--network", "emotion-xception")

    assert (ranges.network, ranges.n_chips, ranges.source) == ("emotion-xception", 3, "5 photos of photos")
    recipe = NETWORKS["emotion-xception"].recipe
    found = [face for face in faces_of(photos_under(photos), store) if face is not None]
    assert ranges.tensors["chips"][1] == pytest.approx(max(face.chip(recipe).max() for face in found))

    path = tmp_path / "out" / "emotion-xception.ranges.json"
    run("build", "emotion-xception", "--precision", "int8", "--ranges", str(path))
    (plan,) = plans_in(own_cache)
    assert plan.record.key.ranges_sha256 == ranges.sha256
    assert "16 inputs" in run("plans", "verify", plan.folder.name)
    with pytest.raises(ModelError, match="measured with other weights"):
        run("build", "face-resnet", "--precision", "int8", "--ranges", str(path))


def test_people_of_the_test_pairs_are_not_calibrated_on(run: Run, photos: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("1\t1\nEileen\t1\t2\nEileen\t1\tNobody\t4\n")

    ranges = calibrated(
        run, photos, tmp_path / "out", "--network", "emotion-xception", "--without", str(pairs)
    )

    assert (ranges.n_chips, ranges.source) == (1, "2 photos of photos")
    with pytest.raises(SourceError, match="name LFW's file of pairs"):
        run("calibrate", str(photos), "--without", str(photos / "notes.txt"))


def test_what_cannot_be_calibrated_is_one_sentence(run: Run, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match=r"holds no photo \(.*\.jpg.*\); name another folder"):
        run("calibrate", str(tmp_path / "cache" / "models"))
    with pytest.raises(PhotoError, match="holds no photo"):
        run("calibrate", str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="no chip to measure the INT8 ranges of face-resnet on"):
        run("calibrate", str(photos / "Nobody"))
    with pytest.raises(ModelError, match="no network for faces is called 'mmod'; known are face-resnet"):
        run("calibrate", str(photos), "--network", "mmod")
    with pytest.raises(SourceError, match=r"ranges\.json cannot be written .*choose another --out"):
        run("calibrate", str(photos), "--network", "emotion-xception", "--out", str(tmp_path / "nowhere"))


def test_of_several_faces_the_one_in_the_middle_is_taken(
    tmp_path: Path, astronaut: U8, store: ModelStore
) -> None:
    small = cv2.resize(astronaut, (256, 256), interpolation=cv2.INTER_AREA).astype(np.uint8)
    canvas = np.zeros((512, 1100, 3), np.uint8)
    canvas[:512, 300:812] = astronaut
    canvas[:256, :256] = small
    cv2.imwrite(str(tmp_path / "two.png"), np.ascontiguousarray(canvas[..., ::-1]))

    (face,) = faces_of([tmp_path / "two.png"], store)

    assert face is not None and face.rgb.shape == canvas.shape
    assert 450 < face.landmarks[:, 0].mean() < 600
    assert face.chip(NETWORKS["face-resnet"].recipe).shape == (1, 3, 150, 150)
