"""The book of every frame of a camera: captured = published + dropped{reason} + in flight, at any time.

One small mapped file per camera in the runtime directory, shared by the two processes that know: capture
writes one half, infer the other, each cell has one writer and is stored whole (8 aligned bytes). The file
outlives both, so `seq` goes on where a killed capture left it.

What counts as captured: everything the source delivered as one frame, also what could not be decoded; that is
dropped as `decode_error` in the same breath and so leaves a visible hole in `seq`. `seq` is the value of
`captured` after counting the frame.

Settling: infer handles descriptors in order and settles each (publish or drop) before it looks at the next.
When it meets frame `seq`, all before it must be in the book; what is missing died with a
process and becomes `restart`. A frame that was sent out by an infer that was killed before it wrote the book
is `restart` too: the book then understates by that frame, and never promises one that did not leave.
"""

import mmap
import os
import secrets
import time
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ..pipelines.errors import RingError

MAGIC = int.from_bytes(b"VSGLEDG1", "little")
N_CELLS = 512  # int64; one page
CAPTURE_REASONS = ("queue_full", "decode_error", "shutdown", "no_room")
INFER_REASONS = ("stale", "ring_overrun", "restart", "swap", "bad_frame", "shutdown")
REASONS = tuple(dict.fromkeys((*CAPTURE_REASONS, *INFER_REASONS)))
# Each writer has cache lines of its own: the total first, then its reasons.
CAPTURED_AT, BEAT_AT, PUBLISHED_AT = 8, 24, 32
AGES_AT = 64
AGES_MS = (10.0, 20.0, 33.0, 50.0, 66.0, 100.0, 150.0, 200.0, 300.0, 500.0, 1000.0, 2500.0)
"""How old published frames are: a cell counts those up to its edge, one more those that are older."""
CAPTURE_CELL = {reason: CAPTURED_AT + 1 + i for i, reason in enumerate(CAPTURE_REASONS)}
INFER_CELL = {reason: PUBLISHED_AT + 1 + i for i, reason in enumerate(INFER_REASONS)}


@dataclass(frozen=True, slots=True)
class LedgerSnapshot:
    """The book at one moment; `in_flight` is what is captured and not yet settled, never negative."""

    captured: int
    published: int
    dropped: Mapping[str, int]
    in_flight: int

    def __str__(self) -> str:
        """Return the equation, as a person would write it."""
        drops = ", ".join(f"{n} {reason}" for reason, n in self.dropped.items() if n) or "none"
        return (
            f"{self.captured} captured = {self.published} published + {sum(self.dropped.values())} dropped "
            f"({drops}) + {self.in_flight} in flight"
        )


@dataclass(frozen=True, slots=True)
class SideCounts:
    """One process's half of the book; None where the other process owns the number."""

    captured: int | None
    published: int | None
    dropped: Mapping[str, int]
    in_flight: int | None


class Ledger:
    """One camera's book. Each method says which process may call it; reading is free to all."""

    def __init__(self, memory: mmap.mmap) -> None:
        """Use `Ledger.open`."""
        self._memory = memory
        self._cells = memoryview(memory).cast("q")

    @classmethod
    def open(cls, path: Path, create: bool = True) -> Self:
        """Return the book at `path`, made if it is missing and `create`.

        Raises:
            RingError: missing, no room to make it, or not one of ours.
        """
        if create:
            _make(path)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise RingError(f"cannot open the frame ledger {path} ({error.strerror})") from error
        try:
            is_whole = os.fstat(descriptor).st_size == N_CELLS * 8
            memory = mmap.mmap(descriptor, N_CELLS * 8) if is_whole else None
        finally:
            os.close(descriptor)
        if memory is None or int.from_bytes(memory[:8], "little") != MAGIC:
            raise RingError(f"{path} is no frame ledger of this version; stop visaged and remove the file")
        return cls(memory)

    def count_captured(self) -> int:
        """Count one frame and return its `seq`. Capture only."""
        self._cells[CAPTURED_AT] += 1
        return self._cells[CAPTURED_AT]

    def drop_at_capture(self, reason: str) -> None:
        """Count one captured frame as dropped before it was sent. Capture only."""
        self._cells[CAPTURE_CELL[reason]] += 1

    def beat(self) -> None:
        """Note that capture is alive and at work now. Capture only."""
        self._cells[BEAT_AT] = time.monotonic_ns()

    def last_beat_s(self) -> float:
        """Return when capture was last at work, in seconds of the monotonic clock; 0 if it never was."""
        return self._cells[BEAT_AT] / 1e9

    def dropped_at_capture(self) -> int:
        """Return how many frames capture has dropped; `dropped_before` of the next descriptor."""
        return sum(self._cells[cell] for cell in CAPTURE_CELL.values())

    def publish(self, age_s: float = 0.0) -> None:
        """Count one frame as published, so long after it was captured. Infer only."""
        self._cells[AGES_AT + bisect_left(AGES_MS, age_s * 1e3)] += 1
        self._cells[PUBLISHED_AT] += 1

    def ages(self) -> list[int]:
        """Return how many frames were published at each age: an entry per edge of `AGES_MS`, and one more."""
        return list(self._cells[AGES_AT : AGES_AT + len(AGES_MS) + 1])

    def drop_at_infer(self, reason: str, n: int = 1) -> None:
        """Count `n` frames as dropped after they were sent. Infer only."""
        if n < 0:
            raise ValueError(f"{n=} frames dropped")
        self._cells[INFER_CELL[reason]] += n

    def settle_before(self, seq: int, dropped_before: int) -> int:
        """Count what is missing before frame `seq` as `restart`; return how many. Infer only.

        `seq` and `dropped_before` come from the descriptor. Every earlier descriptor must be settled.
        """
        settled = self._cells[PUBLISHED_AT] + sum(self._cells[cell] for cell in INFER_CELL.values())
        n_before = min(seq - 1, self._cells[CAPTURED_AT])  # a damaged descriptor cannot unbalance the book
        n_lost = max(0, n_before - dropped_before - settled)
        self.drop_at_infer("restart", n_lost)
        return n_lost

    def settle_all(self, reason: str = "shutdown") -> int:
        """Count everything in flight as dropped; return how many. Only while neither process lives."""
        n_left = self.snapshot().in_flight
        self.drop_at_infer(reason, n_left)
        return n_left

    def snapshot(self) -> LedgerSnapshot:
        """Return the book as it stands; balances whoever writes meanwhile."""
        # INVARIANT: infer's half first, `captured` last. All cells only grow, and a frame is captured
        # before it is settled, so in_flight cannot come out negative.
        published = self._cells[PUBLISHED_AT]
        dropped = dict.fromkeys(REASONS, 0)
        for reason, cell in (*INFER_CELL.items(), *CAPTURE_CELL.items()):
            dropped[reason] += self._cells[cell]
        captured = self._cells[CAPTURED_AT]
        return LedgerSnapshot(captured, published, dropped, captured - published - sum(dropped.values()))

    def capture_counts(self) -> SideCounts:
        """Return the half that capture writes, for its metrics."""
        dropped = {reason: self._cells[cell] for reason, cell in CAPTURE_CELL.items()}
        return SideCounts(self._cells[CAPTURED_AT], None, dropped, None)

    def infer_counts(self) -> SideCounts:
        """Return the half that infer writes, and what is in flight, for its metrics."""
        dropped = {reason: self._cells[cell] for reason, cell in INFER_CELL.items()}
        return SideCounts(None, self._cells[PUBLISHED_AT], dropped, self.snapshot().in_flight)

    def close(self) -> None:
        """Let go of the mapping; the file stays. A second call does nothing."""
        self._cells.release()
        self._memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ledger_path(runtime: Path, camera: str) -> Path:
    """Return where the book of `camera` lies."""
    return runtime / f"ledger-{camera}"


def _make(path: Path) -> None:
    """Make an empty book unless there is one; whoever comes first wins, nobody sees half of it.

    Raises:
        RingError: no room, or no such folder.
    """
    if path.exists():
        return
    half_made = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        half_made.write_bytes(MAGIC.to_bytes(8, "little") + bytes((N_CELLS - 1) * 8))
        half_made.chmod(0o600)
        os.link(half_made, path)
    except FileExistsError:
        pass
    except OSError as error:
        raise RingError(
            f"cannot make the frame ledger {path} ({error.strerror}); free some space or set [paths] runtime"
        ) from error
    finally:
        half_made.unlink(missing_ok=True)
