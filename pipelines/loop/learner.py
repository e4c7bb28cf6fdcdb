"""One round of learning: from labelled samples to a candidate release, or to the reason why there is none.

The ends of all members that say emotions learn, one after the other. What makes embeddings stays bit for bit
what it was, and so does how members are combined. Nothing is served here: a candidate waits to be promoted.
"""

import contextlib
import fcntl
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from ..assembly import StageConfigs, choose_release
from ..ensemble import output_of
from ..errors import ReleaseError, SampleError
from ..fuser import FeatureFusion
from ..model_store import ModelStore, NetworkFiles
from ..releases.release import Release, ReleaseMember, published_release
from ..releases.release_store import About, ReleaseStore, member_of
from ..synthesis.admission import build_admission
from ..synthesis.synthesiser import Synthesiser
from .exam import examine
from .lesson import Lesson, doubt, gather, look_at
from .progress import Progress
from .pupil import Pupil
from .rehearsal import Step
from .replay_memory import BaseMemory, Remembered, read_base
from .report import Evidence, Report, save_report
from .sample import Sample
from .sample_store import SampleStore
from .schedule import LearningConfig
from .views import views_of

MIN_MEMORY = 50

Tell = Callable[[Progress], bool]
"""Hears how far the round is; may wait, and stops it by False."""


@dataclass(frozen=True, slots=True)
class Champion:
    """The release that serves: its networks by name, and where all networks are."""

    release: Release
    networks: Mapping[str, NetworkFiles]
    models: ModelStore

    def pupils(self, memory: BaseMemory | None, config: LearningConfig) -> list[Pupil]:
        """Return its members that say emotions, at least one of which can learn.

        Raises:
            ReleaseError: none can.
            SampleError: none can, because the memory is of other networks.
        """
        speakers = [files for files in self.networks.values() if output_of(files.row, "logits")]
        pupils = [Pupil(files, memory, config) for files in speakers]
        if any(pupil.ends for pupil in pupils):
            return pupils
        why = "; ".join(f"{pupil.name}: {pupil}" for pupil in pupils)
        if memory is not None:
            raise SampleError(
                f"the base memory is of other networks than those of the active release ({why})"
            )
        raise ReleaseError(f"none of release {self.release.id} can learn ({why})")


def champion_of(configs: StageConfigs, state: Path, models: ModelStore) -> Champion:
    """Return the release that is configured, or the one of published weights.

    Raises:
        ReleaseError: it is missing or damaged, or it cannot learn.
    """
    configs, models, stored = choose_release(configs, state, models)
    networks = stored.networks() if stored else {n: models.files_of(n) for n in configs.ensemble.members}
    members = [ReleaseMember(network=f.row, onnx=member_of(f).onnx) for f in networks.values()]
    release = stored.release if stored else published_release(members, configs.ensemble.fusion)
    if isinstance(release.fusion, FeatureFusion):
        raise ReleaseError(
            f"release {release.id} combines features, whose classifier would not fit another end; "
            "serve one that combines probabilities to learn from samples"
        )
    return Champion(release, networks, models)


def learn(
    champion: Champion, store: SampleStore, state: Path, config: LearningConfig, tell: Tell
) -> Report | None:
    """Learn from the samples, and keep the candidate and the report; None when `tell` stopped it.

    A round that was stopped or killed goes on where it was, when the samples are the same.

    Raises:
        SampleError: there are no samples, another round is under way, the base memory is of no use, or the
            state cannot be written.
        ReleaseError: no member can learn.
        ModelError: a network cannot be read.
    """
    with _alone(state / "learning"):
        begun_s = time.monotonic()
        round_ = _Round(champion, store, state, config, tell)
        report = round_.run()
        if report is not None:
            report = msgspec.structs.replace(report, seconds=time.monotonic() - begun_s)
            save_report(report, state / "learning")
            round_.sweep()
        return report


class _Round:
    """The parts of a round and what they need of each other. Owned by `learn`."""

    def __init__(
        self, champion: Champion, store: SampleStore, state: Path, config: LearningConfig, tell: Tell
    ) -> None:
        self._champion, self._store, self._state, self._config = champion, store, state, config
        self._memory = read_base(state)
        self._pupils = champion.pupils(self._memory, config)
        self._learners = [pupil for pupil in self._pupils if pupil.ends]
        self._samples = gather(store)
        self._name = _run_name(self._samples, champion.release, self._memory, config)
        self._tell = tell
        self._n_copies = 0
        self._synthesiser: Synthesiser | None = None

    def run(self) -> Report | None:
        """Return what came of it; None when it was stopped."""
        looks = {pupil.name: (pupil.files.row.recipe, pupil.look) for pupil in self._pupils}
        lesson = look_at(self._store, self._samples, looks, self._has_seen)
        if lesson is None:
            return None
        lesson = doubt(lesson, self._learners[0].hidden(lesson))
        if (n_new := int(lesson.new().sum())) < self._config.min_samples:
            return self._report(lesson, f"{n_new} corrected samples to learn from are too few")
        if (n_known := self._n_base + int(lesson.known().sum())) < MIN_MEMORY:
            return self._report(
                lesson,
                f"{n_known} faces to remember do not keep the networks from forgetting: make a base memory "
                "with `visaged learn base FERPLUS`, or confirm what is right",
            )
        self.sweep(other_than=self._name)
        views = partial(self._views, lesson)
        for pupil in self._learners:
            if not pupil.teach(
                lesson, views, partial(self._checkpoint, pupil), partial(self._has_stepped, pupil)
            ):
                return None
        self._tell(Progress(stage="measuring", run=self._name))
        report = self._report(lesson, "given up: nothing was learned")
        if any(pupil.learned for pupil in self._learners):
            report = self._candidate(lesson, report)
        return report

    def sweep(self, other_than: str = "") -> None:
        """Remove checkpoints: those of other runs will not go on, and those of one that ended need not."""
        for path in (self._state / "learning").glob("checkpoint-*.pt"):
            if not other_than or not path.name.startswith(f"checkpoint-{other_than}-"):
                path.unlink(missing_ok=True)

    def _candidate(self, lesson: Lesson, report: Report) -> Report:
        """Keep the release with what was learned; return the report about it."""
        members: dict[str, ReleaseMember] = {}
        files: list[Path | bytes] = []
        taught = {pupil.name: pupil for pupil in self._learners if pupil.learned}
        for name, network in self._champion.networks.items():
            if name in taught:
                members[name], made = taught[name].member(lesson)
                files += made
            else:
                members[name] = member_of(network)
                files += [path for path in (network.onnx, network.ranges) if path]
        release = msgspec.structs.replace(self._champion.release, members=tuple(members.values()))
        used = lesson.new() | lesson.known() | lesson.labelled("tune")
        about = About(
            made_at=time.time(),
            parent=self._champion.release.id,
            data=f"{int(used.sum())} samples" + (", base memory" if self._memory else ""),
            note=f"candidate of run {self._name}",
            samples=tuple(s.id for s, is_used in zip(lesson.samples, used, strict=True) if is_used),
        )
        stored = ReleaseStore(self._state).save(release, files, about)
        return msgspec.structs.replace(
            report,
            outcome="a candidate, to be promoted or not",
            release=stored.release.id,
            evidence=self._evidence(lesson),
        )

    def _evidence(self, lesson: Lesson) -> tuple[Evidence, ...]:
        held = lesson.labelled("hold-out")
        site = {pupil.name: lesson.as_labelled(pupil.name, held) for pupil in self._pupils}
        base = {pupil.name: pupil.base.hold_out for pupil in self._pupils if pupil.base}
        return tuple(
            evidence
            for part, faces in (("site", site), ("base", base))
            for evidence in examine(part, self._pupils, faces, self._champion.release.fusion)
        )

    def _views(self, lesson: Lesson, pupil: Pupil, new: Remembered) -> Remembered:
        """Return altered copies of the new faces, as far as the configuration asks for some."""
        config, recipe = self._config, pupil.files.row.recipe
        if not (config.augmented_views or config.rendered_view):
            return new.none()
        self._tell(Progress(stage="looking", run=self._name, network=pupil.name, part="altered copies"))
        ids = [s.id for s, is_new in zip(lesson.samples, lesson.new(), strict=True) if is_new]
        faces = [self._store.face(id) for id in ids]
        if config.rendered_view and self._synthesiser is None:
            self._synthesiser = Synthesiser(build_admission(self._champion.models), recipe.padding)
        copies = views_of(faces, new, config, recipe, pupil.look, self._synthesiser)
        self._n_copies = len(copies)
        return copies

    def _has_seen(self, n: int) -> bool:
        return self._tell(Progress(stage="looking", run=self._name, step=n, n_steps=len(self._samples)))

    def _has_stepped(self, pupil: Pupil, part: str, step: Step) -> bool:
        tuning_loss = None if np.isnan(step.tuning_loss) else step.tuning_loss
        return self._tell(
            Progress(
                stage="learning",
                run=self._name,
                network=pupil.name,
                part=part,
                step=step.step,
                n_steps=step.n_steps,
                loss=step.loss,
                tuning_loss=tuning_loss,
                eta_s=step.eta_s,
            )
        )

    def _checkpoint(self, pupil: Pupil, part: str) -> Path:
        """Return the file of the state of one part of this run."""
        name = f"checkpoint-{self._name}-{pupil.name}-{part.replace(' ', '-')}.pt"
        return self._state / "learning" / name

    @property
    def _n_base(self) -> int:
        base = self._learners[0].base
        return len(base.train) if base else 0

    def _report(self, lesson: Lesson, outcome: str) -> Report:
        counts = {
            "new": int(lesson.new().sum()),
            "altered copies": self._n_copies,
            "remembered": int(lesson.known().sum()),
            "base": self._n_base,
            "tune": int(lesson.labelled("tune").sum()),
            "hold-out": int(lesson.labelled("hold-out").sum()),
            "left out": int(lesson.labelled("left out").sum()),
        }
        return Report(
            run=self._name,
            parent=self._champion.release.id,
            outcome=outcome,
            finished_at=time.time(),
            seconds=0.0,
            labels=labels_of(self._samples),
            suspects=tuple(s.id for s, is_one in zip(lesson.samples, lesson.suspects, strict=True) if is_one),
            counts=counts,
            n_steps=sum(pupil.n_steps for pupil in self._learners),
            networks={pupil.name: str(pupil) for pupil in self._pupils},
        )


def labels_of(samples: Sequence[Sample]) -> dict[str, str]:
    """Return what people say that samples show, by id."""
    return {sample.id: sample.label.emotion for sample in samples if sample.label.emotion}


def _run_name(
    samples: Sequence[Sample], release: Release, base: BaseMemory | None, config: LearningConfig
) -> str:
    """Return the name of the round: of the same samples, labels, parent, memory and settings it is one."""
    what = [sorted((s.id, s.label.emotion, s.label.person) for s in samples), release.id, config]
    content = msgspec.json.encode([*what, base.digest if base else ""])
    return hashlib.sha256(content).hexdigest()[:12]


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of learning: a round is for one process.

    Raises:
        SampleError: another process holds it, or the folder cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a")
    except OSError as error:
        raise SampleError(f"{folder} cannot be written ({error.strerror}); mend its permissions") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SampleError("a round is already under way; look with `visaged learn --watch`") from error
        yield
