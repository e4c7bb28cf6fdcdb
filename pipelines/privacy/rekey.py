"""Seal everything a store holds with a new key, a batch of rows at a time; a killed run is taken up again.

A new key is appended to the key file first, then every row is sealed with it, and the old keys are dropped
only when no row needs them. So at any moment every row opens with the file as it is.
"""

import fcntl
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from ..cache_files import sync_folder, write_atomically
from ..errors import StoreError
from ..identity.gallery_schema import GALLERY, context_of
from ..loop.sample_schema import SAMPLES
from ..loop.sealed_face import embedding_context, face_context
from .seal import KEY_BYTES, KEY_ID_BYTES, Sealer, key_id, read_keys
from .store_file import StoreFile, StoreKind

BATCH = 200  # rows of one transaction
PRIVATE = 0o600

Column = tuple[str, str, str, Callable[..., str]]
"""Table, column, the columns that its context is made of (the first names the row), and the context."""

COLUMNS: dict[str, tuple[Column, ...]] = {
    "gallery": (
        (
            "templates",
            "sealed",
            "uid, person, space, is_negative",
            lambda uid, person, space, negative: context_of(uid, person, space, bool(negative)),
        ),
    ),
    "samples": (
        ("samples", "sealed_face", "id", face_context),
        ("samples", "sealed_embedding", "id", embedding_context),
    ),
}
STORES = {kind.name: kind for kind in (GALLERY, SAMPLES)}


class Rekeying:
    """One store under a new key. Nothing else may write to it meanwhile: it would go on with the old key."""

    def __init__(self, kind: StoreKind, state: Path) -> None:
        """Open the store and its keys, following a link to where systemd has them.

        Raises:
            StoreError: the store is damaged, its key is missing, or another run is under way.
        """
        self._lock = os.open(state, os.O_RDONLY)  # two runs would each append a key, and one be lost
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise StoreError(f"another `visaged rekey` is at work in {state}; wait for it") from error
        self._columns, self._key_file = COLUMNS[kind.name], (state / f"{kind.name}.key").resolve()
        self._keys = read_keys(self._key_file)
        self._file = StoreFile(kind, state / f"{kind.name}.db", timeout_s=5.0)

    def close(self) -> None:
        """Close the store, and let others."""
        self._file.close()
        os.close(self._lock)

    def is_begun(self) -> bool:
        """Return whether rows are left that an earlier run did not come to."""
        return self._count_others() > 0

    def begin(self) -> None:
        """Append a new key, which seals from now on.

        Raises:
            StoreError: the key file cannot be written.
        """
        self._write([*self._keys, secrets.token_bytes(KEY_BYTES)])

    def seal_rows(self, on_progress: Callable[[int], None] = lambda n: None) -> int:
        """Seal with the last key what another one sealed; return how many values.

        Raises:
            StoreError: a row does not open; those before it are done.
        """
        sealer, n_done = Sealer(self._keys), 0
        for table, column, parts, context in self._columns:
            while n := self._seal_batch(sealer, (table, column, parts, context)):
                n_done += n
                on_progress(n)
        self._file.drain_log()  # the old values are in it
        return n_done

    def drop_old(self) -> int:
        """Remove all keys but the last from the file; return how many.

        Raises:
            StoreError: something is sealed with one of them still.
        """
        if n_left := self._count_others():
            raise StoreError(f"{n_left} values are sealed with an old key; run `visaged rekey` first")
        n_dropped = len(self._keys) - 1
        if n_dropped:
            self._write(self._keys[-1:])
        return n_dropped

    def _seal_batch(self, sealer: Sealer, what: Column) -> int:
        table, column, parts, context = what
        active = key_id(self._keys[-1])
        with self._file.transaction():
            rows = self._file.rows(
                f"SELECT {column}, {parts} FROM {table} WHERE {column} IS NOT NULL "
                f"AND substr({column}, 1, {KEY_ID_BYTES}) <> ? LIMIT {BATCH}",
                (active,),
            )
            for sealed, *row in rows:
                place = context(*row)
                self._file.run(
                    f"UPDATE {table} SET {column} = ? WHERE {parts.split(', ')[0]} = ?",
                    (sealer.seal(sealer.open(sealed, place), place), row[0]),
                )
        return len(rows)

    def _count_others(self) -> int:
        """Return how many values are sealed with a key that is not the last."""
        active, n = key_id(self._keys[-1]), 0
        for table, column, *_ in self._columns:
            n += self._file.rows(
                f"SELECT count(*) FROM {table} WHERE {column} IS NOT NULL "
                f"AND substr({column}, 1, {KEY_ID_BYTES}) <> ?",
                (active,),
            )[0][0]
        return n

    def _write(self, keys: list[bytes]) -> None:
        text = "".join(f"{key.hex()}\n" for key in keys)
        try:
            write_atomically(self._key_file, text.encode(), PRIVATE)
            sync_folder(self._key_file.parent)
        except OSError as error:
            raise StoreError(
                f"the key file {self._key_file} cannot be written ({error.strerror}); run this as its owner"
            ) from error
        self._keys = keys
