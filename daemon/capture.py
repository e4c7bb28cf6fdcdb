"""The capture process: one camera's frames into a ring, a descriptor for each to infer.

Policy `live` never waits: a descriptor that finds the queue full is dropped as `queue_full`. Policy
`replay` loses nothing: it waits until infer has settled enough frames for a slot to be free.

Where shared memory has no room for a ring, `live` drops its frames as `no_room` and `replay` waits.

A lost or silent source is opened again with growing waits; a file that ends says so and ends the process.
The loop owns ring, ledger and socket; the camera belongs to the thread of `CameraReader`.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Literal

from ..pipelines.errors import NoRoomError, SourceError, VisagedError
from .camera import Broken, CameraConfig, SourceKind, shown_source
from .cameras.folder import too_large
from .cameras.reader import CameraReader, Ended, Failed, Opened, Shot
from .ledger import Ledger, ledger_path
from .metrics import CaptureMetrics
from .notify import Notifier
from .outline import Outline
from .ring import Descriptor, FrameRing, encode_descriptor, remove_stale
from .sockets import FramesWriter

log = logging.getLogger(__name__)

STEP_S = 0.1  # how long the loop waits before it looks at `stop` again
POLL_S = 0.002  # replay: how often to look whether a slot is free
MARK_AFTER_S = 1.0  # in-flight frames that do not move for this long may have died with infer: ask
OPENING_S = 15.0  # opening a source may take longer than a frame
STATUS_EVERY_S = 2.0
END_DRAIN_S = 10.0  # a finished file waits this long for infer to make progress
STOP_DRAIN_S = 1.5  # a stopped capture; less than the supervisor's patience
MAX_STUCK = 3  # reads that never returned; with more of them the process starts afresh

Pass = Literal["ended", "stopped", "lost"]


def run_capture(
    outline: Outline,
    camera: CameraConfig,
    metrics: CaptureMetrics,
    stop: threading.Event,
    notifier: Notifier | None = None,
) -> int:
    """Capture `camera` until `stop` is set or the source ends; return the exit code.

    The start counts as over with the first frame or the first loss: a camera may be down for days, and
    is opened again for ever.

    Raises:
        SourceError: the source cannot be read and trying again will not help.
        RingError: no ring of frames can be made in shared memory, for another reason than its size.
        ConfigError: another process serves this camera.
    """
    paths, notifier = outline.paths, notifier or Notifier()
    # not closed: Prometheus may ask until the process is gone
    ledger = Ledger.open(ledger_path(paths.runtime, camera.name))
    metrics.watch_ledger(camera.name, ledger.capture_counts)
    notifier.on_alive = ledger.beat  # for the supervisor, as the pings are for systemd
    with FramesWriter(paths.runtime, camera.name) as frames:
        if n_stale := remove_stale(paths.shm, outline.instance):
            log.info("removed %d rings of dead processes from %s", n_stale, paths.shm)

        def make_ring(slot_bytes: int) -> FrameRing:
            owner = f"{outline.instance}-{camera.name}"
            return FrameRing(paths.shm, owner, camera.ring_slots, slot_bytes)

        sender = Sender(camera, frames, ledger, make_ring, stop)
        try:
            Capture(camera, sender, metrics, stop, notifier).run()
        finally:
            sender.close()
            log.info("camera %s: %s", camera.name, ledger.snapshot())
    return 0


class Sender:
    """Puts frames into the ring and their descriptors on the channel. Owned by the capture thread."""

    def __init__(
        self,
        config: CameraConfig,
        frames: FramesWriter,
        ledger: Ledger,
        make_ring: Callable[[int], FrameRing],
        stop: threading.Event,
    ) -> None:
        self._config = config
        self._policy: Literal["live", "replay"] = "replay" if config.is_lossless else "live"
        self._frames = frames
        self._ledger = ledger
        self._make_ring = make_ring
        self._stop = stop
        self.on_wait: Callable[[], None] = lambda: None  # called while infer lets us wait
        self._ring: FrameRing | None = None
        self._lacks_room = False
        self._in_flight = 0
        self._moved_s = time.monotonic()  # when `in_flight` last changed, or was last asked about

    def send(self, shot: Shot) -> None:
        """Deliver one frame under the policy in force."""
        if self._config.is_lossless and not self._wait_until(self._config.ring_slots - 2):
            return  # stopped; the frame has not been captured
        ring = self._ring_for(shot)
        if ring is None:
            return
        slot, generation = ring.write(shot.rgb, shot.captured_ns)
        dropped_before = self._ledger.dropped_at_capture()
        height, width = shot.rgb.shape[:2]
        descriptor = Descriptor(
            kind="frame",
            policy=self._policy,
            seq=self._ledger.count_captured(),
            dropped_before=dropped_before,
            ring=ring.name,
            slot=slot,
            generation=generation,
            captured_ns=shot.captured_ns,
            captured_at=shot.captured_at,
            width=width,
            height=height,
        )
        data = encode_descriptor(descriptor)
        if self._frames.send(data):
            return
        if not self._config.is_lossless:
            self._ledger.drop_at_capture("queue_full")
            return
        while not self._frames.send(data):
            self.on_wait()
            if self._stop.wait(POLL_S):
                self._ledger.drop_at_capture("shutdown")
                return

    def count_broken(self) -> None:
        """Account for a frame that came and cannot be used."""
        self._ledger.count_captured()
        self._ledger.drop_at_capture("decode_error")

    def ask_about_lost(self) -> None:
        """Ask infer to settle what died with its predecessor, if nothing has moved for a while."""
        in_flight, now = self._ledger.snapshot().in_flight, time.monotonic()
        if in_flight != self._in_flight:
            self._in_flight, self._moved_s = in_flight, now
        elif in_flight and now - self._moved_s > MARK_AFTER_S:
            self._moved_s = now
            self._mark("mark")

    def finish(self, reason: str | None) -> None:
        """Tell infer that the source ended (`reason`), or that we stop (None); wait until all is settled."""
        patience_s = STOP_DRAIN_S if reason is None else END_DRAIN_S
        last, moved_s, is_told = -1, time.monotonic(), False
        while time.monotonic() - moved_s < patience_s:
            if not is_told:
                is_told = self._mark("mark" if reason is None else "end", reason or "")
            self.on_wait()
            in_flight = self._ledger.snapshot().in_flight
            if in_flight != last:
                last, moved_s = in_flight, time.monotonic()
            if not in_flight and (is_told or reason is None):
                return
            if reason is not None and self._stop.is_set():
                reason, patience_s = None, STOP_DRAIN_S
            time.sleep(POLL_S)
        if last:
            log.warning("camera %s: %d frames were still in flight at the end", self._config.name, last)

    def close(self) -> None:
        """Remove the ring."""
        if self._ring is not None:
            self._ring.close()
            self._ring = None

    def _mark(self, kind: Literal["mark", "end"], reason: str = "") -> bool:
        dropped = self._ledger.dropped_at_capture()
        seq = self._ledger.snapshot().captured + 1
        mark = Descriptor(kind=kind, policy=self._policy, seq=seq, dropped_before=dropped, reason=reason)
        return self._frames.send(encode_descriptor(mark))

    def _ring_for(self, shot: Shot) -> FrameRing | None:
        """Return a ring whose slots hold this frame.

        None when stopped while waiting for the old one, or when there is no room and the frame was dropped.
        """
        n_bytes = shot.rgb.size
        if self._ring is not None and n_bytes <= self._ring.slot_bytes:
            return self._ring
        if self._ring is not None:
            if self._config.is_lossless and not self._wait_until(0):
                return None  # infer may still have to open the old one
            self.close()
        while self._ring is None:
            try:
                self._ring = self._make_ring(n_bytes)
            except NoRoomError as error:
                self._note_no_room(error)
                if not self._config.is_lossless:
                    self._ledger.count_captured()
                    self._ledger.drop_at_capture("no_room")
                    return None
                if self._stop.wait(STEP_S):
                    return None
                self.on_wait()
        if self._lacks_room:
            self._lacks_room = False
            log.info("camera %s has room for its frames again", self._config.name)
        return self._ring

    def _note_no_room(self, error: NoRoomError) -> None:
        if not self._lacks_room:  # one line for an outage, not one for a frame
            fate = "wait" if self._config.is_lossless else "are dropped (no_room)"
            log.error("camera %s: %s; until then its frames %s", self._config.name, error, fate)
        self._lacks_room = True

    def _wait_until(self, in_flight: int) -> bool:
        """Wait until at most `in_flight` frames are; return false when stopped before."""
        while self._ledger.snapshot().in_flight > in_flight:
            if self._stop.wait(POLL_S):
                return False
            self.on_wait()
            self.ask_about_lost()
        return True


class Capture:
    """Keeps one camera open and its frames flowing. Owned by the capture thread."""

    def __init__(
        self,
        config: CameraConfig,
        sender: Sender,
        metrics: CaptureMetrics,
        stop: threading.Event,
        notifier: Notifier,
    ) -> None:
        self._config = config
        self._sender = sender
        self._metrics = metrics
        self._stop = stop
        self._notifier = notifier
        self._told_s, self._n_told = 0.0, 0
        sender.on_wait = notifier.alive
        self._shown = shown_source(config.source)
        self._stuck: list[CameraReader] = []
        self._is_up = False
        self._down_since_s: float | None = None
        self._n_attempts = 0
        self._n_good = 0
        self._size = (0, 0)  # width and height in px of the frame before
        metrics.camera_up.labels(config.name).set(0)
        metrics.reconnects.labels(config.name).inc(0)
        metrics.silences.labels(config.name).inc(0)
        metrics.size_changes.labels(config.name).inc(0)

    def run(self) -> None:
        """Capture until stopped or ended.

        Raises:
            SourceError: the source cannot be read and trying again will not help.
        """
        while True:
            how = self._one_pass()
            if how == "stopped":
                self._sender.finish(None)
                return
            if how == "ended" and not self._config.loop:
                self._sender.finish("end of file")
                return
            if how == "lost":
                self._wait_before_retry()
                self._metrics.reconnects.labels(self._config.name).inc()

    def _one_pass(self) -> Pass:
        """Read the source from opening to its end or loss."""
        reader = CameraReader(self._config)
        n_before = self._n_good
        try:
            how = self._pump(reader)
        finally:
            if not reader.leave():
                self._stuck.append(reader)
        if how == "ended" and self._n_good == n_before:
            raise SourceError(f"camera {self._config.name}: {self._shown} holds no frame that can be read")
        return how

    def _pump(self, reader: CameraReader) -> Pass:
        allowed_s, heard_s, n_broken = OPENING_S, time.monotonic(), 0
        while not self._stop.is_set():
            event = reader.next(STEP_S)
            now = time.monotonic()
            self._notifier.alive()  # a frame came, or the silence is judged below
            match event:
                case None:
                    self._sender.ask_about_lost()
                    if now - heard_s > allowed_s:
                        self._metrics.silences.labels(self._config.name).inc()
                        self._note_loss(f"it has been silent for {allowed_s:g} s")
                        return "lost"
                    continue
                case Opened():
                    allowed_s = self._config.silent_after_s
                case Ended():
                    return "ended"
                case Failed(error=error):
                    self._judge(error)
                    return "lost"
                case Shot() if event.rgb.size > 3 * self._config.max_pixels:
                    height, width = event.rgb.shape[:2]
                    why = too_large("it", height, width, self._config.max_pixels)
                    n_broken = self._skip(Broken(why), n_broken)
                case Shot():
                    self._note_frame(event)
                    self._sender.send(event)
                    self._metrics.capture_seconds.labels(self._config.name).observe(
                        (time.monotonic_ns() - event.captured_ns) / 1e9
                    )
                case Broken():
                    n_broken = self._skip(event, n_broken)
            heard_s = time.monotonic()
        return "stopped"

    def _skip(self, broken: Broken, n_before: int) -> int:
        """Count a broken frame; the first of a pass is worth a sentence."""
        self._sender.count_broken()
        if n_before == 0:
            log.warning(
                "camera %s: skipped a frame: %s; further ones are only counted (decode_error)",
                self._config.name,
                broken.why,
            )
            self._notifier.ready(f"camera {self._config.name} sends frames that cannot be used: {broken.why}")
        return n_before + 1

    def _note_frame(self, shot: Shot) -> None:
        height, width = shot.rgb.shape[:2]
        if self._n_good and self._size != (width, height) and self._config.kind is not SourceKind.PATH:
            self._metrics.size_changes.labels(self._config.name).inc()
            sizes = (width, height, *self._size)
            log.warning("camera %s: pictures are now %dx%d, were %dx%d", self._config.name, *sizes)
        self._size = width, height
        self._n_good += 1
        if self._is_up:
            self._tell_rate(f"camera {self._config.name} is up: {width}x{height}")
            return
        self._is_up = True
        self._n_attempts = 0
        self._metrics.camera_up.labels(self._config.name).set(1)
        self._notifier.ready(f"camera {self._config.name} is up: {width}x{height}")
        self._told_s, self._n_told = time.monotonic(), self._n_good
        if self._down_since_s is None:
            log.info("camera %s is up: %dx%d from %s", self._config.name, width, height, self._shown)
        else:
            down_s = time.monotonic() - self._down_since_s
            self._down_since_s = None
            log.info("camera %s is back after %.1f s, %dx%d", self._config.name, down_s, width, height)

    def _tell_rate(self, status: str) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s >= STATUS_EVERY_S:
            rate_hz = (self._n_good - self._n_told) / (now_s - self._told_s)
            self._told_s, self._n_told = now_s, self._n_good
            self._notifier.status(f"{status}, {rate_hz:.1f} frames/s")

    def _judge(self, error: Exception) -> None:
        """Note a loss that may pass; raise one that will not."""
        if not isinstance(error, SourceError):
            raise error
        if self._config.kind in (SourceKind.PATH, SourceKind.SYNTHETIC):
            raise error
        self._note_loss(str(error).removeprefix(f"camera {self._config.name}: "))

    def _note_loss(self, why: str) -> None:
        if self._is_up or self._down_since_s is None:  # one line for an outage, not one for an attempt
            log.warning("camera %s is lost: %s; trying again until it is back", self._config.name, why)
            self._down_since_s = time.monotonic()
            self._notifier.ready(f"camera {self._config.name} is lost: {why}; trying again until it is back")
        self._is_up = False
        self._metrics.camera_up.labels(self._config.name).set(0)

    def _wait_before_retry(self) -> None:
        self._stuck = [reader for reader in self._stuck if reader.is_alive]
        if len(self._stuck) > MAX_STUCK:
            raise VisagedError(
                f"camera {self._config.name}: {len(self._stuck)} reads of {self._shown} never returned; "
                f"its driver or network hangs; the process starts afresh"
            )
        delay_s = min(self._config.reconnect_max_s, self._config.reconnect_min_s * 2**self._n_attempts)
        self._n_attempts = min(self._n_attempts + 1, 30)
        delay_s *= random.uniform(0.75, 1.25)  # so that cameras do not come at once
        until_s = time.monotonic() + delay_s
        while (left_s := until_s - time.monotonic()) > 0 and not self._stop.wait(min(STEP_S, left_s)):
            self._notifier.alive()
            self._sender.ask_about_lost()
