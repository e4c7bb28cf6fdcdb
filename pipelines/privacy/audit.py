"""Who did what to people, releases and keys: `<state>/audit.log`, one line of JSON each, only ever appended.

Every line holds the SHA-256 of the one before, so a line that is changed, taken out or put in breaks the
chain. People are named by their number in the gallery, which means nothing once they are forgotten. What
cannot be written is an error in the log; the deed is not undone for it.
"""

import fcntl
import hashlib
import logging
import os
import time
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from ..errors import StoreError

log = logging.getLogger(__name__)

TAIL_BYTES = 65_536  # more than the longest line
NO_LOGIN = 0xFFFF_FFFF


class Deed(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line. `at`: seconds since 1970; `person`: number in the gallery; `before`: hash, "" at first."""

    at: float
    who: str
    what: str
    person: int | None = None
    detail: str = ""
    before: str = ""


class Chain(Struct, frozen=True, kw_only=True):
    """The audit log as it was read: deeds, hash of each line, and what is wrong, a sentence each."""

    deeds: tuple[Deed, ...]
    hashes: tuple[str, ...]
    problems: tuple[str, ...]


def note(state: Path, what: str, *, person: int | None = None, detail: str = "", who: str = "") -> None:
    """Append a line, on disk on return.

    Args:
        state: the folder of `audit.log`.
        what: the deed, such as "enrol".
        person: their number in the gallery, never the name.
        detail: more, without a name.
        who: whoever did it; else the user of this process.
    """
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(_open_private(state / "audit.log"), "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, also by a crash
            last, is_torn = _last_line(file)
            deed = Deed(
                at=time.time(),
                who=who or _user(),
                what=what,
                person=person,
                detail=detail,
                before=_hash(last) if last else "",
            )
            file.write(b"\n" * is_torn + msgspec.json.encode(deed) + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        log.error("%r could not be written to %s: %s", what, state / "audit.log", error)


def read_chain(state: Path) -> Chain:
    """Return the audit log, checked; empty when there is none.

    Raises:
        StoreError: it cannot be read.
    """
    path = state / "audit.log"
    try:
        lines = path.read_bytes().splitlines() if path.exists() else []
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror})") from error
    deeds, problems, before = [], [], ""
    for number, line in enumerate(lines, start=1):
        try:
            deed = msgspec.json.decode(line, type=Deed)
        except msgspec.DecodeError:
            problems.append(f"line {number} is not whole: a crash while it was written, or somebody's hand")
        else:
            deeds.append(deed)
            if deed.before != before:
                problems.append(f"before line {number} something was changed, taken out or put in")
        before = _hash(line)
    return Chain(deeds=tuple(deeds), hashes=tuple(map(_hash, lines)), problems=tuple(problems))


def _last_line(file: BinaryIO) -> tuple[bytes, bool]:
    """Return the last line, b"" of an empty file, and whether its writer died in it."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - TAIL_BYTES))
    tail = file.read()
    lines = tail.splitlines()
    return (lines[-1], not tail.endswith(b"\n")) if lines else (b"", False)


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _user() -> str:
    """Return the user of this process, and who had logged in when it is another one (sudo)."""
    uid = os.geteuid()
    try:
        login = int(Path("/proc/self/loginuid").read_text())
    except (OSError, ValueError):
        login = NO_LOGIN
    return f"uid {uid}" if login in (NO_LOGIN, uid) else f"uid {uid} for uid {login}"


def _open_private(path: Path) -> int:
    """Open for the owner alone; what root makes belongs to the daemon's user, who appends too."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    return descriptor
