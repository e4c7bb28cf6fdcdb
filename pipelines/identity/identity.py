"""Who each track is: evidence over several frames, compared with the gallery, with some inertia."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt

from ..message import Identity
from .consent import check_consent, check_note, day_of, has_consent
from .gallery import Gallery
from .matcher import IdentityConfig, Matcher
from .strangers import Strangers

F32 = npt.NDArray[np.float32]

__all__ = ["Identifier", "IdentityConfig"]

STRANGE_DISTANCE = 0.65  # from the mean of its own evidence: another face, or a spoiled chip


@dataclass(slots=True)
class _Look:
    embedding: F32
    quality: float


@dataclass(slots=True)
class _Evidence:
    """What is known of one track. `outlier` is a look that did not fit: once is noise, twice is news."""

    looks: deque[_Look]
    verdict: Identity = field(default_factory=Identity)
    stranger: str = ""
    met_here: bool = False  # the stranger's number was given to this very track
    outlier: _Look | None = None

    def mean(self, min_quality: float) -> _Look:
        """Return the average of the good looks, or of all when none is good."""
        good = [look for look in self.looks if look.quality >= min_quality] or list(self.looks)
        weights = np.array([max(look.quality, 0.05) for look in good], dtype=np.float32)
        stacked = np.stack([look.embedding for look in good])
        mean: F32 = (weights @ stacked / weights.sum()).astype(np.float32)
        return _Look(mean, max(look.quality for look in good))

    def add(self, look: _Look, min_quality: float) -> None:
        """Take in a look; one that does not fit waits for a second like it, which starts afresh."""
        if self.looks and _apart(look, self.mean(min_quality)) > STRANGE_DISTANCE:
            if self.outlier is None or _apart(look, self.outlier) > STRANGE_DISTANCE:
                self.outlier = look
                return
            self.looks.clear()
            self.looks.append(self.outlier)
            self.stranger, self.met_here, self.verdict = "", False, Identity()
        self.outlier = None
        self.looks.append(look)


class Identifier:
    """Gives names to tracks. Owned by the inference thread, with its gallery."""

    def __init__(
        self,
        gallery: Gallery,
        space: str,
        config: IdentityConfig,
        now: Callable[[], float] | None = None,
    ) -> None:
        self._now = now or gallery.now
        self._gallery, self._space, self._config = gallery, space, config
        self._tracks: dict[tuple[str, int], _Evidence] = {}
        self._strangers = Strangers(gallery, space, config)
        self._matcher = self._load()
        self._is_stale = False  # the gallery has changed and could not be read
        gallery.changed()

    def refresh(self) -> bool:
        """Read the gallery again if somebody changed it, or a consent may have expired; return whether.

        Raises:
            StoreError: it cannot be read; people are recognised as before, and the next call tries again.
        """
        is_changed = self._gallery.changed() or self._is_stale
        is_new_day = self._config.require_consent and day_of(self._now()) != self._loaded_on
        if not (is_changed or is_new_day):
            return False
        self._is_stale = True
        self._matcher = self._load()
        self._is_stale = False
        for evidence in self._tracks.values():
            if evidence.stranger not in self._strangers:
                evidence.stranger, evidence.met_here = "", False
            if evidence.verdict.person not in self._matcher.names:
                evidence.verdict = Identity()
        return True

    def enrol(self, name: str, embeddings: F32, *, source: str, consent: str = "") -> int:
        """Add templates `(N, D)` of this identifier's space to `name`; return how many there are now.

        Raises:
            GalleryError: the name cannot be used, or the consent that is required is missing.
        """
        self.check_consent(name, consent)
        sources = [source] * len(embeddings)
        count = self._gallery.enrol(name, embeddings, space=self._space, sources=sources, consent=consent)
        self.refresh()
        return count

    def check_consent(self, name: str, given: str = "") -> None:
        """Refuse to learn who somebody is without their consent, where it is required.

        Raises:
            GalleryError: it is missing or expired, or `given` has a date that nobody would heed.
        """
        check_note(given)
        if self._config.require_consent:
            check_consent(self._gallery, name, given, self._now())

    def identify(
        self, camera: str, track_ids: Sequence[int], embeddings: F32, qualities: F32, captured_ns: int
    ) -> list[Identity]:
        """Return who the tracks are, given new embeddings of them.

        Args:
            camera: name of the camera.
            track_ids: N tracks of it.
            embeddings: `(N, D)`, of this identifier's space.
            qualities: `(N,)` in [0, 1].
            captured_ns: when the frame was captured.
        """
        self._strangers.sweep(captured_ns)
        if not len(track_ids):
            return []
        everyone = []
        for track, embedding, quality in zip(track_ids, embeddings, qualities, strict=True):
            evidence = self._evidence(camera, track)
            evidence.add(_Look(embedding, float(quality)), self._config.min_quality)
            everyone.append(evidence)
        means = [evidence.mean(self._config.min_quality) for evidence in everyone]
        verdicts = self._matcher.match(np.stack([mean.embedding for mean in means]))
        for evidence, mean, verdict in zip(everyone, means, verdicts, strict=True):
            evidence.verdict = self._settle(evidence, mean, verdict, captured_ns)
        return [evidence.verdict for evidence in everyone]

    def forget_track(self, camera: str, track: int) -> None:
        """Drop what is known of a track that will not come back."""
        self._tracks.pop((camera, track), None)

    def rename(self, camera: str, renamed: Mapping[int, int]) -> None:
        """Follow the tracker, which gave tracks other ids (temporary or wrong -> right).

        Evidence belongs to the id, not to the box: after a swap both keep theirs. A temporary id hands
        over its evidence if the right one has none, and loses it otherwise.
        """
        gone = [(track, right) for track, right in renamed.items() if track not in renamed.values()]
        for track, right in gone:
            if right > track:
                continue  # somebody else got a fresh id; the owner of this one may return
            evidence = self._tracks.pop((camera, track), None)
            if evidence is None:
                continue
            if (camera, right) not in self._tracks:
                self._tracks[camera, right] = evidence
            elif evidence.met_here:
                self._strangers.drop(evidence.stranger)

    def _load(self) -> Matcher:
        self._strangers.load()
        self._loaded_on = day_of(self._now())
        templates = self._gallery.templates(self._space)
        if self._config.require_consent:
            for person in self._gallery.people():
                if not has_consent(person.consent, self._now()):
                    templates = templates.without(person.name)
        return Matcher(
            templates,
            self._gallery.templates(self._space, negatives=True),
            self._config,
        )

    def _evidence(self, camera: str, track: int) -> _Evidence:
        fresh = _Evidence(deque(maxlen=self._config.evidence))
        return self._tracks.setdefault((camera, track), fresh)

    def _settle(self, evidence: _Evidence, mean: _Look, found: Identity, captured_ns: int) -> Identity:
        before = evidence.verdict
        if (
            before.state == "known"
            and found.state == "uncertain"
            and found.person == before.person
            and found.distance < self._config.known_distance + self._config.hysteresis
        ):
            found = msgspec.structs.replace(found, state="known")
        if found.state == "known":
            if evidence.met_here:
                self._strangers.drop(evidence.stranger)
            evidence.stranger, evidence.met_here = "", False
        if found.state != "unknown":
            return found
        return msgspec.structs.replace(found, person=self._number(evidence, mean, captured_ns))

    def _number(self, evidence: _Evidence, mean: _Look, captured_ns: int) -> str:
        """Return the stranger's name, the same for the whole track; empty while the view is too poor."""
        if evidence.stranger not in self._strangers:  # another track, whose number it was, gave it back
            evidence.stranger, evidence.met_here = "", False
        if not evidence.stranger and mean.quality >= self._config.stranger_quality:
            evidence.stranger = self._strangers.recognise(mean.embedding)
            if not evidence.stranger:
                evidence.stranger = self._strangers.meet(mean.embedding, mean.quality)
                evidence.met_here = bool(evidence.stranger)
        if evidence.stranger:
            self._strangers.see(evidence.stranger, mean.embedding, mean.quality, captured_ns)
        return evidence.stranger


def _apart(one: _Look, other: _Look) -> float:
    return float(np.linalg.norm(one.embedding - other.embedding))
