"""What a round learns from: the samples of the store as each trunk sees them, each for its part.

Features stay in memory: nothing is stored of people beyond the samples themselves.

Shape letters: N samples, K classes, F features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ...kernels.looks import difference_hash
from ..cropper import Cropper
from ..errors import SampleError
from ..message import EMOTIONS
from ..registry import ChipRecipe
from .label_noise import find_suspects, soft_targets
from .parts import group_of, parts_of
from .replay_memory import Remembered
from .sample import Sample, State
from .sample_store import SampleStore
from .sealed_face import StoredFace

F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Text = npt.NDArray[np.str_]

SURE = 0.9  # fused probability from which a face that nobody labelled may be remembered
MAX_UNLABELLED = 400
BATCH = 16
UNLABELLED = -1

Look = Callable[[F32], F16]
"""A trunk: `(N, C, S, S)` chips to `(N, ...)` features."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """N samples, with `features` `(N, ...)` by network; `labels` `(N,)` are -1 where nobody said what it is.

    `committee` `(N, K)` is what the daemon published, NaN where it was not asked. `parts` `(N,)` are those of
    `parts_of`, `groups` `(N,)` those of `group_of`. `suspects` `(N,)` are labels in doubt: they are not
    learned from this time.
    """

    samples: tuple[Sample, ...]
    features: Mapping[str, F16]
    labels: I64
    committee: F32
    parts: Text
    groups: Text
    suspects: Bool

    def new(self) -> Bool:
        """Return `(N,)`: to be learned, because people say that the daemon was wrong."""
        is_corrected = np.array([s.state is State.CORRECTED for s in self.samples], bool)
        found: Bool = (self.parts == "train") & self._labelled & is_corrected & ~self.suspects
        return found

    def known(self) -> Bool:
        """Return `(N,)`: to be remembered, because the daemon was right, or sure and nobody objected."""
        is_corrected = np.array([s.state is State.CORRECTED for s in self.samples], bool)
        found: Bool = (self.parts == "train") & ~is_corrected & ~self.suspects
        return found

    def labelled(self, part: str) -> Bool:
        """Return `(N,)`: the samples of one part that have a label."""
        found: Bool = (self.parts == part) & self._labelled
        return found

    def softened(self, network: str, keep: Bool) -> Remembered:
        """Return some of the samples to learn from; without a label, as the committee saw them."""
        labels, committee = self.labels[keep], self.committee[keep]
        targets = np.where(labels[:, None] < 0, committee, soft_targets(np.maximum(labels, 0), committee))
        return Remembered(self.features[network][keep], targets.astype(np.float32), self.groups[keep])

    def as_labelled(self, network: str, keep: Bool) -> Remembered:
        """Return some of the labelled samples to be measured on: what people said, nothing else."""
        targets = np.eye(len(EMOTIONS), dtype=np.float32)[self.labels[keep]]
        return Remembered(self.features[network][keep], targets, self.groups[keep])

    @property
    def _labelled(self) -> Bool:
        found: Bool = self.labels != UNLABELLED
        return found


def gather(store: SampleStore) -> list[Sample]:
    """Return the samples that say something about emotions: labelled, or fit to be remembered."""
    faces = [sample for sample in store.samples() if sample.label.is_face is not False]
    labelled = [sample for sample in faces if sample.label.emotion]
    waiting = [s for s in faces if s.state is State.REVIEW and s.shown_emotion]
    return labelled + waiting[-MAX_UNLABELLED:]


def look_at(
    store: SampleStore,
    samples: Sequence[Sample],
    looks: Mapping[str, tuple[ChipRecipe, Look]],
    go_on: Callable[[int], bool],
) -> Lesson | None:
    """Return the lesson that `samples` make, before any label is doubted; None when `go_on` stopped it.

    Args:
        store: where they are.
        samples: of `gather`.
        looks: by network, its chips and its trunk; each sees every sample once.
        go_on: called with the number of samples seen so far.

    Raises:
        SampleError: there are none.
    """
    kept: list[Sample] = []
    features: dict[str, list[F16]] = {network: [] for network in looks}
    committee: list[F32] = []
    pictures: list[int] = []
    cropper = Cropper()
    for at in range(0, len(samples), BATCH):
        batch = samples[at : at + BATCH]
        opened = [(sample, face) for sample in batch if _is_fit(sample, face := store.face(sample.id))]
        if opened:
            for network, (recipe, look) in looks.items():
                chips = [cropper.crop(face.chip, face.landmarks[None], recipe) for _, face in opened]
                features[network].append(look(np.concatenate(chips)))
            committee += [_published(face) for _, face in opened]
            pictures += [difference_hash(face.chip) for _, face in opened]
            kept += [sample for sample, _ in opened]
        if not go_on(at + len(batch)):
            return None
    if not kept:
        raise SampleError("nobody has said of any sample what it shows; `visaged flag` does")
    return Lesson(
        tuple(kept),
        {network: np.concatenate(parts) for network, parts in features.items()},
        np.array([EMOTIONS.index(s.label.emotion) if s.label.emotion else UNLABELLED for s in kept]),
        np.stack(committee),
        np.array(parts_of(kept, np.array(pictures, np.uint64))),
        np.array([group_of(s) for s in kept]),
        np.zeros(len(kept), bool),
    )


def doubt(lesson: Lesson, hidden: F32) -> Lesson:
    """Return the lesson with those training labels marked that the other samples contradict.

    They are judged by `hidden` `(N, U)`, what a last layer reads: a hundred numbers that are about emotions.
    """
    suspects = np.zeros(len(lesson.samples), bool)
    train = np.flatnonzero(lesson.labelled("train"))
    suspects[train] = find_suspects(hidden[train], lesson.labels[train], lesson.groups[train], len(EMOTIONS))
    return replace(lesson, suspects=suspects)


def _is_fit(sample: Sample, face: StoredFace) -> bool:
    """A label makes a sample fit; without one the daemon must have been sure."""
    return bool(sample.label.emotion) or (face.probabilities is not None and face.probabilities.max() >= SURE)


def _published(face: StoredFace) -> F32:
    if face.probabilities is None:
        return np.full(len(EMOTIONS), np.nan, np.float32)
    published: F32 = face.probabilities / face.probabilities.sum()
    return published
