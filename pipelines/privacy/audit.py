"""Who did what to people, releases and keys: `<state>/audit.log`, one line of JSON each, only ever appended.

Every line holds the SHA-256 of the one before, so a line that is changed, taken out or put in breaks the
chain. People are named by their number in the gallery, which means nothing once they are forgotten. What
cannot be written is an error in the log; the deed is not undone for it.

Lines that are too old are cut off the beginning (`cut`). The first line is an `Anchor` from then on: how many
were cut, and the hash that the next line holds, signed with the key of the receipts. What stays is
not touched.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from ..cache_files import sync_folder, write_atomically
from ..errors import StoreError
from .seal import Signer, is_genuine, open_signer, receipts_key, signed
from .wall_clock import WallClock

log = logging.getLogger(__name__)

TAIL_BYTES = 65_536  # more than the longest line
NO_LOGIN = 0xFFFF_FFFF
PRIVATE = 0o600


class Deed(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line. `at`: seconds since 1970; `person`: number in the gallery; `before`: hash, "" at first."""

    at: float
    who: str
    what: str
    person: int | None = None
    detail: str = ""
    before: str = ""


class Anchor(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was cut off the beginning, all cuts together: `n_lines`, the newest of the time `until`.

    `last` is the hash of the last line that was cut. `n_flaws` are the places among them where the chain did
    not hold: that is still told when the lines are gone. Times are in seconds since 1970.
    """

    cut_at: float
    n_lines: int
    until: float
    last: str
    n_flaws: int
    key: str
    signature: str = ""

    @property
    def is_genuine(self) -> bool:
        """Whether it is as it was when it was signed with `key`."""
        return is_genuine(self, self.signature, self.key)


class Chain(Struct, frozen=True, kw_only=True):
    """The audit log as it was read: deeds, hash of each line, and what is wrong, a sentence each.

    `anchor` says what was cut off before them; its hash is the first of `hashes` then.
    """

    deeds: tuple[Deed, ...]
    hashes: tuple[str, ...]
    problems: tuple[str, ...]
    anchor: Anchor | None = None


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
        with _locked(state / "audit.log") as file:
            last, is_torn = _last_line(file)
            deed = Deed(
                at=WallClock(state).now(),
                who=who or _user(),
                what=what,
                person=person,
                detail=detail,
                before=_link(last),
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
    chain = _chain_of(lines)
    if chain.anchor is None:
        return chain
    anchor, problems = chain.anchor, list(chain.problems)
    keys = Signer.from_file(receipts_key(state)).publics if receipts_key(state).exists() else []
    if not anchor.is_genuine or anchor.key not in keys:
        problems.insert(0, "line 1, what was cut off, is not signed with the key of the receipts")
    if anchor.n_flaws:
        problems.insert(0, f"the chain was broken {anchor.n_flaws} times among the lines that were cut off")
    return msgspec.structs.replace(chain, problems=tuple(problems))


def oldest_at(state: Path) -> float | None:
    """Return when the oldest deed of the log was done; None when there is none to read."""
    try:
        with (state / "audit.log").open("rb") as file:
            for line in file:
                if (deed := _deed_of(line)) is not None:
                    return deed.at
    except FileNotFoundError:
        return None
    return None


def cut(state: Path, before: float, now: float) -> int:
    """Cut off the deeds that are older than `before`, and leave an anchor; return how many lines went.

    The chain verifies as it did. Who is about to append waits, and appends to what is left.

    Raises:
        StoreError, OSError: the log, or the key of the receipts, cannot be read or written.
    """
    signer, path = open_signer(state), state / "audit.log"
    with _locked(path) as file:
        file.seek(0)
        lines = file.read().splitlines()
        chain = _chain_of(lines)
        kept = lines[chain.anchor is not None :]
        n_old = next(
            (n for n, line in enumerate(kept) if (d := _deed_of(line)) and d.at >= before), len(kept)
        )
        old = kept[:n_old]
        times = [deed.at for line in old if (deed := _deed_of(line)) is not None]
        if not times:
            return 0
        was = chain.anchor
        flaws = _chain_of(lines[: len(lines) - len(kept) + n_old]).problems
        unsigned = Anchor(
            cut_at=now,
            n_lines=n_old + (was.n_lines if was else 0),
            until=max(times),
            last=_link(old[-1]),
            n_flaws=len(flaws) + (was.n_flaws if was else 0),
            key=signer.public,
        )
        anchor = signed(unsigned, signer)
        owner = os.fstat(file.fileno())
        rest = [msgspec.json.encode(anchor), *kept[n_old:]]
        write_atomically(path, b"".join(line + b"\n" for line in rest), PRIVATE)
        os.chown(path, owner.st_uid, owner.st_gid)
        sync_folder(path.parent)
    return n_old


def _chain_of(lines: list[bytes]) -> Chain:
    """Return the deeds of `lines`, whether or not their anchor is genuine."""
    anchor = _anchor_of(lines[0]) if lines else None
    deeds, problems, before = [], [], anchor.last if anchor else ""
    for number, line in enumerate(lines, start=1):
        if number == 1 and anchor is not None:
            continue
        deed = _deed_of(line)
        if deed is None:
            problems.append(f"line {number} is not whole: a crash while it was written, or somebody's hand")
        else:
            deeds.append(deed)
            if deed.before != before:
                problems.append(f"before line {number} something was changed, taken out or put in")
        before = _hash(line)
    hashes = tuple(_link(line) for line in lines)
    return Chain(deeds=tuple(deeds), hashes=hashes, problems=tuple(problems), anchor=anchor)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """Open the log to append, alone; the lock ends when the file is closed, also by a crash."""
    while True:
        with os.fdopen(_open_private(path), "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # who waited for a cut holds the file that was replaced
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                yield file
                return


def _last_line(file: BinaryIO) -> tuple[bytes, bool]:
    """Return the last line, b"" of an empty file, and whether its writer died in it."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - TAIL_BYTES))
    tail = file.read()
    lines = tail.splitlines()
    return (lines[-1], not tail.endswith(b"\n")) if lines else (b"", False)


def _link(line: bytes) -> str:
    """Return what the next line has to hold: the hash of this one, of an anchor's that of the last it cut."""
    if not line:
        return ""
    anchor = _anchor_of(line)
    return anchor.last if anchor is not None else _hash(line)


def _anchor_of(line: bytes) -> Anchor | None:
    try:
        return msgspec.json.decode(line, type=Anchor)
    except msgspec.DecodeError:
        return None


def _deed_of(line: bytes) -> Deed | None:
    try:
        return msgspec.json.decode(line, type=Deed)
    except msgspec.DecodeError:
        return None


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
