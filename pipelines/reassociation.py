"""Recognise tracks by appearance: who came back, who was hidden, and which two were swapped.

Motion cannot say who is who after a crossing or an absence; embeddings can. This is short-term memory
for stable track ids only: it knows no names and is never stored (the gallery is `identity`'s).
"""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from ..kernels.boxes import iou

F32 = npt.NDArray[np.float32]

YOUTH = 3  # embeddings after which a track's own appearance is trusted more than a likeness to a lost one
MAX_TRIES = 4  # embeddings spent on one doubt
MAX_REMEMBERED = 512  # appearances of lost tracks; the oldest go first
TWIN = 0.7  # two memories nearer than this share of `distance` are one person under two ids
STRANGE = 1.3  # an embedding farther than this multiple of `distance` is somebody else
MAX_TURNS = 2  # a crossing changes who is seen at most once
FORBIDDEN = 1e3
ENTANGLED_IOU = 0.02


@dataclass(frozen=True, slots=True)
class Candidate:
    """A track and its embedding `(D,)` in the current frame."""

    track: int
    embedding: F32


@dataclass(slots=True)
class Appearance:
    """How the owner of a track id looks: a running mean of embeddings."""

    mean: F32
    count: int = 1
    lost_ns: int | None = None

    def add(self, embedding: F32) -> None:
        """Move the mean towards `embedding`."""
        self.count += 1
        self.mean = self.mean + (embedding - self.mean) / np.float32(min(self.count, 8))


@dataclass(slots=True)
class _Doubt:
    """Why a track may not be who it was: the tracks it met, or a jump nothing explains."""

    partners: set[int] = field(default_factory=set)
    tries: int = 0
    may_be_new: bool = False


class Appearances:
    """Appearance by track id, for one camera. Owned by its `Tracker`."""

    def __init__(self, *, distance: float, gap: float, return_within_ns: int) -> None:
        self._distance = distance
        self._gap = gap
        self._return_within_ns = return_within_ns
        self._memory: dict[int, Appearance] = {}
        self._doubts: dict[int, _Doubt] = {}
        self._entangled: set[int] = set()
        self._now_ns = 0

    def knows(self, track: int) -> bool:
        """Return whether it is remembered how `track` looks."""
        return track in self._memory

    def watch(self, boxes: Mapping[int, F32]) -> None:
        """Note which tracks touch each other: once they part, their ids need a look."""
        ids = list(boxes)
        self._entangled = set()
        if len(ids) < 2:
            return
        stacked: F32 = np.stack([boxes[i] for i in ids])
        for i, j in np.argwhere(np.triu(iou(stacked, stacked), 1) > ENTANGLED_IOU):
            for one, other in ((ids[i], ids[j]), (ids[j], ids[i])):
                self._entangled.add(one)
                doubt = self._doubts.setdefault(one, _Doubt())
                doubt.partners.add(other)
                doubt.tries, doubt.may_be_new = 0, True

    def doubt(self, tracks: AbstractSet[int], *, may_be_new: bool) -> None:
        """Ask for a look at `tracks`: found again, or after a jump or pause (`may_be_new`: of anybody)."""
        for track in tracks:
            doubt = self._doubts.setdefault(track, _Doubt())
            doubt.tries, doubt.may_be_new = 0, doubt.may_be_new or may_be_new

    def wants(self, track: int) -> bool:
        """Return whether an embedding of `track` would help now."""
        memory = self._memory.get(track)
        if memory is None:
            return True
        return track not in self._entangled and (memory.count < YOUTH or track in self._doubts)

    def lose(self, track: int) -> None:
        """Keep the appearance of a track that ended, for its return."""
        self._doubts.pop(track, None)
        self._entangled.discard(track)
        if track in self._memory:
            self._memory[track].lost_ns = self._now_ns

    def advance(self, now_ns: int) -> None:
        """Set the time, and forget who has been away for too long."""
        self._now_ns = now_ns
        lost = {t: a.lost_ns for t, a in self._memory.items() if a.lost_ns is not None}
        oldest_first = sorted(lost, key=lambda track: lost[track])
        surplus = max(0, len(lost) - MAX_REMEMBERED)
        for rank, track in enumerate(oldest_first):
            if rank < surplus or now_ns - lost[track] > self._return_within_ns:
                del self._memory[track]

    def settle(
        self,
        candidates: Sequence[Candidate],
        alive: AbstractSet[int],
        seen: AbstractSet[int],
        fresh_id: Callable[[], int],
    ) -> dict[int, int]:
        """Take in new embeddings and return which tracks get another id.

        Args:
            candidates: tracks with an embedding of this frame.
            alive: all current tracks.
            seen: those of them that do not coast.
            fresh_id: gives an id never used before.
        """
        open_cases = [c for c in candidates if self._is_young(c.track) or c.track in self._doubts]
        renamed = self._resolve(self._match(open_cases, alive, seen), alive, seen)
        for case in open_cases:
            if case.track not in renamed and self._is_somebody_else(case):
                renamed[case.track] = fresh_id()
        self._apply(renamed)
        for candidate in candidates:
            self._take_in(renamed.get(candidate.track, candidate.track), candidate.embedding)
        return renamed

    def _is_young(self, track: int) -> bool:
        memory = self._memory.get(track)
        return memory is None or memory.count < YOUTH

    def _match(
        self, cases: Sequence[Candidate], alive: AbstractSet[int], seen: AbstractSet[int]
    ) -> dict[int, int]:
        """Return the remembered id that each case clearly has, if any."""
        labels = sorted(self._memory)
        if not cases or not labels:
            return {}
        means: F32 = np.stack([self._memory[label].mean for label in labels])
        faces: F32 = np.stack([case.embedding for case in cases])
        true_cost = np.linalg.norm(faces[:, None] - means[None], axis=-1)
        cost = np.where(self._eligible(cases, labels, alive, seen), true_cost, FORBIDDEN)
        for row, case in enumerate(cases):
            if case.track in labels:  # the id it has, unless another is clearly better
                cost[row, labels.index(case.track)] -= self._gap
        matches = {}
        rows, columns = linear_sum_assignment(cost)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            label, track = labels[column], cases[row].track
            if cost[row, column] >= FORBIDDEN / 2 or true_cost[row, column] >= self._distance:
                continue
            apart = np.linalg.norm(means - means[column], axis=-1) >= TWIN * self._distance
            rivals = cost[row][apart]
            if label == track or rivals.size == 0 or rivals.min() - true_cost[row, column] >= self._gap:
                matches[track] = label
        return matches

    def _eligible(
        self,
        cases: Sequence[Candidate],
        labels: Sequence[int],
        alive: AbstractSet[int],
        seen: AbstractSet[int],
    ) -> npt.NDArray[np.bool_]:
        """Return `(cases, labels)` whether a case may turn out to be that label at all."""
        deciding = {case.track for case in cases}
        allowed = np.zeros((len(cases), len(labels)), dtype=bool)
        for row, case in enumerate(cases):
            doubt = self._doubts.get(case.track)
            partners = doubt.partners if doubt else set()
            young = self._is_young(case.track)
            for column, label in enumerate(labels):
                lost_or_hidden = label not in alive or (label not in seen and (young or label in partners))
                met = label in partners or (label in deciding and not self._is_young(label))
                allowed[row, column] = label == case.track or lost_or_hidden or met
        return allowed

    def _resolve(
        self, matches: Mapping[int, int], alive: AbstractSet[int], seen: AbstractSet[int]
    ) -> dict[int, int]:
        """Turn matches into a renaming in which no id is held twice."""
        for track, label in matches.items():
            if track == label:
                self._doubts.pop(track, None)
        renamed = {track: label for track, label in matches.items() if track != label}
        for track, label in list(renamed.items()):
            if label not in alive or label in renamed or track not in renamed:
                continue
            chain = [track]  # who takes whose id, back to the one whose id nobody takes
            while taker := next((t for t, taken in renamed.items() if taken == chain[-1]), None):
                chain.append(taker)
            if not self._is_young(chain[-1]):
                renamed[label] = chain[-1]  # swapped: the holder gets the id that is left over
            elif label in seen:  # a newcomer looks like somebody who is here: too little to go by
                for link in chain:
                    del renamed[link]
        return renamed

    def _is_somebody_else(self, case: Candidate) -> bool:
        doubt, memory = self._doubts.get(case.track), self._memory.get(case.track)
        if doubt is None or memory is None:
            return False
        doubt.tries += 1
        strange = float(np.linalg.norm(case.embedding - memory.mean)) > STRANGE * self._distance
        if doubt.tries < MAX_TRIES:
            return False
        del self._doubts[case.track]
        return strange and doubt.may_be_new

    def _apply(self, renamed: Mapping[int, int]) -> None:
        for track, label in renamed.items():
            self._doubts.pop(track, None)
            self._doubts.pop(label, None)
            if track in renamed.values():
                continue
            if self._is_young(track):
                self._memory.pop(track, None)  # it was never a person of its own
            elif track in self._memory:
                self._memory[track].lost_ns = self._now_ns
        for label in renamed.values():
            if label in self._memory:
                self._memory[label].lost_ns = None

    def _take_in(self, track: int, embedding: F32) -> None:
        memory = self._memory.get(track)
        if memory is None:
            self._memory[track] = Appearance(embedding.astype(np.float32, copy=True))
        elif memory.count < YOUTH or np.linalg.norm(embedding - memory.mean) < self._distance:
            memory.add(embedding)


class Handovers:
    """Finds two tracks that take turns on one face: the younger is a duplicate."""

    def __init__(self) -> None:
        self._turns: dict[tuple[int, int], tuple[int, int]] = {}  # pair -> who was seen last, changes

    def duplicates(self, tracks: Mapping[int, tuple[F32, bool]], overlap: float) -> list[int]:
        """Return the ids to drop; `tracks` has box and whether it was seen now, per id."""
        ids = sorted(tracks)
        if len(ids) < 2:
            self._turns.clear()
            return []
        boxes: F32 = np.stack([tracks[i][0] for i in ids])
        touching = [(ids[i], ids[j]) for i, j in np.argwhere(np.triu(iou(boxes, boxes), 1) > overlap)]
        self._turns = {pair: turn for pair, turn in self._turns.items() if pair in touching}
        dropped = []
        for pair in touching:
            seen = [track for track in pair if tracks[track][1]]
            if len(seen) != 1:
                continue
            last, changes = self._turns.get(pair, (seen[0], 0))
            changes += last != seen[0]
            self._turns[pair] = (seen[0], changes)
            if changes >= MAX_TURNS and pair[1] not in dropped:
                dropped.append(pair[1])
        return dropped
