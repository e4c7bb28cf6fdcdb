"""The gallery on disk."""

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from visaged.pipelines.errors import GalleryError, StoreError
from visaged.pipelines.identity.gallery import Gallery
from visaged.pipelines.identity.gallery_schema import MIGRATIONS
from visaged.pipelines.privacy.seal import create_key_file

SPACE = "dlib-1"
DAY_S = 86_400.0


class Wall:
    """A wall clock set by hand."""

    def __init__(self) -> None:
        self.seconds = 1_700_000_000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def gallery(tmp_path: Path, wall: Wall) -> Iterator[Gallery]:
    with Gallery(tmp_path, now=wall) as gallery:
        yield gallery


def faces(n: int, seed: int = 0) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(0, 0.1, (n, 128)).astype(np.float32)


def names(gallery: Gallery) -> list[str]:
    return [person.name for person in gallery.people()]


def test_templates_come_back_as_they_went_in(gallery: Gallery, tmp_path: Path) -> None:
    gallery.enrol("Anna", faces(2, 1), space=SPACE, sources=["a.jpg", "b.jpg"], consent="form 12")
    gallery.enrol("Ben", faces(1, 2), space=SPACE)
    gallery.close()

    with Gallery(tmp_path) as again:
        templates = again.templates(SPACE)
        assert templates.names == ("Anna", "Ben")
        assert templates.owners.tolist() == [0, 0, 1]
        np.testing.assert_array_equal(templates.embeddings, np.concatenate([faces(2, 1), faces(1, 2)]))
        assert again.people()[0].consent == "form 12"


def test_the_same_photo_twice_is_one_template(gallery: Gallery) -> None:
    assert gallery.enrol("Anna", faces(2), space=SPACE) == 2
    assert gallery.enrol("anna", faces(2), space=SPACE) == 2
    assert names(gallery) == ["Anna"]


def test_embeddings_of_another_space_are_not_returned(gallery: Gallery) -> None:
    gallery.enrol("Anna", faces(2), space="dlib-1")

    assert len(gallery.templates("dlib-2").embeddings) == 0


def test_no_embedding_lies_open_in_the_file(gallery: Gallery, tmp_path: Path) -> None:
    gallery.enrol("Anna", faces(1), space=SPACE)

    assert faces(1).tobytes()[:32] not in everything_in(tmp_path)


def test_files_are_private(gallery: Gallery, tmp_path: Path) -> None:
    gallery.enrol("Anna", faces(1), space=SPACE)

    assert {p.stat().st_mode & 0o077 for p in tmp_path.iterdir()} == {0}


def test_a_template_moved_to_somebody_else_does_not_open(gallery: Gallery, tmp_path: Path) -> None:
    gallery.enrol("Anna", faces(1, 1), space=SPACE)
    gallery.enrol("Ben", faces(1, 2), space=SPACE)
    with sqlite3.connect(tmp_path / "gallery.db") as forger:
        forger.execute("UPDATE templates SET person = 2")
    forger.close()

    with pytest.raises(StoreError, match="altered or moved"):
        gallery.templates(SPACE)


@pytest.mark.parametrize("name", ["", "  ", "x" * 101, "a\x00b", "unknown-3", "Unknown-x"])
def test_names_that_cannot_be_used_store_nothing(gallery: Gallery, name: str) -> None:
    with pytest.raises(GalleryError, match="name"):
        gallery.enrol(name, faces(1), space=SPACE)

    assert names(gallery) == []


def test_a_broken_embedding_stores_nothing_of_the_person(gallery: Gallery) -> None:
    broken = faces(3)
    broken[2, 5] = np.nan

    with pytest.raises(GalleryError, match="finite"):
        gallery.enrol("Anna", broken, space=SPACE)

    assert names(gallery) == []


def test_forgetting_leaves_no_byte_in_the_files(gallery: Gallery, tmp_path: Path) -> None:
    gallery.enrol("Annabella Testperson", faces(40), space=SPACE, sources=["secret-photo.jpg"] * 40)
    gallery.enrol("Bella Alias", faces(3, 9), space=SPACE)
    gallery.enrol("Ben", faces(2, 7), space=SPACE)
    gallery.reject("Annabella Testperson", faces(1, 3), space=SPACE, source="not-her.jpg")
    gallery.merge("Annabella Testperson", "Bella Alias")
    with sqlite3.connect(tmp_path / "gallery.db") as db:
        sealed = [row[0] for row in db.execute("SELECT sealed FROM templates WHERE person <> 3")]
    db.close()
    before = everything_in(tmp_path)
    assert b"Annabella" in before

    receipt = gallery.forget("annabella testperson")

    after = everything_in(tmp_path)
    assert (receipt.person, receipt.aliases) == ("Annabella Testperson", ("Bella Alias",))
    assert (receipt.templates, receipt.negatives, receipt.merges) == (43, 1, 1)
    assert receipt.is_scrubbed
    assert len(sealed) == 44
    for trace in (b"Annabella", b"Bella", b"secret-photo", b"not-her", *sealed):
        assert trace not in after
    assert names(gallery) == ["Ben"]


def test_forgetting_works_while_the_daemon_has_the_gallery_open(gallery: Gallery, tmp_path: Path) -> None:
    gallery.enrol("Annabella", faces(3), space=SPACE)
    with Gallery(tmp_path) as daemon:
        daemon.templates(SPACE)

        receipt = gallery.forget("Annabella")

        assert receipt.is_scrubbed
        assert b"Annabella" not in everything_in(tmp_path)
        assert daemon.changed()
        assert len(daemon.templates(SPACE).embeddings) == 0


def test_forgetting_somebody_unknown_says_so(gallery: Gallery) -> None:
    with pytest.raises(GalleryError, match="nobody is called Zoe"):
        gallery.forget("Zoe")


def test_a_merge_counts_as_one_person_and_is_undone_exactly(gallery: Gallery) -> None:
    gallery.enrol("Anna", faces(2, 1), space=SPACE, consent="yes")
    gallery.enrol("Ann", faces(3, 2), space=SPACE, consent="form 7")
    gallery.enrol("Ben", faces(1, 3), space=SPACE)
    before, templates = gallery.people(), gallery.templates(SPACE)

    gallery.merge("Anna", "Ann")
    assert names(gallery) == ["Anna", "Ben"]
    assert gallery.people()[0].templates == 5
    assert gallery.people()[0].aliases == ("Ann",)
    assert gallery.templates(SPACE).owners.tolist() == [0] * 5 + [1]

    assert gallery.unmerge("Ann") == ("Anna", "Ann")
    assert gallery.people() == before
    assert gallery.templates(SPACE).names == templates.names
    np.testing.assert_array_equal(gallery.templates(SPACE).embeddings, templates.embeddings)


def test_merges_of_merges_are_undone_in_any_order(gallery: Gallery) -> None:
    for i, name in enumerate(["Anna", "Ann", "Annie"]):
        gallery.enrol(name, faces(1, i), space=SPACE)
    before = gallery.people()
    gallery.merge("Ann", "Annie")
    gallery.merge("Anna", "Ann")
    assert gallery.people()[0].aliases == ("Ann", "Annie")

    gallery.unmerge("Annie")
    gallery.unmerge("Ann")

    assert gallery.people() == before


def test_enrolling_under_a_merged_name_adds_to_the_person(gallery: Gallery) -> None:
    gallery.enrol("Anna", faces(1, 1), space=SPACE)
    gallery.enrol("Ann", faces(1, 2), space=SPACE)
    gallery.merge("Anna", "Ann")

    gallery.enrol("Ann", faces(1, 3), space=SPACE)

    assert names(gallery) == ["Anna"]
    assert gallery.people()[0].templates == 3


def test_merges_that_make_no_sense_are_refused(gallery: Gallery) -> None:
    gallery.enrol("Anna", faces(1, 1), space=SPACE)
    gallery.enrol("Ann", faces(1, 2), space=SPACE)
    gallery.merge("Anna", "Ann")
    stranger = gallery.add_stranger(faces(1)[0], space=SPACE, quality=1)

    for kept, absorbed in [("Anna", "Anna"), ("Ann", "Anna"), (stranger, "Anna"), ("Anna", "Zoe")]:
        with pytest.raises(GalleryError):
            gallery.merge(kept, absorbed)
    with pytest.raises(GalleryError, match="not merged"):
        gallery.unmerge("Anna")


def test_a_stranger_can_be_given_a_name_and_lose_it_again(gallery: Gallery) -> None:
    stranger = gallery.add_stranger(faces(1)[0], space=SPACE, quality=1)

    gallery.name_stranger(stranger, "Ben")
    assert gallery.templates(SPACE).names == ("Ben",)
    assert gallery.templates(SPACE, strangers=True).names == ()

    gallery.unmerge(stranger)
    assert gallery.templates(SPACE, strangers=True).names == (stranger,)


def test_numbers_of_strangers_are_never_reused(gallery: Gallery, wall: Wall) -> None:
    assert [gallery.add_stranger(f, space=SPACE, quality=1) for f in faces(2)] == ["unknown-1", "unknown-2"]
    gallery.forget("unknown-2")
    wall.seconds += 2 * DAY_S
    assert gallery.expire_strangers(DAY_S) == 1

    assert gallery.add_stranger(faces(1)[0], space=SPACE, quality=1) == "unknown-3"


def test_a_stranger_seen_again_or_named_does_not_expire(gallery: Gallery, wall: Wall) -> None:
    for face in faces(3):
        gallery.add_stranger(face, space=SPACE, quality=1)
    gallery.name_stranger("unknown-2", "Ben")
    wall.seconds += 0.9 * DAY_S
    gallery.touch_stranger("unknown-3", faces(1, 5)[0], space=SPACE, quality=1)
    wall.seconds += 0.2 * DAY_S

    assert gallery.expire_strangers(DAY_S) == 1
    assert names(gallery) == ["Ben", "unknown-3"]
    assert gallery.people()[1].templates == 2


def test_a_change_by_another_process_is_seen_once(gallery: Gallery, tmp_path: Path) -> None:
    with Gallery(tmp_path) as daemon:
        assert daemon.changed()
        assert not daemon.changed()
        gallery.enrol("Anna", faces(1), space=SPACE)

        assert daemon.changed()
        assert not daemon.changed()


def test_the_owners_own_strangers_are_no_change(gallery: Gallery) -> None:
    gallery.changed()
    gallery.touch_stranger(gallery.add_stranger(faces(1)[0], space=SPACE, quality=1))
    assert not gallery.changed()

    gallery.enrol("Anna", faces(1), space=SPACE)
    assert gallery.changed()


def test_a_damaged_file_is_one_clear_sentence(tmp_path: Path) -> None:
    with Gallery(tmp_path) as gallery:
        gallery.enrol("Anna", faces(50), space=SPACE)
    path = tmp_path / "gallery.db"
    content = bytearray(path.read_bytes())
    content[4096:20000] = b"\x5a" * (20000 - 4096)
    path.write_bytes(content)

    with pytest.raises(GalleryError, match=r"gallery\.db is damaged") as refused:
        Gallery(tmp_path)
    assert refused.value.exit_code == 78, "a process would be started again and again"


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    Gallery(tmp_path).close()
    (tmp_path / "gallery.db").write_bytes(b"this is no database at all " * 100)

    with pytest.raises(GalleryError, match="damaged"):
        Gallery(tmp_path)


def test_a_gallery_without_its_key_is_not_given_a_new_one(tmp_path: Path) -> None:
    Gallery(tmp_path).close()
    (tmp_path / "gallery.key").unlink()

    with pytest.raises(StoreError, match="restore it"):
        Gallery(tmp_path)
    assert not (tmp_path / "gallery.key").exists()


def test_a_key_may_lie_elsewhere(tmp_path: Path) -> None:
    credential = tmp_path / "credential"
    credential.write_text("cd" * 32)
    credential.chmod(0o400)

    with Gallery(tmp_path / "state", key=credential) as gallery:
        gallery.enrol("Anna", faces(1), space=SPACE)
        assert len(gallery.templates(SPACE).embeddings) == 1
    assert not (tmp_path / "state" / "gallery.key").exists()


def test_a_gallery_of_a_newer_visaged_is_left_alone(tmp_path: Path) -> None:
    Gallery(tmp_path).close()
    db = sqlite3.connect(tmp_path / "gallery.db")
    db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()

    with pytest.raises(GalleryError, match="newer visaged"):
        Gallery(tmp_path)


def test_a_state_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(GalleryError, match="state folder"):
        Gallery(tmp_path / "file" / "state")


def test_two_processes_writing_at_once_lose_nothing(tmp_path: Path) -> None:
    Gallery(tmp_path).close()

    def enrol(name: str, seed: int) -> None:
        with Gallery(tmp_path) as gallery:
            for i in range(10):
                gallery.enrol(name, faces(1, seed + i), space=SPACE)

    threads = [threading.Thread(target=enrol, args=(n, 100 * i)) for i, n in enumerate(["Anna", "Ben"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    with Gallery(tmp_path) as gallery:
        assert [p.templates for p in gallery.people()] == [10, 10]


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "gallery.key")


def test_the_credential_is_preferred_to_a_key_in_the_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tmp_path / "credentials"
    given.mkdir()
    create_key_file(given / "gallery.key")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(given))

    with Gallery(tmp_path / "state"):
        assert not (tmp_path / "state" / "gallery.key").exists()
