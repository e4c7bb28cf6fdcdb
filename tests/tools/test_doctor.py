"""`visaged doctor`: each failure, planted, is found and said how to mend; a sound installation has none."""

import json
import socket
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import cv2
import dlib
import numpy as np
import pytest
from typer.testing import CliRunner
from visaged.daemon import keys
from visaged.daemon.camera import CameraConfig
from visaged.daemon.channels import socket_file
from visaged.daemon.config import Config
from visaged.daemon.control import Control, Status
from visaged.daemon.outline import Outline, PathsConfig
from visaged.daemon.remote import RemoteConfig
from visaged.pipelines import model_store
from visaged.pipelines.dlib_faces import with_digest
from visaged.pipelines.engines.engine import EngineConfig
from visaged.pipelines.engines.plan_store import PlanStore
from visaged.pipelines.ensemble import EnsembleConfig
from visaged.pipelines.identity.gallery import Gallery
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.releases.promotion import PromotionJournal
from visaged.pipelines.releases.release_store import ReleaseStore
from visaged.pipelines.releases.trial import PromotionConfig
from visaged.tools import doctor_machine, doctor_state
from visaged.tools.cli import build_app
from visaged.tools.doctor import line_of
from visaged.tools.finding import Finding

from tests.pipelines.engines.test_plan_store import publish
from tests.pipelines.releases.test_release_store import save


@pytest.fixture
def paths(tmp_path: Path) -> PathsConfig:
    """Folders that are there, with the modes they should have."""
    for name, mode in (("state", 0o700), ("cache", 0o750), ("runtime", 0o750)):
        (tmp_path / name).mkdir(mode=mode)
    return PathsConfig(state=tmp_path / "state", cache=tmp_path / "cache", runtime=tmp_path / "runtime")


def not_ok(findings: Iterable[Finding]) -> dict[str, Finding]:
    """Return what is not ok, by what was checked; each says how to mend it."""
    found = {finding.check: finding for finding in findings if finding.verdict != "ok"}
    assert all(finding.mend for finding in found.values())
    return found


def camera(source: str, **settings: Any) -> CameraConfig:
    return CameraConfig(name="door", source=source, **settings)


def run(file: Path, *words: str) -> tuple[int, str]:
    result = CliRunner().invoke(build_app("doctor"), ["doctor", "--config", str(file), *words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout


def write_config(folder: Path, paths: PathsConfig, cache: Path, source: str = "synthetic:pattern") -> Path:
    file = folder / "v.toml"
    file.write_text(
        f'[paths]\nstate = "{paths.state}"\ncache = "{cache}"\nruntime = "{paths.runtime}"\n'
        f'[engine]\nbackend = "onnxruntime"\nprecision = "fp32"\n'
        f'[[camera]]\nname = "door"\nsource = "{source}"\n'
    )
    return file


def test_a_site_s_detector_is_looked_at(paths: PathsConfig, tmp_path: Path) -> None:
    file = tmp_path / "site.svm"
    dlib.get_frontal_face_detector().save(str(file))
    file.write_bytes(with_digest(file.read_bytes()))
    config = write_config(tmp_path, paths, paths.cache)
    with config.open("a") as more:
        more.write(f'[detector]\nsite = "{file}"\nmin_face_px = 60\n')

    assert f"ok   detector: {file} finds faces from 60x60 px on" in run(config)[1]
    file.write_bytes(b"no detector")
    code, said = run(config)
    assert code == 1
    assert "fail configuration" in said and "site.svm is no face detector" in said
    assert list(doctor_state.detector(Config())) == []


def test_a_sound_installation_has_no_failure(paths: PathsConfig, store: ModelStore, tmp_path: Path) -> None:
    store.ensure_all()
    Gallery(paths.state).close()

    code, text = run(write_config(tmp_path, paths, store.cache_dir))

    assert code == 0, text
    assert "ok   camera door: synthetic:pattern, 640x480" in text and "ok   daemon: none runs here" in text


def test_a_failure_is_exit_code_1_and_json_has_the_same_findings(
    paths: PathsConfig, cache: Path, tmp_path: Path
) -> None:
    file = write_config(tmp_path, paths, cache, source=f"{tmp_path}/none.mp4")

    code, text = run(file, "--json")

    assert code == 1
    failures = [finding for finding in json.loads(text) if finding["verdict"] == "fail"]
    assert [(finding["check"], finding["mend"]) for finding in failures] == [
        ("camera door", "correct `source` or bring the file")
    ]


@pytest.mark.parametrize(
    ("text", "what"), [("[", "not valid TOML"), ("[paths]\nstat = 1", "unknown key 'stat'")]
)
def test_a_wrong_configuration_is_the_one_finding(text: str, what: str, tmp_path: Path) -> None:
    file = tmp_path / "v.toml"
    file.write_text(text)

    code, said = run(file)

    assert (code, said.count("fail"), what in said) == (1, 1, True), said


def test_what_may_not_be_looked_at_is_a_finding_and_the_rest_goes_on(
    paths: PathsConfig, cache: Path, tmp_path: Path
) -> None:
    beyond = PathsConfig(
        state=tmp_path / ("x" * 300), cache=cache, runtime=paths.runtime
    )  # as without a right

    code, text = run(write_config(tmp_path, beyond, cache))

    assert code == 1 and "keys: " in text and "cannot be looked at" in text
    assert "ok   camera door" in text and "ok   daemon" in text


def test_markup_in_a_path_is_shown_as_it_is() -> None:
    assert "\\[red]" in line_of(Finding("x", "fail", "[red] is no folder", "mend [it]"))


@pytest.mark.parametrize(("key", "mode"), [("state", 0o750), ("cache", 0o777), ("runtime", 0o755)])
def test_a_folder_that_is_open_to_others(paths: PathsConfig, key: str, mode: int) -> None:
    folder: Path = getattr(paths, key)
    folder.chmod(mode)

    found = not_ok(doctor_machine.folders(paths))

    assert list(found) == [f"folder {key}"]
    mend = found[f"folder {key}"].mend
    folder.chmod(int(mend.split()[1], 8))
    assert not not_ok(doctor_machine.folders(paths))


def test_a_folder_that_cannot_be_made(paths: PathsConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    found = not_ok(doctor_machine.folders(PathsConfig(state=tmp_path / "file" / "state", cache=paths.cache)))

    assert found["folder state"].verdict == "fail"


def test_a_disk_that_fills_and_one_that_is_full(paths: PathsConfig) -> None:
    everything = 1 << 62

    assert {f.verdict for f in doctor_machine.disk(paths, 0, everything)} == {"warn"}
    assert {f.verdict for f in doctor_machine.disk(paths, everything, everything)} == {"fail"}
    assert not not_ok(doctor_machine.disk(paths, 0, 0))


def test_memory_for_rings_that_is_too_small_or_no_memory(tmp_path: Path) -> None:
    many = tuple(
        CameraConfig(name=f"c{i}", source="synthetic:pattern", width=16384, height=16384, ring_slots=32)
        for i in range(200)  # 5 TB
    )

    assert not_ok(doctor_machine.shared_memory(Outline(camera=many)))["shm"].verdict == "fail"
    gone = Outline(paths=PathsConfig(shm=tmp_path / "none"))
    assert not_ok(doctor_machine.shared_memory(gone))["shm"].verdict == "fail"
    not_memory = Outline(paths=PathsConfig(shm=Path("/proc")))
    assert "on proc" in not_ok(doctor_machine.shared_memory(not_memory))["shm"].what
    assert not not_ok(doctor_machine.shared_memory(Outline(camera=(camera("synthetic:pattern"),))))


def test_a_clock_that_is_not_believed_and_one_that_runs_too_fast(paths: PathsConfig) -> None:
    state = paths.state

    fast = not_ok(doctor_machine.clock(state, wall=lambda: 4e9 + 2 * time.monotonic()))
    assert "against the monotonic one" in fast["clock"].what
    (state / "gallery.db").touch()
    assert not not_ok(doctor_machine.clock(state))
    for year, at in (("1970", 0.0), ("2096", 4e9)):
        found = not_ok(doctor_machine.clock(state, wall=lambda at=at: at))["clock"]  # type: ignore[misc]
        assert found.verdict == "warn" and f"says {year}" in found.what and "clock --believe" in found.mend


def test_a_backend_that_is_not_here() -> None:
    wrong = EngineConfig(backend="openvino", device="cuda:0")

    assert not_ok(doctor_machine.backend(wrong))["backend"].verdict == "fail"


def test_a_gpu_that_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visaged.pipelines.engines.cuda_device.can_run", lambda: False)
    (tmp_path / "nvidia0").touch()

    assert "does nothing" in not_ok(doctor_machine.backend(EngineConfig(), tmp_path))["backend"].what
    (tmp_path / "nvidia0").rename(tmp_path / "nvidiactl")
    assert not not_ok(doctor_machine.backend(EngineConfig(), tmp_path))


@pytest.mark.parametrize(
    ("source", "settings", "verdict", "what"),
    [
        ("{}/none.mp4", {}, "fail", "does not exist"),
        ("/dev/video97", {}, "fail", "does not exist"),
        ("{}/empty", {}, "fail", "holds no photo"),
        ("{}/junk", {}, "warn", "cannot be used"),
        ("{}/black", {}, "warn", "is black"),
        ("synthetic:pattern?seconds=0.001", {}, "fail", "has no frames"),
        ("synthetic:pattern", {"max_pixels": 1}, "fail", "over max_pixels"),
    ],
)
def test_a_camera_that_gives_nothing_to_look_at(
    tmp_path: Path, source: str, settings: dict[str, Any], verdict: str, what: str
) -> None:
    for name in ("empty", "junk", "black"):
        (tmp_path / name).mkdir()
    (tmp_path / "junk" / "a.jpg").write_bytes(b"no picture")
    cv2.imwrite(str(tmp_path / "black" / "a.png"), np.zeros((9, 9, 3), np.uint8))

    found = not_ok(doctor_machine.cameras((camera(source.format(tmp_path), **settings),), in_use=False))

    assert (found["camera door"].verdict, what in found["camera door"].what) == (verdict, True), found


def test_no_camera_at_all_and_one_that_the_daemon_holds() -> None:
    assert not_ok(doctor_machine.cameras((), in_use=False))["camera"].verdict == "fail"
    assert not not_ok(doctor_machine.cameras((camera("/dev/video97"),), in_use=True))


def test_weights_that_are_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_store, "WEIGHTS_PACKAGE", "visaged-no-such-package")

    found = not_ok(doctor_state.models(Config(), ModelStore(tmp_path)))

    assert found["weights mmod_human_face_detector.dat"].verdict == "fail"


def test_networks_that_are_missing_and_damaged(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "face-resnet-0123456789ab.onnx").write_bytes(b"half")

    found = not_ok(doctor_state.models(Config(), ModelStore(tmp_path)))

    assert "damaged" in found["network face-resnet"].what
    assert "not imported" in found["network emotion-vgg13"].what


@pytest.mark.parametrize(("is_current", "verdict"), [(True, "fail"), (False, "warn")])
def test_a_damaged_plan(tmp_path: Path, is_current: bool, verdict: str) -> None:
    plans = PlanStore(tmp_path)
    plan = publish(plans, b"a plan")
    if is_current:
        plans.promote(plan)
    assert not not_ok(doctor_state.plans(Config(), ModelStore(tmp_path)))

    plan.path.write_bytes(b"a plam")

    found = not_ok(doctor_state.plans(Config(), ModelStore(tmp_path)))
    assert [finding.verdict for finding in found.values()] == [verdict]


def test_a_plan_that_is_wanted_and_not_built(store: ModelStore, tmp_path: Path) -> None:
    store.ensure("face-resnet")
    (tmp_path / "models").symlink_to(store.cache_dir / "models")
    config = Config(engine=EngineConfig(backend="onnxruntime", precision="int8"))

    found = not_ok(doctor_state.plans(config, ModelStore(tmp_path)))

    assert found["plan of face-resnet"].verdict == "warn"


@pytest.mark.parametrize("damage", ["missing", "open", "junk", "store"])
def test_keys_and_the_files_they_open(paths: PathsConfig, damage: str) -> None:
    outline = Outline(paths=paths)
    Gallery(paths.state).close()
    key, database = paths.state / "gallery.key", paths.state / "gallery.db"
    assert not not_ok(doctor_state.secrets(outline, in_use=False))

    if damage == "missing":
        key.unlink()
    elif damage == "open":
        key.chmod(0o644)
    elif damage == "junk":
        key.write_text("no key")
    else:
        database.write_bytes(database.read_bytes()[:100] + b"\xff" * 5000)

    found = not_ok(doctor_state.secrets(outline, in_use=False))
    assert [(f.check, f.verdict) for f in found.values()] == [
        ("store gallery" if damage == "store" else "key gallery", "fail")
    ]


def test_looking_at_a_store_leaves_nothing_beside_it(paths: PathsConfig) -> None:
    Gallery(paths.state).close()
    with closing(sqlite3.connect(paths.state / "gallery.db")) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    before = sorted(paths.state.iterdir())

    list(doctor_state.secrets(Outline(paths=paths), in_use=False))

    assert sorted(paths.state.iterdir()) == before


def test_the_key_of_the_server_and_of_a_client(paths: PathsConfig) -> None:
    outline = Outline(paths=paths, remote=RemoteConfig(control="tcp://127.0.0.1:5561"))
    assert not_ok(doctor_state.secrets(outline, in_use=False))["key server"].verdict == "fail"

    keys.create_server(outline.keys)
    assert not not_ok(doctor_state.secrets(outline, in_use=False))
    (outline.keys / "clients" / "desk.toml").write_text("public = 1")

    assert not_ok(doctor_state.secrets(outline, in_use=False))["key client"].verdict == "warn"


def test_releases_that_are_damaged(paths: PathsConfig, tmp_path: Path) -> None:
    config, releases = Config(paths=paths), ReleaseStore(paths.state)
    journal = PromotionJournal(paths.state)
    stored = save(releases, tmp_path / "files")
    name = stored.release.id
    journal.write(name, "waive", 1.0)
    journal.write(name, "promote", 2.0)
    assert not not_ok(doctor_state.releases(config))

    stored.file(stored.release.members[0].onnx).write_bytes(b"half")

    assert not_ok(doctor_state.releases(config))[f"release {name}"].verdict == "fail"
    factory = Config(paths=paths, ensemble=EnsembleConfig(release="factory"))
    assert not_ok(doctor_state.releases(factory))[f"release {name}"].verdict == "warn"
    (paths.state / "releases" / "promotion.json").write_text("{")
    assert not_ok(doctor_state.releases(config))["releases"].verdict == "fail"


@contextmanager
def answering(runtime: Path, answer: dict[str, Any]) -> Iterator[None]:
    """Answer `Status` as the daemon does, over its real socket."""
    stop, ready = threading.Event(), threading.Event()

    def loop() -> None:
        with Control(runtime) as control:
            control.handle(Status, lambda _: answer)
            ready.set()
            while not stop.wait(0.005):
                control.poll()

    thread = threading.Thread(target=loop)
    thread.start()
    assert ready.wait(5)
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_faces_for_the_gates_that_are_not_there(paths: PathsConfig, tmp_path: Path) -> None:
    (tmp_path / "moods.toml").write_text("")
    data = tmp_path / "moods.toml", tmp_path / "ferplus"

    def found(*, automatic: bool) -> dict[str, Finding]:
        promotion = PromotionConfig(automatic=automatic, gate_data=data)
        return not_ok(doctor_state.releases(Config(paths=paths, promotion=promotion)))

    assert found(automatic=False) == {}
    (missing,) = found(automatic=True).values()
    assert missing.check == f"gate data {data[1]}" and "PublicTest.npz cannot be read" in missing.what


def test_what_the_running_daemon_says(runtime: Path) -> None:
    engine = {"is_fallback": True, "reason": "not built yet"}
    answer = {
        "release": {"running": "abc"},
        "engines": {"face-resnet": engine},
        "cameras": {"door": {"captured": 0, "published": 0}, "yard": {"captured": 2, "published": 1}},
    }

    with answering(runtime, answer):
        assert doctor_state.is_running(runtime)
        found = not_ok(doctor_state.daemon(runtime))

    assert {check: finding.verdict for check, finding in found.items()} == {
        "engine face-resnet": "warn",
        "frames door": "fail",
    }


def test_a_daemon_that_listens_and_does_not_answer(runtime: Path) -> None:
    assert not doctor_state.is_running(runtime)
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(socket_file(runtime, "control")))
        deaf.listen()

        assert doctor_state.is_running(runtime)
        assert not_ok(doctor_state.daemon(runtime, timeout_s=0.2))["daemon"].verdict == "fail"
