"""The samples on disk: faces that were flagged, with what people say of them.

SQLite is the source of truth (`samples.db`); pictures, probabilities and embeddings in it are sealed
(`samples.key`). Camera, times, labels and names are not: they are what samples are looked up by.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from ..cropper import Cropper
from ..errors import SampleError
from ..message import Identity
from ..privacy.store_file import open_store
from ..privacy.wall_clock import Correction, WallClock
from ..registry import ChipRecipe
from .sample import Label, Sample, SamplesConfig, Source, State, bucket_of, who
from .sample_schema import SAMPLES
from .sealed_face import StoredFace, open_embedding, open_face, seal_face
from .sighting import Sighting

F32 = npt.NDArray[np.float32]

DAY_S = 86_400.0
COLUMNS = (
    "id, source, state, camera, track, seq, captured_at, stored_at, bucket, release, space, quality, "
    "disagreement, shown_emotion, identity, emotion, person, not_people, is_face"
)

THEIRS = (
    "SELECT id FROM samples WHERE person = ?1 OR (seen_as = ?1 AND person = '' AND NOT EXISTS "
    "(SELECT 1 FROM json_each(not_people) WHERE value = ?1 COLLATE NOCASE))"
)


class Wanted(Struct, frozen=True, kw_only=True):
    """Which samples; None does not choose. `emotion` and `is_face` are what people say."""

    states: tuple[State, ...] | None = None
    source: Source | None = None
    camera: str | None = None
    emotion: str | None = None
    person: str | None = None
    is_face: bool | None = None
    buckets: tuple[int, ...] | None = None


class SampleStore:
    """The store. Owned by one thread; several processes may each have one."""

    def __init__(
        self,
        state: Path,
        config: SamplesConfig = SamplesConfig(),  # noqa: B008 - frozen
        *,
        key: Path | None = None,
        timeout_s: float = 5.0,
        now: Callable[[], float] | None = None,
    ) -> None:
        """Open the store in the folder `state`, creating it when missing.

        Args:
            state: folder of `samples.db` and `samples.key`.
            config: limits, applied whenever something is added.
            key: key file elsewhere, such as a systemd credential.
            timeout_s: how long to wait for another process that is writing.
            now: clock, seconds since 1970; else the one that is believed here.

        Raises:
            StoreError: corrupt, of a newer visaged, no key, or the folder cannot be written.
        """
        self._config, self._now = config, now or WallClock(state).now
        self._file, self._sealer = open_store(SAMPLES, state, key=key, timeout_s=timeout_s)

    def changed(self) -> bool:
        """Return whether another process or object has written since the last call."""
        return self._file.changed_elsewhere()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, sighting: Sighting, source: Source, label: Label | None = None) -> Sample:
        """Store a sighting, or find it there; with a `label`, store that it is said. On disk on return.

        A sighting is stored once, however often it is added, and keeps the source it came with.

        Raises:
            SampleError: it cannot be written; nothing is stored.
        """
        with self._file.transaction():
            if not self._file.rows("SELECT 1 FROM samples WHERE id = ?", (sighting.id,)):
                self._insert(sighting, source, label or Label())
            sample = self._set(sighting.id, label) if label is not None else self.sample(sighting.id)
            self._make_room()
        return sample

    def label(self, id: str, label: Label) -> Sample:
        """Store that people say `label` of a sample, and return it.

        Raises:
            SampleError: there is none of this id.
        """
        with self._file.transaction():
            return self._set(self.sample(id).id, label)

    def sample(self, id: str) -> Sample:
        """Return the sample whose id begins with `id`.

        Raises:
            SampleError: none does, or several do.
        """
        digits = id.lower()
        rows = self._file.rows(
            f"SELECT {COLUMNS} FROM samples WHERE substr(id, 1, ?) = ? LIMIT 2", (len(digits), digits)
        )
        if len(rows) != 1 or not digits:
            what = "several samples begin" if rows else "no sample begins"
            raise SampleError(f"{what} with {id!r}; `visaged samples list` shows their ids")
        return _sample(rows[0])

    def samples(self, wanted: Wanted | None = None) -> list[Sample]:
        """Return the samples that are wanted, oldest first."""
        where, values = _where(wanted or Wanted())
        rows = self._file.rows(f"SELECT {COLUMNS} FROM samples{where} ORDER BY captured_at, id", values)
        return [_sample(row) for row in rows]

    def face(self, id: str) -> StoredFace:
        """Return the opened contents of a sample, by its whole id.

        Raises:
            StoreError: there is none, or it does not open: altered, moved or sealed with another key.
        """
        rows = self._file.rows("SELECT sealed_face, sealed_embedding FROM samples WHERE id = ?", (id,))
        if not rows:
            raise SampleError(f"the sample {id} is gone")
        return open_face(self._sealer, id, *rows[0])

    def chips(self, recipe: ChipRecipe, wanted: Wanted) -> Iterator[tuple[Sample, F32]]:
        """Yield every wanted sample with its chip for `recipe`, `(C, S, S)` float32 network input."""
        cropper = Cropper()
        for sample in self.samples(wanted):
            face = self.face(sample.id)
            yield sample, cropper.crop(face.chip, face.landmarks[None], recipe)[0]

    def embeddings(self, space: str, n: int) -> F32:
        """Return `(N, D)` embeddings of one space, of the `n` samples stored last, newest first."""
        rows = self._file.rows(
            "SELECT id, sealed_embedding FROM samples WHERE space = ? AND sealed_embedding IS NOT NULL "
            "ORDER BY stored_at DESC LIMIT ?",
            (space, n),
        )
        opened = [open_embedding(self._sealer, id, sealed) for id, sealed in rows]
        return np.stack(opened) if opened else np.zeros((0, 0), np.float32)

    def counts(self) -> dict[State, int]:
        """Return how many samples are in each state."""
        found = dict(self._file.rows("SELECT state, count(*) FROM samples GROUP BY state"))
        return {state: int(found.get(state.value, 0)) for state in State}

    def remove(self, id: str) -> None:
        """Delete a sample by its whole id; of an unknown one, nothing."""
        with self._file.transaction():
            self._file.run("DELETE FROM samples WHERE id = ?", (id,))
        self._file.empty_log()

    def expire(self) -> int:
        """Delete what is older than the configuration allows, and return how many."""
        with self._file.transaction():
            n_deleted = 0
            for is_review, days in ((1, self._config.keep_review_days), (0, self._config.keep_labelled_days)):
                n_deleted += self._file.run(
                    "DELETE FROM samples WHERE (state = 'review') = ? AND stored_at < ?",
                    (is_review, self._now() - days * DAY_S),
                )
        if n_deleted:
            self._file.empty_log()
        return n_deleted

    def redate(self, correction: Correction) -> int:
        """Correct when samples were stored by a clock that was wrong, and return how many were.

        Made again, after a kill before it was accepted, it makes nothing younger than now.
        """
        with self._file.transaction():
            return self._file.run(
                "UPDATE samples SET stored_at = stored_at + ? WHERE stored_at BETWEEN ? AND ?",
                (correction.step_s, correction.since, correction.until),
            )

    def forget(
        self, names: Sequence[str], before: Callable[[list[str]], None] = lambda ids: None
    ) -> tuple[int, bool]:
        """Delete every sample of whoever has one of these names, and the names in the samples of others.

        A sample is theirs when people say so, or when the daemon took it for them and nobody said otherwise.
        `before` hears the ids of them all before any is deleted; what it raises leaves all as it was.

        Returns:
            How many were deleted, and whether the bytes are gone from the file already: not while another
            process reads.
        """
        with self._file.transaction():
            rows = [row for name in names for row in self._file.rows(THEIRS, (name,))]
            ids = sorted({str(id) for (id,) in rows})
            before(ids)
            for id in ids:
                self._file.run("DELETE FROM samples WHERE id = ?", (id,))
            for name in names:
                self._scrub_name(name)
        return len(ids), self._file.drain_log()  # in the file itself SQLite overwrites what it deletes

    def _scrub_name(self, name: str) -> None:
        """Take a name out of the samples of other people."""
        nobody = msgspec.json.encode(Identity()).decode()
        self._file.run("UPDATE samples SET seen_as = '', identity = ? WHERE seen_as = ?", (nobody, name))
        self._file.run(
            "UPDATE samples SET not_people = (SELECT json_group_array(value) FROM json_each(not_people) "
            "WHERE value <> ?1 COLLATE NOCASE) WHERE EXISTS "
            "(SELECT 1 FROM json_each(not_people) WHERE value = ?1 COLLATE NOCASE)",
            (name,),
        )

    def _insert(self, sighting: Sighting, source: Source, label: Label) -> None:
        id, person = sighting.id, who(label, sighting.identity)
        sealed, sealed_embedding = seal_face(self._sealer, sighting)
        row: dict[str, Any] = {
            "id": id,
            "source": source.value,
            "state": State.REVIEW.value,
            "camera": sighting.camera,
            "track": sighting.track,
            "seq": sighting.seq,
            "captured_at": sighting.captured_at,
            "stored_at": self._now(),
            "bucket": bucket_of(sighting.camera, sighting.track, sighting.captured_at, person),
            "release": sighting.release,
            "space": sighting.space,
            "quality": sighting.quality,
            "disagreement": sighting.disagreement,
            "shown_emotion": sighting.emotion,
            "identity": msgspec.json.encode(sighting.identity).decode(),
            "seen_as": sighting.identity.person,
            "emotion": "",
            "person": "",
            "not_people": "[]",
            "is_face": None,
            "n_bytes": len(sealed) + len(sealed_embedding or b""),
            "sealed_face": sealed,
            "sealed_embedding": sealed_embedding,
        }
        marks = ",".join("?" * len(row))
        self._file.run(f"INSERT INTO samples ({','.join(row)}) VALUES ({marks})", list(row.values()))

    def _set(self, id: str, said: Label) -> Sample:
        sample = self.sample(id)
        label = said.after(sample.label)
        state = _state_of(sample, label)
        self._file.run(
            "UPDATE samples SET state = ?, emotion = ?, person = ?, not_people = ?, is_face = ? WHERE id = ?",
            (
                state.value,
                label.emotion,
                label.person,
                msgspec.json.encode(label.not_people).decode(),
                label.is_face,
                id,
            ),
        )
        return msgspec.structs.replace(sample, label=label, state=state)

    def _make_room(self) -> None:
        """Delete the oldest until the rest fits: first what waits for a label."""
        excess = self._file.rows("SELECT total(n_bytes) FROM samples")[0][0] - self._config.max_mb * 1e6
        if excess <= 0:
            return
        for id, n_bytes in self._file.rows(
            "SELECT id, n_bytes FROM samples ORDER BY state <> 'review', stored_at"
        ):
            self._file.run("DELETE FROM samples WHERE id = ?", (id,))
            excess -= n_bytes
            if excess <= 0:
                return


def _state_of(sample: Sample, label: Label) -> State:
    """Confirmed is what agrees with everything that was published; anything else corrects it."""
    agrees = label.is_face and not label.not_people
    agrees = agrees and label.emotion in ("", sample.shown_emotion)
    agrees = agrees and label.person in ("", sample.identity.person)
    return State.CONFIRMED if agrees else State.CORRECTED


def _where(wanted: Wanted) -> tuple[str, list[Any]]:
    """Return the SQL condition and its values."""
    terms: list[str] = []
    values: list[Any] = []
    if wanted.source is not None:
        terms.append("source = ?")
        values.append(wanted.source.value)
    for column in ("camera", "emotion", "person", "is_face"):
        if (value := getattr(wanted, column)) is not None:
            terms.append(f"{column} = ?")
            values.append(value)
    for column, chosen in (("state", wanted.states), ("bucket", wanted.buckets)):
        if chosen is not None:
            terms.append(f"{column} IN ({','.join('?' * len(chosen))})")
            values += [one.value if isinstance(one, State) else one for one in chosen]
    return (" WHERE " + " AND ".join(terms) if terms else ""), values


def _sample(row: tuple[Any, ...]) -> Sample:
    values: dict[str, Any] = dict(zip(COLUMNS.split(", "), row, strict=True))
    is_face = values.pop("is_face")
    label = Label(
        emotion=values.pop("emotion"),
        person=values.pop("person"),
        not_people=tuple(msgspec.json.decode(values.pop("not_people"))),
        is_face=None if is_face is None else bool(is_face),
    )
    identity = msgspec.json.decode(values.pop("identity"), type=Identity)
    source, state = Source(values.pop("source")), State(values.pop("state"))
    return Sample(**values, source=source, state=state, identity=identity, label=label)
