"""What a sample is: why it is kept, what people say of it, and which part of learning it is for."""

import hashlib
import time
from enum import Enum
from typing import Annotated

from msgspec import Meta, Struct

from ..message import Identity

N_BUCKETS = 10
HOLD_OUT, TUNE, TRAIN = (0, 1), (2,), (3, 4, 5, 6, 7, 8, 9)
"""Buckets that are never trained on, that temperature and early stopping are chosen on, and the rest."""


class SamplesConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept of faces, and for how long. Chips on disk are encrypted; see docs/loop.md."""

    recent_faces: Annotated[int, Meta(ge=0, le=100_000)] = 500
    """Analysed faces of each camera that stay in memory, so that they can be flagged; 0: none can."""
    recent_mb: Annotated[float, Meta(gt=0, le=65536)] = 64.0
    """MB that these may take, all cameras together; a face takes about 0.12 MB."""
    recent_s: Annotated[float, Meta(gt=0, le=3600)] = 120.0
    """Seconds after which they are dropped."""
    keep_labelled_days: Annotated[float, Meta(gt=0)] = 365.0
    """Days after which a sample that somebody labelled is deleted."""
    keep_review_days: Annotated[float, Meta(gt=0)] = 30.0
    """Days after which a sample that waits for a label is deleted."""
    max_mb: Annotated[float, Meta(gt=0)] = 1024.0
    """MB that all samples may take; beyond, the oldest that wait for a label are deleted first."""


class Source(Enum):
    """Why a face became a sample; decided once, when it is stored."""

    USER = "user"
    RANDOM = "random"
    DISAGREEMENT = "disagreement"
    LOW_MARGIN = "low_margin"
    NOVELTY = "novelty"
    IDENTITY_GREY = "identity_grey"
    FLICKER = "flicker"


class State(Enum):
    """What people said of a sample: nothing yet, that the daemon was wrong, or that it was right."""

    REVIEW = "review"
    CORRECTED = "corrected"
    CONFIRMED = "confirmed"


class Label(Struct, frozen=True, kw_only=True):
    """What people say of a face; empty and None where they said nothing."""

    emotion: str = ""
    person: str = ""
    not_people: tuple[str, ...] = ()
    is_face: bool | None = None

    def after(self, before: "Label") -> "Label":
        """Return what holds when this is said after `before`: the newer word replaces the older."""
        if self.is_face is False:
            return Label(is_face=False)
        left = [n for n in before.not_people if n not in self.not_people and n != self.person]
        keeps_person = not self.person and before.person not in self.not_people
        return Label(
            emotion=self.emotion or before.emotion,
            person=before.person if keeps_person else self.person,
            not_people=(*left, *self.not_people),
            is_face=True,
        )


class Sample(Struct, frozen=True, kw_only=True):
    """One row of the sample store, without its picture. Times are wall-clock seconds since 1970.

    `shown_emotion` and `identity` are what the daemon published, `label` what people say.
    """

    id: str
    source: Source
    state: State
    camera: str
    track: int
    seq: int
    captured_at: float
    stored_at: float
    bucket: int
    release: str
    space: str
    quality: float
    disagreement: float
    shown_emotion: str
    identity: Identity
    label: Label

    @property
    def lesson(self) -> str:
        """What the gallery calls the source of what this sample taught it."""
        return f"sample {self.id}"


def who(label: Label, identity: Identity) -> str:
    """Return who it is, as people say or else as the daemon thought; strangers have numbers, "" is nobody."""
    taken_for = "" if identity.person in label.not_people else identity.person
    return (label.person or taken_for).casefold()


def bucket_of_person(person: str) -> int:
    """Return the bucket, 0 to 9, of a person as `who` names them."""
    return _bucket(f"person {person}")


def bucket_of(camera: str, track: int, captured_at: float, person: str = "") -> int:
    """Return the bucket, 0 to 9, of a new sample: its person's, else that of its track on this day (UTC).

    All frames of a track without a name share it, and whatever is made from them inherits it, so that no
    near-duplicate comes into two parts of a split.
    """
    day = time.strftime("%Y-%m-%d", time.gmtime(captured_at))
    return bucket_of_person(person) if person else _bucket(f"{camera}/{track}/{day}")


def _bucket(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % N_BUCKETS
