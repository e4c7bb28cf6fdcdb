"""Where frames enter the inference process: descriptors in, whole frames out, every one accounted for."""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from ..pipelines.errors import MessageError, RingError
from ..pipelines.frame import Frame
from .ledger import Ledger, ledger_path
from .ring import Descriptor, RingReader, decode_descriptor
from .sockets import FramesReader

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Taken:
    """A frame of one camera, and when the world saw it (seconds since 1970)."""

    frame: Frame
    captured_at: float
    policy: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The camera has no more frames."""

    camera: str
    reason: str


class Intake:
    """The reader's end of every camera's ring. Owned by the inference thread.

    Policy `live`: of several waiting frames only the newest is taken, the others are dropped as `stale`.
    Policy `replay`: every frame is taken, in order.
    """

    def __init__(
        self,
        cameras: list[str],
        runtime: Path,
        shm: Path,
        on_malformed: Callable[[str], None] = lambda camera: None,
    ) -> None:
        """Connect to `cameras`; `on_malformed` hears of which camera a message was no descriptor."""
        self._sockets = FramesReader(runtime, cameras)
        self._shm = shm
        self._on_malformed = on_malformed
        self._rings: dict[str, RingReader] = {}
        self._held: dict[str, Descriptor] = {}  # taken from the socket, for the next `take`
        self.ledgers = {camera: Ledger.open(ledger_path(runtime, camera)) for camera in cameras}

    def wait(self, timeout_ms: float, without: Collection[str] = ()) -> list[str]:
        """Return the cameras that have something to take, after at most `timeout_ms`.

        Those `without` are not looked at.
        """
        held = [camera for camera in self._held if camera not in without]
        ready = self._sockets.wait(0 if held else timeout_ms, without)
        return [*held, *(camera for camera in ready if camera not in held)]

    def take(self, camera: str) -> Taken | Ended | None:
        """Return the next frame of `camera` under its policy, its end, or None."""
        newest: Descriptor | None = None
        while (descriptor := self._next(camera)) is not None:
            if descriptor.kind != "frame" and newest is not None:
                self._held[camera] = descriptor  # it settles what comes before: that frame first
                break
            if newest is not None:
                self.ledgers[camera].drop_at_infer("stale")
            self.ledgers[camera].settle_before(descriptor.seq, descriptor.dropped_before)
            if descriptor.end:
                return Ended(camera, descriptor.reason)
            newest = descriptor if descriptor.kind == "frame" else None
            if descriptor.policy == "replay":
                break
        return self._read(camera, newest) if newest is not None else None

    def in_flight(self) -> int:
        """Return how many frames of all cameras are captured and not yet settled."""
        return sum(ledger.snapshot().in_flight for ledger in self.ledgers.values())

    def close(self) -> None:
        """Let go of rings, ledgers and sockets."""
        self._sockets.close()
        for ring in self._rings.values():
            ring.close()
        for ledger in self.ledgers.values():
            ledger.close()

    def _next(self, camera: str) -> Descriptor | None:
        """Return the oldest waiting descriptor of `camera`, or None."""
        if camera in self._held:
            return self._held.pop(camera)
        while (data := self._sockets.take(camera)) is not None:
            try:
                return decode_descriptor(data)
            except MessageError as error:
                self._on_malformed(camera)
                log.warning("ignored a descriptor of camera %s: %s", camera, error)
        return None

    def _read(self, camera: str, descriptor: Descriptor) -> Taken | None:
        try:
            ring = self._ring_of(camera, descriptor)
            rgb = ring.read(descriptor)
        except RingError as error:  # the capture process died and its ring went with it
            log.debug("lost frame %d of camera %s: %s", descriptor.seq, camera, error)
            rgb = None
        if rgb is None:
            self.ledgers[camera].drop_at_infer("ring_overrun")
            return None
        frame = Frame(camera, descriptor.seq, descriptor.captured_ns, rgb)
        return Taken(frame, descriptor.captured_at, descriptor.policy)

    def _ring_of(self, camera: str, descriptor: Descriptor) -> RingReader:
        ring = self._rings.get(camera)
        if ring is None or ring.id != descriptor.ring:
            if ring is not None:
                ring.close()
            self._rings[camera] = ring = RingReader(self._shm, descriptor.ring)
        return ring
