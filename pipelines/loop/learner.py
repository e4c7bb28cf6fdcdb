"""One round of learning: from labelled samples to a candidate release, or to the reason why there is none.

Only the emotion head learns. The trunk under it, and so every embedding, stays bit for bit what it was, and
so do the other members and how they are combined. Nothing is served here: a candidate waits to be promoted.
"""

import contextlib
import fcntl
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from ...kernels.fusion import probabilities
from ..assembly import StageConfigs, choose_release
from ..engines.ort_engine import OrtEngine
from ..engines.precision import measure_ranges, read_ranges
from ..errors import ModelError, ReleaseError, SampleError
from ..fuser import FeatureFusion
from ..importers.emotion_head import EmotionHead
from ..importers.onnx_head import FEATURES, Layers, head_of, layers_of, trunk_of, with_layers
from ..learning.losses import LossConfig
from ..learning.metrics import fit_temperature
from ..model_store import ModelStore, NetworkFiles
from ..releases.release import Release, ReleaseMember, published_release
from ..releases.release_store import About, ReleaseStore, member_of
from ..synthesis.admission import build_admission
from ..synthesis.synthesiser import Synthesiser
from .lesson import Lesson, doubt, gather, look_at
from .progress import Progress
from .rehearsal import Curriculum, Schedule, Step, Taught, rehearse
from .replay_memory import BaseMemory, Remembered, nothing, read_base, trunk_digest
from .report import Evidence, Report, compare, save_report
from .sample import Sample
from .sample_store import SampleStore
from .schedule import LearningConfig
from .style import in_style_of
from .views import views_of

F32 = npt.NDArray[np.float32]

MIN_MEMORY = 50
MIN_TUNE = 30  # faces below which a temperature says nothing
RANGES_BATCH = 256

Tell = Callable[[Progress], bool]
"""Hears how far the round is; may wait, and stops it by False."""


@dataclass(frozen=True, slots=True)
class Champion:
    """The release that serves: its networks by name, which of them learns, and where all networks are."""

    release: Release
    networks: Mapping[str, NetworkFiles]
    pupil: NetworkFiles
    models: ModelStore


def champion_of(configs: StageConfigs, state: Path, models: ModelStore) -> Champion:
    """Return the release that is configured, or the one of published weights.

    Raises:
        ReleaseError: it is missing or damaged, or none of it can learn.
    """
    configs, models, stored = choose_release(configs, state, models)
    networks = stored.networks() if stored else {n: models.files_of(n) for n in configs.ensemble.members}
    pupils = [f for f in networks.values() if {"embedding", "logits"} <= {o.kind for o in f.row.outputs}]
    if not pupils:
        raise ReleaseError(f"none of {', '.join(networks)} has an emotion head on a trunk; none can learn")
    members = [ReleaseMember(network=f.row, onnx=member_of(f).onnx) for f in networks.values()]
    release = stored.release if stored else published_release(members, configs.ensemble.fusion)
    if isinstance(release.fusion, FeatureFusion):
        raise ReleaseError(
            f"release {release.id} combines features, whose classifier would not fit another head; "
            "serve one that combines probabilities to learn from samples"
        )
    return Champion(release, networks, pupils[0], models)


def learn(
    champion: Champion, store: SampleStore, state: Path, config: LearningConfig, tell: Tell
) -> Report | None:
    """Learn from the samples, and keep the candidate and the report; None when `tell` stopped it.

    A round that was stopped or killed goes on where it was, when the samples are the same.

    Raises:
        SampleError: there are no samples, another round is under way, or the state cannot be written.
        ModelError: the network cannot be read.
    """
    with _alone(state / "learning"):
        begun_s = time.monotonic()
        round_ = _Round(champion, store, state, config, tell)
        report = round_.run()
        if report is not None:
            report = msgspec.structs.replace(report, seconds=time.monotonic() - begun_s)
            save_report(report, state / "learning")
        return report


class _Round:
    """The parts of a round and what they need of each other. Owned by `learn`."""

    def __init__(
        self, champion: Champion, store: SampleStore, state: Path, config: LearningConfig, tell: Tell
    ) -> None:
        self._champion, self._store, self._state, self._config = champion, store, state, config
        self._onnx = champion.pupil.onnx.read_bytes()
        self._layers = layers_of(self._onnx)
        trunk = trunk_of(self._onnx)
        self._trunk = OrtEngine(trunk)
        self._base = read_base(state, trunk_digest(trunk))
        self._samples = gather(store)
        self._name = _run_name(self._samples, champion.release, self._base, config)
        self._tell = tell
        self._n_copies = 0
        self._chips: F32 | None = None  # the first of them, to compare the candidate's embeddings on

    def run(self) -> Report | None:
        """Return what came of it; None when it was stopped."""
        lesson = look_at(
            self._store, self._samples, self._champion.pupil.row.recipe, self._look, self._has_seen
        )
        if lesson is None:
            return None
        lesson = doubt(lesson, self._layers)
        new = lesson.softened(lesson.new())
        if len(new) < self._config.min_samples:
            return self._report(lesson, f"{len(new)} corrected samples to learn from are too few")
        memory, tune = self._memory(lesson), self._tune(lesson)
        if len(memory) < MIN_MEMORY:
            return self._report(
                lesson,
                f"{len(memory)} faces to remember do not keep the head from forgetting: make a base memory "
                "with `visaged learn base FERPLUS`, or confirm what is right",
            )
        taught = rehearse(
            self._layers,
            Curriculum(new.beside(self._views(lesson, new)), memory, self._restyled(lesson), tune),
            _schedule_of(self._config),
            self._checkpoint(),
            self._has_stepped,
        )
        if taught is None:
            return None
        if taught.abandoned:
            report = self._report(lesson, f"given up: {taught.abandoned}")
            return msgspec.structs.replace(report, n_steps=taught.n_steps)
        self._tell(Progress(stage="measuring", run=self._name))
        return self._candidate(lesson, taught, tune)

    def _candidate(self, lesson: Lesson, taught: Taught, tune: Remembered) -> Report:
        """Keep the release with the new head; return the report about it."""
        before, pupil = self._champion.pupil, self._champion.pupil.row
        old_t = next(o.temperature for o in pupil.outputs if o.kind == "logits")
        logits = EmotionHead((), taught.layers, ()).logits(tune.features)
        temperature = fit_temperature(logits, tune.targets) if len(tune) >= MIN_TUNE else old_t
        outputs = tuple(
            msgspec.structs.replace(o, temperature=temperature) if o.kind == "logits" else o
            for o in pupil.outputs
        )
        data = with_layers(self._onnx, taught.layers)
        self._check_embeddings(data)
        ranges = self._ranges(before.ranges, data, lesson)
        member = ReleaseMember(
            network=msgspec.structs.replace(pupil, outputs=outputs),
            onnx=hashlib.sha256(data).hexdigest(),
            ranges=hashlib.sha256(ranges).hexdigest() if ranges else "",
        )
        others = [f for f in self._champion.networks.values() if f is not before]
        by_name = {f.row.name: member_of(f) for f in others} | {pupil.name: member}
        release = msgspec.structs.replace(
            self._champion.release, members=tuple(by_name[name] for name in self._champion.networks)
        )
        files = [path for f in others for path in (f.onnx, f.ranges) if path]
        used = lesson.new() | lesson.known() | lesson.labelled("tune")
        about = About(
            made_at=time.time(),
            parent=self._champion.release.id,
            data=f"{int(used.sum())} samples" + (", base memory" if self._base else ""),
            note=f"candidate of run {self._name}",
            samples=tuple(s.id for s, is_used in zip(lesson.samples, used, strict=True) if is_used),
        )
        stored = ReleaseStore(self._state).save(release, [*files, data, *([ranges] if ranges else [])], about)
        evidence = self._evidence(lesson, (self._layers, old_t), (taught.layers, temperature))
        return msgspec.structs.replace(
            self._report(lesson, "a candidate, to be promoted or not"),
            release=stored.release.id,
            n_steps=taught.n_steps,
            evidence=evidence,
        )

    def _evidence(
        self, lesson: Lesson, before: tuple[Layers, float], after: tuple[Layers, float]
    ) -> tuple[Evidence, ...]:
        parts = {"site": lesson.as_labelled(lesson.labelled("hold-out"))}
        if self._base is not None:
            parts["base"] = self._base.hold_out
        return tuple(
            evidence
            for name, faces in parts.items()
            for evidence in compare(name, faces, _said(before, faces), _said(after, faces))
        )

    def _memory(self, lesson: Lesson) -> Remembered:
        own = lesson.softened(lesson.known())
        return own if self._base is None else self._base.train.beside(own)

    def _restyled(self, lesson: Lesson) -> Remembered:
        site = lesson.as_labelled(lesson.labelled("train") & ~lesson.suspects)
        if self._base is None or not self._config.restyled:
            return nothing(site.features.shape[1], site.targets.shape[1])
        return in_style_of(site, self._base.train)

    def _views(self, lesson: Lesson, new: Remembered) -> Remembered:
        """Return altered copies of the new faces, as far as the configuration asks for some."""
        config, recipe = self._config, self._champion.pupil.row.recipe
        if not (config.augmented_views or config.rendered_view):
            return nothing(new.features.shape[1], new.targets.shape[1])
        self._tell(Progress(stage="looking", run=self._name, note="altered copies"))
        ids = [s.id for s, is_new in zip(lesson.samples, lesson.new(), strict=True) if is_new]
        faces = [self._store.face(id) for id in ids]
        synthesiser = None
        if config.rendered_view:
            synthesiser = Synthesiser(build_admission(self._champion.models), recipe.padding)
        copies = views_of(faces, new, config, recipe, self._features, synthesiser)
        self._n_copies = len(copies)
        return copies

    def _tune(self, lesson: Lesson) -> Remembered:
        own = lesson.as_labelled(lesson.labelled("tune"))
        return own if self._base is None else self._base.tune.beside(own)

    def _look(self, chips: F32) -> F32:
        self._chips = chips if self._chips is None else self._chips
        return self._features(chips)

    def _features(self, chips: F32) -> F32:
        return self._trunk.infer(chips)[FEATURES]

    def _has_seen(self, n: int) -> bool:
        return self._tell(Progress(stage="looking", run=self._name, step=n, n_steps=len(self._samples)))

    def _has_stepped(self, step: Step) -> bool:
        tuning_loss = None if np.isnan(step.tuning_loss) else step.tuning_loss
        return self._tell(
            Progress(
                stage="learning",
                run=self._name,
                step=step.step,
                n_steps=step.n_steps,
                loss=step.loss,
                tuning_loss=tuning_loss,
                eta_s=step.eta_s,
            )
        )

    def _checkpoint(self) -> Path:
        """Return the file of this run's state, and remove those of others: they will not go on."""
        path = self._state / "learning" / f"checkpoint-{self._name}.pt"
        for other in path.parent.glob("checkpoint-*.pt"):
            if other != path:
                other.unlink(missing_ok=True)
        return path

    def _check_embeddings(self, data: bytes) -> None:
        """Refuse a candidate that names people differently: its gallery would be worthless."""
        assert self._chips is not None  # there is a sample, or we were not here
        old, new = (OrtEngine(d).infer(self._chips)["embedding"] for d in (self._onnx, data))
        if old.tobytes() != new.tobytes():
            raise ModelError(
                "the candidate's embeddings are not those of its parent; this is a bug, report it"
            )

    def _ranges(self, path: Path | None, data: bytes, lesson: Lesson) -> bytes | None:
        """Return the file of INT8 ranges: the trunk's as they are, the head's measured again."""
        if path is None:
            return None
        old = read_ranges(path)
        seen = (
            lesson.features if self._base is None else np.vstack([lesson.features, self._base.train.features])
        )
        batches = (seen[at : at + RANGES_BATCH] for at in range(0, len(seen), RANGES_BATCH))
        head = measure_ranges(old.network, head_of(data), batches, old.source)
        measured = {name: pair for name, pair in head.tensors.items() if name != FEATURES}
        source = f"{old.source}; head: features of {len(seen)} faces"
        ranges = msgspec.structs.replace(old, source=source, tensors=old.tensors | measured)
        return msgspec.json.format(msgspec.json.encode(ranges))

    def _report(self, lesson: Lesson, outcome: str) -> Report:
        counts = {
            "new": int(lesson.new().sum()),
            "altered copies": self._n_copies,
            "remembered": int(lesson.known().sum()),
            "base": len(self._base.train) if self._base else 0,
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
        )


def labels_of(samples: Sequence[Sample]) -> dict[str, str]:
    """Return what people say that samples show, by id."""
    return {sample.id: sample.label.emotion for sample in samples if sample.label.emotion}


def _schedule_of(config: LearningConfig) -> Schedule:
    losses = tuple(LossConfig(kind=kind, weight=weight) for kind, weight in config.losses.items())
    return Schedule(max_steps=config.max_steps, losses=losses, restyled=config.restyled)


def _run_name(
    samples: Sequence[Sample], release: Release, base: BaseMemory | None, config: LearningConfig
) -> str:
    """Return the name of the round: of the same samples, labels, parent, memory and settings it is one."""
    what = [sorted((s.id, s.label.emotion, s.label.person) for s in samples), release.id, config]
    content = msgspec.json.encode([*what, base.digest if base else ""])
    return hashlib.sha256(content).hexdigest()[:12]


def _said(head: tuple[Layers, float], faces: Remembered) -> F32:
    """Return `(N, K)` probabilities of a head with its temperature."""
    layers, temperature = head
    logits = EmotionHead((), layers, ()).logits(faces.features) / np.float32(temperature)
    p: F32 = probabilities(logits[None], np.ones((1, logits.shape[1]), bool))[0]
    return p


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
