"""What a long life has: people are corrected, clients come and go, somebody asks, releases are exchanged."""

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Self

from ..daemon.client import Subscriber
from ..daemon.control import ControlClient, Flag, Order, Promote, Status
from ..pipelines.errors import VisagedError
from ..pipelines.message import EMOTIONS, FaceFrame
from ..pipelines.releases.release import FACTORY
from .temporary_daemon import TemporaryDaemon

FLAG_EVERY_S, GUEST_EVERY_S, ASK_EVERY_S, SWAP_EVERY_S = 5.0, 7.0, 11.0, 97.0
ANSWER_S = 30.0
GUEST_READS = 50


class Life:
    """Does to a daemon what operators and clients do, each deed in its own rhythm.

    Owned by the thread that reads the results. A deed that is refused is counted, and no failure.
    """

    def __init__(self, daemon: TemporaryDaemon, release: str = "") -> None:
        """Live beside a running `daemon`; exchange its `release`, if given, with the factory's."""
        self.counts: Counter[str] = Counter()
        self.last_refusal = ""
        self._daemon, self._control = daemon, ControlClient(daemon.runtime)
        self._guest: Subscriber | None = None
        self._latest: FaceFrame | None = None
        self._said = itertools.cycle(({"confirm": True}, {"emotion": EMOTIONS[1]}, {"is_face": False}))
        self._releases = itertools.cycle((release, FACTORY))
        deeds: list[tuple[float, Callable[[], None]]] = [
            (FLAG_EVERY_S, self._flag),
            (GUEST_EVERY_S, self._change_guest),
            (ASK_EVERY_S, lambda: self._order("status requests", Status())),
        ]
        if release:
            deeds.append((SWAP_EVERY_S, self._swap))
        self._deeds = deeds
        self._due_s = [every_s for every_s, _ in deeds]

    def see(self, result: FaceFrame) -> None:
        """Note what is to be seen: only such faces can be flagged."""
        if any(face.analysed_seq for face in result.faces):
            self._latest = result

    def go_on(self, at_s: float) -> None:
        """Do what is due `at_s` seconds after the beginning."""
        for index, (every_s, deed) in enumerate(self._deeds):
            if at_s >= self._due_s[index]:
                self._due_s[index] += every_s
                deed()

    def close(self) -> None:
        """Let the last guest leave, too."""
        if self._guest is not None:
            self._guest.close()
        self._control.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _flag(self) -> None:
        if self._latest is None:
            return
        seq, camera = self._latest.frame_seq, self._latest.camera
        face = next(face for face in self._latest.faces if face.analysed_seq)
        self._latest = None
        self._order("flags", Flag(camera=camera, track=face.track, seq=seq, **next(self._said)))  # type: ignore[arg-type]

    def _change_guest(self) -> None:
        """Let a client come; the next time it reads what waits for it, and leaves."""
        if self._guest is None:
            self._guest = Subscriber(self._daemon.endpoint)
            self.counts["clients that came"] += 1
            return
        for _ in range(GUEST_READS):
            if self._guest.receive(0) is None:
                break
            self.counts["results read by them"] += 1
        self._guest.close()
        self._guest = None
        self.counts["clients that left"] += 1

    def _swap(self) -> None:
        order = Promote(release=next(self._releases), skip=("gates", "shadow", "canary"), why="soak")
        self._order("swaps", order)

    def _order(self, what: str, order: Order) -> None:
        try:
            self._control.request(order, ANSWER_S)
        except VisagedError as error:
            self.counts[f"{what} refused"] += 1
            self.last_refusal = str(error)
        else:
            self.counts[what] += 1
