"""Write files that are whole or absent, one writer at a time, and check them by digest."""

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import ModelError


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hex, or "" when there is none to read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def write_atomically(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Put `data` at `path` so that every reader sees the old file, the new one, or none.

    Others may read it unless `mode` says no: nothing in the cache is personal.

    Raises:
        OSError: no room or no permission; nothing is left behind.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Wait until what was renamed into `folder` is there also after a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make `folder` and hold its lock, so that two processes that start together import once.

    Raises:
        ModelError: the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a")
    except OSError as error:
        raise unwritable(folder, error) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed, also by a crash
        for leftover in folder.rglob(".writing-*"):
            leftover.unlink(missing_ok=True)
        yield


def unwritable(folder: Path, error: OSError) -> ModelError:
    """Return the error for a cache folder that takes no files."""
    return ModelError(
        f"the cache folder {folder} cannot be written: {error.strerror or error}; "
        "free space there, or name another folder as `cache` under [paths]"
    )
