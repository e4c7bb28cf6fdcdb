"""Forgetting a person everywhere: what goes, what is marked, and what the receipt proves."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from visaged.pipelines.errors import ReleaseError, StoreError
from visaged.pipelines.fuser import DecisionFusion
from visaged.pipelines.identity.gallery import Gallery
from visaged.pipelines.loop.lineage import check_erased, clean_ancestor, erased_of, marks_of
from visaged.pipelines.loop.sample import Label, Source
from visaged.pipelines.loop.sample_store import SampleStore
from visaged.pipelines.loop.sighting import Sighting
from visaged.pipelines.message import Identity
from visaged.pipelines.privacy.erasure import Forgotten, forget, name_hash, read_receipt
from visaged.pipelines.privacy.seal import open_signer
from visaged.pipelines.releases.release import Release
from visaged.pipelines.releases.release_store import About, ReleaseStore

ADA, EVE = Identity(state="known", person="Ada"), Identity(state="known", person="Eve")
FACE = np.ones((1, 128), np.float32)


def keep(state: Path, weight: float, parent: str = "", samples: tuple[str, ...] = ()) -> str:
    """Keep a release of no network, and return its id."""
    release = Release(members=(), fusion=DecisionFusion(weights={"a": float(weight)}), embedding_space="s")
    about = About(made_at=weight, parent=parent, samples=samples)
    return ReleaseStore(state).save(release, [], about).release.id


@pytest.fixture
def samples_of(tmp_path: Path, make_sighting: Callable[..., Sighting]) -> dict[str, str]:
    """A state folder with Ada and Eve enrolled and one sample of each; name -> id of the sample."""
    with Gallery(tmp_path) as gallery, SampleStore(tmp_path) as store:
        ids = {}
        for seq, identity in enumerate((ADA, EVE)):
            gallery.enrol(identity.person, FACE, space="s")
            seen = make_sighting(seq, identity=identity)
            ids[identity.person] = store.add(seen, Source.USER, Label(emotion="fear", is_face=True)).id
    return ids


def forget_in(state: Path, name: str) -> Forgotten:
    with Gallery(state) as gallery, SampleStore(state) as store:
        return forget(name, gallery, store, state)


def test_releases_that_learned_from_the_person_and_their_children_are_marked(
    tmp_path: Path, samples_of: dict[str, str]
) -> None:
    clean = keep(tmp_path, 1, samples=(samples_of["Eve"],))
    marked = keep(tmp_path, 2, parent=clean, samples=(samples_of["Ada"],))
    child = keep(tmp_path, 3, parent=marked)
    ReleaseStore(tmp_path).remove(ReleaseStore(tmp_path).get(marked))  # the child remembers nevertheless

    done = forget_in(tmp_path, "ada")

    assert done.receipt.releases == (child,) and done.receipt.samples == 1 == done.receipt.templates
    assert [mark.receipt for mark in marks_of(tmp_path)[child]] == [done.receipt.id]
    assert "1 samples that are erased" in erased_of(tmp_path, child) and not erased_of(tmp_path, clean)
    check_erased(tmp_path, clean, is_accepted=False)
    check_erased(tmp_path, child, is_accepted=True)
    with pytest.raises(ReleaseError, match="--despite-erasure"):
        check_erased(tmp_path, child, is_accepted=False)
    with SampleStore(tmp_path) as store:
        assert [sample.id for sample in store.samples()] == [samples_of["Eve"]]


def test_a_release_finished_after_the_erasure_is_marked_too(
    tmp_path: Path, samples_of: dict[str, str]
) -> None:
    clean = keep(tmp_path, 1)
    forget_in(tmp_path, "Ada")
    late = keep(tmp_path, 2, parent=clean, samples=tuple(samples_of.values()))

    assert list(marks_of(tmp_path)) == [late]
    assert clean_ancestor(tmp_path, late) == clean
    assert clean_ancestor(tmp_path, keep(tmp_path, 3, samples=tuple(samples_of.values()))) == "factory"


def test_unfinished_rounds_of_learning_go_with_the_samples(
    tmp_path: Path, samples_of: dict[str, str]
) -> None:
    (folder := tmp_path / "learning").mkdir()
    for network in ("face-resnet", "emotion-vgg13"):
        (folder / f"checkpoint-abc-{network}-head.pt").touch()

    assert forget_in(tmp_path, "Ada").receipt.checkpoints == 1
    assert not list(folder.glob("checkpoint-*"))


def test_a_receipt_is_checked_and_names_nobody(tmp_path: Path, samples_of: dict[str, str]) -> None:
    done = forget_in(tmp_path, "Ada")
    text = done.path.read_text()

    kept = read_receipt(done.path)
    assert kept == done.receipt and kept.is_genuine and kept.key == open_signer(tmp_path).public
    assert "Ada" not in text and done.code not in text and done.path.stat().st_mode & 0o777 == 0o600
    assert name_hash(" ADA ", done.code) == kept.person != name_hash("Eve", done.code)
    for changed in ({"samples": 7}, {"releases": ("x",)}, {"signature": "00"}, {"key": "00"}):
        assert not msgspec.structs.replace(kept, **changed).is_genuine
    done.path.write_text("{}")
    with pytest.raises(StoreError, match="no receipt"):
        read_receipt(done.path)


def test_no_file_of_the_state_holds_the_name_or_the_embedding_afterwards(
    tmp_path: Path, samples_of: dict[str, str]
) -> None:
    forget_in(tmp_path, "Ada")

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 4 and not [path for path in files if b"Ada" in path.read_bytes()]


def test_what_cannot_be_noted_for_the_releases_erases_nothing(
    tmp_path: Path, samples_of: dict[str, str]
) -> None:
    (tmp_path / "releases").write_text("in the way")

    with pytest.raises(ReleaseError, match="cannot be written"):
        forget_in(tmp_path, "Ada")
    with SampleStore(tmp_path) as store, Gallery(tmp_path) as gallery:
        assert len(store.samples()) == 2 and gallery.has("Ada")
