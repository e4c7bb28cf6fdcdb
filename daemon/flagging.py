"""Flags in the running daemon: remember the faces of the last minutes, keep those that matter as samples.

A person's flag is answered when it is on disk (`SampleWriter`) and the gallery knows; faces that the daemon
picks itself go the same way, but are dropped and counted when the disk is slow.
"""

import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import msgspec

from ..pipelines.answer import Analysis, Answer
from ..pipelines.assembly import Stages
from ..pipelines.errors import GalleryError, SampleError, VisagedError
from ..pipelines.loop.flag_policy import FlagPolicy, Kept
from ..pipelines.loop.kept_faces import kept_in
from ..pipelines.loop.recent_faces import RecentFaces
from ..pipelines.loop.said import label_of, teach
from ..pipelines.loop.sample import Sample, Source
from ..pipelines.loop.sample_store import SampleStore
from ..pipelines.loop.sighting import Sighting, cut_sample_chip
from ..pipelines.message import FaceFrame
from ..pipelines.privacy.retention import expire_records
from .camera import CameraConfig
from .config import Config
from .control import Flag, Later
from .metrics import InferMetrics
from .sample_writer import SampleWriter
from .store_failures import StoreFailures

log = logging.getLogger(__name__)

EXPIRE_EVERY_S = 60.0
CANNOT_STORE = "the samples cannot be written"
CONTROL = "control socket"  # in the audit log; the gateway's line before says which client it was


class Flagging:
    """Everything about flags that the inference process owns. Belongs to the inference thread."""

    def __init__(
        self,
        config: Config,
        stages: Stages,
        metrics: InferMetrics,
        on_correction: Callable[[str, int], None] = lambda camera, track: None,
    ) -> None:
        """Open the sample store; `on_correction(camera, track)` hears of every emotion that was wrong.

        Raises:
            StoreError: it cannot be opened.
        """
        self._stages, self._metrics, self._on_correction = stages, metrics, on_correction
        self._state, self._records = config.paths.state, config.records
        self._cameras = {camera.name: camera for camera in config.camera}
        self._recent = RecentFaces(config.samples)
        self._is_remembering = config.samples.recent_faces > 0
        self._clock, self._is_clock_doubted = stages.clock, False
        self._correction: Future[Sample | None] | None = None
        self._clock.look()  # before anything is stored by it
        self._writer = SampleWriter(
            lambda: SampleStore(config.paths.state, config.samples, now=stages.clock.now)
        )
        self._policy: FlagPolicy | None = None
        self._kept: Kept | None = None  # left by the writer, for the policy
        self._automatic: list[tuple[Source, Sighting, Future[Sample | None]]] = []
        self._failures = StoreFailures(metrics)
        self._expire_due_s = time.monotonic()
        if config.flags.automatic:
            space = stages.ensemble.embedding_space
            with SampleStore(config.paths.state, config.samples) as store:
                self._policy = FlagPolicy(config.flags, kept_in(store, space))

    def close(self) -> None:
        """Write what waits and close the store."""
        self._writer.close()
        self._settle_automatic()

    def see(self, answer: Answer, result: FaceFrame) -> None:
        """Remember the faces that were analysed in this frame; keep those the policy picks of the published.

        Args:
            answer: of the frame.
            result: what was published of it.
        """
        camera = self._cameras[result.camera]
        policy = self._policy if camera.identity and camera.emotion else None
        if not self._is_remembering and policy is None:
            return
        for renamed in answer.renamings:
            self._recent.rename(camera.name, renamed, result.frame_seq)
        published = {face.track for face in result.faces}
        for track, analysis in answer.analyses.items():
            sighting = self._sighting(camera, answer, result, track, analysis)
            self._recent.add(sighting)
            if policy is None or track not in published:
                continue
            if (source := policy.judge(sighting)) is not None:
                self._keep(sighting, source)
        self._settle_automatic()

    def flag(self, order: Flag) -> Later:
        """Store what a person says of a face; the values come when it is on disk.

        Raises:
            SampleError: the face is gone from memory, or the camera does not say what is to be corrected.
            GalleryError: the name cannot be used, or nobody has it.
        """
        camera = self._cameras.get(order.camera)
        if camera is None:
            raise SampleError(f"there is no camera {order.camera}; there are: {', '.join(self._cameras)}")
        now_ns = time.monotonic_ns()
        sighting = self._recent.find(order.camera, order.track, order.seq, now_ns)
        for switch, is_asked, is_on in (
            ("emotion", order.emotion, camera.emotion),
            ("identity", order.person or order.not_person, camera.identity),
        ):
            if is_asked and not is_on:
                raise SampleError(f"camera {camera.name} has {switch} = false: there is nothing to correct")
        if order.person:
            self._stages.identifier.check_consent(order.person)
        label = label_of(order, sighting.emotion, sighting.identity, self._stages.gallery)
        future = self._writer.submit(lambda store: store.add(sighting, Source.USER, label), is_urgent=True)

        def answer() -> dict[str, Any] | None:
            if not future.done():
                return None
            try:
                sample = future.result()
            except SampleError as error:
                self._failures.note("samples", error, CANNOT_STORE)
                raise
            assert sample is not None  # `add` returns one
            try:
                is_taught = teach(self._stages.gallery, sample, sighting.embedding, who=CONTROL)
            except GalleryError as error:
                self._failures.note("gallery", error, "the gallery cannot be written")
                raise
            if is_taught:
                self._failures.ends("gallery")
                self._stages.identifier.refresh()
            self._count(Source.USER, sighting)
            if sample.label.emotion not in ("", sample.shown_emotion):
                self._on_correction(sample.camera, sample.track)
            return {"age_s": (now_ns - sighting.captured_ns) / 1e9, "sample": msgspec.to_builtins(sample)}

        return answer

    def status(self) -> dict[str, Any]:
        """Return how many samples there are, and how far back faces can be flagged."""
        now_ns = time.monotonic_ns()
        return {
            "samples": {state.value: n for state, n in self._writer.counts.items()},
            "flaggable_s": {name: self._recent.reach_s(name, now_ns) for name in self._cameras},
            "automatic_flags": self._policy is not None,
            "clock_step_s": self._clock.step_s(),
        }

    def keep_house(self, *, is_gallery_changed: bool) -> None:
        """Drop what is too old, and the faces of people who are no longer in the gallery."""
        self._recent.expire(time.monotonic_ns())
        if is_gallery_changed:
            self._recent.forget({name for name in self._recent.names if not self._stages.gallery.has(name)})
        self._settle_automatic()
        if self._policy is not None and self._kept is not None:
            self._policy.remember_only(self._kept)
            self._kept = None
        for state, n in self._writer.counts.items():
            self._metrics.samples.labels(state.value).set(n)
        self._look_at_clock()
        if time.monotonic() >= self._expire_due_s:
            self._expire_due_s = time.monotonic() + EXPIRE_EVERY_S
            self._expire()

    def _sighting(
        self, camera: CameraConfig, answer: Answer, result: FaceFrame, track: int, analysis: Analysis
    ) -> Sighting:
        chip, landmarks = cut_sample_chip(answer.frame.rgb, analysis.landmarks)
        return Sighting(
            camera=camera.name,
            track=track,
            seq=analysis.seq,
            captured_ns=result.captured_ns,
            captured_at=result.captured_at,
            chip=chip,
            landmarks=landmarks,
            face_px=analysis.face_px,
            quality=analysis.quality,
            embedding=analysis.embedding if camera.identity else None,
            space=result.embedding_space,
            probabilities=analysis.probabilities if camera.emotion else None,
            members=analysis.members if camera.emotion else {},
            disagreement=analysis.disagreement if camera.emotion else 0.0,
            identity=analysis.identity,
            release=analysis.release,
        )

    def _keep(self, sighting: Sighting, source: Source) -> None:
        try:
            future = self._writer.submit(lambda store: store.add(sighting, source), is_urgent=False)
        except SampleError:
            self._metrics.flags_dropped.labels("queue_full").inc()
            return
        self._automatic.append((source, sighting, future))

    def _settle_automatic(self) -> None:
        """Count what has become of the faces that were picked."""
        waiting, self._automatic = self._automatic, []
        for source, sighting, future in waiting:
            if not future.done():
                self._automatic.append((source, sighting, future))
                continue
            try:
                future.result()
            except VisagedError as error:
                self._failures.note("samples", error, CANNOT_STORE)
                self._metrics.flags_dropped.labels("failed").inc()
                continue
            self._count(source, sighting)

    def _count(self, source: Source, sighting: Sighting) -> None:
        """Note that a face is stored."""
        if self._failures.ends("samples"):
            log.info("samples can be stored again")
        self._metrics.flags.labels(source.value).inc()
        if self._policy is not None:
            self._policy.remember(sighting)

    def _look_at_clock(self) -> None:
        """Notice that the clock jumps; where it turns out to be right, let the writer correct the samples."""
        if self._correction is not None:
            if not self._correction.done():
                return
            self._note_correction(self._correction)
            self._correction = None
        has_reason, step_s = self._clock.look(), self._clock.step_s()
        self._metrics.clock_step_seconds.set(step_s)
        if has_reason:
            with contextlib.suppress(SampleError):  # the next time will do
                self._correction = self._writer.submit(self._correct, is_urgent=False)
        elif bool(step_s) != self._is_clock_doubted:
            self._is_clock_doubted = bool(step_s)
            if self._is_clock_doubted:
                log.warning(
                    "the clock jumped by %+.0f s and is not believed: ages go on by the time that this "
                    "machine is on, until the clock is set or synchronised, or you say that it is right: "
                    "`visaged clock --believe`",
                    step_s,
                )
            else:
                log.info("the clock is believed again")

    def _correct(self, store: SampleStore) -> None:
        """Date anew what was stored while the clock was wrong, then believe it. In the writer's thread."""
        correction = self._clock.correction()
        n_samples = store.redate(correction)
        self._clock.accept(correction)
        log.info("corrected the time by %+.0f s, and of %d samples", correction.step_s, n_samples)

    def _note_correction(self, done: Future[Sample | None]) -> None:
        try:
            done.result()
        except SampleError as error:
            self._failures.note("samples", error, CANNOT_STORE)

    def _expire(self) -> None:
        """Let the writer delete what is too old, records as well, unless it has better things to do.

        It also looks whether somebody was forgotten, in another process, whose looks the policy remembers.
        """

        def expire(store: SampleStore) -> None:
            if n_deleted := store.expire():
                log.info("deleted %d samples that were too old", n_deleted)
            expire_records(self._state, self._records, self._clock.now)
            if self._policy is not None and store.changed():
                self._kept = kept_in(store, self._stages.ensemble.embedding_space)

        with contextlib.suppress(SampleError):  # the next time will do
            self._writer.submit(expire, is_urgent=False)
