"""The learn process: waits for labels, learns when there are enough, steps aside for whatever serves.

Where `[promotion] automatic` says so, it brings what it learned into service as well.

Runs at the lowest priority, and only where `[learning] enabled` is true and torch is installed; elsewhere it
says so and ends. torch is loaded when the first round begins.
"""

import importlib.util
import logging
import threading
import time

import msgspec

from ..pipelines.errors import SampleError, VisagedError
from ..pipelines.loop.lesson import gather
from ..pipelines.loop.progress import Progress, write_progress
from ..pipelines.loop.report import Report, last_report
from ..pipelines.loop.sample_store import SampleStore
from ..pipelines.loop.schedule import is_due
from ..pipelines.model_store import ModelStore
from .automatic_promotion import AutomaticPromotion
from .config import Config
from .frame_ages import FrameAges
from .metrics import LearnMetrics
from .notify import Notifier
from .step_back import step_back

log = logging.getLogger(__name__)

LOOK_S = 5.0  # how often to look whether there are new labels
TELL_S = 1.0  # how often to say how far a round is, and to ask whether frames are late
PAUSE_S = 2.0
RETRY_S = 600.0  # after a round that failed


def run_learn(
    config: Config,
    metrics: LearnMetrics,
    stop: threading.Event,
    notifier: Notifier | None = None,
) -> int:
    """Learn whenever it is due, until `stop` is set; return the exit code."""
    notifier = notifier or Notifier()
    if why := off_because(config):
        log.info("off: %s", why)
        write_progress(config.paths.runtime, Progress(stage="off", note=why))
        notifier.ready(f"off: {why}")
        return 0
    step_back(is_batch=True)
    notifier.ready("waiting for labels")
    with SampleStore(config.paths.state, config.samples) as store:
        Learning(config, store, metrics, stop, notifier).serve()
    return 0


def off_because(config: Config) -> str:
    """Return why nothing is learned here; "" when it is."""
    if not config.learning.enabled:
        return "[learning] enabled is false"
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed; run  pip install 'visaged[learn]'  or set [learning] enabled = false"
    return ""


class Learning:
    """The loop. Everything here belongs to the thread that calls `serve`."""

    def __init__(
        self,
        config: Config,
        store: SampleStore,
        metrics: LearnMetrics,
        stop: threading.Event,
        notifier: Notifier,
    ) -> None:
        self._config, self._store, self._metrics = config, store, metrics
        self._stop, self._notifier = stop, notifier
        self._ages = FrameAges(config.paths.runtime, [camera.name for camera in config.camera])
        self._told = Progress(stage="waiting")
        self._told_s = 0.0
        self._promotion = (
            AutomaticPromotion(config, store, metrics, self.tell) if config.promotion.automatic else None
        )

    def serve(self) -> None:
        """Look for labels now and then, and learn when it is time."""
        self._say(self._told)
        retry_at_s = 0.0
        while not self._stop.is_set():
            self._notifier.alive()
            if time.monotonic() >= retry_at_s and self._is_due():
                note = self._learn()
                retry_at_s = time.monotonic() + (RETRY_S if note.startswith("failed") else 0.0)
                self._say(Progress(stage="stopped" if self._stop.is_set() else "waiting", note=note))
            if self._promotion is not None and not self._stop.is_set():
                self._promote(self._promotion)
            self._stop.wait(LOOK_S)

    def tell(self, progress: Progress) -> bool:
        """Pass on how far the round is, wait while frames are late; return False when it is to stop."""
        now_s = time.monotonic()
        if progress.stage == self._told.stage and now_s - self._told_s < TELL_S:
            return not self._stop.is_set()
        self._say(progress)
        limit_ms = self._config.learning.pause_above_ms
        while (age_ms := self._ages.p99_ms()) > limit_ms and not self._stop.is_set():
            late = f"99 of 100 frames take up to {age_ms:g} ms"
            self._say(msgspec.structs.replace(progress, stage="paused", eta_s=None, note=late))
            self._metrics.paused_seconds.inc(PAUSE_S)
            self._stop.wait(PAUSE_S)
        return not self._stop.is_set()

    def _is_due(self) -> bool:
        report = last_report(self._config.paths.state / "learning")
        known = report.labels.items() if report else ()
        try:
            labels = {s.id: s.label.emotion for s in gather(self._store) if s.label.emotion}
        except SampleError as error:  # infer says it louder; when it is mended we go on
            log.info("no labels can be looked at: %s", error)
            return False
        since_s = time.time() - report.finished_at if report else None
        return is_due(self._config.learning, len(labels.items() - set(known)), since_s)

    def _learn(self) -> str:
        """Go through a round; return what to say about it."""
        try:
            report = self._round()
        except VisagedError as error:
            log.error("learned nothing: %s", error)
            self._metrics.rounds.labels("failed").inc()
            return f"failed: {error}"
        if report is None:
            return "stopped in a round; it goes on from there"
        self._metrics.rounds.labels("candidate" if report.release else "nothing").inc()
        what = f"candidate release {report.release}" if report.release else report.outcome
        log.info("learned from %d samples in %.0f s: %s", len(report.labels), report.seconds, what)
        return what

    def _promote(self, promotion: AutomaticPromotion) -> None:
        """Take the last candidate a step further, and say where it stands when that is new."""
        said = promotion.step()
        if said and (self._told.stage, self._told.note) != ("waiting", said):
            self._say(Progress(stage="stopped" if self._stop.is_set() else "waiting", note=said))

    def _round(self) -> Report | None:
        from ..pipelines.loop.learner import champion_of, learn  # torch, for the first time

        paths = self._config.paths
        champion = champion_of(self._config.stages, paths.state, ModelStore(paths.cache, paths.wheels))
        return learn(champion, self._store, paths.state, self._config.learning, self.tell)

    def _say(self, progress: Progress) -> None:
        self._told, self._told_s = progress, time.monotonic()
        try:
            write_progress(self._config.paths.runtime, progress)
        except OSError as error:
            log.warning("the progress of learning is not written: %s", error)
        self._metrics.step.set(progress.step)
        self._metrics.is_learning.set(progress.stage in ("looking", "learning", "measuring"))
        self._notifier.status(str(progress))
        self._notifier.alive()
