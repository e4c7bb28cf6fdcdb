"""A wall clock that jumps deletes nothing too early, and nothing is kept for ever because of it."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from visaged.pipelines.identity.consent import day_of, has_consent
from visaged.pipelines.identity.gallery import Gallery
from visaged.pipelines.loop.sample import SamplesConfig, Source
from visaged.pipelines.loop.sample_store import SampleStore
from visaged.pipelines.privacy import wall_clock
from visaged.pipelines.privacy.wall_clock import MAX_OFF_S, MAX_STEP_S, WallClock, believed_path

from tests.conftest import sighting

HOUR_S, DAY_S, YEAR_S = 3600.0, 86_400.0, 365 * 86_400.0
KEEP_DAYS = 30
TICK_S = 600.0
BEGAN_S = 1_800_000_000.0


class Box:
    """A machine with a daemon that keeps samples for `KEEP_DAYS`; the test knows what time it really is."""

    def __init__(self, state: Path) -> None:
        self.state, self.true_s = state, BEGAN_S
        self.error_s, self.uptime_s, self.n_boots, self.is_synchronised = 0.0, 50.0, 1, False
        self.stored: dict[str, float] = {}  # id -> when it really was
        self._begin()

    def start(self) -> None:
        """Kill the daemon and start it."""
        self.samples.close()
        self._begin()

    def _begin(self) -> None:
        self.clock = WallClock(
            self.state,
            lambda: self.true_s + self.error_s,
            lambda: self.uptime_s,
            lambda: f"boot {self.n_boots}",
            lambda: self.is_synchronised,
        )
        config = SamplesConfig(keep_review_days=KEEP_DAYS, keep_labelled_days=KEEP_DAYS)
        self.samples = SampleStore(self.state, config, now=self.clock.now)
        self.tick()

    def tick(self) -> None:
        """Do what the daemon does every second."""
        if self.clock.look():
            self.samples.redate(correction := self.clock.correction())
            self.clock.accept(correction)
        self.samples.expire()

    def store(self) -> str:
        id = self.samples.add(sighting(len(self.stored) + 1), Source.RANDOM).id
        self.stored[id] = self.true_s
        return id

    def on(self, seconds: float) -> None:
        """Let time pass."""
        self.true_s, self.uptime_s = self.true_s + seconds, self.uptime_s + seconds
        self.tick()

    def boot(self, off_s: float = 60.0, error_s: float = 0.0) -> None:
        """Switch off and on again, with this error of the clock, which nothing synchronises yet."""
        self.true_s += off_s + 20
        self.error_s, self.uptime_s, self.n_boots, self.is_synchronised = (
            error_s,
            20.0,
            self.n_boots + 1,
            False,
        )
        self.start()

    def synchronise(self) -> None:
        self.error_s, self.is_synchronised = 0.0, True
        self.tick()

    def there(self) -> set[str]:
        return {sample.id for sample in self.samples.samples()}

    def age_s(self, id: str) -> float:
        """How old the daemon takes it to be."""
        return self.clock.now() - self.samples.sample(id).stored_at


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def test_a_right_clock_is_believed_and_samples_go_in_their_time(box: Box) -> None:
    id = box.store()

    for _ in range(KEEP_DAYS):
        assert id in box.there() and box.clock.step_s() == 0.0
        box.on(DAY_S)
    box.on(1)

    assert id not in box.there()


def test_a_right_clock_is_believed_over_boots_and_a_long_weekend_off(box: Box) -> None:
    id = box.store()

    for _ in range(7):
        box.on(DAY_S)
        box.boot(off_s=3 * DAY_S)
        assert box.clock.step_s() == 0.0
    assert id in box.there()
    box.boot(off_s=2 * DAY_S)

    assert id not in box.there()


JUMPS = ("while it runs", "at a boot", "before a boot", "and the daemon is killed")


def jump(box: Box, how: str, error_s: float) -> None:
    """Let the clock jump."""
    if how == "at a boot":
        box.boot(error_s=error_s)
        return
    box.error_s = error_s
    if how == "and the daemon is killed":
        box.start()
    box.tick()
    if how == "before a boot":
        box.boot(error_s=error_s)


@pytest.mark.parametrize("how", JUMPS)
@pytest.mark.parametrize("error_s", [30 * YEAR_S, -50 * YEAR_S, 40 * DAY_S, -40 * DAY_S])
def test_a_clock_that_jumps_deletes_nothing_early_and_nothing_is_kept_for_ever(
    box: Box, how: str, error_s: float
) -> None:
    before = box.store()
    box.on(DAY_S)

    jump(box, how, error_s)
    after = box.store()

    assert abs(box.clock.step_s() - error_s) < HOUR_S
    box.on((KEEP_DAYS - 2) * DAY_S)
    assert box.there() == {before, after}
    box.on(DAY_S + HOUR_S)
    assert box.there() == {after}
    box.on(DAY_S)
    assert box.there() == set()


@pytest.mark.parametrize("how", JUMPS)
@pytest.mark.parametrize("error_s", [30 * YEAR_S, -50 * YEAR_S])
def test_when_it_is_synchronised_everything_is_as_old_as_it_is(box: Box, how: str, error_s: float) -> None:
    before = box.store()
    box.on(DAY_S)
    jump(box, how, error_s)
    box.on(DAY_S)
    during = box.store()

    box.synchronise()
    after = box.store()

    assert box.clock.step_s() == 0.0 and box.clock.now() == box.true_s
    for id in (before, during, after):
        assert abs(box.age_s(id) - (box.true_s - box.stored[id])) < HOUR_S


def test_strangers_go_by_it_too_and_enrolled_people_never(box: Box) -> None:
    with Gallery(box.state, now=box.clock.now) as gallery:
        face = np.full(4, 0.5, np.float32)
        gallery.enrol("Ada", face[None], space="s")
        gallery.add_stranger(face, space="s", quality=1.0)

        box.error_s = 30 * YEAR_S
        box.on(DAY_S / 2)
        assert gallery.expire_strangers(DAY_S) == 0
        box.on(DAY_S)

        assert gallery.expire_strangers(DAY_S) == 1
        assert [person.name for person in gallery.people()] == ["Ada"]


def test_a_consent_that_has_ended_does_not_come_to_life_by_a_clock_that_is_set_back(box: Box) -> None:
    note = "form 7, expires " + day_of(box.true_s - DAY_S)
    box.error_s = -50 * YEAR_S
    box.tick()

    assert has_consent(note, box.true_s + box.error_s)
    assert not has_consent(note, box.clock.now())


def test_off_for_months_with_a_dead_battery_old_samples_go_and_new_ones_stay(box: Box) -> None:
    old = box.store()
    box.boot(off_s=200 * DAY_S, error_s=-56 * YEAR_S)
    new = box.store()
    box.on(60)
    assert box.there() == {old, new}

    box.synchronise()

    assert box.there() == {new}
    assert box.age_s(new) == pytest.approx(60, abs=1)


def test_without_a_clock_that_keeps_time_it_is_behind_until_it_is_synchronised(box: Box) -> None:
    """A board without a battery goes on from the time at which it was switched off, which looks right."""
    box.store()
    box.boot(off_s=40 * DAY_S, error_s=-40 * DAY_S)
    assert box.clock.step_s() == 0.0
    new = box.store()
    box.on(60)

    box.synchronise()

    assert box.there() == {new}


def test_a_machine_that_was_paused_does_not_make_young_what_was_stored_before(box: Box) -> None:
    box.synchronise()
    box.on(TICK_S)
    old = box.store()
    box.on(5 * DAY_S)
    box.true_s, box.error_s = box.true_s + 10 * DAY_S, -10 * DAY_S  # the host slept; no clock went on
    box.on(60)

    box.synchronise()

    assert box.age_s(old) == pytest.approx(15 * DAY_S, abs=HOUR_S)


def test_long_off_with_a_clock_that_nobody_vouches_for_deletes_late_by_that(box: Box) -> None:
    id = box.store()
    box.boot(off_s=10 * DAY_S)

    assert box.clock.step_s() > MAX_OFF_S
    box.on((KEEP_DAYS - 1) * DAY_S)
    assert id in box.there()
    box.on(DAY_S)
    assert id not in box.there()


def test_long_off_with_a_clock_that_is_synchronised_deletes_in_time(box: Box) -> None:
    id = box.store()
    box.boot(off_s=(KEEP_DAYS + 1) * DAY_S)

    box.synchronise()

    assert id not in box.there()


def test_an_operators_word_is_believed(box: Box) -> None:
    old = box.store()
    box.boot(off_s=40 * DAY_S)
    new = box.store()
    assert box.there() == {old, new}

    box.clock.give_word()
    box.tick()

    assert box.clock.step_s() == 0.0
    assert box.there() == {new}


def test_an_operators_word_holds_for_what_the_clock_said_then_and_for_this_boot(box: Box) -> None:
    id = box.store()
    box.boot(error_s=50 * DAY_S)
    box.error_s = 40 * DAY_S
    box.clock.give_word()
    box.error_s = 50 * DAY_S
    box.tick()
    assert id in box.there()

    box.boot(error_s=40 * DAY_S)
    assert id in box.there()


def test_a_clock_that_is_set_back_is_believed_again(box: Box) -> None:
    box.error_s = 3 * YEAR_S
    box.tick()
    during = box.store()
    box.error_s = 0.0
    box.tick()

    assert box.clock.step_s() == 0.0
    assert box.age_s(during) == pytest.approx(0, abs=1)


def test_after_a_boot_it_is_believed_when_it_is_set_to_what_it_may_be(box: Box) -> None:
    box.boot(off_s=2 * DAY_S, error_s=-50 * YEAR_S)
    during = box.store()
    box.on(HOUR_S)

    box.error_s = 0.0
    box.tick()

    assert box.clock.step_s() == 0.0
    assert box.age_s(during) == pytest.approx(HOUR_S, abs=60)


@pytest.mark.parametrize("doubted_s", [HOUR_S, 100 * DAY_S])
def test_killed_between_correcting_and_believing_it_corrects_again(box: Box, doubted_s: float) -> None:
    box.boot(off_s=10 * DAY_S)
    id = box.store()
    box.on(doubted_s)
    if doubted_s > KEEP_DAYS * DAY_S:
        id = box.store()
        box.on(20 * DAY_S)

    box.is_synchronised = True
    assert box.clock.look()
    assert box.samples.redate(box.clock.correction()) == 1
    box.start()

    assert id in box.there()
    assert box.age_s(id) <= box.true_s - box.stored[id]
    assert box.age_s(id) >= 0


def test_a_kill_at_any_time_loses_no_time(box: Box) -> None:
    id = box.store()
    box.boot(error_s=30 * YEAR_S)
    for _ in range(KEEP_DAYS):
        box.on(DAY_S)
        box.start()
        box.boot(error_s=30 * YEAR_S)

    box.on(HOUR_S)

    assert id not in box.there()


def test_a_disk_without_room_changes_nothing_for_who_runs(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wall_clock, "write_atomically", full)
    box.error_s = 30 * YEAR_S
    box.tick()
    assert box.clock.step_s() == pytest.approx(30 * YEAR_S)

    box.is_synchronised = True
    box.tick()

    assert box.clock.step_s() == 0.0


@pytest.mark.parametrize("text", ["soon", "{}", None])
def test_where_nothing_is_known_the_files_that_are_there_tell(box: Box, text: str | None) -> None:
    believed_path(box.state).unlink()
    if text is not None:
        believed_path(box.state).write_text(text)
    for path in box.state.iterdir():
        os.utime(path, (box.true_s, box.true_s))
    box.error_s, box.n_boots = 30 * YEAR_S, 2

    clock = WallClock(
        box.state, lambda: box.true_s + box.error_s, lambda: 20.0, lambda: "another", lambda: False
    )

    assert clock.step_s() == pytest.approx(30 * YEAR_S, abs=HOUR_S)


def test_a_new_folder_believes_the_clock(tmp_path: Path) -> None:
    assert WallClock(tmp_path / "none", lambda: 1e9, lambda: 1e6, lambda: "b", lambda: False).step_s() == 0.0


def test_who_cannot_know_the_boot_believes_what_is_not_far_off(box: Box) -> None:
    def told(error_s: float) -> float:
        wall, uptime_s = box.true_s + error_s, 99 * DAY_S
        return WallClock(box.state, lambda: wall, lambda: uptime_s, lambda: "", lambda: False).now() - wall

    assert told(MAX_STEP_S) == 0.0
    assert abs(told(30 * YEAR_S)) > 29 * YEAR_S


def test_what_is_believed_is_on_disk_every_few_minutes_and_others_may_read_it(box: Box) -> None:
    before = believed_path(box.state).read_bytes()
    box.on(wall_clock.SAVE_EVERY_S / 2)
    assert believed_path(box.state).read_bytes() == before
    box.on(wall_clock.SAVE_EVERY_S)

    assert believed_path(box.state).read_bytes() != before
    assert believed_path(box.state).stat().st_mode & 0o777 == 0o644


EVENTS = st.one_of(
    st.tuples(st.just("on"), st.floats(1, 5 * DAY_S)),
    st.tuples(st.just("boot"), st.tuples(st.floats(1, 60 * DAY_S), st.sampled_from((0.0, 0.0, 1.0, -1.0)))),
    st.tuples(st.just("set"), st.sampled_from((30 * YEAR_S, 400 * DAY_S, -400 * DAY_S, -50 * YEAR_S))),
    st.tuples(st.just("synchronise"), st.none()),
    st.tuples(st.just("kill"), st.none()),
    st.tuples(st.just("store"), st.none()),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=st.lists(EVENTS, max_size=25))
def test_whatever_happens_to_the_clock_no_sample_goes_before_its_time(
    events: list[tuple[str, object]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    box = Box(tmp_path_factory.mktemp("box"))
    on_s, stored_on_s = 0.0, dict[str, float]()

    for what, value in events:
        if what == "on":
            assert isinstance(value, float)
            box.on(value)
            on_s += value
        elif what == "boot":
            assert isinstance(value, tuple)
            box.boot(value[0], value[1] * 20 * YEAR_S)
        elif what == "set":
            assert isinstance(value, float)
            box.error_s, box.is_synchronised = value, False
            box.tick()
        elif what == "synchronise":
            box.synchronise()
        elif what == "kill":
            box.start()
        elif what == "store":
            stored_on_s[box.store()] = on_s
        there = box.there()
        for id, at_s in box.stored.items():
            if box.true_s - at_s < KEEP_DAYS * DAY_S - 2 * HOUR_S:
                assert id in there, "it went before its time"
            if on_s - stored_on_s[id] > KEEP_DAYS * DAY_S + 2 * HOUR_S:
                assert id not in there, "it was kept although the machine was on for long enough"


def test_the_kernel_can_be_asked() -> None:
    assert wall_clock.is_synchronised_by_kernel() in (True, False)
    assert wall_clock.since_boot_s() > 0
    assert len(wall_clock.boot_id()) == 36
