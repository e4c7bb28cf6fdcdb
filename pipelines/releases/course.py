"""What is next for a release that nobody watches over: pure, from the journal and its gates alone.

Whoever acts on it may be killed at any time and ask again: nothing else decides.
"""

from dataclasses import dataclass
from typing import Literal

from .gates import GateReport
from .promotion import Journal

Move = Literal["measure", "promote", "wait", "leave"]

MAX_STOPS = 2  # trials that ended with the inference process: a release that kills it must not try for ever


@dataclass(frozen=True, slots=True)
class Course:
    """What to do, and how it stands, for people: what follows "release 3fa2c1"."""

    move: Move
    sentence: str


def course_of(journal: Journal, release: str, gates: GateReport | None) -> Course:
    """Return what is next for `release`, of which `gates` were measured last.

    One that did not pass, or was rolled back, is left alone: the incumbent stays. One that passed waits until
    the release that serves is through its probation, so that what is gone back to has proved itself.
    """
    state, active = journal.state_of(release), journal.active
    why = next((entry.why for entry in reversed(journal.history) if entry.release == release), "")
    match state:
        case "candidate":
            return Course("measure", "is a candidate, its gates are not measured")
        case "passed":
            return _of_passed(journal, release, gates)
        case "refused":
            return Course("leave", f"is refused, {active} stays: {why}")
        case "rolled back":
            return Course("leave", f"was rolled back, {active} serves: {why}")
        case "shadow" | "canary":
            return Course("wait", f"is in {state}")
        case "probation":
            return Course("leave", "serves, on probation")
        case "active":
            return Course("leave", "serves")
    return Course("leave", f"served before, {active} does now")


def _of_passed(journal: Journal, release: str, gates: GateReport | None) -> Course:
    active = journal.active
    if gates is None or not gates.passed:
        return Course("leave", "was let pass without gates by somebody, who decides what follows")
    if (gates.champion, gates.anchor) != (active, journal.blessed):
        return Course(
            "measure", f"passed its gates against {gates.champion} and {gates.anchor}, not {active}"
        )
    n_stops = sum((entry.release, entry.event) == (release, "stop") for entry in journal.history)
    if n_stops >= MAX_STOPS:
        ended = f"the inference process ended {n_stops} times while it was on trial"
        return Course("leave", f"is not tried again, {active} stays: {ended}")
    if journal.on_trial:
        return Course("wait", f"has passed its gates and waits: {journal.on_trial} is on trial")
    if journal.state_of(active) == "probation":
        return Course("wait", f"has passed its gates and waits until {active} is through its probation")
    return Course("promote", "has passed its gates")
