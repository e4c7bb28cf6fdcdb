"""Where every release stands on its way into service, and which one serves: one file, changed by one rename.

    candidate ─► passed ─► shadow ─► canary ─► probation ─► active ─► retired
        │                    └─────────┴───────────┴───────────┴─► rolled back
        └─► refused

`<state>/releases/promotion.json` is the journal: the pointers, where each release stands, what happened.
A process that dies leaves the journal before a step or after it. Times are given by the caller.
"""

import logging
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from ..cache_files import sync_folder, write_atomically
from ..errors import MALFORMED, ReleaseError
from ..privacy.audit import note
from .release import FACTORY
from .release_store import ReleaseStore, StoredRelease, writing

log = logging.getLogger(__name__)

State = Literal[
    "candidate", "refused", "passed", "shadow", "canary", "probation", "active", "retired", "rolled back"
]
Event = Literal[
    "pass", "refuse", "waive", "shadow", "canary", "stop", "promote", "commit",
    "restart", "roll back", "pardon", "bless",
]  # fmt: skip

TRANSITIONS: dict[tuple[State, Event], State] = {
    ("candidate", "pass"): "passed",
    ("candidate", "refuse"): "refused",
    ("candidate", "waive"): "passed",  # somebody answers for it without the gates
    ("refused", "pass"): "passed",  # as with more data
    ("refused", "refuse"): "refused",
    ("passed", "pass"): "passed",
    ("passed", "refuse"): "refused",
    ("passed", "shadow"): "shadow",
    ("passed", "canary"): "canary",
    ("passed", "promote"): "probation",
    ("shadow", "canary"): "canary",
    ("shadow", "promote"): "probation",
    ("shadow", "stop"): "passed",
    ("shadow", "roll back"): "rolled back",
    ("canary", "promote"): "probation",
    ("canary", "stop"): "passed",
    ("canary", "roll back"): "rolled back",
    ("probation", "commit"): "active",
    ("probation", "restart"): "probation",
    ("probation", "roll back"): "rolled back",
    ("probation", "bless"): "probation",
    ("active", "roll back"): "rolled back",
    ("active", "bless"): "active",
    ("retired", "shadow"): "shadow",
    ("retired", "canary"): "canary",
    ("retired", "promote"): "probation",
    ("retired", "bless"): "retired",
    ("rolled back", "pardon"): "candidate",
}
ON_TRIAL: tuple[State, ...] = ("shadow", "canary")
AUDITED: tuple[Event, ...] = ("waive", "promote", "roll back", "bless", "pardon")
MAX_RESTARTS, RESTARTS_S = 2, 300.0  # of the process that serves a release on probation
REMEMBERED = 1000  # entries of the history; the oldest go first


class Entry(Struct, frozen=True, kw_only=True):
    """One step: when (seconds since 1970), of which release, to which state, and why."""

    at: float
    release: str
    event: Event
    state: State
    why: str = ""


class Journal(Struct, frozen=True, kw_only=True):
    """What is known about all releases. `active` serves, `previous` served before; None: nothing did.

    `blessed` is the anchor: the last release that a person found good.
    """

    active: str = FACTORY
    previous: str | None = None
    blessed: str = FACTORY
    states: dict[str, State] = {}
    history: tuple[Entry, ...] = ()

    def state_of(self, release: str) -> State:
        """Return where a release stands; one that nothing is written about is a candidate."""
        if release in self.states:
            return self.states[release]
        if release == self.active:
            return "active"
        return "retired" if release == FACTORY else "candidate"

    @property
    def on_trial(self) -> str:
        """The release in shadow or canary; empty: none."""
        return next((name for name, state in self.states.items() if state in ON_TRIAL), "")

    @property
    def needed(self) -> set[str]:
        """Releases that may have to serve, and so must not be removed."""
        return {name for name in (self.active, self.previous, self.blessed, self.on_trial) if name}

    @property
    def fallbacks(self) -> list[str]:
        """What to serve, best first: the active release, and what stands in when it is damaged."""
        order = dict.fromkeys((self.active, self.previous, self.blessed, FACTORY))
        return [name for name in order if name and self.state_of(name) != "rolled back"]


def step(journal: Journal, release: str, event: Event, at: float, why: str = "") -> Journal:
    """Return the journal after `event` happened to `release` at `at` (seconds since 1970).

    Raises:
        ReleaseError: it cannot happen to a release that stands where this one does.
    """
    state = TRANSITIONS.get((journal.state_of(release), event))
    if state is None:
        raise ReleaseError(
            f"release {release} is {journal.state_of(release)}: {_advice(journal, release, event)}"
        )
    other = journal.on_trial
    if state in ON_TRIAL and other not in ("", release):
        raise ReleaseError(f"release {other} is in {journal.state_of(other)}; wait, or roll it back first")
    if release == FACTORY and state == "rolled back":
        state = "retired"  # the last resort is never in quarantine
    pointers: dict[str, str | None] = {}
    states = {**journal.states, release: state}
    if event == "promote":
        pointers = {"active": release, "previous": journal.active}
        states[journal.active] = "retired"
    elif event == "roll back" and release == journal.active:
        if journal.previous is None:
            raise ReleaseError(f"release {release} serves and none did before; promote another one instead")
        pointers = {"active": journal.previous, "previous": None}
        states[journal.previous] = "active"
    elif event == "roll back" and release == journal.previous:  # it was on trial once more
        pointers = {"previous": None}
    elif event == "bless":
        pointers = {"blessed": release}
    entry = Entry(at=at, release=release, event=event, state=state, why=why)
    history = (*journal.history, entry)[-REMEMBERED:]
    return msgspec.structs.replace(journal, states=states, history=history, **pointers)


def keeps_dying(journal: Journal, at: float) -> bool:
    """Return whether the active release has been started again too often before `at`."""
    starts = [e.at for e in journal.history if (e.release, e.event) == (journal.active, "restart")]
    return sum(at - start < RESTARTS_S for start in starts) >= MAX_RESTARTS


def _advice(journal: Journal, release: str, event: Event) -> str:
    match journal.state_of(release):
        case "candidate":
            return f"first `visaged release gates {release} DATASET`"
        case "refused":
            return f"it did not pass its gates; `visaged release show {release}` says why"
        case "rolled back":
            return f"it is in quarantine; `visaged release pardon {release}` makes it a candidate again"
        case state:
            return f"it cannot go on by {event!r} from {state}; `visaged release list` shows all"


class PromotionJournal:
    """The journal on disk. Safe to use from several processes; keeps nothing in memory."""

    def __init__(self, state: Path) -> None:
        self._path = state / "releases" / "promotion.json"

    def read(self) -> Journal:
        """Return the journal; nothing has happened yet where there is none.

        Raises:
            ReleaseError: it is damaged or cannot be read.
        """
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Journal)
        except FileNotFoundError:
            return Journal()
        except (OSError, *MALFORMED) as error:
            raise ReleaseError(
                f"{self._path} cannot be read ({error}); restore it, or delete it to begin at the factory's"
            ) from error

    def write(self, release: str, event: Event, at: float, why: str = "") -> Journal:
        """Let `event` happen to `release`, as `step`; return the journal that is on disk then.

        Raises:
            ReleaseError: it cannot happen, or the journal cannot be read or written.
        """
        with writing(self._path.parent, self._path):
            journal = step(self.read(), release, event, at, why)
            write_atomically(self._path, msgspec.json.format(msgspec.json.encode(journal)))
            sync_folder(self._path.parent)
        if event in AUDITED:
            note(self._path.parent.parent, f"release {event}", detail=f"{release}: {why}")
        return journal

    def check(self, release: str, event: Event) -> None:
        """Refuse what cannot happen.

        Raises:
            ReleaseError: as `write`; nothing is written.
        """
        step(self.read(), release, event, 0.0)


def serving_release(state: Path) -> StoredRelease | None:
    """Return the release to serve, None for the factory's.

    The active one; where it is damaged, with a line in the log, the one before it, or the blessed one.
    """
    try:
        names = PromotionJournal(state).read().fallbacks
    except ReleaseError as error:
        log.error("serving the factory release: %s", error)
        return None
    for name in names[: names.index(FACTORY)]:
        try:
            stored = ReleaseStore(state).get(name)
            stored.networks()
            stored.heads()
        except ReleaseError as error:
            log.error("release %s is refused, serving the one before: %s", name, error)
        else:
            return stored
    return None
