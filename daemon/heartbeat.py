"""What infer tells systemd once a second: that it works, and a line for whoever asks `systemctl status`."""

import time
from collections.abc import Mapping
from pathlib import Path

from .channels import is_listening, socket_file
from .ledger import Ledger
from .notify import Notifier
from .stall import settled_by_infer

STATUS_EVERY_S = 2.0


class Heartbeat:
    """Pings the watchdog while frames are settled or none waits. Owned by the inference thread.

    A frame waits when it is in flight and its capture process lives, which asks about lost frames within
    a second or two. What a dead capture left is settled when the next one starts, not before.
    """

    def __init__(self, notifier: Notifier, runtime: Path, ledgers: Mapping[str, Ledger]) -> None:
        self._notifier, self._ledgers = notifier, ledgers
        self._sockets = {camera: socket_file(runtime, "frames", camera) for camera in ledgers}
        self._settled = self._n_settled()
        self._published, self._told_s = self._n_published(), time.monotonic()

    def begin(self, release: str) -> None:
        """Say that everything is loaded and warm."""
        self._notifier.ready(f"ready for {self._cameras()}, release {release}")

    def beat(self, release: str) -> None:
        """Ping if there was progress since the last call; now and then say how it goes."""
        settled = self._n_settled()
        if settled != self._settled or not self._is_frame_waiting():
            self._settled = settled
            self._notifier.alive()
        now_s = time.monotonic()
        if now_s - self._told_s >= STATUS_EVERY_S:
            published = self._n_published()
            rate_hz = (published - self._published) / (now_s - self._told_s)
            self._published, self._told_s = published, now_s
            self._notifier.status(f"serving {self._cameras()}, {rate_hz:.1f} frames/s, release {release}")

    def _is_frame_waiting(self) -> bool:
        return any(
            ledger.snapshot().in_flight and is_listening(self._sockets[camera])
            for camera, ledger in self._ledgers.items()
        )

    def _n_settled(self) -> int:
        return sum(settled_by_infer(ledger) for ledger in self._ledgers.values())

    def _n_published(self) -> int:
        return sum(ledger.snapshot().published for ledger in self._ledgers.values())

    def _cameras(self) -> str:
        return "1 camera" if len(self._ledgers) == 1 else f"{len(self._ledgers)} cameras"
