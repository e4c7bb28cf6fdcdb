"""Where releases are kept: a folder each, whole or absent, and the files they share.

    <state>/releases/<id>/release.json   the Release, which its id follows from
                         about.json      where it is from
                         gates.json      what it was measured by, if it was
    <state>/releases/files/<sha256>      networks, INT8 ranges and classifiers

Safe to use from several processes: a folder appears and goes by one rename, after its files are there.
"""

import contextlib
import hashlib
import io
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from ..cache_files import locked, sha256_of, sync_folder, write_atomically
from ..errors import MALFORMED, NO_ARCHIVE, ModelError, ReleaseError
from ..fuser import CascadeHead, FeatureFusion
from ..model_store import NetworkFiles
from .release import Release, ReleaseMember

LEAVING = ".leaving-"  # folders that are no release any more


class About(Struct, frozen=True, kw_only=True):
    """Where a release is from: when it was made (seconds since 1970), out of which, from what data.

    `samples` are the ids of those that it learned from: whoever is forgotten is found by them.
    """

    made_at: float
    parent: str = ""
    data: str = ""
    note: str = ""
    samples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StoredRelease:
    """A release on disk."""

    release: Release
    about: About
    folder: Path

    def file(self, digest: str) -> Path:
        """Return the path of the file with this SHA-256.

        Raises:
            ReleaseError: it is missing or damaged.
        """
        path = self.folder.parent / "files" / digest
        if sha256_of(path) != digest:
            state = "not whole" if path.exists() else "missing"
            raise ReleaseError(
                f"release {self.release.id} is damaged: {path} is {state}; "
                "serve another, and remove this one with `visaged release remove`"
            )
        return path

    def heads(self) -> dict[str, CascadeHead]:
        """Return the classifier of a feature-level fusion by its digest; none for another fusion.

        Raises:
            ReleaseError: it is missing, damaged or none.
        """
        how = self.release.fusion
        return {how.head: read_head(self.file(how.head))} if isinstance(how, FeatureFusion) else {}

    def networks(self) -> dict[str, NetworkFiles]:
        """Return every member's row and files, by its name.

        Raises:
            ReleaseError: a file is missing or damaged.
        """
        return {
            member.network.name: NetworkFiles(
                member.network,
                self.file(member.onnx),
                self.file(member.ranges) if member.ranges else None,
            )
            for member in self.release.members
        }


class ReleaseStore:
    """The releases under one state folder. Keeps nothing in memory."""

    def __init__(self, state: Path) -> None:
        self.folder = state / "releases"

    def save(self, release: Release, files: Iterable[Path | bytes], about: About) -> StoredRelease:
        """Keep `release` and those of `files` that it names; one that is kept already stays as it is.

        It learned from all that its parent learned from: the parent's samples are kept as its own.

        Raises:
            ReleaseError: a file that it names is not among them, or the folder cannot be written.
        """
        contents = {_digest(file): file for file in files}
        folder = self.folder / release.id
        missing = [d for d in files_of(release) if d not in contents and not (self._files / d).exists()]
        if missing:
            raise ReleaseError(f"release {release.id} names a file that is not given: {missing[0][:12]}…")
        with writing(self.folder):
            self._sweep()
            self._files.mkdir(parents=True, exist_ok=True)
            for digest in files_of(release):
                if sha256_of(self._files / digest) != digest:
                    given = contents[digest]
                    write_atomically(self._files / digest, _bytes(given))
            if not (folder / "release.json").exists():
                draft = self.folder / f"{LEAVING}{release.id}"  # swept away unless it is finished
                draft.mkdir()
                for name, what in (("about.json", self._inherit(about)), ("release.json", release)):
                    write_atomically(draft / name, msgspec.json.format(msgspec.json.encode(what)))
                draft.rename(folder)
                sync_folder(self.folder)
        return self._read(folder)

    def all(self) -> Iterator[StoredRelease]:
        """Yield every release that can be read, the oldest first."""
        found = []
        for path in self.folder.glob("*/release.json"):
            with contextlib.suppress(ReleaseError):
                found.append(self._read(path.parent))
        yield from sorted(found, key=lambda stored: (stored.about.made_at, stored.release.id))

    def get(self, name: str) -> StoredRelease:
        """Return the release whose id begins with `name`; what follows a dot, as in messages, is ignored.

        Raises:
            ReleaseError: none or several do, or it is damaged.
        """
        wanted = name.partition(".")[0]
        folders = [
            path.parent for path in self.folder.glob("*/release.json") if path.parent.name.startswith(wanted)
        ]
        if len(folders) != 1 or not wanted:
            raise ReleaseError(
                f"{len(folders) or 'no'} releases begin with {wanted!r}; `visaged release list` shows them"
            )
        return self._read(folders[0])

    def remove(self, stored: StoredRelease) -> None:
        """Delete a release, and the files that no other one names.

        Raises:
            ReleaseError: the folder cannot be written.
        """
        with writing(self.folder):
            self._sweep()
            with contextlib.suppress(FileNotFoundError):
                stored.folder.rename(self.folder / f"{LEAVING}{stored.release.id}")
            named = {digest for other in self.all() for digest in files_of(other.release)}
            for path in self._files.iterdir():
                if path.name not in named:
                    path.unlink(missing_ok=True)
            self._sweep()

    @property
    def _files(self) -> Path:
        return self.folder / "files"

    def _inherit(self, about: About) -> About:
        """Return `about` with the parent's samples too: the parent may be removed before the child."""
        if not about.parent or not (self.folder / about.parent / "release.json").exists():
            return about
        inherited = self._read(self.folder / about.parent).about.samples
        return msgspec.structs.replace(about, samples=tuple(dict.fromkeys((*inherited, *about.samples))))

    def _sweep(self) -> None:
        for leaving in self.folder.glob(f"{LEAVING}*"):
            shutil.rmtree(leaving, ignore_errors=True)

    def _read(self, folder: Path) -> StoredRelease:
        path = folder / "release.json"
        try:
            release = msgspec.json.decode(path.read_bytes(), type=Release)
            about = msgspec.json.decode((folder / "about.json").read_bytes(), type=About)
        except (OSError, *MALFORMED) as error:
            raise ReleaseError(f"{path} cannot be read ({error}); remove the folder") from error
        if release.id != folder.name:
            raise ReleaseError(f"{path} was changed: it is {release.id} now; remove the folder")
        return StoredRelease(release, about, folder)


@contextlib.contextmanager
def writing(folder: Path, path: Path | None = None) -> Iterator[None]:
    """Hold the lock of the releases in `folder`, to write there, or `path` in it.

    Raises:
        ReleaseError: no room or no permission.
    """
    try:
        with locked(folder):
            yield
    except (OSError, ModelError) as error:
        raise ReleaseError(
            f"{path or folder} cannot be written ({error}); free space or mend its permissions"
        ) from error


def files_of(release: Release) -> list[str]:
    """Return the digests of all files that `release` names."""
    digests = [digest for member in release.members for digest in (member.onnx, member.ranges) if digest]
    return [*digests, *([release.fusion.head] if isinstance(release.fusion, FeatureFusion) else [])]


def member_of(files: NetworkFiles) -> ReleaseMember:
    """Return a network as a member of a release."""
    ranges = sha256_of(files.ranges) if files.ranges else ""
    return ReleaseMember(network=files.row, onnx=sha256_of(files.onnx), ranges=ranges)


def write_head(head: CascadeHead) -> bytes:
    """Return the file of a classifier."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, weights=head.weights, bias=head.bias, gates=head.gates)
    return buffer.getvalue()


def read_head(path: Path) -> CascadeHead:
    """Return the classifier in `path`.

    Raises:
        ReleaseError: it is none.
    """
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            head = CascadeHead(*(file[name].astype(np.float32) for name in ("weights", "bias", "gates")))
    except NO_ARCHIVE as error:
        raise ReleaseError(f"{path} is no classifier of a release ({error}); remove the release") from error
    if head.weights.ndim != 2 or head.bias.shape != head.weights.shape[1:]:
        raise ReleaseError(f"{path}: {head.weights.shape=} {head.bias.shape=}; remove the release")
    return head


def _digest(file: Path | bytes) -> str:
    return hashlib.sha256(file).hexdigest() if isinstance(file, bytes) else sha256_of(file)


def _bytes(file: Path | bytes) -> bytes:
    return file if isinstance(file, bytes) else file.read_bytes()
