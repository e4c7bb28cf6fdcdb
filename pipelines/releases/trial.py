"""Is a release on trial good enough to go on? Counts what it says beside the one it would replace.

    shadow      answers nobody: a share of the analysed faces is shown to both
    canary      answers for a share of the tracks, which grows
    probation   answers for all; the one before it is still loaded

Some analysed faces are shown to both releases once more, one after the other: what they say and how long
they take is then compared on the same faces, and no difference between cameras or hours gets in.
Owned by one thread. Times are given by the caller.

Shape letters: n faces, K classes.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct
from scipy.special import pdtrc

from ..message import EMOTIONS
from .side_by_side import Comparison

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

Stage = Literal["shadow", "canary", "probation"]
Decision = Literal["go on", "next", "roll back"]
Share = Annotated[float, Meta(gt=0.0, le=1.0)]

SURE_P = 0.01  # of being so unlucky by chance
N_RESAMPLES, LEAST_PAIRS = 300, 30


class PromotionConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a new release is tried, and when it is rolled back by itself."""

    automatic: bool = False
    """Bring what `[learning]` makes into service without a person: gates, shadow, canary, probation. Where a
    gate is not passed, or the evidence too little, the release that serves stays. See docs/releases.md."""
    gate_data: tuple[Path, ...] = ()
    """Folders with FER+, or task files, whose test parts the gates of `automatic` are measured on: 400 faces
    at least. The labelled faces of the site that nothing learned from come to these."""
    gate_slowdown: Annotated[float, Meta(gt=0)] = 1.05
    """Gate: the 95th percentile of its time may be this times that of the release that serves."""
    gate_runs: Annotated[int, Meta(ge=20, le=10_000)] = 200
    """Gate: batches of 8 faces that are timed on each of the two; of fewer the percentile says less."""
    compared_share: Share = 0.1
    """Share of the analysed faces that are shown to both releases while one is on trial."""
    shadow_tracks: Annotated[int, Meta(ge=1)] = 500
    """Tracks after which the shadow ends."""
    shadow_minutes: Annotated[float, Meta(ge=0)] = 30.0
    """Time after which the shadow ends with fewer tracks, but not before `least_tracks` were compared."""
    canary_shares: tuple[Share, ...] = (0.1, 0.5, 1.0)
    """Shares of the tracks that a canary answers for, one after the other."""
    canary_minutes: Annotated[float, Meta(ge=0)] = 10.0
    """How long each share lasts, and longer until `least_tracks` were compared."""
    probation_hours: Annotated[float, Meta(ge=0)] = 24.0
    """How long the release before stays loaded after a promotion."""
    least_tracks: Annotated[int, Meta(ge=1)] = 50
    """Compared tracks before which its answers are not held against a release: many looks at few faces are
    evidence of these few."""
    least_agreement: Annotated[float, Meta(ge=0, le=1)] = 0.8
    """Roll back when both say the same emotion of a smaller share of the faces."""
    max_psi: Annotated[float, Meta(gt=0)] = 0.25
    """Roll back when the emotions it says are spread so differently: population stability index."""
    max_confidence_shift: Annotated[float, Meta(gt=0, le=1)] = 0.05
    """End the shadow when its mean confidence differs by more."""
    max_slowdown: Annotated[float, Meta(gt=1)] = 1.2
    """Roll back when the 95th percentile of its time is more than this times that of the other."""
    latency_window_s: Annotated[float, Meta(gt=0)] = 60.0
    """Over how long that is looked at. s."""
    max_correction_ratio: Annotated[float, Meta(gt=1)] = 2.0
    """Roll back when people correct it this many times as often, and that is no chance (p < 0.01)."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do, what it follows from (a word for the metric), and a sentence."""

    decision: Decision
    reason: str = ""
    sentence: str = ""


@dataclass(slots=True)
class Exposure:
    """How many tracks a release answered for, and how often people corrected it."""

    tracks: set[tuple[str, int]]
    corrections: int = 0


GO_ON = Verdict("go on")


class Trial:
    """What is known about one release on trial, stage after stage."""

    def __init__(self, config: PromotionConfig, stage: Stage, now_s: float) -> None:
        self._config = config
        self.stage = stage
        self.ours, self.theirs = Exposure(set()), Exposure(set())
        self._failure = ""
        self._step = 0
        self._took: deque[tuple[float, float, float]] = deque()  # goes on while a canary grows
        self._begin(now_s)

    @property
    def share(self) -> float:
        """Share of the tracks that it answers for."""
        if self.stage == "canary":
            return self._config.canary_shares[self._step]
        return 1.0 if self.stage == "probation" else 0.0

    @property
    def agreement(self) -> float:
        """Share of the compared faces of which both say the same emotion; 1 when there is none."""
        return self._n_agreed / self.n_faces if self.n_faces else 1.0

    def enter(self, stage: Stage, now_s: float) -> None:
        """Begin with the next stage; what people corrected so far is kept to compare with."""
        self.stage, self._step = stage, 0
        self._took.clear()
        self._begin(now_s)

    def grow(self, now_s: float) -> bool:
        """Go on to the next share of a canary; False when there is none."""
        if self.stage != "canary" or self._step + 1 >= len(self._config.canary_shares):
            return False
        self._step += 1
        self._begin(now_s)
        return True

    def fail(self, sentence: str) -> None:
        """Note that its engine failed, or said what is no number."""
        self._failure = self._failure or sentence

    def answered(self, camera: str, tracks: Sequence[int], *, is_ours: bool) -> None:
        """Note which release answered for tracks: the one on trial or the other."""
        (self.ours if is_ours else self.theirs).tracks.update((camera, track) for track in tracks)

    def corrected(self, camera: str, track: int) -> None:
        """Note that a person corrected what was said about a track."""
        for exposure in (self.ours, self.theirs):
            exposure.corrections += (camera, track) in exposure.tracks

    def compare(self, comparison: Comparison, now_s: float) -> None:
        """Note what both releases said about the same faces, at `now_s` of a clock that only goes on."""
        ours, theirs = comparison.ours, comparison.theirs
        a, b = ours.argmax(axis=1), theirs.argmax(axis=1)
        self._tracks.update(comparison.faces)
        self.n_faces += len(ours)
        self._n_agreed += int((a == b).sum())
        self._counts += np.stack([np.bincount(x, minlength=len(EMOTIONS)) for x in (a, b)])
        self._confidence += [float(ours.max(axis=1).sum()), float(theirs.max(axis=1).sum())]
        self._took.append((now_s, comparison.ours_s, comparison.theirs_s))
        while self._took[0][0] < now_s - self._config.latency_window_s:
            self._took.popleft()

    def verdict(self, now_s: float) -> Verdict:
        """Return whether to go on, to go to the next stage, or to roll back."""
        if self._failure:
            return Verdict("roll back", "fault", self._failure)
        if bad := self._of_corrections() or self._of_answers() or self._of_latency():
            return bad
        return Verdict("next") if self._is_over(now_s - self._since_s) else GO_ON

    def report(self) -> dict[str, Any]:
        """Return the figures, for people and metrics; shares are in 0..1."""
        slow = self._p95()
        return {
            "stage": self.stage,
            "share": self.share,
            "faces": self.n_faces,
            "tracks": len(self._tracks),
            "agreement": self.agreement if self.n_faces else None,
            "psi": psi(self._counts[0], self._counts[1]) if self.n_faces else None,
            "confidence_shift": self._shift if self.n_faces else None,
            "slowdown": slow[0] / slow[1] if self._took and slow[1] else None,
            "corrections": [self.ours.corrections, self.theirs.corrections],
        }

    def _begin(self, now_s: float) -> None:
        self._since_s = now_s
        self.n_faces = self._n_agreed = 0
        self._tracks: set[tuple[str, int]] = set()
        self._counts: I64 = np.zeros((2, len(EMOTIONS)), np.int64)
        self._confidence: F64 = np.zeros(2)

    @property
    def _shift(self) -> float:
        ours, theirs = self._confidence / max(self.n_faces, 1)
        return float(ours - theirs)

    def _is_over(self, passed_s: float) -> bool:
        config, n_tracks = self._config, len(self._tracks)
        is_enough = n_tracks >= config.least_tracks
        match self.stage:
            case "shadow":
                is_late = passed_s >= config.shadow_minutes * 60 and is_enough
                return is_late or n_tracks >= config.shadow_tracks
            case "canary":
                return passed_s >= config.canary_minutes * 60 and is_enough
        return passed_s >= config.probation_hours * 3600

    def _of_answers(self) -> Verdict | None:
        config = self._config
        if len(self._tracks) < config.least_tracks:
            return None
        if self.agreement < config.least_agreement:
            return _bad(
                "agreement",
                f"it agrees on {self.agreement:.0%} of {self.n_faces} faces",
                config.least_agreement,
            )
        drift = psi(self._counts[0], self._counts[1])
        if drift > config.max_psi:
            return _bad("psi", f"its emotions are spread otherwise: PSI {drift:.2f}", config.max_psi)
        if self.stage == "shadow" and abs(self._shift) > config.max_confidence_shift:
            said = f"its mean confidence is {self._shift:+.3f} from the other's"
            return _bad("confidence", said, config.max_confidence_shift)
        return None

    def _of_latency(self) -> Verdict | None:
        """Say that it is slower than allowed, when the lower end of a paired bootstrap is."""
        limit = self._config.max_slowdown
        if len(self._took) < LEAST_PAIRS:
            return None
        ours, theirs = self._p95()
        if ours <= limit * theirs:
            return None
        pairs = np.array(self._took)[:, 1:]
        rows = np.random.default_rng(0).integers(0, len(pairs), (N_RESAMPLES, len(pairs)))
        p95 = np.quantile(pairs[rows], 0.95, axis=1)
        if float(np.quantile(p95[:, 0] / p95[:, 1], 0.05)) <= limit:
            return None
        return _bad("latency", f"its 95th percentile is {ours / theirs:.2f} times the other's", limit)

    def _p95(self) -> tuple[float, float]:
        if not self._took:
            return 0.0, 0.0
        ours, theirs = np.quantile(np.array(self._took)[:, 1:], 0.95, axis=0)
        return float(ours), float(theirs)

    def _of_corrections(self) -> Verdict | None:
        ours, theirs, limit = self.ours, self.theirs, self._config.max_correction_ratio
        if not ours.corrections or not theirs.tracks:
            return None
        usual = max(theirs.corrections, 1) / len(theirs.tracks) * len(ours.tracks)
        by_chance = float(pdtrc(ours.corrections - 1, usual))
        if ours.corrections <= limit * usual or by_chance >= SURE_P:
            return None
        said = f"people corrected it {ours.corrections} times where {usual:.1f} were to be expected"
        return _bad("corrections", said, limit)


def psi(ours: I64, theirs: I64) -> float:
    """Return the population stability index of two counts `(K,)`; each class counts half a face more.

    Source: Siddiqi, "Credit risk scorecards", 2006, chapter 9; above 0.25 a shift is held to be large.
    """
    a, b = ((counts + 0.5) / (counts.sum() + 0.5 * len(counts)) for counts in (ours, theirs))
    return float(((a - b) * np.log(a / b)).sum())


def _bad(reason: str, said: str, limit: float) -> Verdict:
    return Verdict("roll back", reason, f"{said} (limit {limit:g})")
