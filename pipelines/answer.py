"""What the hot path says about a frame, and what of it is published."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .frame import Frame, Track
from .message import EMOTIONS, Emotion, Face, Identity

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Analysis:
    """What the ensemble said about a track in frame `seq`, of the face at `landmarks` `(5, 2)` px.

    `face_px` is the width of its box.
    `release` is the name in messages of the one that said it. `probabilities` `(K,)` are fused and smoothed
    over the track; `members` holds what each said here, `(K,)` by its name.
    """

    seq: int
    release: str
    landmarks: F32
    face_px: float
    embedding: F32
    probabilities: F32
    members: dict[str, F32]
    disagreement: float
    quality: float
    identity: Identity


@dataclass(frozen=True, slots=True)
class Answer:
    """Everything known about one frame; `embeddings` is `(n, D)`, rows as the faces say.

    `analyses` are those made in this very frame, by track: also of faces that are not sure enough to be
    published yet, for the next frames may publish what was said of them here. `renamings` are the tracks that
    got another id in this frame, one renaming after the other.
    """

    frame: Frame
    faces: list[Face]
    embeddings: F32
    stages_ms: dict[str, float]
    analyses: dict[int, Analysis]
    renamings: Sequence[Mapping[int, int]] = ()


def face_of(track: Track, analysis: Analysis, row: int, release: str, feel: bool) -> Face:
    """Return what is published about one track in a message of `release`."""
    left, top, right, bottom = (float(v) for v in track.box)
    return Face(
        track=track.id,
        box=(left, top, right, bottom),
        landmarks=[(float(x), float(y)) for x, y in track.landmarks],
        score=track.score,
        is_visible=track.is_visible,
        quality=analysis.quality,
        identity=analysis.identity,
        emotion=emotion_of(analysis.probabilities, analysis.disagreement) if feel else Emotion(),
        analysed_seq=analysis.seq,
        release="" if analysis.release == release else analysis.release,
        embedding_row=row,
    )


def emotion_of(probabilities: F32, disagreement: float) -> Emotion:
    """Return the fused emotion for `(K,)` probabilities in the order of `EMOTIONS`."""
    best = int(probabilities.argmax())
    clipped = np.clip(probabilities, 0.0, 1.0)
    return Emotion(
        label=EMOTIONS[best],
        probability=float(clipped[best]),
        probabilities=[float(p) for p in clipped],
        disagreement=disagreement,
    )
