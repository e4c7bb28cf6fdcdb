"""The inference process: takes frames of every camera, answers them in one batch, publishes.

One thread owns pipeline, sockets and ledgers; `Scanner` searches whole frames beside it for live
cameras. Under policy `replay` frames are scanned in line: replaying a file twice answers the same twice.
"""

import logging
import threading
import time
from typing import Any, Self

from ..pipelines.assembly import StageConfigs, assemble
from ..pipelines.errors import GalleryError
from ..pipelines.inference import Answer, Scan
from ..pipelines.message import FaceFrame
from ..pipelines.release import factory_release
from .config import Config
from .control import Control, EnrolTrack, Status
from .intake import Ended, Intake, Taken
from .metrics import InferMetrics
from .publisher import Publisher
from .scanner import Scanner

log = logging.getLogger(__name__)

WAIT_MS = 50  # the loop sleeps this long at most when no frame comes; control requests wait as long
HOUSEKEEPING_S = 1.0  # how often to look whether an operator changed the gallery
DRAIN_S = 2.0  # how long after SIGTERM frames that are already captured are still answered


def run_infer(config: Config, metrics: InferMetrics, stop: threading.Event) -> int:
    """Serve until `stop` is set or every camera has ended; return the exit code."""
    with Inference(config, metrics) as inference:
        inference.serve(stop)
    return 0


class Inference:
    """The loop and what it owns. Everything here belongs to the thread that calls `serve`."""

    def __init__(self, config: Config, metrics: InferMetrics) -> None:
        self._metrics = metrics
        paths = config.paths
        configs = StageConfigs(
            detector=config.detector,
            tracker=config.tracker,
            ensemble=config.ensemble,
            identity=config.identity,
        )
        self._stages = assemble(configs, state=paths.state, cache=paths.cache, wheels=paths.wheels)
        self._pipeline = self._stages.pipeline()
        self._release = factory_release(self._pipeline.ensemble, config.ensemble)
        names = [camera.name for camera in config.camera]
        for camera in config.camera:
            self._pipeline.add_camera(camera.name, identify=camera.identity, feel=camera.emotion)
        self._pipeline.warm_up()
        self._scanner = Scanner(self._pipeline)
        self._intake = Intake(
            names, paths.runtime, paths.shm, lambda camera: metrics.malformed.labels(camera).inc()
        )
        self._publisher = Publisher(paths.runtime, config.publisher)
        self._control = Control(paths.runtime, lambda why: metrics.control_errors.labels(why).inc())
        self._control.handle(EnrolTrack, self._enrol_track)
        self._control.handle(Status, self._status)
        self._open = set(names)
        self._told: dict[str, dict[str, int]] = {}
        self._housekeeping_due_s = 0.0
        for name, ledger in self._intake.ledgers.items():
            metrics.watch_ledger(name, ledger.infer_counts)

    def serve(self, stop: threading.Event) -> None:
        """Answer frames and requests until `stop` is set or every camera has ended."""
        log.info("serving release %s to %d cameras", self._release.id, len(self._open))
        while self._open and not stop.is_set():
            self._step()
        deadline = time.monotonic() + DRAIN_S
        while self._open and time.monotonic() < deadline and self._intake.in_flight() > 0:
            self._step()

    def close(self) -> None:
        """Let go of sockets, rings, engines and gallery."""
        self._scanner.close()
        self._control.close()
        self._publisher.close()
        self._intake.close()
        self._stages.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _step(self) -> None:
        batch = []
        for camera in self._intake.wait(WAIT_MS):
            taken = self._intake.take(camera)
            if isinstance(taken, Taken):
                batch.append(taken)
            elif isinstance(taken, Ended):
                self._end(taken)
        if batch:
            self._answer(batch)
        self._metrics.control_requests.inc(self._control.poll())
        if time.monotonic() >= self._housekeeping_due_s:
            self._keep_house()

    def _answer(self, batch: list[Taken]) -> None:
        work = [(taken.frame, self._scan_for(taken)) for taken in batch]
        try:
            answers = self._pipeline.run(work)
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
        frame, ensemble = taken.frame, self._pipeline.ensemble
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
                release=self._release.id,
                embedding_space=ensemble.embedding_space,
                embedding_dim=ensemble.embedding_dim,
                faces=answer.faces,
                drops=self._drops_since_last(frame.camera),
                stages_ms=answer.stages_ms,
            ),
            answer.embeddings,
        )
        self._intake.ledgers[frame.camera].publish()
        self._measure(result)

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
        self._housekeeping_due_s = time.monotonic() + HOUSEKEEPING_S
        self._stages.identifier.refresh()
        self._metrics.subscribers.set(self._publisher.count_subscriptions())

    def _enrol_track(self, order: EnrolTrack) -> dict[str, Any]:
        embedding = self._pipeline.embedding_of(order.camera, order.track)
        if embedding is None:
            raise GalleryError(
                f"camera {order.camera} has no track {order.track} now; `visaged watch` shows those it has"
            )
        source = f"track {order.camera}:{order.track}"
        n_templates = self._stages.identifier.enrol(order.name, embedding[None], source=source)
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
        return {"release": self._release.describe(), "run": self._publisher.run, "cameras": cameras}
