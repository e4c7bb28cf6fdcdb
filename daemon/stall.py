"""Notices processes that live and do nothing: infer settles no waiting frame, capture has no beat."""

from collections.abc import Iterable
from pathlib import Path

from ..pipelines.errors import RingError
from .ledger import Ledger, ledger_path

STALLED_S = 30.0  # more than the longest batch and than loading the networks again after a restart


class StallWatch:
    """Looks into the ledgers of all cameras. Owned by the supervisor."""

    def __init__(self, runtime: Path, cameras: Iterable[str]) -> None:
        self._paths = {camera: ledger_path(runtime, camera) for camera in cameras}
        self._ledgers: dict[str, Ledger] = {}
        self._settled = -1
        self._moved_s: dict[str, float] = {}  # of every process: when it last was at work, or was forgiven

    def is_stalled(self, name: str, now_s: float) -> bool:
        """Whether process `name` has done nothing for `STALLED_S`; of those that leave no trace, never.

        Infer: frames wait and not one was settled. Capture: not one beat, also none while it waits.
        """
        if name == "infer":
            self._look_at_infer(now_s)
        elif (ledger := self._ledger_of(name.removeprefix("capture@"))) is not None:
            self._moved_s[name] = max(self._moved_s.get(name, now_s), ledger.last_beat_s())
        else:
            return False
        return now_s - self._moved_s.get(name, now_s) >= STALLED_S

    def forgive(self, name: str, now_s: float) -> None:
        """Begin to wait anew for process `name`, because it has just been started."""
        self._moved_s[name] = now_s

    def _look_at_infer(self, now_s: float) -> None:
        settled, in_flight = 0, 0
        for camera in self._paths:
            ledger = self._ledger_of(camera)
            if ledger is not None:
                settled += settled_by_infer(ledger)
                in_flight += ledger.snapshot().in_flight
        if settled != self._settled or in_flight == 0:
            self._settled, self._moved_s["infer"] = settled, now_s

    def close(self) -> None:
        """Let go of the ledgers; a second call does nothing."""
        while self._ledgers:
            self._ledgers.popitem()[1].close()

    def _ledger_of(self, camera: str) -> Ledger | None:
        if camera not in self._paths:
            return None
        if camera not in self._ledgers:
            try:
                self._ledgers[camera] = Ledger.open(self._paths[camera], create=False)
            except RingError:  # not made yet
                return None
        return self._ledgers[camera]


def settled_by_infer(ledger: Ledger) -> int:
    """Return how many frames infer has published or dropped; does not move while it hangs."""
    counts = ledger.infer_counts()
    return (counts.published or 0) + sum(counts.dropped.values())
