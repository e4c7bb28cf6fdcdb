"""A wall clock that is set is noticed, also by a process that was started afterwards."""

from pathlib import Path

from visaged.daemon.wall_clock import MAX_STEP_S, WallClock, wall_clock_path

DAY_S = 86_400.0


def test_time_that_passes_is_no_step(tmp_path: Path) -> None:
    now_s, uptime_s = 1e9, 10.0
    clock = WallClock(tmp_path, lambda: now_s, lambda: uptime_s)
    now_s, uptime_s = now_s + 90 * DAY_S, uptime_s + 90 * DAY_S

    assert abs(clock.step_s()) < 1e-3
    assert clock.can_tell_ages


def test_a_step_is_known_to_whoever_starts_after_it(tmp_path: Path) -> None:
    WallClock(tmp_path, lambda: 1e9, lambda: 10.0)
    for step_s in (400 * DAY_S, -400 * DAY_S):
        later = WallClock(tmp_path, lambda step_s=step_s: 1e9 + step_s, lambda: 10.0)  # type: ignore[misc]

        assert abs(later.step_s() - step_s) < 1e-3
        assert not later.can_tell_ages


def test_a_small_correction_is_none(tmp_path: Path) -> None:
    WallClock(tmp_path, lambda: 1e9, lambda: 10.0)

    assert WallClock(tmp_path, lambda: 1e9 + MAX_STEP_S / 2, lambda: 10.0).can_tell_ages


def test_a_damaged_file_begins_afresh(tmp_path: Path) -> None:
    wall_clock_path(tmp_path).write_text("soon")

    assert WallClock(tmp_path, lambda: 1e9, lambda: 10.0).step_s() == 0.0
    assert float(wall_clock_path(tmp_path).read_text().split()[0]) == 1e9 - 10.0


def test_another_boot_begins_afresh(tmp_path: Path) -> None:
    WallClock(tmp_path, lambda: 1e9, lambda: 10.0, lambda: "one")

    assert WallClock(tmp_path, lambda: 2e9, lambda: 10.0, lambda: "two").step_s() == 0.0
    assert WallClock(tmp_path, lambda: 2e9, lambda: 10.0, lambda: "two").can_tell_ages
    assert not WallClock(tmp_path, lambda: 4e9, lambda: 10.0, lambda: "two").can_tell_ages
