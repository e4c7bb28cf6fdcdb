"""Releases on disk: whole or absent, named by their content, found by the first digits."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest
from visaged.pipelines.cache_files import sha256_of
from visaged.pipelines.errors import ReleaseError
from visaged.pipelines.fuser import CascadeHead, DecisionFusion, FeatureFusion
from visaged.pipelines.model_store import ModelStore, ModelsWith, NetworkFiles
from visaged.pipelines.registry import EMOTION_XCEPTION, FACE_RESNET, NETWORKS
from visaged.pipelines.releases.release import Release
from visaged.pipelines.releases.release_store import About, ReleaseStore, StoredRelease, member_of, write_head

from tests.crashes import die_at_operation, gets_through, outcomes_of

ABOUT = About(made_at=1.0)
HEAD = CascadeHead(np.ones((4, 8), np.float32), np.zeros(8, np.float32), np.ones(2, np.float32))


def networks(folder: Path, content: bytes = b"weights") -> list[NetworkFiles]:
    """Two members, the first with INT8 ranges; what is in their files does not matter here."""
    folder.mkdir(exist_ok=True)
    made = []
    for row, ranges in ((FACE_RESNET, "ranges.json"), (EMOTION_XCEPTION, "")):
        onnx = folder / f"{row.name}.onnx"
        onnx.write_bytes(content + row.name.encode())
        if ranges:
            (folder / ranges).write_bytes(b"{}")
        made.append(NetworkFiles(row, onnx, folder / ranges if ranges else None))
    return made


def save(
    store: ReleaseStore, folder: Path, content: bytes = b"weights", about: About = ABOUT
) -> StoredRelease:
    members = networks(folder, content)
    release = Release(
        members=tuple(map(member_of, members)), fusion=DecisionFusion(), embedding_space="face-resnet"
    )
    return store.save(release, [p for m in members for p in (m.onnx, m.ranges) if p], about)


def test_a_release_is_found_by_its_first_digits_and_by_the_name_in_messages(tmp_path: Path) -> None:
    store = ReleaseStore(tmp_path)
    stored = save(store, tmp_path / "files")

    for name in (stored.release.id, stored.release.id[:5], f"{stored.release.id}.abc123"):
        assert store.get(name) == stored
    assert [other.release for other in store.all()] == [stored.release]
    with pytest.raises(ReleaseError, match="no releases begin with 'zzz'"):
        store.get("zzz")
    with pytest.raises(ReleaseError, match="begin with ''"):
        store.get("")


def test_its_networks_stand_before_the_imported_ones(tmp_path: Path, store: ModelStore) -> None:
    stored = save(ReleaseStore(tmp_path), tmp_path / "files")

    models = ModelsWith(store, stored.networks())

    assert models.ensure("face-resnet").read_bytes() == b"weightsface-resnet"
    assert models.cached("face-resnet") == models.ensure("face-resnet")
    assert models.ranges_path("face-resnet").read_bytes() == b"{}"
    assert not models.ranges_path("emotion-xception").exists()
    assert models.row("face-resnet") == FACE_RESNET
    assert models.ensure("mmod") == store.ensure("mmod") and models.row("mmod").name == "mmod"


def test_files_are_shared_and_go_with_the_last_release_that_needs_them(tmp_path: Path) -> None:
    store, files = ReleaseStore(tmp_path), tmp_path / "releases" / "files"
    first = save(store, tmp_path / "files")
    second = save(store, tmp_path / "files", b"other ")
    assert len(list(files.iterdir())) == 5, "the ranges are kept once"

    store.remove(first)

    assert {path.name for path in files.iterdir()} == {
        digest for m in second.release.members for digest in (m.onnx, m.ranges) if digest
    }
    assert [stored.release.id for stored in store.all()] == [second.release.id]
    second.networks()


def test_what_was_kept_first_stays_as_it_is(tmp_path: Path) -> None:
    store = ReleaseStore(tmp_path)
    save(store, tmp_path / "files")

    again = save(store, tmp_path / "files", about=About(made_at=2.0, note="again"))

    assert again.about == ABOUT


@pytest.mark.parametrize("damage", ["change", "truncate", "delete"])
def test_a_damaged_file_is_named_and_never_served(tmp_path: Path, damage: str) -> None:
    stored = save(ReleaseStore(tmp_path), tmp_path / "files")
    path = stored.file(stored.release.members[0].onnx)

    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + (b"?" if damage == "change" else b""))

    with pytest.raises(ReleaseError, match=f"release {stored.release.id} is damaged.*{path.name}"):
        stored.networks()


def test_a_changed_manifest_and_one_that_is_no_manifest_are_refused(tmp_path: Path) -> None:
    store = ReleaseStore(tmp_path)
    stored = save(store, tmp_path / "files")
    manifest = stored.folder / "release.json"
    changed = msgspec.structs.replace(stored.release, embedding_space="another")

    manifest.write_bytes(msgspec.json.encode(changed))
    with pytest.raises(ReleaseError, match="was changed"):
        store.get(stored.release.id)
    manifest.write_bytes(b"{")
    with pytest.raises(ReleaseError, match="cannot be read"):
        store.get(stored.release.id)
    assert list(store.all()) == []


def test_a_release_that_names_a_file_which_is_not_given_is_not_kept(tmp_path: Path) -> None:
    members = networks(tmp_path / "files")
    release = Release(members=tuple(map(member_of, members)), fusion=DecisionFusion(), embedding_space="x")

    with pytest.raises(ReleaseError, match="not given"):
        ReleaseStore(tmp_path).save(release, [members[0].onnx], ABOUT)
    assert list(ReleaseStore(tmp_path).all()) == []


def test_a_classifier_travels_with_the_release(tmp_path: Path) -> None:
    members, file = networks(tmp_path / "files"), write_head(HEAD)
    (tmp_path / "head").write_bytes(file)
    fusion = FeatureFusion(members=("face-resnet", "emotion-xception"), head=sha256_of(tmp_path / "head"))
    release = Release(members=tuple(map(member_of, members)), fusion=fusion, embedding_space="face-resnet")

    given = [p for m in members for p in (m.onnx, m.ranges) if p]
    stored = ReleaseStore(tmp_path).save(release, [*given, file], ABOUT)

    (head,) = stored.heads().values()
    assert head.weights.tolist() == HEAD.weights.tolist() and head.gates.tolist() == [1.0, 1.0]
    assert member_of(members[0]).network == NETWORKS["face-resnet"]


def save_and_die(state: Path, files: Path, step: int) -> None:
    die_at_operation(step, state)
    save(ReleaseStore(state), files)


def die_at_every_step(folder: Path) -> Iterator[tuple[int, int, int]]:
    """Yield for every step: how many releases are found after dying there, and after saving again."""
    step, is_done = 0, False
    networks(folder / "files")
    while not is_done:
        step += 1
        state = folder / str(step)
        is_done = gets_through(partial(save_and_die, state, folder / "files", step))
        store = ReleaseStore(state)
        found = [stored.networks() for stored in store.all()]
        save(store, folder / "files").networks()
        left = [path for path in store.folder.rglob("*") if path.name.startswith((".leaving", ".writing"))]
        yield len(found), len(list(store.all())), len(left)


def test_dying_at_any_step_leaves_a_whole_release_or_none(tmp_path: Path) -> None:
    outcomes = outcomes_of(die_at_every_step, tmp_path)

    assert [outcome[1:] for outcome in outcomes] == [(1, 0)] * len(outcomes)
    found = [outcome[0] for outcome in outcomes]
    assert found == sorted(found) and found[0] == 0 and found[-1] == 1
    assert len(outcomes) > 10, "hardly a step was tried"
