"""Which releases learned from samples of people who were forgotten since.

A release keeps the ids of all samples it learned from, its parents' too (`About.samples`); every erased id
is in `<state>/releases/erased.json`. What both name is worked out anew each time, so a round of learning that
was under way during an erasure is found as well. An id says nothing about the face.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from ..cache_files import sync_folder, write_atomically
from ..errors import ReleaseError
from ..releases.release import FACTORY
from ..releases.release_store import ReleaseStore, writing


class Erased(Struct, frozen=True):
    """One erased sample: the id of the receipt, and when (seconds since 1970)."""

    receipt: str
    at: float


class Mark(Struct, frozen=True, kw_only=True):
    """What a release learned from that is erased: how many samples, when, by which receipt."""

    receipt: str
    at: float
    n_samples: int


def note_erased(state: Path, samples: Sequence[str], erased: Erased) -> list[str]:
    """Write down that `samples` are erased, on disk on return; return the releases that learned from them.

    Raises:
        ReleaseError: it cannot be written.
    """
    if not samples:
        return []
    with writing(_path(state).parent, _path(state)):
        known = _read(state) | dict.fromkeys(samples, erased)
        write_atomically(_path(state), msgspec.json.encode(known))
        sync_folder(_path(state).parent)
    found = marks_of(state).items()
    return [name for name, marks in found if any(mark.receipt == erased.receipt for mark in marks)]


def marks_of(state: Path) -> dict[str, tuple[Mark, ...]]:
    """Return the marks of every release that learned from erased samples, by its id, oldest mark first.

    Raises:
        ReleaseError: what is erased cannot be read.
    """
    erased = _read(state)
    marks = {}
    for stored in ReleaseStore(state).all():
        counts: defaultdict[Erased, int] = defaultdict(int)
        for sample in stored.about.samples:
            if sample in erased:
                counts[erased[sample]] += 1
        if counts:
            marks[stored.release.id] = tuple(
                Mark(receipt=e.receipt, at=e.at, n_samples=n)
                for e, n in sorted(counts.items(), key=lambda item: item[0].at)
            )
    return marks


def erased_ids(state: Path) -> frozenset[str]:
    """Return the ids of all samples that are erased.

    Raises:
        ReleaseError: what is erased cannot be read.
    """
    return frozenset(_read(state))


def check_erased(state: Path, release: str, *, is_accepted: bool) -> None:
    """Refuse a release that learned from erased samples, unless somebody answers for it.

    Raises:
        ReleaseError: it did; says how to make one without them.
    """
    if not is_accepted and (said := erased_of(state, release)):
        raise ReleaseError(
            f"{said}; `visaged release rebuild {release}` learns again from "
            f"{clean_ancestor(state, release)} without them, or promote it with --despite-erasure and "
            "answer for it"
        )


def erased_of(state: Path, release: str) -> str:
    """Return in words what `release` learned from that is erased, or that it is not known; else nothing."""
    try:
        marks = marks_of(state).get(release, ())
    except ReleaseError as error:
        return str(error)
    if not marks:
        return ""
    n_samples, receipts = sum(mark.n_samples for mark in marks), ", ".join(mark.receipt for mark in marks)
    return f"release {release} learned from {n_samples} samples that are erased (receipt {receipts})"


def clean_ancestor(state: Path, release: str) -> str:
    """Return the nearest release before `release` that is kept and not marked; else the factory's."""
    marks, store = marks_of(state), ReleaseStore(state)
    seen: set[str] = set()
    while release in marks and release not in seen:
        seen.add(release)
        release = store.get(release).about.parent or FACTORY
    return release if any(stored.release.id == release for stored in store.all()) else FACTORY


def _path(state: Path) -> Path:
    return state / "releases" / "erased.json"


def _read(state: Path) -> dict[str, Erased]:
    try:
        return msgspec.json.decode(_path(state).read_bytes(), type=dict[str, Erased])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError) as error:
        raise ReleaseError(f"{_path(state)} cannot be read ({error}); restore it from a backup") from error
