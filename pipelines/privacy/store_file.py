"""Open what is stored of people in SQLite: settings, migrations, transactions, and removal without a trace.

The gallery and the sample store are such files; each has its tables, its errors and its key beside it.
"""

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, StoreError
from .seal import Sealer, create_key_file, credential

SCRUB_TRIES, SCRUB_PAUSE_S = 20, 0.05


@dataclass(frozen=True, slots=True)
class StoreKind:
    """What a file is: its name in files and sentences, its errors, and its tables.

    `migrations`: entry i takes `user_version` i to i + 1. `is_durable`: a commit survives a power cut, not
    only the end of the process.
    """

    name: str
    error: type[StoreError]
    migrations: tuple[str, ...]
    is_durable: bool = False


def open_store(
    kind: StoreKind, state: Path, *, key: Path | None, timeout_s: float
) -> tuple["StoreFile", Sealer]:
    """Open `NAME.db` in the folder `state` and its key `NAME.key`; make both where there is no file yet.

    Args:
        kind: what it is.
        state: the folder; made when missing.
        key: key file elsewhere; else the systemd credential `NAME.key`, else that in `state`.
        timeout_s: how long to wait for another process that is writing.

    Raises:
        StoreError: of the kind: corrupt, of a newer visaged, or the folder cannot be written; the key is
            missing or readable by others.
    """
    path = state / f"{kind.name}.db"
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise kind.error(f"the state folder {state} cannot be made ({error.strerror})") from error
    key = key or credential(f"{kind.name}.key")
    if key is None:
        key = state / f"{kind.name}.key"
        if not path.exists():
            create_key_file(key)
    sealer = Sealer.from_file(key)
    return StoreFile(kind, path, timeout_s=timeout_s), sealer


class StoreFile:
    """One connection to a file. Owned by the thread that opened it."""

    def __init__(self, kind: StoreKind, path: Path, *, timeout_s: float) -> None:
        """Open or create `path`.

        Raises:
            StoreError: of the kind: corrupt, of a newer visaged, or the folder cannot be written.
        """
        self.path, self._kind = path, kind
        with self._explained():
            path.touch(mode=0o600)  # the log beside it takes over the mode
            self._db = sqlite3.connect(path, timeout=timeout_s, isolation_level=None)
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise
        self._seen_version = self._version()

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

    def changed_elsewhere(self) -> bool:
        """Return whether another connection has changed the file since the last call."""
        seen, self._seen_version = self._seen_version, self._version()
        return self._seen_version != seen

    def _version(self) -> int:
        return int(self.rows("PRAGMA data_version")[0][0])

    def scrub(self) -> bool:
        """Rewrite the file and empty the log, so that deleted bytes are gone from both.

        Returns:
            False when another process kept reading; its next checkpoint finishes the job.
        """
        with self._explained():
            self._db.execute("VACUUM")
        return self.drain_log()

    def drain_log(self) -> bool:
        """Empty the log, in which deleted bytes still are, waiting a second for readers; return whether."""
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
            f"synchronous = {'FULL' if self._kind.is_durable else 'NORMAL'}",
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
            migrations = self._kind.migrations
            if version > len(migrations):
                raise self._kind.error(f"{self.path} was written by a newer visaged; update this one")
            for migration in migrations[version:]:
                for statement in migration.split(";"):
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {len(migrations)}")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise self._kind.error(
                f"the {self._kind.name} {self.path} cannot be used now: {error}"
            ) from error
        except (sqlite3.Error, OSError) as error:
            damaged = self._kind.error(
                f"the {self._kind.name} {self.path} is damaged or unreadable ({error}); restore a backup, "
                "or move it away to start an empty one"
            )
            damaged.exit_code = ConfigError.exit_code  # a process that is started again finds it as it was
            raise damaged from error
