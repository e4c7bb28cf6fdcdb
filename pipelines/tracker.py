"""Follow faces through the frames of one camera: who in this frame is who in the last one.

Motion is a constant-velocity Kalman filter per track (real time steps), association a linear assignment
over overlap and motion; ids survive what motion cannot bridge through appearance (`reassociation`).
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated

import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct
from scipy.optimize import linear_sum_assignment

from ..kernels import kalman
from ..kernels.boxes import centre_form, corner_form, iou, overlap_of_smaller
from .frame import Detection, Track
from .reassociation import Appearances, Candidate, Handovers

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

HISTORY = 128  # frames; a full-frame detection that arrives later than this is ignored
FADING = 0.8  # of the sum of scores, per hit
MIN_SIDE_PX = 4.0
MAX_REACH = 1.5  # faces a detection may lie from where it was expected
NEAR_ENOUGH = 0.25  # faces of error that a search around the box forgives anyway
MAX_GROWTH = 0.6  # natural logarithm of the change of width or height
SWALLOWED = 0.75  # share of the smaller box inside the larger from which both are one face
REDISCOVERED_S = 0.3  # hidden for longer: look who it is
MAX_STEP_S = 0.5  # a longer silence is a pause: nothing is known of the motion in it
CHANCE_SCORE = 0.1  # what looks a little like a face scores this again and again
FORBIDDEN = 1e6  # assignment cost of a pair outside the gates
# Standard deviations in units of the face's mean side (x, y) or of itself (width, height), tuned on video.
MEASUREMENT_STD = np.array([0.06, 0.06, 0.08, 0.08])
START_VELOCITY_STD = np.array([4.0, 3.0, 0.4, 0.4])  # per second; a walker close by crosses 4 faces a second
ACCELERATION_STD = np.array([6.0, 6.0, 0.8, 0.8])  # per second^2


class TrackerConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long and how far a face is followed."""

    iou_gate: Annotated[float, Meta(gt=0, lt=1)] = 0.2
    """Overlap (IoU) of prediction and detection from which they may be the same face."""
    motion_gate: Annotated[float, Meta(gt=0, le=10)] = 3.5
    """Standard deviations by which a detection without that overlap may miss the prediction."""
    occlusion_s: Annotated[float, Meta(ge=0, le=30)] = 1.0
    """Seconds a hidden face is carried on by its motion before the track is lost."""
    return_within_s: Annotated[float, Meta(ge=0, le=86400)] = 30.0
    """Seconds after which a person who left or was hidden no longer gets the old track id back."""
    appearance_distance: Annotated[float, Meta(gt=0, le=2)] = 0.5
    """Euclidean distance of embeddings below which a new face may be a lost track."""
    appearance_gap: Annotated[float, Meta(ge=0, le=2)] = 0.06
    """How much nearer than the second-best candidate it must be."""
    min_hits: Annotated[int, Meta(ge=1, le=100)] = 2
    """Detections a face needs before it is published, unless one of them is sure. Their scores, older ones
    fading, must add up to `sure_score`: what is found again and again with scores around 0 is no face."""
    sure_score: float = 0.3
    """Detector score from which one detection is enough."""
    duplicate_overlap: Annotated[float, Meta(gt=0, le=1)] = 0.5
    """Overlap (IoU) from which two detections or two tracks are the same face."""


@dataclass(slots=True)
class _Moment:
    """One frame of a track: its motion before and after what was measured in that frame."""

    prior: kalman.Motion
    motion: kalman.Motion
    measured: F64 | None = None

    def correct(self) -> None:
        """Apply the measurement to the prior."""
        self.motion = self.prior
        if self.measured is not None:
            self.motion = kalman.correct(self.prior, self.measured, MEASUREMENT_STD * _side(self.prior))


@dataclass(slots=True)
class _State:
    """Everything about one track; `moments` has its last frames by seq, oldest first, now at the end."""

    id: int
    score: float
    evidence: float  # what the scores were above CHANCE_SCORE, summed, older ones fading
    moments: dict[int, _Moment]
    last_hit_seq: int
    landmarks: F32 = field(default_factory=lambda: np.zeros((5, 2), np.float32))  # in units of the box
    age: int = 0
    hits: int = 1
    misses: int = 0  # looks at it in vain since the last hit
    unseen_s: float = 0.0
    is_sure: bool = False

    @property
    def motion(self) -> kalman.Motion:
        """Where it is now."""
        return next(reversed(self.moments.values())).motion

    @property
    def box(self) -> F32:
        """Left, top, right, bottom now."""
        return corner_form(self.motion.position)

    def at(self, seq: int) -> _Moment:
        """Return the track in frame `seq`; of a younger track, its first frame."""
        return self.moments[seq] if seq in self.moments else next(iter(self.moments.values()))

    def measure(self, face: Detection, seq: int, times: Mapping[int, int]) -> None:
        """Take in a face found in frame `seq`, now or earlier, and live again through what came after."""
        if seq in self.moments:
            self.moments[seq].measured = centre_form(face.box)
            self.moments[seq].correct()
            later = [s for s in self.moments if s >= seq]
            for before, after in pairwise(later):
                moment = self.moments[after]
                moment.prior = _step(self.moments[before].motion, (times[after] - times[before]) / 1e9)
                moment.correct()
        if seq >= self.last_hit_seq:
            self.last_hit_seq = seq
            box = corner_form(self.at(seq).motion.position)
            self.landmarks = ((face.landmarks - box[:2]) / (box[2:] - box[:2])).astype(np.float32)


class Tracker:
    """The tracks of one camera. Owned by one thread; asks no clock, times come with the frames.

    Per frame: `predict`, then `update` with what was detected (not at all, once, or twice: a late
    full-frame result and re-detections of this frame), then `remember` with new embeddings, then `tracks`.
    """

    def __init__(self, config: TrackerConfig) -> None:
        self._config = config
        self._states: dict[int, _State] = {}
        self._appearances = Appearances(
            distance=config.appearance_distance,
            gap=config.appearance_gap,
            return_within_ns=int(config.return_within_s * 1e9),
        )
        self._handovers = Handovers()
        self._next_id = 1
        self._times: dict[int, int] = {}  # seq -> captured_ns, oldest first

    def predict(self, seq: int, captured_ns: int, frame_size: tuple[int, int] | None = None) -> list[Track]:
        """Advance every track to this frame and return where faces are expected.

        Unlike `tracks`, the list has tracks that are not yet sure enough to be published: look there too.

        Args:
            seq: number of the frame; growing.
            captured_ns: when it was captured; a pause of the camera is survived.
            frame_size: width and height in px; a coasting track whose centre leaves the frame is lost.
        """
        elapsed_s = 0.0
        if self._times:
            last_seq, last_ns = next(reversed(self._times.items()))
            elapsed_s = max(0.0, (captured_ns - last_ns) / 1e9)
            if seq <= last_seq:  # a new numbering: the old frames can no longer be named
                self._begin_again()
        self._times[seq] = captured_ns
        if len(self._times) > HISTORY:
            del self._times[next(iter(self._times))]
        self._appearances.advance(captured_ns)
        if elapsed_s > MAX_STEP_S:
            self._appearances.doubt(self._states.keys(), may_be_new=True)
        for state in list(self._states.values()):
            self._advance(state, seq, elapsed_s)
            if state.unseen_s > self._config.occlusion_s or _has_left(state, frame_size):
                self._drop(state)
        return self.followed()

    def update(
        self, detections: Sequence[Detection] | Mapping[int, Detection | None], seq: int | None = None
    ) -> None:
        """Correct the tracks with what was found.

        Args:
            detections: all faces of a whole frame (`[]` says that there is none), or the answers of
                re-detection around some tracks: track id -> what was found there, or None.
            seq: the frame in which they were found; None for the current one. A late result corrects by
                how far each track was from it then; one older than the memory is ignored.

        Raises:
            ValueError: no frame was predicted yet.
        """
        if not self._times:
            raise ValueError("update before the first predict")
        seq = next(reversed(self._times)) if seq is None else seq
        if seq not in self._times:
            return
        if isinstance(detections, Mapping):
            found = [face for face in detections.values() if face is not None]
            self._correct(_distinct(found, self._config.duplicate_overlap), detections.keys(), seq)
        else:
            faces = _distinct(detections, self._config.duplicate_overlap)
            for face in self._correct(faces, self._states.keys(), seq):
                self._start(face, seq)
        for duplicate in self._handovers.duplicates(
            {s.id: (s.box, s.misses == 0) for s in self._states.values()}, self._config.duplicate_overlap
        ):
            self._drop(self._states[duplicate])
        self._appearances.watch({s.id: s.box for s in self._states.values() if s.is_sure})

    def tracks(self) -> list[Track]:
        """Return the tracks to publish, oldest first, as they stand in the current frame."""
        sure = (s for s in self._states.values() if s.is_sure)
        return [_published(state) for state in sorted(sure, key=lambda s: s.id)]

    def followed(self) -> list[Track]:
        """Return all tracks, also those that are not yet sure enough to be published."""
        return [_published(state) for state in self._states.values()]

    def remembers(self, track_id: int) -> bool:
        """Return whether this track is followed, or lost so recently that its id may come back."""
        return track_id in self._states or self._appearances.knows(track_id)

    def reach(self, track_id: int) -> float:
        """Return how far from its box a face may be, in units of its side: where else to look for it.

        0 once the speed is known. A face that a late scan has found only once has moved on since.
        """
        state = self._states.get(track_id)
        if state is None or state.hits > 1 or state.misses > 1:
            return 0.0
        motion = state.motion
        std = float(np.sqrt(max(motion.pp[0], motion.pp[1]))) / _side(motion)
        return float(np.clip(2 * std - NEAR_ENOUGH, 0.0, MAX_REACH))

    def wants_embedding(self, track_id: int) -> bool:
        """Return whether an embedding of this track, now, would help to settle who it is."""
        state = self._states.get(track_id)
        return state is not None and state.misses == 0 and self._appearances.wants(track_id)

    def remember(self, embeddings: Mapping[int, F32]) -> dict[int, int]:
        """Store how tracks look, and recognise old tracks in new ones.

        Args:
            embeddings: `(D,)` per track id, of the current frame.

        Returns:
            Tracks that got another id: temporary or wrong id -> right id. A swap has both directions.
        """
        cases = [Candidate(track, e) for track, e in embeddings.items() if track in self._states]
        seen = {s.id for s in self._states.values() if s.misses == 0}
        renamed = self._appearances.settle(cases, self._states.keys(), seen, self._fresh_id)
        if not renamed:
            return {}
        moved = {label: self._states.pop(track) for track, label in renamed.items()}
        for label, state in moved.items():  # a track still coasting under `label` gives way to its owner
            state.id = label
            state.is_sure = state.is_sure or label in self._states
            self._states[label] = state
        return renamed

    def _fresh_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    def _advance(self, state: _State, seq: int, elapsed_s: float) -> None:
        motion = _step(state.motion, elapsed_s)
        state.moments[seq] = _Moment(motion, motion)
        if len(state.moments) > HISTORY:
            del state.moments[next(iter(state.moments))]
        state.age += 1
        if state.misses:
            state.unseen_s += min(elapsed_s, MAX_STEP_S)

    def _begin_again(self) -> None:
        self._times.clear()
        for state in self._states.values():
            state.moments = {0: _Moment(state.motion, state.motion)}
            state.last_hit_seq = 0

    def _correct(self, faces: list[Detection], asked: AbstractSet[int], seq: int) -> list[Detection]:
        """Give each face to its track, count misses of `asked` tracks, return the faces left over."""
        states = list(self._states.values())
        pairs = self._associate(states, faces, seq)
        for row, column in pairs.items():
            self._hit(states[row], faces[column], seq)
        for row, state in enumerate(states):
            if row not in pairs and state.id in asked and state.last_hit_seq < seq:
                state.misses += 1
                if not state.is_sure and state.misses >= 2:
                    self._drop(state)
        left = [face for column, face in enumerate(faces) if column not in pairs.values()]
        held = [corner_form(states[row].at(seq).motion.position) for row in pairs]
        return [face for face in left if not _covered(face, held, self._config.duplicate_overlap)]

    def _associate(self, states: list[_State], faces: list[Detection], seq: int) -> dict[int, int]:
        """Return index of state -> index of face, for the pairs inside the gates."""
        if not states or not faces:
            return {}
        found: F32 = np.stack([face.box for face in faces])
        moments = [state.at(seq).motion for state in states]
        then_c: F64 = np.stack([motion.position for motion in moments])
        overlap = iou(corner_form(then_c), found)
        found_c = centre_form(found)
        leap = np.empty_like(overlap)  # distance in standard deviations
        reach = np.empty_like(overlap)  # distance in faces
        for row, motion in enumerate(moments):
            side = _side(motion)
            std = np.hypot(np.sqrt(motion.pp), MEASUREMENT_STD * side)[:2]
            offset = found_c[:, :2] - then_c[row, :2]
            leap[row] = np.linalg.norm(offset / std, axis=-1)
            reach[row] = np.linalg.norm(offset, axis=-1) / side
        growth = np.abs(np.log(found_c[None, :, 2:] / then_c[:, None, 2:])).max(axis=-1)
        by_motion = (leap <= self._config.motion_gate) & (reach <= MAX_REACH)
        allowed = ((overlap >= self._config.iou_gate) | by_motion) & (growth <= MAX_GROWTH)
        cost = np.where(allowed, (1 - overlap) + 0.5 * np.minimum(reach, MAX_REACH), FORBIDDEN)
        rows, columns = linear_sum_assignment(cost)
        return {int(r): int(c) for r, c in zip(rows, columns, strict=True) if allowed[r, c]}

    def _hit(self, state: _State, face: Detection, seq: int) -> None:
        state.hits += 1
        state.misses, state.score = 0, face.score
        state.evidence = FADING * state.evidence + face.score - CHANCE_SCORE
        self._decide(state)
        if state.unseen_s > REDISCOVERED_S:
            self._appearances.doubt({state.id}, may_be_new=False)
        state.unseen_s = 0.0
        state.measure(face, seq, self._times)

    def _start(self, face: Detection, seq: int) -> None:
        position = centre_form(face.box)
        side = float(np.sqrt(position[2] * position[3]))
        motion = kalman.start(position, MEASUREMENT_STD * side, START_VELOCITY_STD * side)
        moments = {seq: _Moment(motion, motion, position)}
        for before, after in pairwise(s for s in self._times if s >= seq):
            motion = _step(motion, (self._times[after] - self._times[before]) / 1e9)
            moments[after] = _Moment(motion, motion)
        state = _State(self._fresh_id(), face.score, face.score - CHANCE_SCORE, moments, last_hit_seq=seq)
        state.landmarks = ((face.landmarks - face.box[:2]) / (face.box[2:] - face.box[:2])).astype(np.float32)
        self._decide(state)
        self._states[state.id] = state

    def _decide(self, state: _State) -> None:
        """Settle whether a track is a face: it stays one."""
        enough = state.hits >= self._config.min_hits and state.evidence >= self._config.sure_score
        state.is_sure |= enough or state.score >= self._config.sure_score

    def _drop(self, state: _State) -> None:
        del self._states[state.id]
        self._appearances.lose(state.id)


def _side(motion: kalman.Motion) -> float:
    """Return the mean side of a box in px."""
    return float(np.sqrt(motion.position[2] * motion.position[3]))


def _step(motion: kalman.Motion, elapsed_s: float) -> kalman.Motion:
    """Return the motion after `elapsed_s`; after a pause it waits, of unknown speed, where it was."""
    side = _side(motion)
    if elapsed_s > MAX_STEP_S:
        motion = kalman.start(motion.position, MEASUREMENT_STD * side, START_VELOCITY_STD * side)
    motion = kalman.predict(motion, min(max(elapsed_s, 0.0), MAX_STEP_S), ACCELERATION_STD * side)
    np.maximum(motion.position[2:], MIN_SIDE_PX, out=motion.position[2:])
    return motion


def _has_left(state: _State, frame_size: tuple[int, int] | None) -> bool:
    if frame_size is None or not state.misses:
        return False
    x, y = state.motion.position[:2]
    return not (0 <= x < frame_size[0] and 0 <= y < frame_size[1])


def _published(state: _State) -> Track:
    box = state.box
    landmarks: F32 = (box[:2] + state.landmarks * (box[2:] - box[:2])).astype(np.float32)
    return Track(state.id, box, landmarks, state.score, state.misses == 0, state.age)


def _distinct(faces: Sequence[Detection], duplicate_overlap: float) -> list[Detection]:
    """Return the faces without the weaker of two that are the same."""
    kept: list[Detection] = []
    for face in sorted(faces, key=lambda face: -face.score):
        if not _covered(face, [other.box for other in kept], duplicate_overlap):
            kept.append(face)
    return kept


def _covered(face: Detection, boxes: Sequence[F32], duplicate_overlap: float) -> bool:
    if not boxes:
        return False
    one, others = face.box[None], np.stack(boxes)
    return bool(
        iou(one, others).max() > duplicate_overlap or overlap_of_smaller(one, others).max() > SWALLOWED
    )
