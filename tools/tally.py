"""Add up results as a subscriber sees them: frames, drops, latency, people, emotions over time."""

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt

from ..pipelines.message import EMOTIONS, Face, FaceFrame

F32 = npt.NDArray[np.float32]

MAX_SAMPLES = 200_000  # about two hours at 30 fps; older latencies and emotions are let go


@dataclass(frozen=True, slots=True)
class Mood:
    """The emotion of a camera's largest visible face, at `at_s` seconds after its first frame."""

    at_s: float
    probabilities: tuple[float, ...]


@dataclass(slots=True)
class Tally:
    """What the results of one camera add up to. Owned by the thread that reads them.

    `lost` counts results that were published but never reached this subscriber. `captured` is the newest
    frame number seen, so the ledger can be checked from outside: captured = published + dropped. Without
    `is_from_start` what was before the first result is left out of all counts.
    """

    camera: str
    is_from_start: bool = True
    captured: int = 0
    published: int = 0
    lost: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    faces: int = 0
    tracks: set[int] = field(default_factory=set)
    people: Counter[str] = field(default_factory=Counter)
    strangers: set[str] = field(default_factory=set)
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))
    moods: deque[Mood] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))
    stages_ms: dict[str, deque[float]] = field(default_factory=dict)
    first_ns: int = 0
    last_ns: int = 0
    _run: str = ""
    _seq: int = 0
    _before: int = 0

    def add(self, result: FaceFrame) -> None:
        """Count one result; they must come in the order in which they arrived."""
        if not self._run and not self.is_from_start:
            self._run, self._seq = result.run, result.seq - 1
            self._before = result.frame_seq - 1
            result = msgspec.structs.replace(result, drops={})
        if result.run != self._run:
            self._run, self._seq = result.run, 0
        self.lost += result.seq - self._seq - 1
        self._seq = result.seq
        self.first_ns = self.first_ns or result.captured_ns
        self.last_ns = result.captured_ns
        self.captured = result.frame_seq - self._before
        self.published += 1
        self.dropped.update(result.drops)
        self.latencies_ms.append((result.published_ns - result.captured_ns) / 1e6)
        for stage, spent_ms in result.stages_ms.items():
            self.stages_ms.setdefault(stage, deque(maxlen=MAX_SAMPLES)).append(spent_ms)
        self.faces += len(result.faces)
        self.tracks.update(face.track for face in result.faces)
        self.people.update(f.identity.person for f in result.faces if f.identity.state == "known")
        self.strangers.update(f.identity.person for f in result.faces if f.identity.state == "unknown")
        self._note_mood(result)

    def _note_mood(self, result: FaceFrame) -> None:
        face = main_face(result.faces)
        if face is not None:
            at_s = (result.captured_ns - self.first_ns) / 1e9
            self.moods.append(Mood(at_s, tuple(face.emotion.probabilities)))

    @property
    def in_flight(self) -> int:
        """Frames captured but neither published nor dropped; 0 when the ledger balances."""
        return self.captured - self.published - self.lost - sum(self.dropped.values())

    @property
    def seconds(self) -> float:
        """Seconds of camera time between the first and the last result."""
        return (self.last_ns - self.first_ns) / 1e9

    def mood_by_second(self) -> list[tuple[int, str, float]]:
        """Return second, emotion and mean probability for every second in which there was a face."""
        seconds: dict[int, list[Sequence[float]]] = {}
        for mood in self.moods:
            seconds.setdefault(int(mood.at_s), []).append(mood.probabilities)
        rows = []
        for second, probabilities in sorted(seconds.items()):
            mean: F32 = np.mean(probabilities, axis=0)
            best = int(mean.argmax())
            rows.append((second, EMOTIONS[best], float(mean[best])))
        return rows

    def mood_sentence(self) -> str:
        """Return the emotions in the order in which they came: `sadness 0-11 s, happiness 12-19 s`."""
        spans: list[list[object]] = []
        for second, label, _ in self.mood_by_second():
            if spans and spans[-1][0] == label and spans[-1][2] == second - 1:
                spans[-1][2] = second
            else:
                spans.append([label, second, second])
        return ", ".join(f"{label} {a} s" if a == b else f"{label} {a}-{b} s" for label, a, b in spans)

    def ledger_sentence(self) -> str:
        """Return the ledger in words, ending with whether it balances."""
        return ledger_words(self.captured, self.published + self.lost, self.dropped)


def ledger_words(captured: int, published: int, dropped: Mapping[str, int]) -> str:
    """Return `9 captured = 7 published + 2 dropped (2 stale), ledger balanced`, or what is in flight."""
    reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(dropped.items()) if n)
    n_dropped = sum(dropped.values())
    words = f"{captured} captured = {published} published + {n_dropped} dropped"
    words += f" ({reasons})" if reasons else ""
    in_flight = captured - published - n_dropped
    return f"{words}, ledger balanced" if in_flight == 0 else f"{words} + {in_flight} in flight"


def main_face(faces: Iterable[Face]) -> Face | None:
    """Return the largest visible face whose emotion is known, or None."""
    known = [f for f in faces if f.is_visible and f.emotion.label]
    return max(known, key=lambda f: (f.box[2] - f.box[0]) * (f.box[3] - f.box[1]), default=None)


def percentiles(samples: Iterable[float]) -> Mapping[str, float]:
    """Return `p50`, `p95` and `p99` of `samples`; all 0 when there are none."""
    values = np.fromiter(samples, dtype=np.float64)
    if not len(values):
        return {"p50": 0.0, "p95": 0.0, "p99": 0.0}
    return {f"p{q}": float(np.percentile(values, q)) for q in (50, 95, 99)}
