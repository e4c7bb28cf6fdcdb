"""Notices that the wall clock was set, so that nothing is deleted for an age that it does not have."""

import time
from collections.abc import Callable
from pathlib import Path

MAX_STEP_S = 3600.0  # more is no correction of a clock that was right


def since_boot_s() -> float:
    """Return the seconds since the machine was started, also those in which it slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class WallClock:
    """Compares the wall clock with the time since boot, which nobody can set.

    What both said first is kept in the runtime folder: a process that starts after the clock was set knows it
    too. A new run of the daemon and a new boot begin afresh.
    """

    def __init__(
        self,
        runtime: Path,
        now: Callable[[], float] = time.time,
        uptime: Callable[[], float] = since_boot_s,
    ) -> None:
        """Read what was first said in `runtime`, an existing folder; the first process writes it there."""
        self._now, self._uptime = now, uptime
        path = wall_clock_path(runtime)
        try:
            self._boot = float(path.read_text())
        except (OSError, ValueError):
            self._boot = now() - uptime()
            new = path.with_suffix(".new")
            try:
                new.write_text(str(self._boot))
                new.replace(path)
            except OSError:
                new.unlink(missing_ok=True)  # no room: this process at least knows

    def step_s(self) -> float:
        """Return by how many seconds the wall clock was set since then; positive is into the future."""
        return self._now() - self._uptime() - self._boot

    @property
    def can_tell_ages(self) -> bool:
        """Whether what the clock says may decide that something is too old."""
        return abs(self.step_s()) <= MAX_STEP_S


def wall_clock_path(runtime: Path) -> Path:
    """Return where it is kept when the machine was booted, as the wall clock said first."""
    return runtime / "booted-at"
