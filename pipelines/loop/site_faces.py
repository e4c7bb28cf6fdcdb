"""The labelled faces of the site that a release never learned from, whole: any network can look at them."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...kernels.looks import difference_hash, looks_like
from ..learning.labelled_faces import LabelledFaces
from ..learning.metrics import Truth
from ..message import EMOTIONS
from .lesson import gather
from .parts import group_of, parts_of
from .sample_store import SampleStore

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]


def held_out(store: SampleStore, learned: Collection[str]) -> LabelledFaces:
    """Return what people said of the hold-out part, none of it known from the samples `learned`.

    A face is known whose sample, person, track or look was learned from. What was learned while its person
    had no name yet would else come back as evidence.

    Args:
        store: the samples; faces are opened again each time they are asked for, none stays in memory.
        learned: ids of the samples that a release learned from, its parents' too.

    Raises:
        StoreError: a sample does not open.
    """
    samples = gather(store)
    looks = np.array([difference_hash(store.face(sample.id).chip) for sample in samples], np.uint64)
    is_learned = np.array([sample.id in learned for sample in samples], bool)
    known = {group_of(sample) for sample, is_one in zip(samples, is_learned, strict=True) if is_one}
    kept = [
        sample
        for sample, part, look in zip(samples, parts_of(samples, looks), looks, strict=True)
        if part == "hold-out"
        and sample.label.emotion
        and group_of(sample) not in known
        and not looks_like(int(look), looks[is_learned]).any()
    ]
    labels = [EMOTIONS.index(sample.label.emotion) for sample in kept]
    truth = Truth(np.eye(len(EMOTIONS), dtype=np.float32)[labels], np.array([group_of(s) for s in kept], "U"))
    faces = _Opened(store, tuple(sample.id for sample in kept))
    return LabelledFaces(faces, truth, np.full(len(kept), "flagged"))


@dataclass(frozen=True, slots=True)
class _Opened:
    """The faces of these samples, one after the other."""

    store: SampleStore
    ids: tuple[str, ...]

    def __iter__(self) -> Iterator[tuple[U8, F32]]:
        for id in self.ids:
            face = self.store.face(id)
            yield face.chip, face.landmarks
