"""Where releases stand: every step by one rename, whatever dies; what serves when something is damaged."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from visaged.pipelines.assembly import StageConfigs, choose_release
from visaged.pipelines.ensemble import EnsembleConfig
from visaged.pipelines.errors import ReleaseError
from visaged.pipelines.fuser import DecisionFusion
from visaged.pipelines.model_store import ModelStore, NetworkFiles
from visaged.pipelines.registry import FACE_RESNET
from visaged.pipelines.releases.promotion import (
    ON_TRIAL,
    Event,
    Journal,
    PromotionJournal,
    serving_release,
    step,
)
from visaged.pipelines.releases.release import FACTORY, Release
from visaged.pipelines.releases.release_store import About, ReleaseStore, StoredRelease, member_of

from tests.crashes import die_at_operation, gets_through, outcomes_of

WAY: tuple[Event, ...] = ("pass", "shadow", "canary", "promote", "commit")


def after(*events: tuple[str, Event]) -> Journal:
    journal = Journal()
    for at, (release, event) in enumerate(events):
        journal = step(journal, release, event, at, "because")
    return journal


def stored(state: Path, weight: float) -> StoredRelease:
    """A release on disk that differs by its fusion weight, with a small file of its own."""
    state.mkdir(exist_ok=True)
    onnx = state / f"{weight}.onnx"
    onnx.write_bytes(f"weights {weight}".encode())
    release = Release(
        members=(member_of(NetworkFiles(FACE_RESNET, onnx)),),
        fusion=DecisionFusion(weights={"face-resnet": weight}),
        embedding_space="face-resnet",
    )
    return ReleaseStore(state).save(release, [onnx], About(made_at=weight))


def test_a_candidate_goes_its_way_step_by_step() -> None:
    states = [after(*[("a", event) for event in WAY[: n + 1]]).state_of("a") for n in range(len(WAY))]

    assert states == ["passed", "shadow", "canary", "probation", "active"]


def test_promotion_moves_all_pointers_at_once_and_says_why() -> None:
    journal = after(("a", "waive"), ("a", "promote"), ("b", "pass"), ("b", "promote"))

    assert (journal.active, journal.previous, journal.blessed) == ("b", "a", FACTORY)
    assert journal.state_of("a") == "retired" and journal.state_of(FACTORY) == "retired"
    assert [(e.release, e.event, e.at, e.why) for e in journal.history[-1:]] == [
        ("b", "promote", 3, "because")
    ]


def test_a_rollback_brings_the_one_before_back_and_puts_the_other_in_quarantine() -> None:
    journal = after(("a", "pass"), ("a", "promote"), ("a", "roll back"))

    assert (journal.active, journal.previous) == (FACTORY, None)
    assert journal.state_of("a") == "rolled back" and journal.state_of(FACTORY) == "active"
    with pytest.raises(ReleaseError, match=r"quarantine.*pardon a"):
        step(journal, "a", "promote", 9)
    assert step(journal, "a", "pardon", 9).state_of("a") == "candidate"
    with pytest.raises(ReleaseError, match="none did before"):
        step(journal, FACTORY, "roll back", 9)


@pytest.mark.parametrize(
    "events", [[("a", "promote")], [("a", "shadow")], [("a", "refuse"), ("a", "shadow")]]
)
def test_nothing_serves_that_has_not_passed_its_gates(events: list[tuple[str, Event]]) -> None:
    with pytest.raises(ReleaseError, match="gates"):
        after(*events)


def test_one_release_is_on_trial_at_a_time() -> None:
    with pytest.raises(ReleaseError, match="a is in shadow; wait"):
        after(("a", "pass"), ("a", "shadow"), ("b", "pass"), ("b", "canary"))


def test_only_what_served_can_be_blessed_and_the_blessed_stays_the_anchor() -> None:
    journal = after(("a", "pass"), ("a", "promote"), ("a", "bless"), ("b", "pass"), ("b", "promote"))

    assert journal.blessed == "a" and "a" in journal.needed
    with pytest.raises(ReleaseError, match="c is candidate"):
        step(journal, "c", "bless", 9)


def test_the_factory_release_is_never_in_quarantine() -> None:
    journal = after(("a", "pass"), ("a", "promote"), (FACTORY, "promote"), (FACTORY, "roll back"))

    assert journal.active == "a" and journal.fallbacks == ["a", FACTORY]


def test_one_that_failed_when_it_was_tried_again_is_not_gone_back_to() -> None:
    twice: list[tuple[str, Event]] = [("a", "pass"), ("a", "promote"), ("b", "pass"), ("b", "promote")]
    again: list[tuple[str, Event]] = [*twice, ("a", "shadow")]

    assert after(*again, ("b", "roll back")).active == "a"
    assert after(*again, ("a", "roll back")).previous is None


@settings(max_examples=300)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(get_args(Event))), max_size=40))
def test_whatever_is_asked_exactly_one_release_serves_and_at_most_one_is_tried(
    events: list[tuple[str, Event]],
) -> None:
    journal = Journal()
    for release, event in events:
        try:
            journal = step(journal, release, event, 0.0)
        except ReleaseError:
            continue
        serving = [n for n in (FACTORY, *"abc") if journal.state_of(n) in ("active", "probation")]
        assert serving == [journal.active]
        assert sum(state in ON_TRIAL for state in journal.states.values()) <= 1
        assert journal.previous != journal.active


def test_a_damaged_active_release_is_refused_and_the_one_before_serves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = stored(tmp_path, 1.0), stored(tmp_path, 2.0)
    journal = PromotionJournal(tmp_path)
    assert serving_release(tmp_path) is None
    for release in (first, second):
        journal.write(release.release.id, "pass", 0)
        journal.write(release.release.id, "promote", 0)
    assert serving_release(tmp_path) == second

    second.file(second.release.members[0].onnx).write_bytes(b"?")

    assert serving_release(tmp_path) == first
    assert caplog.text.count("is refused") == 1 and second.release.id in caplog.text
    first.file(first.release.members[0].onnx).unlink()
    assert serving_release(tmp_path) is None


def test_a_damaged_journal_leaves_the_factory_release_serving(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "releases").mkdir()
    (tmp_path / "releases" / "promotion.json").write_bytes(b"{")

    assert serving_release(tmp_path) is None
    assert "factory release" in caplog.text and "promotion.json" in caplog.text
    with pytest.raises(ReleaseError, match="restore it"):
        PromotionJournal(tmp_path).write("a", "pass", 0)


def test_the_active_release_serves_where_none_is_configured(tmp_path: Path, store: ModelStore) -> None:
    release = stored(tmp_path, 1.0)
    PromotionJournal(tmp_path).write(release.release.id, "waive", 0)
    PromotionJournal(tmp_path).write(release.release.id, "promote", 0)

    def chosen(name: str) -> StoredRelease | None:
        configs = StageConfigs(ensemble=EnsembleConfig(release=name))
        return choose_release(configs, tmp_path, store)[2]

    assert chosen("") == release
    assert chosen("factory") is None


def promote_and_die(state: Path, release: str, at_step: int) -> None:
    die_at_operation(at_step, state)
    PromotionJournal(state).write(release, "promote", 1.0)


def die_at_every_step(folder: Path) -> Iterator[tuple[bool, bool, bool, int]]:
    """Yield for every step what is true after dying there, and after doing it then."""
    n_steps, is_done = 0, False
    while not is_done:
        n_steps += 1
        state = folder / str(n_steps)
        old, new = (stored(state, weight).release.id for weight in (1.0, 2.0))
        journal = PromotionJournal(state)
        for release, event in ((old, "waive"), (old, "promote"), (new, "waive")):
            journal.write(release, event, 0.0)  # type: ignore[arg-type]
        is_done = gets_through(partial(promote_and_die, state, new, n_steps))
        found, serving = journal.read(), serving_release(state)
        is_whole = (found.active, found.previous) in ((old, FACTORY), (new, old))
        is_served = serving is not None and serving.release.id == found.active
        if found.active == old:
            found = journal.write(new, "promote", 2.0)
        left = list(state.rglob(".writing-*"))
        yield is_whole, is_served, found.active == new, len(left)


def test_dying_at_any_step_leaves_the_journal_before_the_step_or_after_it(tmp_path: Path) -> None:
    outcomes = outcomes_of(die_at_every_step, tmp_path)

    assert outcomes == [(True, True, True, 0)] * len(outcomes)
    assert len(outcomes) > 6, "hardly a step was tried"
