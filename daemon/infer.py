"""The inference process: takes frames of every camera, answers them in one batch, publishes.

One thread owns pipeline, sockets and ledgers; `Scanner` searches whole frames beside it for live
cameras. Under policy `replay` frames are scanned in line: replaying a file twice answers the same twice.
"""

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any, Self

import msgspec

from ..pipelines.answer import Answer
from ..pipelines.assembly import assemble
from ..pipelines.errors import GalleryError, StoreError
from ..pipelines.inference import Scan
from ..pipelines.loop.lineage import erased_of
from ..pipelines.message import FaceFrame
from ..pipelines.privacy.audit import note
from .config import Config
from .control import Control, EnrolTrack, Flag, Status
from .engine_upgrade import EngineUpgrade
from .flagging import CONTROL, Flagging
from .freed_memory import give_back
from .heartbeat import Heartbeat
from .intake import Ended, Intake, Taken
from .metrics import InferMetrics
from .notify import Notifier
from .promotion import Promoter
from .publisher import Publisher
from .scanner import Scanner
from .store_failures import StoreFailures

log = logging.getLogger(__name__)

WAIT_MS = 50  # the loop sleeps this long at most when no frame comes; control requests wait as long
HOUSEKEEPING_S = 1.0  # how often to look whether an operator changed the gallery
GIVE_BACK_EVERY_S = 60.0  # between frames that went lie chips that stay: the heap grows by 90 MB a minute
QUIET_S = 60.0  # without a lost result before the next one is worth a line again
DRAIN_S = 2.0  # how long after SIGTERM frames that are already captured are still answered


def run_infer(
    config: Config,
    metrics: InferMetrics,
    stop: threading.Event,
    build: Sequence[str] = (),
    notifier: Notifier | None = None,
) -> int:
    """Serve until `stop` is set or every camera has ended; return the exit code.

    `build` is the command of the process that builds missing plans; none: nothing is built.
    """
    with Inference(config, metrics, build, notifier) as inference:
        inference.serve(stop)
    return 0


class Inference:
    """The loop and what it owns. Everything here belongs to the thread that calls `serve`."""

    def __init__(
        self,
        config: Config,
        metrics: InferMetrics,
        build: Sequence[str] = (),
        notifier: Notifier | None = None,
    ) -> None:
        self._metrics, self._config = metrics, config
        paths = config.paths
        self._stages = assemble(
            config.stages, state=paths.state, cache=paths.cache, wheels=paths.wheels, may_wait=False
        )
        self._pipeline = self._stages.pipeline()
        self._upgrade = EngineUpgrade(self._stages, metrics, build)
        self._promoter = Promoter(self._pipeline, self._stages, self._upgrade, config, metrics, build)
        names = [camera.name for camera in config.camera]
        for camera in config.camera:
            self._pipeline.add_camera(camera.name, identify=camera.identity, feel=camera.emotion)
        self._pipeline.warm_up()
        self._give_back_due_s = 0.0
        self._scanner = Scanner(self._pipeline)
        self._intake = Intake(
            names, paths.runtime, paths.shm, lambda camera: metrics.malformed.labels(camera).inc()
        )
        self._publisher = Publisher(paths.runtime)
        self._flagging = Flagging(config, self._stages, metrics, self._promoter.corrected)
        self._control = Control(paths.runtime, lambda why: metrics.control_errors.labels(why).inc())
        self._control.handle(EnrolTrack, self._enrol_track)
        self._control.handle(Status, self._status)
        self._control.handle(Flag, self._flagging.flag)
        self._promoter.answer_to(self._control)
        self._heartbeat = Heartbeat(notifier or Notifier(), paths.runtime, self._intake.ledgers)
        self._open = set(names)
        self._told: dict[str, dict[str, int]] = {}
        self._housekeeping_due_s = 0.0
        self._failures = StoreFailures(metrics)
        self._n_missed, self._missed_s = 0, -QUIET_S
        for name, ledger in self._intake.ledgers.items():
            metrics.watch_ledger(name, ledger.infer_counts)

    def serve(self, stop: threading.Event) -> None:
        """Answer frames and requests until `stop` is set or every camera has ended."""
        log.info("serving release %s to %d cameras", self._pipeline.serving.name, len(self._open))
        self._upgrade.start()
        self._promoter.start()
        self._heartbeat.begin(self._pipeline.serving.name)
        while self._open and not stop.is_set():
            self._step()
        deadline = time.monotonic() + DRAIN_S
        while self._open and time.monotonic() < deadline and self._intake.in_flight() > 0:
            self._step()

    def close(self) -> None:
        """Let go of sockets, rings, engines and gallery."""
        self._scanner.close()
        self._upgrade.close()
        self._promoter.close()
        self._flagging.close()
        self._control.close()
        self._publisher.close()
        self._intake.close()
        self._stages.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _step(self) -> None:
        batch = self._gather()
        if batch:
            self._answer(batch)
        self._promoter.poll()
        self._metrics.control_requests.inc(self._control.poll())
        if time.monotonic() >= self._housekeeping_due_s:
            self._keep_house()

    def _gather(self) -> list[Taken]:
        """Return the frames to answer together: the first that comes, and what comes soon after.

        At most one frame of a camera; `[engine] batch_wait_ms` is counted from the first.
        """
        batch: dict[str, Taken] = {}
        wait_ms, until_s = float(WAIT_MS), 0.0
        while ready := self._intake.wait(wait_ms, batch):
            for camera in ready:
                taken = self._intake.take(camera)
                if isinstance(taken, Taken):
                    batch[camera] = taken
                elif isinstance(taken, Ended):
                    self._end(taken)
            now_s = time.monotonic()
            until_s = until_s or now_s + self._config.engine.batch_wait_ms / 1e3
            wait_ms = max(0.0, (until_s - now_s) * 1e3)
            if not wait_ms or len(batch) >= len(self._open):
                break
        return list(batch.values())

    def _answer(self, batch: list[Taken]) -> None:
        work = [(taken.frame, self._scan_for(taken)) for taken in batch]
        is_live = all(taken.policy == "live" for taken in batch)  # a replayed frame must say everything
        try:
            answers = self._pipeline.run(work, self._config.ensemble.max_batch if is_live else None)
        except ValueError as error:  # a kernel refused what is in a frame; the next one may be good
            log.warning("dropped %d frames that cannot be worked on: %s", len(batch), error)
            for taken in batch:
                self._intake.ledgers[taken.frame.camera].drop_at_infer("bad_frame")
            return
        n_analysed = sum(face.analysed_seq == a.frame.seq for a in answers for face in a.faces)
        if n_analysed:
            self._metrics.batch_size.observe(n_analysed)
        for taken, answer in zip(batch, answers, strict=True):
            self._publish(taken, answer)

    def _scan_for(self, taken: Taken) -> Scan | None:
        """Return the scan to use for this frame, and see that the next one is under way."""
        frame = taken.frame
        is_due = self._pipeline.is_scan_due(frame)
        if taken.policy == "replay":
            if not is_due:
                return None
            self._pipeline.begin_scan(frame)
            return self._pipeline.scan(frame)
        if is_due and self._scanner.submit(frame):
            self._pipeline.begin_scan(frame)
        return self._scanner.take(frame.camera)

    def _publish(self, taken: Taken, answer: Answer) -> None:
        frame, serving = taken.frame, self._pipeline.serving
        height, width = frame.rgb.shape[:2]
        result = self._publisher.publish(
            FaceFrame(
                camera=frame.camera,
                run="",
                seq=0,
                frame_seq=frame.seq,
                captured_ns=frame.captured_ns,
                captured_at=taken.captured_at,
                published_ns=0,
                width=width,
                height=height,
                release=serving.name,
                embedding_space=serving.ensemble.embedding_space,
                embedding_dim=serving.ensemble.embedding_dim,
                faces=answer.faces,
                drops=self._drops_since_last(frame.camera),
                stages_ms=answer.stages_ms,
            ),
            answer.embeddings,
        )
        self._intake.ledgers[frame.camera].publish((result.published_ns - result.captured_ns) / 1e9)
        self._measure(result)
        self._flagging.see(answer, result)

    def _measure(self, result: FaceFrame) -> None:
        age_s = (result.published_ns - result.captured_ns) / 1e9
        self._metrics.frame_age_seconds.labels(result.camera).observe(age_s)
        self._metrics.faces.labels(result.camera).inc(len(result.faces))
        for stage, ms in result.stages_ms.items():
            self._metrics.stage_seconds.labels(stage).observe(ms / 1e3)

    def _drops_since_last(self, camera: str) -> dict[str, int]:
        dropped = self._intake.ledgers[camera].snapshot().dropped
        told = self._told.get(camera, {})
        self._told[camera] = dict(dropped)
        return {reason: n - told.get(reason, 0) for reason, n in dropped.items() if n > told.get(reason, 0)}

    def _end(self, ended: Ended) -> None:
        log.info("camera %s ended: %s", ended.camera, ended.reason)
        self._publisher.publish_end(ended.camera, ended.reason)
        self._open.discard(ended.camera)

    def _keep_house(self) -> None:
        now_s = time.monotonic()
        self._housekeeping_due_s = now_s + HOUSEKEEPING_S
        if now_s >= self._give_back_due_s:
            self._give_back_due_s = now_s + GIVE_BACK_EVERY_S
            give_back()
        self._flagging.keep_house(is_gallery_changed=self._read_gallery())
        self._metrics.subscribers.set(self._publisher.count_subscriptions())
        self._count_missed()
        self._heartbeat.beat(self._pipeline.serving.name)

    def _count_missed(self) -> None:
        """Count the results that a client was too slow for; the first one after a while is worth a line."""
        n_new, now_s = self._publisher.n_missed - self._n_missed, time.monotonic()
        if not n_new:
            return
        if now_s - self._missed_s > QUIET_S:
            log.warning("a client reads too slowly and loses results; it sees the holes in `seq`")
        self._n_missed, self._missed_s = self._publisher.n_missed, now_s
        self._metrics.results_missed.inc(n_new)

    def _read_gallery(self) -> bool:
        """Read the gallery if somebody changed it, and return whether; one that fails serves from memory."""
        try:
            is_changed = self._stages.identifier.refresh()
        except StoreError as error:
            self._failures.note("gallery", error, "people are recognised from memory alone")
            return False
        if is_changed and self._failures.ends("gallery"):
            log.info("the gallery can be read again")
        return is_changed

    def _enrol_track(self, order: EnrolTrack) -> dict[str, Any]:
        embedding = self._pipeline.embedding_of(order.camera, order.track)
        if embedding is None:
            raise GalleryError(
                f"camera {order.camera} has no track {order.track} now; `visaged watch` shows those it has"
            )
        source = f"track {order.camera}:{order.track}"
        n_templates = self._stages.identifier.enrol(
            order.name, embedding[None], source=source, consent=order.consent
        )
        gallery = self._stages.gallery
        note(gallery.folder, "enrol", person=gallery.number_of(order.name), detail=source, who=CONTROL)
        return {"person": order.name, "templates": n_templates}

    def _status(self, _: Status) -> dict[str, Any]:
        cameras = {
            name: {
                "captured": s.captured,
                "published": s.published,
                "in_flight": s.in_flight,
                "dropped": s.dropped,
            }
            for name, s in ((name, ledger.snapshot()) for name, ledger in self._intake.ledgers.items())
        }
        return {
            "release": self._stages.serving.release.describe() | {"running": self._stages.serving.name},
            "run": self._publisher.run,
            "engines": msgspec.to_builtins(self._upgrade.engines()),
            "upgrade": self._upgrade.state,
            "promotion": self._promoter.report(),
            "erased": erased_of(self._config.paths.state, self._stages.serving.key),
            "cameras": cameras,
            **self._flagging.status(),
        }
