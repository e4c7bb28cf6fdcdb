"""Sealing: what opens, what does not, and the key file."""

import threading
from pathlib import Path

import pytest
from visaged.pipelines.errors import StoreError
from visaged.pipelines.privacy.seal import Sealer, create_key_file, credential


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "gallery.key"
    create_key_file(path)
    return path


def test_what_was_sealed_opens_in_its_place(key_file: Path) -> None:
    sealer = Sealer.from_file(key_file)

    sealed = sealer.seal(b"embedding", "template 1 of person 2")

    assert sealer.open(sealed, "template 1 of person 2") == b"embedding"
    assert b"embedding" not in sealed


def test_a_row_moved_to_another_person_does_not_open(key_file: Path) -> None:
    sealer = Sealer.from_file(key_file)
    sealed = sealer.seal(b"embedding", "template 1 of person 2")

    with pytest.raises(StoreError, match="template 1 of person 3 was altered or moved"):
        sealer.open(sealed, "template 1 of person 3")


@pytest.mark.parametrize("position", [4, 20, -1])
def test_a_changed_byte_is_noticed(key_file: Path, position: int) -> None:
    sealer = Sealer.from_file(key_file)
    sealed = bytearray(sealer.seal(b"embedding", "here"))
    sealed[position] ^= 1

    with pytest.raises(StoreError, match="altered"):
        sealer.open(bytes(sealed), "here")


@pytest.mark.parametrize("length", [0, 3, 5, 16])
def test_a_cut_value_is_noticed(key_file: Path, length: int) -> None:
    sealer = Sealer.from_file(key_file)

    with pytest.raises(StoreError):
        sealer.open(sealer.seal(b"embedding", "here")[:length], "here")


def test_a_rotated_key_still_opens_old_values(key_file: Path) -> None:
    old = Sealer.from_file(key_file)
    sealed = old.seal(b"embedding", "here")
    key_file.write_text(key_file.read_text() + "ab" * 32 + "\n")
    both = Sealer.from_file(key_file)

    assert both.open(sealed, "here") == b"embedding"
    assert both.key_id != old.key_id
    with pytest.raises(StoreError, match="does not have"):
        old.open(both.seal(b"new", "here"), "here")


def test_a_new_key_file_is_private_and_an_old_one_is_kept(key_file: Path) -> None:
    before = key_file.read_text()

    create_key_file(key_file)

    assert key_file.stat().st_mode & 0o777 == 0o600
    assert key_file.read_text() == before
    assert [p.name for p in key_file.parent.iterdir()] == ["gallery.key"]


def test_processes_that_start_together_agree_on_one_key(tmp_path: Path) -> None:
    path, ids = tmp_path / "gallery.key", list[str]()

    def begin() -> None:
        create_key_file(path)
        ids.append(Sealer.from_file(path).key_id)

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(ids) == 8
    assert len(set(ids)) == 1


def test_a_key_others_can_read_is_refused(key_file: Path) -> None:
    key_file.chmod(0o640)

    with pytest.raises(StoreError, match="chmod 600"):
        Sealer.from_file(key_file)


@pytest.mark.parametrize("text", ["", "abc", "zz" * 32, "ab" * 31])
def test_what_is_no_key_file_is_refused(key_file: Path, text: str) -> None:
    key_file.write_text(text)

    with pytest.raises(StoreError, match="not a key file"):
        Sealer.from_file(key_file)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"gallery\.key cannot be read"):
        Sealer.from_file(tmp_path / "gallery.key")


def test_a_credential_is_read_through_its_access_list_and_any_other_file_is_not(
    key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_file.chmod(0o440)  # what the mask of an access list for one user looks like
    with pytest.raises(StoreError, match="can be read by others"):
        Sealer.from_file(key_file)

    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(key_file.parent))

    assert credential("gallery.key") == key_file
    assert credential("absent.key") is None
    assert len(Sealer.from_file(key_file).key_id) == 8
    key_file.chmod(0o444)
    with pytest.raises(StoreError, match="can be read by others"):
        Sealer.from_file(key_file)
