"""Bring what was learned into service without a person: measure its gates, ask the daemon, look what follows.

    candidate ─► gates ─► passed ─► order over the control socket ─► shadow ─► canary ─► probation ─► active
                   └─► refused: the incumbent stays             └─────────┴───────────┴─► rolled back

Where a candidate stands is in the journal and beside it; a process that is killed asks there and goes on, or
begins the step under way again.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from ..pipelines.errors import ReleaseError, VisagedError
from ..pipelines.learning.labelled_faces import load_labelled
from ..pipelines.loop.lineage import erased_of
from ..pipelines.loop.progress import Progress
from ..pipelines.loop.report import last_candidate
from ..pipelines.loop.sample_store import SampleStore
from ..pipelines.loop.site_faces import held_out
from ..pipelines.model_store import ModelStore
from ..pipelines.releases.course import Course, course_of
from ..pipelines.releases.examiner import Exam, Examiner
from ..pipelines.releases.gates import read_report
from ..pipelines.releases.promotion import PromotionJournal
from ..pipelines.releases.release_store import ReleaseStore, StoredRelease
from .config import Config
from .control import ControlClient, Promote, Status
from .metrics import LearnMetrics

log = logging.getLogger(__name__)

RETRY_S = 600.0  # after a step that failed
FLAGGED = "flagged faces"
WHY = "learned here, and has passed its gates"


class AutomaticPromotion:
    """Takes the last candidate of learning on its way. Owned by the thread of the learn process."""

    def __init__(
        self,
        config: Config,
        store: SampleStore,
        metrics: LearnMetrics,
        tell: Callable[[Progress], bool],
    ) -> None:
        """Measure on the labelled faces of `store` too; `tell` as in `learner.learn`."""
        self._config, self._store, self._metrics, self._tell = config, store, metrics, tell
        self._asked = ""  # the release that the daemon was asked for
        self._said = ""
        self._retry_at_s = 0.0

    def step(self) -> str:
        """Do what is next for the last candidate, and return how it stands; "" where there is none.

        Measuring gates takes minutes.
        """
        if time.monotonic() < self._retry_at_s:
            return self._said
        try:
            said = self._step()
        except VisagedError as error:
            self._retry_at_s = time.monotonic() + RETRY_S
            self._metrics.promotions.labels("failed").inc()
            said = f"automatic promotion failed: {error}"
            log.error("%s", said)
        else:
            if said != self._said:
                log.info("%s", said)
        self._said = said
        return said

    def _step(self) -> str:
        state, pinned = self._config.paths.state, self._config.ensemble.release
        report = last_candidate(state / "learning")
        if report is None:
            return ""
        if pinned:
            return f"nothing is promoted while [ensemble] release asks for {pinned}"
        if said := erased_of(state, report.release):
            return f"{said}, and is not promoted"
        stored = ReleaseStore(state).get(report.release)
        course = standing(state, stored)
        match course.move:
            case "measure":
                return self._measure(stored)
            case "promote":
                return self._ask_for(stored.release.id)
        return f"release {stored.release.id} {course.sentence}"

    def _measure(self, stored: StoredRelease) -> str:
        """Measure the gates of a release; return what came of it."""
        config, paths, name = self._config.promotion, self._config.paths, stored.release.id
        if not self._tell(Progress(stage="gates", note=f"release {name}")):
            return self._said
        models = ModelStore(paths.cache, paths.wheels)
        exam = Exam(
            base={str(path): load_labelled(path.expanduser(), "test", models) for path in config.gate_data},
            target={FLAGGED: held_out(self._store, stored.about.samples)},
            runs=config.gate_runs,
            max_slowdown=config.gate_slowdown,
        )

        def go_on(done: int, of: int) -> bool:
            return self._tell(Progress(stage="gates", step=done, n_steps=of, note=f"release {name}"))

        report = Examiner(self._config.stages, paths.state, models).examine(name, exam, go_on)
        if report is None:
            return f"release {name}: stopped while its gates were measured"
        self._metrics.promotions.labels("passed" if report.passed else "refused").inc()
        for result in report.failed:
            log.warning("release %s did not pass: %s: %s", name, result.name, result.sentence)
        course = standing(paths.state, stored)
        return self._ask_for(name) if course.move == "promote" else f"release {name} {course.sentence}"

    def _ask_for(self, name: str) -> str:
        """Ask the daemon to promote a release, once; return how far it is.

        Raises:
            VisagedError: it refuses, does not answer, or could not load it.
        """
        with ControlClient(self._config.paths.runtime) as control:
            promotion = control.request(Status())["promotion"]
            if promotion["loading"]:
                return f"release {name} waits: the daemon loads {promotion['loading']}"
            if self._asked == name and promotion["failure"]:
                self._asked = ""
                raise ReleaseError(f"release {name} does not come into service: {promotion['failure']}")
            control.request(Promote(release=name, why=WHY))
        self._asked = name
        self._metrics.promotions.labels("asked").inc()
        return f"release {name} has passed its gates, and the daemon loads it"


def standing(state: Path, stored: StoredRelease) -> Course:
    """Return what is next for a stored release.

    Raises:
        ReleaseError: the journal, or what is kept about its gates, cannot be read.
    """
    return course_of(PromotionJournal(state).read(), stored.release.id, read_report(stored))
