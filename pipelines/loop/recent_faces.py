"""The faces analysed lately, in memory only, so that what people saw a moment ago can still be flagged."""

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import NamedTuple

from ..errors import SampleError
from .sample import SamplesConfig
from .sighting import Sighting


class _Shown(NamedTuple):
    """A sighting, and the first frame whose result shows it under its track id."""

    since: int
    sighting: Sighting


class RecentFaces:
    """A bounded memory of sightings, oldest first out. Owned by one thread; time is passed in."""

    def __init__(self, config: SamplesConfig) -> None:
        self._config = config
        self._of_camera: dict[str, deque[_Shown]] = {}
        self._n_bytes = 0

    def __len__(self) -> int:
        return sum(len(shown) for shown in self._of_camera.values())

    @property
    def n_bytes(self) -> int:
        """Bytes of all chips and embeddings that are kept."""
        return self._n_bytes

    def add(self, sighting: Sighting) -> None:
        """Keep `sighting`, and drop what no longer has room or is too old by its time."""
        self._add(_Shown(sighting.seq, sighting))

    def rename(self, camera: str, renamed: Mapping[int, int], seq: int) -> None:
        """Keep what was last said of some tracks under their new ids too, which results have from `seq` on.

        Args:
            camera: theirs.
            renamed: old track id -> new one, all at once: two may have been swapped.
            seq: the frame in which they were renamed.
        """
        last: dict[int, Sighting] = {}
        for shown in self._of_camera.get(camera, ()):
            if shown.sighting.track in renamed:
                last[shown.sighting.track] = shown.sighting
        for track, sighting in last.items():
            self._add(_Shown(seq, replace(sighting, track=renamed[track])))

    def _add(self, shown: _Shown) -> None:
        sighting = shown.sighting
        own = self._of_camera.setdefault(sighting.camera, deque())
        own.append(shown)
        self._n_bytes += _bytes_of(sighting)
        while len(own) > self._config.recent_faces:
            self._drop_first(own)
        while self._n_bytes > self._config.recent_mb * 1e6:
            self._drop_first(min(filter(None, self._of_camera.values()), key=_begin_ns))
        self.expire(sighting.captured_ns)

    def expire(self, now_ns: int) -> None:
        """Drop what is too old at `now_ns` (monotonic)."""
        for own in self._of_camera.values():
            while own and now_ns - _begin_ns(own) > self._config.recent_s * 1e9:
                self._drop_first(own)

    def forget(self, names: Collection[str]) -> None:
        """Drop the faces that were taken for one of `names`."""
        for camera, own in self._of_camera.items():
            kept = deque(shown for shown in own if shown.sighting.identity.person not in names)
            self._n_bytes -= sum(_bytes_of(s) for _, s in own) - sum(_bytes_of(s) for _, s in kept)
            self._of_camera[camera] = kept

    @property
    def names(self) -> set[str]:
        """Everybody that a kept face was taken for."""
        return {s.identity.person for own in self._of_camera.values() for _, s in own} - {""}

    def reach_s(self, camera: str, now_ns: int) -> float:
        """Return how many seconds back the faces of `camera` can be flagged; 0 when there are none."""
        own = self._of_camera.get(camera)
        return (now_ns - _begin_ns(own)) / 1e9 if own else 0.0

    def find(self, camera: str, track: int, seq: int | None, now_ns: int) -> Sighting:
        """Return the face that the results of frame `seq` show for `track`: its last analysis until then.

        Args:
            camera: its camera.
            track: its id in the results.
            seq: `frame_seq` of the result, or `analysed_seq` of the face; None for the latest.
            now_ns: monotonic, for the sentence.

        Raises:
            SampleError: it is gone, or never was.
        """
        of_track = [shown for shown in self._of_camera.get(camera, ()) if shown.sighting.track == track]
        fitting = [shown for shown in of_track if seq is None or shown.since <= seq]
        fitting = fitting or [
            shown for shown in of_track if shown.sighting.seq == seq
        ]  # it was renamed since
        if fitting:
            return fitting[-1].sighting
        reach = f"faces of {camera} can be flagged for {self.reach_s(camera, now_ns):.0f} s back"
        if of_track:
            raise SampleError(
                f"track {track} of camera {camera} at frame {seq} is gone from memory, which begins at frame "
                f"{of_track[0].since}; {reach}, [samples] recent_faces, recent_mb and recent_s say how far"
            )
        raise SampleError(
            f"there is no face of track {track} of camera {camera} in memory; {reach}, and `visaged watch` "
            "shows the tracks"
        )

    def _drop_first(self, own: deque[_Shown]) -> None:
        self._n_bytes -= _bytes_of(own.popleft().sighting)


def _begin_ns(own: deque[_Shown]) -> int:
    return own[0].sighting.captured_ns


def _bytes_of(sighting: Sighting) -> int:
    return sighting.chip.nbytes + (0 if sighting.embedding is None else sighting.embedding.nbytes)
