"""Which faces the daemon itself keeps as samples, so that people look where it is likely to be wrong.

Pure: no clock, no disk; time comes with the sightings and chance from their ids, so that a replayed video
flags the same faces again.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

from ...kernels.looks import difference_hash, looks_like
from .sample import Source
from .sighting import Sighting

F32 = npt.NDArray[np.float32]
U64 = npt.NDArray[np.uint64]

REASONS: tuple[Source, ...] = tuple(source for source in Source if source is not Source.USER)
"""Why the daemon itself keeps a face."""

HOUR_NS, DAY_S = 3600 * 10**9, 86_400.0
NEIGHBOURS = 5  # k of the k nearest stored embeddings whose mean distance is a face's novelty
REMEMBERED = 2000  # stored embeddings and looks that are compared with
FLICKER_S = 3.0
MAX_TRACKS = 4096  # whose history is kept, those seen last

PerHour = Annotated[int, Meta(ge=0, le=10_000)]


class FlagsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which faces the daemon keeps as samples on its own, for people to label. See docs/loop.md."""

    automatic: bool = False
    """Keep faces that the daemon is unsure of. Off: no picture is stored unless a person flags the face."""
    per_day: Annotated[int, Meta(ge=0, le=100_000)] = 200
    """Faces kept in any 24 hours at most, for all reasons together: what people can label, and may be kept
    of those who pass."""
    random_share: Annotated[float, Meta(ge=0, le=1)] = 0.002
    """Share of all analysed faces kept whatever they look like: without it nothing says how good the daemon
    is on all faces."""
    random_per_hour: PerHour = 20
    """Of these, at most so many an hour."""
    disagreement: Annotated[float, Meta(ge=0, le=1)] = 0.36
    """Disagreement of the members (as published) from which a face is kept; 0.36 is 0.25 nats for two."""
    disagreement_per_hour: PerHour = 20
    """Of these, at most so many an hour."""
    low_margin: Annotated[float, Meta(ge=0, le=1)] = 0.15
    """Lead of the likeliest emotion over the second below which a face is kept."""
    low_margin_per_hour: PerHour = 10
    """Of these, at most so many an hour."""
    novelty: Annotated[float, Meta(gt=0, le=2)] = 0.6
    """Mean Euclidean distance to the 5 nearest stored embeddings from which a face is kept."""
    novelty_per_hour: PerHour = 10
    """Of these, at most so many an hour."""
    identity_grey: Annotated[float, Meta(gt=0, le=2)] = 0.65
    """Distance to the nearest person up to which a face without a sure name is kept."""
    identity_grey_per_hour: PerHour = 10
    """Of these, at most so many an hour."""
    flicker: Annotated[int, Meta(ge=1, le=100)] = 4
    """Changes of a track's emotion within 3 s from which a face is kept."""
    flicker_per_hour: PerHour = 10
    """Of these, at most so many an hour."""
    min_quality: Annotated[float, Meta(ge=0, le=1)] = 0.2
    """Quality below which only chance keeps a face."""
    min_face_px: Annotated[int, Meta(ge=0, le=10_000)] = 80
    """Side of the face in px of the frame below which only chance keeps it."""
    track_gap_s: Annotated[float, Meta(ge=0, le=3600)] = 10.0
    """Seconds between two samples of one track, those of chance aside."""


@dataclass(slots=True)
class _History:
    """What is known of a track: when it was kept last, its last emotion, and when that changed."""

    kept_ns: int | None = None
    emotion: str = ""
    changes_ns: deque[int] = field(default_factory=lambda: deque(maxlen=100))


@dataclass(frozen=True, slots=True)
class Kept:
    """What is stored already, newest first.

    `embeddings` `(N, D)`, and the `looks` `(M,)` of chips as `difference_hash`. `at` is when the faces that
    the daemon kept on its own were captured, wall-clock seconds since 1970. Hashes of faces are made when
    they are needed and are nowhere on disk.
    """

    embeddings: F32
    looks: U64
    at: tuple[float, ...] = ()


NOTHING_KEPT = Kept(np.zeros((0, 0), np.float32), np.zeros(0, np.uint64))


class FlagPolicy:
    """Decides face by face. Owned by one thread."""

    def __init__(self, config: FlagsConfig, kept: Kept = NOTHING_KEPT) -> None:
        """Begin with what is `kept`."""
        self._config = config
        self._budgets: dict[Source, int] = {
            source: getattr(config, f"{source.value}_per_hour") for source in REASONS
        }
        self._kept_ns: dict[Source, deque[int]] = {source: deque() for source in REASONS}
        self._tracks: dict[tuple[str, int], _History] = {}
        self._stored: F32
        self._looks: U64
        self.remember_only(kept)
        self._kept_at = list(kept.at)

    def judge(self, sighting: Sighting) -> Source | None:
        """Return why `sighting` is worth keeping, or None; sightings of a camera come in their order.

        What looks like a stored face is not. Chance goes first and asks for nothing else but its budget: what
        it keeps stands for all faces. Of several other reasons the first with a budget left counts.
        """
        history = self._follow(sighting)
        reasons = self._reasons(sighting, history)
        if not reasons or self._is_full(sighting.captured_at) or self._is_stored(sighting):
            return None
        for source in reasons:
            if self._spend(source, sighting):
                if source is not Source.RANDOM:
                    history.kept_ns = sighting.captured_ns
                return source
        return None

    def remember(self, sighting: Sighting) -> None:
        """Note that `sighting` is stored: it is no longer new, and what looks like it is not kept."""
        look = np.array([difference_hash(sighting.chip)], np.uint64)
        self._looks = np.concatenate([look, self._looks[: REMEMBERED - 1]])
        if sighting.embedding is not None:
            older, embedding = self._stored[: REMEMBERED - 1], sighting.embedding[None]
            self._stored = np.concatenate([embedding, older]) if len(older) else embedding

    def remember_only(self, kept: Kept) -> None:
        """Forget every face that is not among `kept`; the budgets stay as they are."""
        self._stored, self._looks = kept.embeddings[:REMEMBERED], kept.looks[:REMEMBERED]

    def _reasons(self, sighting: Sighting, history: _History) -> list[Source]:
        """Return every reason for keeping a face, the first to be asked first."""
        config, now_ns = self._config, sighting.captured_ns
        reasons = [Source.RANDOM] if self._is_drawn(sighting) else []
        if sighting.quality < config.min_quality or sighting.face_px < config.min_face_px:
            return reasons
        if history.kept_ns is not None and now_ns - history.kept_ns < config.track_gap_s * 1e9:
            return reasons
        others = (
            (Source.DISAGREEMENT, self._is_disputed),
            (Source.IDENTITY_GREY, self._is_grey),
            (Source.FLICKER, self._flickers),
            (Source.LOW_MARGIN, self._is_close_call),
            (Source.NOVELTY, self._is_novel),
        )
        return [*reasons, *(source for source, applies in others if applies(sighting))]

    def _is_stored(self, sighting: Sighting) -> bool:
        """Whether a stored face looks the same."""
        return bool(looks_like(difference_hash(sighting.chip), self._looks).any())

    def _is_full(self, now_s: float) -> bool:
        """Whether the day that ends now has had its faces; a clock set far away has not been here."""
        self._kept_at = [at for at in self._kept_at if abs(now_s - at) < DAY_S]
        return len(self._kept_at) >= self._config.per_day

    def _follow(self, sighting: Sighting) -> _History:
        """Take `sighting` into the history of its track, which becomes the one seen last."""
        place = (sighting.camera, sighting.track)
        history = self._tracks.pop(place, None) or _History()
        self._tracks[place] = history
        while len(self._tracks) > MAX_TRACKS:
            del self._tracks[next(iter(self._tracks))]
        if history.emotion and sighting.emotion != history.emotion:
            history.changes_ns.append(sighting.captured_ns)
        history.emotion = sighting.emotion
        return history

    def _is_drawn(self, sighting: Sighting) -> bool:
        """Chance, from the id: the same for the same sighting."""
        return int(sighting.id, 16) < self._config.random_share * 16.0 ** len(sighting.id)

    def _is_disputed(self, sighting: Sighting) -> bool:
        return sighting.probabilities is not None and sighting.disagreement >= self._config.disagreement

    def _is_grey(self, sighting: Sighting) -> bool:
        identity = sighting.identity
        is_near = 0 <= identity.distance <= self._config.identity_grey
        return is_near and identity.state in ("uncertain", "unknown")

    def _flickers(self, sighting: Sighting) -> bool:
        changes = self._tracks[sighting.camera, sighting.track].changes_ns
        lately = [at for at in changes if sighting.captured_ns - at <= FLICKER_S * 1e9]
        return len(lately) >= self._config.flicker

    def _is_close_call(self, sighting: Sighting) -> bool:
        if sighting.probabilities is None:
            return False
        second, first = np.sort(sighting.probabilities)[-2:]
        return bool(first - second < self._config.low_margin)

    def _is_novel(self, sighting: Sighting) -> bool:
        """Whether it is far from everything stored; with hardly anything stored, everything would be."""
        if sighting.embedding is None or len(self._stored) < NEIGHBOURS:
            return False
        distances = np.linalg.norm(self._stored - sighting.embedding, axis=1)
        return bool(np.sort(distances)[:NEIGHBOURS].mean() >= self._config.novelty)

    def _spend(self, source: Source, sighting: Sighting) -> bool:
        """Take one from the budget of the hour that ends now; False when it is used up."""
        kept, now_ns = self._kept_ns[source], sighting.captured_ns
        while kept and now_ns - kept[0] >= HOUR_NS:
            kept.popleft()
        if len(kept) >= self._budgets[source]:
            return False
        kept.append(now_ns)
        self._kept_at.append(sighting.captured_at)
        return True
