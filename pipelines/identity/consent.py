"""Whether a person agreed to be recognised, and until when: a note of the operator with the name."""

import re
import time
from datetime import date

from ..errors import GalleryError
from .gallery import Gallery

EXPIRES = re.compile(r"\bexpires (\d{4}-\d{2}-\d{2})\b")


def has_consent(note: str, at: float) -> bool:
    """Return whether a note is there and, where it says `expires YYYY-MM-DD`, that day is not over (UTC).

    Args:
        note: as `visaged enroll --consent` took it.
        at: seconds since 1970.
    """
    found = EXPIRES.search(note)
    return bool(note.strip()) and (found is None or day_of(at) <= found[1])


def check_note(note: str) -> None:
    """Refuse a note whose date does not exist, or that says `expires` in a way nobody would heed.

    Raises:
        GalleryError: it does.
    """
    found = EXPIRES.search(note)
    try:
        if found is not None:
            date.fromisoformat(found[1])
    except ValueError:
        found = None
    if found is None and "expires" in note.casefold():
        raise GalleryError(f"write the end of a consent as `expires 2027-11-25`, unlike in {note!r}")


def check_consent(gallery: Gallery, name: str, given: str, at: float) -> None:
    """Refuse to enrol somebody without a consent that holds: `given` now, else noted before.

    Raises:
        GalleryError: there is none.
    """
    listed = gallery.name_of(name)
    noted = next((person.consent for person in gallery.people() if person.name == listed), "")
    if not has_consent(given or noted, at):
        raise GalleryError(
            f'{name} is not enrolled without a consent that holds; give --consent "signed form, expires '
            '2027-11-25", or set [identity] require_consent = false'
        )


def day_of(at: float) -> str:
    """Return the day of a time in seconds since 1970, as 2026-11-25, in UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime(at))
