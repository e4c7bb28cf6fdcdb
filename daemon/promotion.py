"""Bring a release into service while faces are answered, and take it back: see docs/releases.md.

    order ─► loading (thread) ─► shadow ─► canary 10 % … 100 % ─► serving, on probation ─► active
                                    └───────────┴─────────────────────┴─► rolled back, in quarantine

The journal on disk says the same at any time, but for the moment of a rollback: that is done first, then
written.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any, Literal, get_args

import msgspec

from ..pipelines.assembly import StageConfigs, Stages, load_beside, missing_plans
from ..pipelines.errors import ModelError, ReleaseError
from ..pipelines.inference import InferencePipeline
from ..pipelines.loop.lineage import check_erased
from ..pipelines.model_store import ModelStore
from ..pipelines.releases.canary import Canary, check_space
from ..pipelines.releases.promotion import Event, Journal, PromotionJournal, keeps_dying
from ..pipelines.releases.release import FACTORY, LoadedRelease
from ..pipelines.releases.release_store import ReleaseStore
from ..pipelines.releases.side_by_side import SideBySide
from ..pipelines.releases.trial import Stage, Trial, Verdict
from .background_load import BackgroundLoad, retire
from .config import Config
from .control import Control, Promote, RollBack
from .engine_upgrade import EngineUpgrade
from .metrics import InferMetrics

log = logging.getLogger(__name__)

OPERATOR = "an operator asked for it"
JUDGE_S = 1.0  # how often a verdict is asked for; a failing engine is not waited for


class Promoter:
    """Owned by the inference thread, which calls `poll` between two batches."""

    def __init__(
        self,
        pipeline: InferencePipeline,
        stages: Stages,
        upgrade: EngineUpgrade,
        config: Config,
        metrics: InferMetrics,
        build: Sequence[str],
    ) -> None:
        """Watch over `pipeline`; `build` is the command of the process that builds missing plans."""
        self._pipeline, self._stages, self._upgrade = pipeline, stages, upgrade
        self._config, self._metrics, self._build = config, metrics, build
        self._journal = PromotionJournal(config.paths.state)
        self._load: BackgroundLoad | None = None
        self._loading = ""  # which release
        self._order: Promote | RollBack | None = None  # what to do when it is loaded; None: keep it as spare
        self._failure = ""
        self._trial: Trial | None = None
        self._candidate: LoadedRelease | None = None  # in shadow or canary
        self._skip: tuple[str, ...] = ()  # stages that the candidate does not go through
        self._side_by_side = SideBySide(pipeline, config.promotion.compared_share)
        self._judge_at_s = 0.0

    def answer_to(self, control: Control) -> None:
        """Take orders from `control`."""
        control.handle(Promote, self._promote)
        control.handle(RollBack, self._roll_back)

    def start(self) -> None:
        """Take up where the process before this one ended: a trial is over, a probation begins anew."""
        if self._is_pinned:
            return
        try:
            journal = self._journal.read()
        except ReleaseError as error:
            log.error("releases cannot be promoted: %s", error)
            return
        serves = self._stages.serving.key
        is_refused = journal.active not in (FACTORY, serves)
        self._metrics.release_refused.set(is_refused)
        if is_refused:
            self._write(journal.active, "roll back", "it is damaged on disk")
        if journal.on_trial:
            self._write(journal.on_trial, "stop", "the inference process was started again")
        if is_refused or journal.state_of(serves) != "probation" or journal.previous is None:
            return
        self._count_restart(journal)
        self._enter("probation")
        self._begin_to_load(journal.previous, None)

    def _count_restart(self, journal: Journal) -> None:
        """Take back a release on probation under which this process keeps dying.

        Raises:
            ReleaseError: this was once too often; the next process serves the release before.
        """
        serves, now = self._stages.serving.key, time.time()
        if not keeps_dying(journal, now):
            self._write(serves, "restart")
            return
        sentence = "the inference process kept ending under it"
        self._journal.write(serves, "roll back", now, sentence)
        raise ReleaseError(f"release {serves} is rolled back: {sentence}; starting again with the one before")

    def poll(self) -> None:
        """Do what is due between two batches. Does not wait for anything but its share of comparisons."""
        if (loaded := self._upgrade.poll()) is not None:
            self._take_engines(loaded)
        if self._load is not None and self._load.is_busy:
            self._take_loaded(self._load)
        now_s = time.monotonic()
        self._watch(now_s)
        if self._trial is not None and now_s >= self._judge_at_s:
            self._judge_at_s = now_s + JUDGE_S
            self._act(self._trial, now_s)

    def corrected(self, camera: str, track: int) -> None:
        """Note that a person corrected what was said about a track."""
        if self._trial is not None:
            self._trial.corrected(camera, track)

    def report(self) -> dict[str, Any]:
        """Return where the releases stand, for `visaged status`."""
        try:
            journal = self._journal.read()
        except ReleaseError as error:
            return {"failure": str(error)}
        return {
            "active": journal.active,
            "state": journal.state_of(journal.active),
            "previous": journal.previous,
            "blessed": journal.blessed,
            "loading": f"{self._loading}: {self._load.state}" if self._load and self._load.is_busy else "",
            "failure": self._failure,
            "trial": {"release": self._subject.key, **self._trial.report()} if self._trial else None,
        }

    def close(self) -> None:
        """End a load and free what is loaded and does not serve."""
        if self._load is not None:
            self._load.close()
        for loaded in (self._candidate, self._pipeline.spare):
            if loaded is not None:
                loaded.close()
        self._candidate = self._pipeline.spare = self._pipeline.canary = None

    @property
    def _is_pinned(self) -> bool:
        return bool(self._config.ensemble.release)

    @property
    def _subject(self) -> LoadedRelease:
        """The release on trial, where there is one."""
        return self._candidate or self._pipeline.serving

    def _configs(self, release: str) -> StageConfigs:
        """Return the configurations under which `release` would serve."""
        ensemble = msgspec.structs.replace(self._config.ensemble, release=release)
        return msgspec.structs.replace(self._config.stages, ensemble=ensemble)

    def _promote(self, order: Promote) -> dict[str, Any]:
        if self._is_pinned:
            pinned = self._config.ensemble.release
            raise ReleaseError(f'[ensemble] release asks for {pinned}; set it to "" and restart first')
        self._refuse_while_busy()
        name, stage = order.release, _first_stage(order.skip)
        if name != FACTORY:
            name = ReleaseStore(self._config.paths.state).get(name).release.id
            check_erased(self._config.paths.state, name, is_accepted=order.despite_erasure)
        journal, serves = self._journal.read(), self._pipeline.serving.key
        if name == serves:
            raise ReleaseError(f"release {name} serves already")
        if journal.active != serves:
            raise ReleaseError(
                f"{journal.active} should serve and is damaged, {serves} does; restore {journal.active} and "
                "restart, or delete promotion.json beside the releases to begin anew"
            )
        if journal.state_of(name) == "candidate" and "gates" in order.skip:
            self._journal.write(name, "waive", time.time(), order.why or "an operator skipped the gates")
        self._journal.check(name, stage)
        self._begin_to_load(name, order)
        return {"release": name, "stage": stage}

    def _roll_back(self, order: RollBack) -> dict[str, Any]:
        """Go back within one batch while the release before is loaded, else as soon as it is."""
        bad = self._subject.key
        self._journal.check(bad, "roll back")
        if self._candidate is not None or self._pipeline.spare is not None:
            self._go_back(Verdict("roll back", "operator", order.why or OPERATOR))
            return {"release": bad, "serving": self._pipeline.serving.name}
        if self._load is not None and self._load.is_busy and self._order is None:
            self._order = order  # the release before is being loaded already
        else:
            self._refuse_while_busy()
            self._begin_to_load(self._journal.read().previous or FACTORY, order)
        return {"release": bad, "serving": "", "loading": self._loading}

    def _refuse_while_busy(self) -> None:
        if self._load is not None and self._load.is_busy:
            raise ReleaseError(f"{self._loading} is {self._load.state}; ask again when it is done")
        if self._upgrade.is_busy:
            raise ReleaseError("plans of the serving release are being built; ask again when they are done")
        if self._candidate is not None:
            raise ReleaseError(f"release {self._candidate.key} is on trial; wait, or roll it back first")

    def _begin_to_load(self, name: str, order: Promote | RollBack | None) -> None:
        paths, configs = self._config.paths, self._configs(name)
        models = ModelStore(paths.cache, paths.wheels)
        self._loading, self._order, self._failure = name, order, ""
        self._load = BackgroundLoad(
            lambda: load_beside(configs, paths.state, models),
            lambda: missing_plans(configs, paths.state, models),
            [*self._build, "--release", name] if self._build else (),
            self._metrics.count_build,
        )

    def _take_engines(self, loaded: LoadedRelease) -> None:
        """Go on with other engines of the release that serves; it may have changed in the meantime."""
        if loaded.release.id != self._pipeline.serving.release.id:
            retire(loaded)
            self._upgrade.show(self._pipeline.ensemble)
            return
        retire(self._serve(loaded))

    def _take_loaded(self, load: BackgroundLoad) -> None:
        loaded = load.poll()
        if load.is_busy:
            return
        try:
            if loaded is None:
                raise ModelError(load.failure)
            self._place(loaded)
        except (ModelError, ReleaseError) as error:
            self._failure = str(error)
            log.error("release %s does not come into service: %s", self._loading, error)
            if loaded is not None:
                retire(loaded)

    def _place(self, loaded: LoadedRelease) -> None:
        """Put a loaded release where the order wants it.

        Raises:
            ModelError: it embeds faces into another space.
            ReleaseError: the journal cannot be written, or does not allow it any more.
        """
        check_space(loaded.ensemble, self._pipeline.ensemble)
        order = self._order
        if not isinstance(order, Promote):
            self._drop_spare()
            self._pipeline.spare = loaded
            if order is not None:
                self._go_back(Verdict("roll back", "operator", order.why or OPERATOR))
            return
        stage = _first_stage(order.skip)
        if stage == "promote":
            self._put_into_service(loaded, order.why or OPERATOR)
            return
        self._journal.write(loaded.key, stage, time.time(), order.why or OPERATOR)
        self._trial, self._candidate, self._skip = None, loaded, order.skip
        self._enter(stage)

    def _enter(self, stage: Stage) -> None:
        now_s = time.monotonic()
        self._trial = self._trial or Trial(self._config.promotion, stage, now_s)
        self._trial.enter(stage, now_s)
        self._set_share()
        log.info("release %s is in %s", self._subject.key, stage)

    def _set_share(self) -> None:
        """Let the candidate answer for its share, and say in the metrics in what stage it is."""
        share = self._trial.share if self._trial is not None else 0.0
        self._pipeline.canary = Canary(self._candidate, share) if self._candidate and share else None
        for stage in get_args(Stage):
            is_in_it = self._trial is not None and self._trial.stage == stage
            self._metrics.promotion_stage.labels(stage).set(is_in_it)

    def _put_into_service(self, loaded: LoadedRelease, why: str) -> None:
        """Let `loaded` serve, on probation; keep the one before for a rollback.

        Raises:
            ReleaseError: the journal cannot be written; nothing has changed then.
        """
        self._journal.write(loaded.key, "promote", time.time(), why)
        if loaded is not self._candidate:
            self._trial = None  # it was not on trial before
        self._candidate = None
        self._drop_spare()
        self._pipeline.spare = self._serve(loaded)
        self._enter("probation")

    def _serve(self, loaded: LoadedRelease) -> LoadedRelease:
        """Answer with `loaded` from the next batch on; return what did before."""
        before = self._pipeline.swap(loaded)
        self._stages.serving = loaded
        self._upgrade.show(loaded.ensemble)
        self._metrics.swaps.inc()
        log.info("swapped, serving release %s", loaded.name)
        return before

    def _watch(self, now_s: float) -> None:
        """Tell the trial what happened in the last batch, and show some of its faces to both releases."""
        faults, self._pipeline.faults = self._pipeline.faults, []
        looks, self._pipeline.looks = self._pipeline.looks, []
        trial = self._trial
        if trial is None:
            return
        ours, theirs = self._subject, self._pipeline.serving if self._candidate else self._pipeline.spare
        for loaded, sentence in faults:
            if loaded is ours:
                trial.fail(sentence)
                self._judge_at_s = 0.0
        for look in looks:
            trial.answered(look.camera, look.tracks, is_ours=look.loaded is ours)
        if theirs is None or not looks:
            return
        try:
            comparison = self._side_by_side.compare(looks, ours, theirs)
        except ModelError as error:
            trial.fail(str(error))
            self._judge_at_s = 0.0
            return
        if comparison is not None:
            trial.compare(comparison, now_s)
            self._metrics.trial_faces.inc(len(comparison.faces))
            self._metrics.trial_agreement.set(trial.agreement)

    def _act(self, trial: Trial, now_s: float) -> None:
        verdict = trial.verdict(now_s)
        if verdict.decision == "roll back":
            self._go_back(verdict)
        elif verdict.decision == "next":
            try:
                self._go_on(trial, now_s)
            except ReleaseError as error:  # no room to write it down: stay, and try again
                log.error("release %s stays in %s: %s", self._subject.key, trial.stage, error)

    def _go_on(self, trial: Trial, now_s: float) -> None:
        """Enter the next stage.

        Raises:
            ReleaseError: the journal cannot be written; nothing has changed then.
        """
        key = self._subject.key
        if trial.stage == "probation":
            self._journal.write(key, "commit", time.time(), "its probation is over")
            self._drop_spare()
            self._end_trial()
        elif trial.stage == "shadow" and "canary" not in self._skip:
            self._journal.write(key, "canary", time.time(), "its shadow is over")
            self._enter("canary")
        elif trial.grow(now_s):
            self._set_share()
            log.info("release %s answers for %.0f %% of the tracks", key, trial.share * 100)
        elif self._candidate is not None:
            self._put_into_service(self._candidate, f"its {trial.stage} is over")

    def _go_back(self, verdict: Verdict) -> None:
        """Take back what is on trial, now; then write it down."""
        bad = self._subject
        if self._candidate is not None:
            self._candidate = None
        elif self._pipeline.spare is not None:
            self._serve(self._pipeline.spare)
            self._pipeline.spare = None
        else:  # this process has just begun, and the one before is not loaded yet: it is asked again soon
            return
        self._end_trial()
        self._pipeline.forget_answers(bad.name)
        log.error("rolled back release %s: %s", bad.key, verdict.sentence)
        self._metrics.rollbacks.labels(verdict.reason).inc()
        retire(bad)
        self._write(bad.key, "roll back", verdict.sentence)

    def _end_trial(self) -> None:
        self._trial = None
        self._set_share()

    def _drop_spare(self) -> None:
        spare, self._pipeline.spare = self._pipeline.spare, None
        if spare is not None:
            retire(spare)

    def _write(self, release: str, event: Event, why: str = "") -> None:
        """Write down what is true already; what serves does not depend on it."""
        try:
            self._journal.write(release, event, time.time(), why)
        except ReleaseError as error:
            log.error("release %s: %r could not be written down: %s", release, event, error)


def _first_stage(skip: Sequence[str]) -> Literal["shadow", "canary", "promote"]:
    if "shadow" not in skip:
        return "shadow"
    return "promote" if "canary" in skip else "canary"
