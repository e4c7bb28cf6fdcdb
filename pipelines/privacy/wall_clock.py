"""What time it is for whatever is deleted for its age: a wall clock that is not believed when it jumps.

A clock is wrong after a start with an empty battery, or is set while the machine runs. What it said when it
was believed last is kept in the state folder, beside the time since boot, which nobody can set; from both
follows what time it must be. The wall clock is believed while it says about that, and after a boot also
when it is ahead by no more than a machine is off for. Otherwise time goes on from what was believed, by as
much as the machine has been on: so nothing is too old before its time, and nothing is kept for ever. That
ends when there is reason to believe the clock: the kernel says that it is synchronised, an operator says
that it is right, or it is set to what it may be. What was stored meanwhile, by a time that was behind, is
dated anew then.
"""

import contextlib
import ctypes
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from ..cache_files import write_atomically

MAX_STEP_S = 3600.0  # more is no correction of a clock that was right
MAX_OFF_S = 4 * 86_400.0  # a long weekend: how far ahead a clock may be after a boot
SAVE_EVERY_S = 300.0
MAX_ERROR_US = 16_000_000  # what the kernel says of a clock that nobody synchronises


class Believed(Struct, frozen=True, kw_only=True):
    """The time `at` (seconds since 1970) that it was `uptime` seconds after the boot called `boot`.

    `since`: what was stored from then on is behind by as much as the clock is next corrected by. `slack_s`:
    how far ahead the wall clock may be. `is_doubted`: the wall clock said something else.
    """

    at: float
    uptime: float
    boot: str
    since: float
    slack_s: float = MAX_STEP_S
    is_doubted: bool = False


class Correction(Struct, frozen=True, kw_only=True):
    """The clock was right and we were not: what was stored between `since` and `until` is off by `step_s`."""

    since: float
    until: float
    step_s: float
    uptime: float


class _Word(Struct, frozen=True):
    """An operator's word: the wall clock was right that showed `origin` when `boot` began."""

    origin: float
    boot: str


class WallClock:
    """Tells the time to whoever stores and deletes. `now` is for every thread.

    Only the running daemon looks at the clock and accepts corrections, which keeps what is believed on disk;
    everybody else reads that.
    """

    def __init__(
        self,
        state: Path,
        wall: Callable[[], float] = time.time,
        uptime: Callable[[], float] | None = None,
        boot: Callable[[], str] | None = None,
        is_synchronised: Callable[[], bool] | None = None,
    ) -> None:
        """Read what was believed last in the folder `state`; else when a file in it was last written."""
        self._wall, self._uptime = wall, uptime or since_boot_s
        self._boot, self._is_synchronised = (boot or boot_id)(), is_synchronised or is_synchronised_by_kernel
        self._state, self._saved_s = state, -SAVE_EVERY_S
        try:
            self._believed = msgspec.json.decode(believed_path(state).read_bytes(), type=Believed)
        except (OSError, msgspec.DecodeError):
            at = _last_written(state) or wall()
            self._believed = Believed(
                at=at, uptime=self._uptime(), boot=self._boot, since=at, slack_s=MAX_OFF_S
            )

    def now(self) -> float:
        """Return the seconds since 1970 that ages are counted by."""
        return self._wall() - self.step_s()

    def step_s(self) -> float:
        """Return by how much the wall clock is ahead of `now`; 0 while it is believed."""
        wall, due, _ = self._compare()
        return 0.0 if self._is_plausible(wall - due) else wall - due

    def look(self) -> bool:
        """Go on with the wall clock, or without it; return whether there is reason to accept a correction."""
        (wall, due, uptime), known = self._compare(), self._believed
        is_same_boot, step_s, slack_s = known.boot == self._boot, wall - due, self._slack_s
        if self._is_plausible(step_s):
            is_right = not is_same_boot or self._is_synchronised()
            since = wall if is_right else known.since
            self._keep(Believed(at=wall, uptime=uptime, boot=self._boot, since=since))
            return False
        goes_on = is_same_boot or known.is_doubted
        self._keep(
            Believed(
                at=due,
                uptime=uptime,
                boot=self._boot,
                since=known.since if goes_on else due,
                slack_s=slack_s,
                is_doubted=True,
            )
        )
        return 0 < step_s <= slack_s or self._is_synchronised() or self._has_word()

    def correction(self) -> Correction:
        """Return what has to be dated anew before the wall clock can be accepted."""
        wall, due, uptime = self._compare()
        return Correction(since=self._believed.since, until=due, step_s=wall - due, uptime=uptime)

    def accept(self, correction: Correction) -> None:
        """Believe the wall clock again, and keep that: what had to be dated anew is."""
        at = correction.until + correction.step_s
        self._keep(Believed(at=at, uptime=correction.uptime, boot=self._boot, since=at))

    def give_word(self) -> None:
        """Say, as an operator, that the wall clock is right; holds until it is set or the machine boots.

        Raises:
            OSError: it cannot be written.
        """
        word = _Word(self._wall() - self._uptime(), self._boot)
        write_atomically(_word_path(self._state), msgspec.json.encode(word))

    @property
    def is_synchronised(self) -> bool:
        """Whether the kernel says so of the wall clock."""
        return self._is_synchronised()

    def _compare(self) -> tuple[float, float, float]:
        """Return what the wall clock says, what it should say, and the time since boot."""
        known, uptime = self._believed, self._uptime()
        began = known.uptime if known.boot == self._boot else 0.0 if self._boot else uptime
        return self._wall(), known.at + uptime - began, uptime

    @property
    def _slack_s(self) -> float:
        return self._believed.slack_s if self._believed.boot == self._boot else MAX_OFF_S

    def _is_plausible(self, step_s: float) -> bool:
        return -MAX_STEP_S <= step_s <= (MAX_STEP_S if self._believed.is_doubted else self._slack_s)

    def _has_word(self) -> bool:
        with contextlib.suppress(OSError, msgspec.DecodeError):
            word = msgspec.json.decode(_word_path(self._state).read_bytes(), type=_Word)
            origin = self._wall() - self._uptime()
            return word.boot == self._boot and abs(origin - word.origin) <= MAX_STEP_S
        return False

    def _keep(self, believed: Believed) -> None:
        """Believe it, and write it down now and then, at once where something has changed."""
        before, self._believed = self._believed, believed
        is_same = (before.boot, before.is_doubted) == (believed.boot, believed.is_doubted)
        if is_same and believed.uptime - self._saved_s < SAVE_EVERY_S:
            return
        self._saved_s = -SAVE_EVERY_S
        with contextlib.suppress(OSError):  # no room: this process at least knows, and tries again
            write_atomically(believed_path(self._state), msgspec.json.encode(believed))
            self._saved_s = believed.uptime


def believed_path(state: Path) -> Path:
    """Return where it is kept what time was believed last."""
    return state / "clock.json"


def _last_written(state: Path) -> float | None:
    """Return when a file in `state` was last written; None where there is none."""
    times = []
    for path in state.glob("*.*"):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times, default=None)


def _word_path(state: Path) -> Path:
    return state / "clock-word.json"


def since_boot_s() -> float:
    """Return the seconds since the machine was started, also those in which it slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Return the kernel's name for this boot; "" where it is hidden, as from the gateway's unit."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class _Timex(ctypes.Structure):
    """The beginning of `struct timex`, and room for the rest."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("rest", ctypes.c_byte * 256),
    )


def is_synchronised_by_kernel() -> bool:
    """Return whether the wall clock is kept in step with others; False also where asking is not allowed.

    The largest error that the kernel reckons with tells, as in `timedatectl`: it is 16 s when the clock is
    set, and grows to that in nine hours without word from a time server. STA_UNSYNC does not tell: programs
    leave it set to keep the kernel from writing to the battery clock. Source: adjtimex(2); systemd's
    timedated, ntp_synced.
    """
    timex = _Timex()  # modes = 0: only ask
    is_told = ctypes.CDLL(None).adjtimex(ctypes.byref(timex)) >= 0
    return bool(is_told and timex.maxerror < MAX_ERROR_US)
