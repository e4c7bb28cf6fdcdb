"""What is next for a candidate without a person: one way in, and what stops it stops it for good."""

from typing import get_args

import pytest
from visaged.pipelines.releases.course import MAX_STOPS, course_of
from visaged.pipelines.releases.gates import GateReport, GateResult
from visaged.pipelines.releases.promotion import Event, Journal, State, step
from visaged.pipelines.releases.release import FACTORY

NEW = "3fa2c1"
PASSED = GateResult(name="accuracy", passed=True, value=1.0, bound=0.0, n=800, sentence="")
GATES = GateReport(release=NEW, champion=FACTORY, anchor=FACTORY, at=1.0, data=("x",), results=(PASSED,))
FAILED = GateReport(release=NEW, champion=FACTORY, anchor=FACTORY, at=1.0, data=("x",), results=())


def after(*events: Event | tuple[str, Event], journal: Journal | None = None) -> Journal:
    """The journal after these happened to the new release, or to the one that is named."""
    journal = journal or Journal()
    for at, event in enumerate(events):
        name, what = event if isinstance(event, tuple) else (NEW, event)
        journal = step(journal, name, what, float(at), "said so")
    return journal


def moves(*events: Event | tuple[str, Event], gates: GateReport | None = GATES) -> str:
    return course_of(after(*events), NEW, gates).move


def test_the_way_of_a_good_candidate() -> None:
    assert moves(gates=None) == "measure"
    assert moves("pass") == "promote"
    assert moves("pass", "shadow") == "wait"
    assert moves("pass", "shadow", "canary") == "wait"
    assert moves("pass", "shadow", "canary", "promote") == "leave"
    assert moves("pass", "shadow", "canary", "promote", "commit") == "leave"


@pytest.mark.parametrize(
    ("events", "sentence"),
    [
        (("refuse",), "is refused, factory stays: said so"),
        (("pass", "shadow", "roll back"), "was rolled back, factory serves: said so"),
        (("pass", "shadow", "canary", "promote", "roll back"), "was rolled back, factory serves: said so"),
        (("pass", "promote", (FACTORY, "promote")), "served before, factory does now"),
    ],
)
def test_what_was_stopped_or_went_its_way_is_never_tried_again(
    events: tuple[Event | tuple[str, Event], ...], sentence: str
) -> None:
    course = course_of(after(*events), NEW, GATES)

    assert (course.move, course.sentence) == ("leave", sentence)


def test_a_release_that_keeps_ending_the_process_is_not_tried_for_ever() -> None:
    trial: tuple[Event, ...] = ("shadow", "stop")

    assert moves("pass", *trial * (MAX_STOPS - 1)) == "promote"
    assert moves("pass", *trial * MAX_STOPS) == "leave"


def test_gates_against_another_incumbent_or_anchor_are_measured_again() -> None:
    other = "bbb"

    assert moves("pass", (other, "waive"), (other, "promote"), (other, "commit")) == "measure"
    assert moves("pass", (other, "waive"), (other, "promote"), (other, "bless")) == "measure"


def test_nothing_is_promoted_over_a_probation_or_beside_a_trial() -> None:
    other = "bbb"
    against = GateReport(release=NEW, champion=other, anchor=FACTORY, at=1.0, data=(), results=(PASSED,))

    on_probation: tuple[Event | tuple[str, Event], ...] = "pass", (other, "waive"), (other, "promote")
    assert moves(*on_probation, gates=against) == "wait"
    assert moves(*on_probation, (other, "commit"), gates=against) == "promote"
    assert moves("pass", (other, "waive"), (other, "shadow")) == "wait"


@pytest.mark.parametrize("gates", [None, FAILED])
def test_a_pass_without_gates_is_left_to_whoever_gave_it(gates: GateReport | None) -> None:
    assert moves("waive", gates=gates) == "leave"


def test_every_state_has_a_course_and_only_two_of_them_lead_on() -> None:
    found = {state: course_of(Journal(states={NEW: state}), NEW, GATES).move for state in get_args(State)}

    assert {state for state, move in found.items() if move in ("measure", "promote")} == {
        "candidate",
        "passed",
    }
