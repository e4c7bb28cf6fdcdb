"""Every process of the daemon in one table: how it is started, stopped, restarted, and where it is measured.

`visaged run` and the systemd units start the same commands: `python -m visaged.daemon.lifecycle NAME`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

STOP_S = 5.0  # from SIGTERM to SIGKILL
MAX_RESTARTS, WINDOW_S = 5, 60.0  # more in this time is a crash loop
BACKOFF_S = (0.1, 0.5, 1.0, 2.0, 4.0)  # wait before the first, second, ... restart within the window


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of process."""

    kind: str
    per_camera: bool
    port_offset: int  # from [metrics] port; cameras count on from it
    stop_order: int  # smaller stops first
    waits_for: str  # channel that must be served before its first start; "": none
    nice: int
    serves: bool = True  # frames are lost without it; else the daemon goes on when it ends


TABLE = (
    #   kind       per camera  port  stops  waits for   nice  serves
    Row("infer",   False,      1,    1,     "",         0),
    Row("capture", True,       10,   0,     "control",  0),  # no frames before somebody can look at them
    Row("learn",   False,      3,    0,     "control",  19, False),
    Row("gateway", False,      2,    2,     "control", 10),  # other machines; never at the cost of frames
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Process:
    """One process to run: `name` is `infer`, `gateway`, `learn` or `capture@CAMERA`."""

    name: str
    row: Row
    port_offset: int


def processes(cameras: list[str], *, is_remote: bool = False, learns: bool = False) -> list[Process]:
    """Return the processes for `cameras`, in the order in which they are started.

    The gateway is among them when the daemon `is_remote`: serves other machines; learn when it `learns`.
    """
    rows: list[Process] = []
    for row in TABLE:
        if row.kind == "gateway" and not is_remote:
            continue
        if row.per_camera:
            rows += [
                Process(f"{row.kind}@{name}", row, row.port_offset + i) for i, name in enumerate(cameras)
            ]
        elif row.serves or learns:
            rows.append(Process(row.kind, row, row.port_offset))
    return rows


def command(name: str, config: Path) -> list[str]:
    """Return the command line of process `name`."""
    return [sys.executable, "-m", "visaged.daemon.lifecycle", name, "--config", str(config)]


class RestartHistory:
    """Decides when a process that ended is started again. Owned by the supervisor."""

    def __init__(self) -> None:
        self._ends: list[float] = []

    def wait_s(self, now_s: float) -> float | None:
        """Note an unwanted end at `now_s`; return the wait before the restart, None in a crash loop."""
        self._ends = [end for end in self._ends if now_s - end < WINDOW_S]
        if len(self._ends) >= MAX_RESTARTS:
            return None
        self._ends.append(now_s)
        return BACKOFF_S[len(self._ends) - 1]
