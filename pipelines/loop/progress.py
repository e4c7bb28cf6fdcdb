"""How far a round of learning is, in a small file that anybody may read at any time."""

import time
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from ..cache_files import write_atomically

Stage = Literal["off", "waiting", "looking", "learning", "paused", "measuring", "gates", "stopped"]


class Progress(Struct, frozen=True, kw_only=True):
    """Where a round is. Losses are in nats, `eta_s` in seconds; None where there is none yet.

    `network` is the one that learns, and `part` what of it.
    """

    stage: Stage
    run: str = ""
    network: str = ""
    part: str = ""
    step: int = 0
    n_steps: int = 0
    loss: float | None = None
    tuning_loss: float | None = None
    eta_s: float | None = None
    note: str = ""
    written_at: float = 0.0

    def __str__(self) -> str:
        """Return one line for people."""
        what = f" {self.network}, {self.part}" if self.network else ""
        parts = [self.stage + what + (f", run {self.run}" if self.run else "")]
        if self.n_steps:
            parts.append(f"{self.step} of {self.n_steps}")
        if self.loss is not None:
            parts.append(f"loss {self.loss:.3f}")
        if self.tuning_loss is not None:
            parts.append(f"on tuning faces {self.tuning_loss:.3f}")
        if self.eta_s is not None:
            parts.append(f"{self.eta_s:.0f} s to go")
        return ", ".join(parts) + (f"; {self.note}" if self.note else "")


def progress_path(runtime: Path) -> Path:
    """Return where the progress of the daemon with this runtime folder is."""
    return runtime / "learning.json"


def write_progress(runtime: Path, progress: Progress) -> None:
    """Write it, whole or not at all; where there is no such folder, nobody asks.

    Raises:
        OSError: no room or no permission.
    """
    if runtime.is_dir():
        stamped = msgspec.structs.replace(progress, written_at=time.time())
        write_atomically(progress_path(runtime), msgspec.json.encode(stamped))


def read_progress(runtime: Path) -> Progress | None:
    """Return what was written last; None when there is nothing that can be read."""
    try:
        return msgspec.json.decode(progress_path(runtime).read_bytes(), type=Progress)
    except (OSError, msgspec.DecodeError):
        return None
