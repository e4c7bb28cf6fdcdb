"""Small disks that a test may fill, and pages that it may spoil."""

import contextlib
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

CHUNK = bytes(64 * 1024)


@contextlib.contextmanager
def small_disk(folder: Path, n_mb: int) -> Iterator[Path]:
    """Mount a memory disk of `n_mb` at `folder`, for as long as the block lasts.

    Raises:
        OSError: it may not be mounted here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    line = ["mount", "-t", "tmpfs", "-o", f"size={n_mb}m,mode=0700", "visaged-test", str(folder)]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        raise OSError(done.stderr.strip())
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def full(folder: Path) -> Iterator[None]:
    """Take all that is left of the disk that `folder` is on, to the last byte, until the block ends."""
    filler = folder / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            for chunk in (CHUNK, bytes(1)):
                with contextlib.suppress(OSError):
                    while file.write(chunk):
                        pass
            os.fsync(file.fileno())
        yield
    finally:
        filler.unlink()


def empty_log(database: Path) -> None:
    """Move SQLite's log into the file and cut it to nothing."""
    with contextlib.closing(sqlite3.connect(database)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@contextlib.contextmanager
def spoilt(database: Path, table: str, touched: str) -> Iterator[None]:
    """Overwrite the root page of `table` in the file, as a bad sector would, and let others see a change.

    At the end an operator's backup takes its place; who has it open must open it again.
    """
    backup = database.with_suffix(".backup")
    with contextlib.closing(sqlite3.connect(database)) as db:
        with contextlib.closing(sqlite3.connect(backup)) as copy:
            db.backup(copy)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # else the page is read from the log
        (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
        with database.open("r+b") as file:
            file.seek((root - 1) * size)
            file.write(b"\xa5" * size)
            os.fsync(file.fileno())
        db.execute(touched)
        db.commit()
    yield
    for name in (f"{database.name}-wal", f"{database.name}-shm"):
        database.with_name(name).unlink(missing_ok=True)
    backup.chmod(0o600)
    backup.replace(database)
