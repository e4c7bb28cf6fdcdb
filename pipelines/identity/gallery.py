"""Who is enrolled: people, their templates, what they are not, merges, and strangers who come back.

SQLite is the source of truth (`gallery.db`); embeddings in it are sealed (`gallery.key`).
"""

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from ..errors import GalleryError
from ..privacy.store_file import open_store
from ..privacy.wall_clock import WallClock
from .gallery_schema import GALLERY, ROOTS, context_of
from .person import STRANGER_PREFIX, Person, Removed, Templates, clean_name

F32 = npt.NDArray[np.float32]

SAME_PHOTO = 1e-3  # distance; the same pixels give less, another photo gives 100 times more


class Gallery:
    """The enrolled people and the strangers. Owned by one thread; several processes may each have one."""

    def __init__(
        self,
        state: Path,
        *,
        key: Path | None = None,
        timeout_s: float = 5.0,
        now: Callable[[], float] | None = None,
    ) -> None:
        """Open the gallery in the folder `state`, creating it when missing.

        Args:
            state: folder of `gallery.db` and `gallery.key`.
            key: key file elsewhere; else the systemd credential `gallery.key`, else that in `state`.
            timeout_s: how long to wait for another process that is writing.
            now: clock, seconds since 1970; else the one that is believed here.

        Raises:
            StoreError: corrupt, no key, or the folder cannot be written.
        """
        self.folder, self.now = state, now or WallClock(state).now
        self._file, self._sealer = open_store(GALLERY, state, key=key, timeout_s=timeout_s)
        self._has_own_change = True

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def changed(self) -> bool:
        """Return whether people or templates changed since the last call, here or in another process.

        What the owner does to strangers itself (`add_stranger`, `touch_stranger`) does not count.
        """
        changed = self._file.changed_elsewhere() or self._has_own_change
        self._has_own_change = False
        return changed

    def enrol(
        self,
        name: str,
        embeddings: F32,
        *,
        space: str,
        qualities: Sequence[float] | None = None,
        sources: Sequence[str] = (),
        consent: str = "",
    ) -> int:
        """Add templates to `name`, a new or an enrolled person; return how many it has now.

        A template that is there already (the same photo again) is not added twice.

        Args:
            name: as people write it.
            embeddings: `(N, D)`.
            space: of the embeddings; others are never compared with them.
            qualities: `(N,)` in [0, 1].
            sources: where each came from, for the operator.
            consent: note about the person's consent; empty leaves what is there.

        Raises:
            GalleryError: the name cannot be used; nothing is stored.
        """
        name = clean_name(name)
        with self._file.transaction():
            person = self.number_of(name)
            if person is None:
                now = self.now()
                person = self._file.insert(
                    "INSERT INTO people (kind, name, created_at, last_seen) VALUES ('enrolled', ?, ?, ?)",
                    (name, now, now),
                )
            if consent:
                self._file.run("UPDATE people SET consent = ? WHERE id = ?", (consent, person))
            there = self._opened(person, space)
            for i, embedding in enumerate(embeddings):
                if any(np.linalg.norm(embedding - known) < SAME_PHOTO for known in there):
                    continue
                quality = 1.0 if qualities is None else float(qualities[i])
                self._add_template(person, embedding, space, quality, sources[i] if sources else "")
                there.append(embedding)
            self._has_own_change = True
        return len(there)

    def reject(self, name: str, embeddings: F32, *, space: str, source: str = "") -> None:
        """Store that faces like `embeddings` `(N, D)` are not `name`.

        Raises:
            GalleryError: nobody has that name.
        """
        with self._file.transaction():
            person = self._require(name)
            for embedding in embeddings:
                self._add_template(person, embedding, space, 1.0, source, is_negative=True)
            self._has_own_change = True

    def teach(
        self, source: str, embedding: F32, *, space: str, person: str = "", not_people: Sequence[str] = ()
    ) -> None:
        """Let `source` say that a face is `person`, that it is none of `not_people`, and nothing else.

        What it said before is withdrawn, so saying it again changes nothing.

        Args:
            source: who says so, such as a sample.
            embedding: `(D,)` of the face.
            space: of the embedding.
            person: a new or an enrolled person; empty for nobody.
            not_people: enrolled people.

        Raises:
            GalleryError: the name cannot be used, or nobody has it; nothing is changed.
        """
        with self._file.transaction():
            self.withdraw(source)
            if person:
                self.enrol(person, embedding[None], space=space, sources=[source])
            for name in not_people:
                self.reject(name, embedding[None], space=space, source=source)

    def withdraw(self, source: str) -> int:
        """Remove the templates and negatives that came from `source`; return how many."""
        with self._file.transaction():
            n_removed = self._file.run("DELETE FROM templates WHERE source = ?", (source,))
            self._has_own_change |= n_removed > 0
        return n_removed

    def has(self, name: str) -> bool:
        """Return whether somebody is called `name`, also by a merge."""
        return self.number_of(name) is not None

    def name_of(self, name: str) -> str:
        """Return under which name `name` is listed, through merges; of nobody, `name` itself."""
        person = self.number_of(name)
        if person is None:
            return name
        return str(self._file.rows("SELECT name FROM people WHERE id = ?", (person,))[0][0])

    def number_of(self, name: str) -> int | None:
        """Return the number of whoever is called `name`, through merges; None: nobody. Never used twice."""
        rows = self._file.rows(
            ROOTS + "SELECT top FROM root JOIN people USING (id) WHERE name = ? COLLATE NOCASE", (name,)
        )
        return int(rows[0][0]) if rows else None

    def names_by_number(self) -> dict[int, str]:
        """Return everybody's name, merged or not, by their number."""
        return {int(id): str(name) for id, name in self._file.rows("SELECT id, name FROM people")}

    def people(self) -> list[Person]:
        """Return everybody, enrolled people first, by name; merged ones as aliases of who they are in."""
        rows = self._file.rows(
            ROOTS
            + """SELECT p.name, p.kind, p.consent, p.created_at,
                   (SELECT max(a.last_seen) FROM people a JOIN root ON root.id = a.id WHERE root.top = p.id),
                   (SELECT count(*) FROM templates t JOIN root ON root.id = t.person
                     WHERE root.top = p.id AND NOT is_negative),
                   (SELECT count(*) FROM templates t JOIN root ON root.id = t.person
                     WHERE root.top = p.id AND is_negative),
                   (SELECT json_group_array(a.name) FROM people a JOIN root ON root.id = a.id
                     WHERE root.top = p.id AND a.id <> p.id)
            FROM people p WHERE merged_into IS NULL ORDER BY kind, name COLLATE NOCASE"""
        )
        return [Person.of_row(row) for row in rows]

    def templates(self, space: str, *, strangers: bool = False, negatives: bool = False) -> Templates:
        """Return the opened templates of one embedding space, of the enrolled or of the strangers.

        Raises:
            StoreError: a row does not open: altered, moved or sealed with another key.
        """
        kind = "stranger" if strangers else "enrolled"
        rows = self._file.rows(
            ROOTS
            + """SELECT top.id, top.name, t.person, t.uid, t.sealed FROM templates t
                JOIN root ON root.id = t.person JOIN people top ON top.id = root.top
                WHERE t.space = ? AND top.kind = ? AND t.is_negative = ? ORDER BY top.id, t.created_at""",
            (space, kind, int(negatives)),
        )
        index: dict[int, int] = {}
        names: list[str] = []
        owners: list[int] = []
        opened: list[bytes] = []
        for top, name, person, uid, sealed in rows:
            if top not in index:
                index[top] = len(names)
                names.append(name)
            owners.append(index[top])
            opened.append(self._sealer.open(sealed, context_of(uid, person, space, negatives)))
        if len({len(plain) for plain in opened}) > 1:
            raise GalleryError(f"templates of the space {space} have different lengths; restore a backup")
        flat = np.frombuffer(b"".join(opened), dtype="<f4").astype(np.float32)
        embeddings: F32 = flat.reshape(len(opened), -1) if opened else flat.reshape(0, 0)
        return Templates(embeddings, np.array(owners, dtype=np.intp), tuple(names))

    def merge(self, kept: str, absorbed: str) -> int:
        """Make `absorbed` count as `kept` and return the number of the merge, for `unmerge`.

        Raises:
            GalleryError: one of them does not exist, both are the same, or a person into a stranger.
        """
        with self._file.transaction():
            into, gone = self._require(kept), self._require(absorbed)
            if into == gone:
                raise GalleryError(f"{kept} and {absorbed} already are the same person")
            if self._is_stranger(into) and not self._is_stranger(gone):
                raise GalleryError(f"{kept} is a stranger; merge the other way round: {absorbed} {kept}")
            self._file.run("UPDATE people SET merged_into = ? WHERE id = ?", (into, gone))
            self._has_own_change = True
            return self._file.insert(
                "INSERT INTO merges (kept, absorbed, created_at) VALUES (?, ?, ?)", (into, gone, self.now())
            )

    def name_stranger(self, stranger: str, name: str, consent: str = "") -> int:
        """Make `stranger` count as `name`, a new or an enrolled person; `unmerge` undoes it.

        Raises:
            GalleryError: there is no such stranger, or the name cannot be used.
        """
        with self._file.transaction():
            if not self._is_stranger(self._require(stranger)):
                raise GalleryError(f"{stranger} is enrolled, not a stranger; use `visaged merge`")
            self.enrol(name, np.zeros((0, 0), np.float32), space="", consent=consent)
            return self.merge(name, stranger)

    def unmerge(self, name: str) -> tuple[str, str]:
        """Undo the merge that absorbed `name`, exactly; return both names, the one it was in first.

        Raises:
            GalleryError: `name` is not merged into anybody.
        """
        with self._file.transaction():
            rows = self._file.rows(
                "SELECT p.id, p.name, k.name FROM people p JOIN people k ON k.id = p.merged_into"
                " WHERE p.name = ? COLLATE NOCASE",
                (name,),
            )
            if not rows:
                raise GalleryError(f"{name} is not merged into anybody; `visaged people` lists aliases")
            person, exact, kept = rows[0]
            self._file.run("UPDATE people SET merged_into = NULL WHERE id = ?", (person,))
            self._file.run(
                "UPDATE merges SET undone_at = ? WHERE absorbed = ? AND undone_at IS NULL",
                (self.now(), person),
            )
            self._has_own_change = True
        return kept, exact

    def forget(self, name: str) -> Removed:
        """Remove a person or stranger with everything known about them, also from the file's free pages.

        Whoever was merged into them is the same human and goes too.

        Raises:
            GalleryError: nobody has that name.
        """
        with self._file.transaction():
            person = self._require(name)
            everyone = self._file.rows(
                ROOTS + "SELECT p.id, p.name FROM people p JOIN root USING (id) WHERE top = ?", (person,)
            )
            exact = next(n for i, n in everyone if i == person)
            marks = ",".join("?" * len(everyone))
            ids = [i for i, _ in everyone]
            templates = self._file.run(
                f"DELETE FROM templates WHERE NOT is_negative AND person IN ({marks})", ids
            )
            negatives = self._file.run(f"DELETE FROM templates WHERE person IN ({marks})", ids)
            merges = self._file.run(
                f"DELETE FROM merges WHERE kept IN ({marks}) OR absorbed IN ({marks})", ids + ids
            )
            self._file.run(f"DELETE FROM people WHERE id IN ({marks})", ids)
            self._has_own_change = True
        return Removed(
            person=exact,
            aliases=tuple(n for i, n in everyone if i != person),
            templates=templates,
            negatives=negatives,
            merges=merges,
            is_scrubbed=self._file.scrub(),
        )

    def add_stranger(self, embedding: F32, *, space: str, quality: float) -> str:
        """Store a new stranger with one template `(D,)`; return the name, whose number is never reused."""
        with self._file.transaction():
            self._file.run("UPDATE facts SET value = value + 1 WHERE name = 'strangers'")
            number = self._file.rows("SELECT value FROM facts WHERE name = 'strangers'")[0][0]
            name, now = f"{STRANGER_PREFIX}{number}", self.now()
            person = self._file.insert(
                "INSERT INTO people (kind, name, created_at, last_seen) VALUES ('stranger', ?, ?, ?)",
                (name, now, now),
            )
            self._add_template(person, embedding, space, quality, "seen")
        return name

    def touch_stranger(
        self, name: str, embedding: F32 | None = None, *, space: str = "", quality: float = 0.0
    ) -> None:
        """Note that the stranger was seen now, and one more template `(D,)` of it if given."""
        with self._file.transaction():
            rows = self._file.rows("SELECT id FROM people WHERE name = ? AND kind = 'stranger'", (name,))
            if not rows:
                raise GalleryError(f"there is no stranger {name} any more")
            person = int(rows[0][0])
            self._file.run("UPDATE people SET last_seen = ? WHERE id = ?", (self.now(), person))
            if embedding is not None:
                self._add_template(person, embedding, space, quality, "seen")

    def expire_strangers(self, ttl_s: float) -> int:
        """Delete strangers not seen for `ttl_s` seconds, unless merged into somebody; return how many."""
        with self._file.transaction():
            deleted = self._file.run(
                """DELETE FROM people WHERE kind = 'stranger' AND last_seen < ?1 AND merged_into IS NULL AND
                   id NOT IN (SELECT merged_into FROM people WHERE merged_into > 0 AND last_seen >= ?1)""",
                (self.now() - ttl_s,),
            )
            self._has_own_change |= deleted > 0
        if deleted:
            self._file.empty_log()
        return deleted

    def drop_stranger(self, name: str) -> None:
        """Delete a stranger that turned out to be nobody new; of an unknown name, nothing."""
        with self._file.transaction():
            self._file.run(
                "DELETE FROM people WHERE name = ? AND kind = 'stranger' AND merged_into IS NULL", (name,)
            )

    def _add_template(
        self,
        person: int,
        embedding: F32,
        space: str,
        quality: float,
        source: str,
        *,
        is_negative: bool = False,
    ) -> None:
        if embedding.ndim != 1 or not np.isfinite(embedding).all():
            raise GalleryError(f"an embedding must be a list of finite numbers, not {embedding.shape}")
        uid = secrets.token_hex(8)
        sealed = self._sealer.seal(
            embedding.astype("<f4").tobytes(), context_of(uid, person, space, is_negative)
        )
        self._file.run(
            "INSERT INTO templates VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (uid, person, int(is_negative), space, quality, source, self.now(), sealed),
        )

    def _opened(self, person: int, space: str) -> list[F32]:
        rows = self._file.rows(
            "SELECT uid, sealed FROM templates WHERE person = ? AND space = ? AND NOT is_negative",
            (person, space),
        )
        plain = [self._sealer.open(sealed, context_of(uid, person, space, False)) for uid, sealed in rows]
        return [np.frombuffer(p, dtype="<f4").astype(np.float32) for p in plain]

    def _require(self, name: str) -> int:
        person = self.number_of(name)
        if person is None:
            raise GalleryError(f"nobody is called {name}; `visaged people` lists who is")
        return person

    def _is_stranger(self, person: int) -> bool:
        rows = self._file.rows("SELECT kind FROM people WHERE id = ?", (person,))
        return str(rows[0][0]) == "stranger"
