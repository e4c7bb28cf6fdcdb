"""Open the gallery's SQLite file: settings, migrations, transactions, and removal without a trace."""

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import GalleryError
from .gallery_schema import MIGRATIONS

SCRUB_TRIES, SCRUB_PAUSE_S = 20, 0.05


class GalleryFile:
    """One connection to the gallery. Owned by the thread that opened it."""

    def __init__(self, path: Path, *, timeout_s: float) -> None:
        """Open or create `path`.

        Raises:
            GalleryError: corrupt, of a newer visaged, or the folder cannot be written.
        """
        self.path = path
        with self._explained():
            path.touch(mode=0o600)  # the log beside it takes over the mode
            self._db = sqlite3.connect(path, timeout=timeout_s, isolation_level=None)
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        with self._explained():
            return self._db.execute(sql, values).fetchall()

    def run(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Run one statement inside `transaction`; return how many rows it changed."""
        with self._explained():
            return self._db.execute(sql, values).rowcount

    def insert(self, sql: str, values: Sequence[Any]) -> int:
        """Insert one row inside `transaction`; return its id."""
        with self._explained():
            return self._db.execute(sql, values).lastrowid or 0

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Do all that happens inside, or nothing. May be nested; the outermost decides."""
        if self._db.in_transaction:
            yield
            return
        with self._explained():
            self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._db.in_transaction:  # SQLite itself rolls back when the disk is full
                with self._explained():
                    self._db.execute("ROLLBACK")
            raise
        with self._explained():
            self._db.execute("COMMIT")

    def data_version(self) -> int:
        """Return a number that changes when another connection has changed the file."""
        return int(self.rows("PRAGMA data_version")[0][0])

    def scrub(self) -> bool:
        """Rewrite the file and empty the log, so that deleted bytes are gone from both.

        Returns:
            False when another process kept reading; its next checkpoint finishes the job.
        """
        with self._explained():
            self._db.execute("VACUUM")
        for _ in range(SCRUB_TRIES):
            if self.empty_log():
                return True
            time.sleep(SCRUB_PAUSE_S)
        return False

    def empty_log(self) -> bool:
        """Move the write-ahead log into the file and cut it to nothing; False when a reader forbids it."""
        with self._explained():
            busy, _, _ = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy

    def _prepare(self) -> None:
        for setting in (
            "journal_mode = WAL",
            "synchronous = NORMAL",
            "secure_delete = ON",
            "foreign_keys = ON",
            "trusted_schema = OFF",
        ):
            self._db.execute(f"PRAGMA {setting}")
        verdict = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        with self.transaction():  # read inside: two processes may start at once
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version > len(MIGRATIONS):
                raise GalleryError(f"{self.path} was written by a newer visaged; update this one")
            for migration in MIGRATIONS[version:]:
                for statement in migration.split(";"):
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise GalleryError(f"the gallery {self.path} cannot be used now: {error}") from error
        except (sqlite3.Error, OSError) as error:
            raise GalleryError(
                f"the gallery {self.path} is damaged or unreadable ({error}); restore a backup, "
                "or move it away to start an empty one"
            ) from error
