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

from .sample import Source
from .sighting import Sighting

F32 = npt.NDArray[np.float32]

REASONS: tuple[Source, ...] = tuple(source for source in Source if source is not Source.USER)
"""Why the daemon itself keeps a face."""

HOUR_NS = 3600 * 10**9
NEIGHBOURS = 5  # k of the k nearest stored embeddings whose mean distance is a face's novelty
REMEMBERED = 2000  # stored embeddings that are compared with
FLICKER_S = 3.0
MAX_TRACKS = 4096  # whose history is kept, those seen last

PerHour = Annotated[int, Meta(ge=0, le=10_000)]


class FlagsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which faces the daemon keeps as samples on its own, for people to label. See docs/loop.md."""

    automatic: bool = False
    """Keep faces that the daemon is unsure of. Off: no picture is stored unless a person flags the face."""
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


class FlagPolicy:
    """Decides face by face. Owned by one thread."""

    def __init__(self, config: FlagsConfig, stored: F32 | None = None) -> None:
        """Begin with `stored`, `(N, D)` embeddings of samples, newest first."""
        self._config = config
        self._budgets: dict[Source, int] = {
            source: getattr(config, f"{source.value}_per_hour") for source in REASONS
        }
        self._kept_ns: dict[Source, deque[int]] = {source: deque() for source in REASONS}
        self._tracks: dict[tuple[str, int], _History] = {}
        self._stored = np.zeros((0, 0), np.float32) if stored is None else stored[:REMEMBERED]

    def judge(self, sighting: Sighting) -> Source | None:
        """Return why `sighting` is worth keeping, or None; sightings of a camera come in their order.

        Chance goes first and asks for nothing but its budget: what it keeps stands for all faces. Of several
        other reasons the first with a budget left counts.
        """
        history = self._follow(sighting)
        now_ns = sighting.captured_ns
        if self._is_drawn(sighting) and self._spend(Source.RANDOM, now_ns):
            return Source.RANDOM
        if sighting.quality < self._config.min_quality or sighting.face_px < self._config.min_face_px:
            return None
        if history.kept_ns is not None and now_ns - history.kept_ns < self._config.track_gap_s * 1e9:
            return None
        for source, applies in (
            (Source.DISAGREEMENT, self._is_disputed),
            (Source.IDENTITY_GREY, self._is_grey),
            (Source.FLICKER, self._flickers),
            (Source.LOW_MARGIN, self._is_close_call),
            (Source.NOVELTY, self._is_novel),
        ):
            if applies(sighting) and self._spend(source, now_ns):
                history.kept_ns = now_ns
                return source
        return None

    def remember(self, embedding: F32) -> None:
        """Note that a face like `embedding` `(D,)` is stored, and no longer new."""
        older = self._stored[: REMEMBERED - 1]
        self._stored = np.concatenate([embedding[None], older]) if len(older) else embedding[None]

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

    def _spend(self, source: Source, now_ns: int) -> bool:
        """Take one from the budget of the hour that ends now; False when it is used up."""
        kept = self._kept_ns[source]
        while kept and now_ns - kept[0] >= HOUR_NS:
            kept.popleft()
        if len(kept) >= self._budgets[source]:
            return False
        kept.append(now_ns)
        return True
