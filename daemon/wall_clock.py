"""Notices that the wall clock was set, so that nothing is deleted for an age that it does not have."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from ..pipelines.cache_files import write_atomically

MAX_STEP_S = 3600.0  # more is no correction of a clock that was right


def since_boot_s() -> float:
    """Return the seconds since the machine was started, also those in which it slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Return the kernel's name for this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class WallClock:
    """Compares the wall clock with the time since boot, which nobody can set.

    What both said first is kept in the state folder, with the boot that it holds for: a process that starts
    after the clock was set knows it too. `visaged run` and a new boot begin afresh.
    """

    def __init__(
        self,
        state: Path,
        now: Callable[[], float] = time.time,
        uptime: Callable[[], float] = since_boot_s,
        boot: Callable[[], str] = boot_id,
    ) -> None:
        """Read what was first said in `state`, an existing folder; the first process writes it there."""
        self._now, self._uptime = now, uptime
        path = wall_clock_path(state)
        try:
            booted_at, known_boot = path.read_text().split()
            if known_boot != boot():
                raise ValueError("of another boot")
            self._boot = float(booted_at)
        except (OSError, ValueError):
            self._boot = now() - uptime()
            with contextlib.suppress(OSError):  # no room: this process at least knows
                write_atomically(path, f"{self._boot} {boot()}".encode(), 0o600)

    def step_s(self) -> float:
        """Return by how many seconds the wall clock was set since then; positive is into the future."""
        return self._now() - self._uptime() - self._boot

    @property
    def can_tell_ages(self) -> bool:
        """Whether what the clock says may decide that something is too old."""
        return abs(self.step_s()) <= MAX_STEP_S


def wall_clock_path(state: Path) -> Path:
    """Return where it is kept when the machine was booted, as the wall clock said first."""
    return state / "booted-at"
