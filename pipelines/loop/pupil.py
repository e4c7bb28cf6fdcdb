"""One member of the ensemble in a round of learning: what of it learns, from what, and what came of it.

Its trunk sees every face once. Then its dense layers learn (the head), and after them, where they are
allowed to, its last convolutions too (the end part): Kumar et al., "Fine-tuning can distort pretrained
features and underperform out-of-distribution", ICLR 2022.
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from ..engines.ort_engine import OrtEngine
from ..engines.precision import measure_ranges, parse_onnx, read_ranges, weights_digest
from ..ensemble import output_of
from ..errors import ModelError
from ..importers.onnx_end import EMBEDDING, LOGITS, End, end_of, ends_of, part_of, trunk_of, with_weights
from ..learning.losses import LossConfig
from ..learning.metrics import fit_temperature
from ..message import EMOTIONS
from ..model_store import NetworkFiles
from ..releases.release import ReleaseMember
from .layers import answer, tensors
from .lesson import Lesson
from .rehearsal import Curriculum, Schedule, Step, rehearse
from .replay_memory import AGAIN, BaseMemory, Parts, Remembered, trunk_digest
from .schedule import LearningConfig
from .style import in_style_of

F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]

STAGES = ("head", "end part")
MIN_TUNE = 30  # faces below which a temperature says nothing
BATCH = 256
END_PART_RATE = 1e-4  # a third of the head's, which has learned by then

Views = Callable[["Pupil", Remembered], Remembered]
"""Altered copies of new faces, as the pupil's trunk sees them."""


class Pupil:
    """One network, owned by the round. `after`, `weights` and `data` change when it is taught.

    Attributes:
        files: the network as it is.
        ends: what may learn of it, in the order in which it does; none: it stays as it is.
        entry: the value that its trunk leaves; `logits` where nothing learns.
        data: the ONNX file of what it is now.
        base: the remembered faces as its trunk sees them; None where there are none.
        before: its output of logits, and `after`: the same with the temperature after learning.
        note: why it does not learn, or not all of it.
    """

    def __init__(self, files: NetworkFiles, memory: BaseMemory | None, config: LearningConfig) -> None:
        self.files, self.name, self._config = files, files.row.name, config
        self.onnx = self.data = files.onnx.read_bytes()
        output = output_of(files.row, "logits")
        assert output is not None  # who has none is no pupil
        self.before = self.after = output
        ends = ends_of(self.onnx) if output.classes == EMOTIONS else ()
        self.ends: tuple[End, ...] = ends[: 1 + config.end_part]
        self.note = _note(self.ends, config)
        self.entry, self.trunk, self.base = self._cut(ends, memory)
        self._shares = memory.shares if memory is not None else np.zeros(0, np.float32)
        self.weights: dict[str, F32] = {}
        self.said: list[str] = []
        self.n_steps = 0
        self._engine = OrtEngine(self.trunk)
        self._chips: F32 | None = None  # the first of them, to compare embeddings on

    @property
    def learned(self) -> bool:
        """Whether it is another network now."""
        return bool(self.weights)

    def __str__(self) -> str:
        """Return what came of it."""
        return "; ".join([*self.said, *([self.note] if self.note else [])]) or "it did not learn"

    def look(self, chips: F32) -> F16:
        """Return what the trunk sees of `(N, C, S, S)` chips."""
        if self._chips is None:
            self._chips = chips
        features: F16 = self._engine.infer(chips)[self.entry].astype(np.float16)
        return features

    def hidden(self, lesson: Lesson) -> F32:
        """Return `(N, U)`: what the last layer reads of all samples."""
        head = self.ends[0]
        return answer(head, tensors(head.weights), self._at(head, lesson.features[self.name]))[1]

    def teach(
        self,
        lesson: Lesson,
        views: Views,
        checkpoint: Callable[[str], Path],
        go_on: Callable[[str, Step], bool],
    ) -> bool:
        """Learn what the configuration allows; return False when `go_on` stopped it.

        Args:
            lesson: from what.
            views: more of it.
            checkpoint: the file of a stage's state, by its name.
            go_on: asked after every step, with the name of the stage.
        """
        new = lesson.softened(self.name, lesson.new())
        new = new.beside(views(self, new))
        for stage, end in zip(STAGES, self.ends, strict=False):
            curriculum = self._curriculum(end, lesson, new)
            schedule = _schedule(self._config, end)
            taught = rehearse(
                end, self.weights, curriculum, schedule, checkpoint(stage), partial(go_on, stage)
            )
            if taught is None:
                return False
            self.n_steps += taught.n_steps
            if taught.abandoned:  # the next may learn what this one could not
                self.said.append(f"its {stage} was given up: {taught.abandoned}")
                continue
            self.weights |= taught.weights
            self.said.append(f"its {stage} learned")
        if self.learned:
            self.data, tune = with_weights(self.onnx, self.weights), self._tune(lesson)
            if len(tune) >= MIN_TUNE:
                temperature = fit_temperature(self._logits(self.data, tune.features), tune.targets)
                self.after = msgspec.structs.replace(self.before, temperature=temperature)
        return True

    def answers(self, faces: Remembered) -> tuple[F32, F32]:
        """Return `(N, K)` logits, before and after, of its own classes, not divided by a temperature."""
        before = self._logits(self.onnx, faces.features)
        return before, self._logits(self.data, faces.features) if self.learned else before

    def member(self, lesson: Lesson) -> tuple[ReleaseMember, list[bytes]]:
        """Return the member of a release that it is now, and its files.

        Raises:
            ModelError: it would embed faces otherwise than before.
        """
        self._check_embeddings()
        ranges = self._ranges(lesson)
        row = self.files.row
        outputs = tuple(self.after if output == self.before else output for output in row.outputs)
        member = ReleaseMember(
            network=msgspec.structs.replace(row, outputs=outputs),
            onnx=hashlib.sha256(self.data).hexdigest(),
            ranges=hashlib.sha256(ranges).hexdigest() if ranges else "",
        )
        return member, [self.data, *([ranges] if ranges else [])]

    def _cut(self, ends: tuple[End, ...], memory: BaseMemory | None) -> tuple[str, bytes, Parts | None]:
        """Return what the trunk leaves, the trunk, and what is remembered behind it.

        What the memory has nothing of does not learn: it would forget. Where it has more, that is the trunk.
        """
        entries = [LOGITS, *(end.entry for end in ends)]
        for n in range(len(ends), -1, -1) if memory else [len(self.ends)]:
            trunk = trunk_of(self.onnx, entries[n])
            base = memory.of_trunk.get(trunk_digest(trunk)) if memory else None
            if base is not None:
                break
        if n < len(self.ends):
            missing = "this network" if not n else "its end part"
            self.note = f"the base memory has no features for {missing}; {AGAIN}"
        self.ends = self.ends[:n]
        return entries[n], trunk, base

    def _curriculum(self, end: End, lesson: Lesson, new: Remembered) -> Curriculum:
        seen = partial(self._seen, end)
        known = seen(lesson.softened(self.name, lesson.known()))
        restyled = known.none()
        if self.base is not None and self._config.restyled:
            site = lesson.as_labelled(self.name, lesson.labelled("train") & ~lesson.suspects)
            restyled = in_style_of(seen(site), seen(self.base.train))
        memory = known if self.base is None else seen(self.base.train).beside(known)
        return Curriculum(seen(new), memory, restyled, seen(self._tune(lesson)), self._shares)

    def _tune(self, lesson: Lesson) -> Remembered:
        own = lesson.as_labelled(self.name, lesson.labelled("tune"))
        return own if self.base is None else self.base.tune.beside(own)

    def _seen(self, end: End, faces: Remembered) -> Remembered:
        return Remembered(self._at(end, faces.features), faces.targets, faces.groups)

    def _at(self, end: End, features: F16 | F32) -> F16 | F32:
        """Return what `end` reads, of what the trunk left."""
        if end.entry == self.entry:
            return features
        found = _batched(part_of(self.onnx, self.entry, [end.entry]), end.entry, features)
        return found.astype(np.float16)

    def _logits(self, data: bytes, features: F16 | F32) -> F32:
        if self.entry == LOGITS:
            return features.astype(np.float32)
        return _batched(end_of(data, self.entry), LOGITS, features)

    def _check_embeddings(self) -> None:
        """Refuse a network that names people differently: its gallery would be worthless."""
        if output_of(self.files.row, "embedding") is None:
            return
        assert self._chips is not None  # there is a sample, or we were not here
        old, new = (OrtEngine(d).infer(self._chips)[EMBEDDING] for d in (self.onnx, self.data))
        if old.tobytes() != new.tobytes():
            raise ModelError(
                "the candidate's embeddings are not those of its parent; this is a bug, report it"
            )

    def _ranges(self, lesson: Lesson) -> bytes | None:
        """Return the file of INT8 ranges: the trunk's as they are, the end's measured again."""
        if self.files.ranges is None:
            return None
        old = read_ranges(self.files.ranges)
        seen = lesson.features[self.name]
        seen = seen if self.base is None else np.concatenate([seen, self.base.train.features])
        batches = (seen[at : at + BATCH].astype(np.float32) for at in range(0, len(seen), BATCH))
        end = measure_ranges(old.network, end_of(self.data, self.entry), batches, old.source)
        measured = {name: pair for name, pair in end.tensors.items() if name != self.entry}
        ranges = msgspec.structs.replace(
            old,
            source=f"{old.source}; end: features of {len(seen)} faces",
            weights_sha256=weights_digest(parse_onnx(self.data)),
            tensors=old.tensors | measured,
        )
        return msgspec.json.format(msgspec.json.encode(ranges))


def _note(ends: tuple[End, ...], config: LearningConfig) -> str:
    if not ends:
        return "it does not learn: no dense layers of its own make logits of all eight emotions"
    if len(ends) < 1 + config.end_part:
        return "no end part: the layers before the head make embeddings, or are of a kind that does not learn"
    return ""


def _schedule(config: LearningConfig, end: End) -> Schedule:
    losses = tuple(LossConfig(kind=kind, weight=weight) for kind, weight in config.losses.items())
    schedule = Schedule(max_steps=config.max_steps, losses=losses, restyled=config.restyled)
    return schedule if end.is_dense else replace(schedule, rate=END_PART_RATE)


def _batched(data: bytes, output: str, features: F16 | F32) -> F32:
    """Return one output of the ONNX file `data` for any number of features."""
    engine = OrtEngine(data)
    parts = [
        engine.infer(features[at : at + BATCH].astype(np.float32))[output]
        for at in range(0, max(len(features), 1), BATCH)
    ]
    return np.concatenate(parts)
