"""What the gallery says about people: values and the rule for names."""

import json
import unicodedata
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from ..errors import GalleryError

F32 = npt.NDArray[np.float32]

STRANGER_PREFIX = "unknown-"
MAX_NAME = 100


class Person(Struct, frozen=True, kw_only=True):
    """One row of the list of people. Times are seconds since 1970."""

    name: str
    is_stranger: bool
    consent: str
    created_at: float
    last_seen: float
    templates: int
    negatives: int
    aliases: tuple[str, ...] = ()
    """Names merged into this one."""

    @classmethod
    def of_row(cls, row: tuple[Any, ...]) -> Self:
        """Return the person of a row as `Gallery.people` selects it."""
        name, kind, consent, created_at, last_seen, templates, negatives, aliases = row
        return cls(
            name=name,
            is_stranger=kind == "stranger",
            consent=consent,
            created_at=created_at,
            last_seen=last_seen,
            templates=templates,
            negatives=negatives,
            aliases=tuple(json.loads(aliases)),
        )


class Removed(Struct, frozen=True, kw_only=True):
    """What `forget` removed; `is_scrubbed` is false while another process still reads the old file."""

    person: str
    aliases: tuple[str, ...]
    templates: int
    negatives: int
    merges: int
    is_scrubbed: bool


class Templates(Struct, frozen=True):
    """Embeddings `(G, D)` and whose they are: row i belongs to `names[owners[i]]`; `owners` is sorted."""

    embeddings: F32
    owners: npt.NDArray[np.intp]
    names: tuple[str, ...]

    def without(self, name: str) -> "Templates":
        """Return the templates of everybody else."""
        if name not in self.names:
            return self
        gone = self.names.index(name)
        keep = self.owners != gone
        owners = self.owners[keep]
        names = self.names[:gone] + self.names[gone + 1 :]
        return Templates(self.embeddings[keep], owners - (owners > gone), names)


def clean_name(name: str) -> str:
    """Return `name` as it is stored: composed characters, single spaces.

    Raises:
        GalleryError: empty, too long, not printable, or reserved for strangers.
    """
    clean = " ".join(unicodedata.normalize("NFC", name).split())
    if not clean or len(clean) > MAX_NAME or not clean.isprintable():
        raise GalleryError(
            f"a name has 1 to {MAX_NAME} printable characters, {name[: MAX_NAME + 1]!r} does not"
        )
    if clean.casefold().startswith(STRANGER_PREFIX):
        raise GalleryError(f"names starting with {STRANGER_PREFIX} belong to strangers; choose another")
    return clean
