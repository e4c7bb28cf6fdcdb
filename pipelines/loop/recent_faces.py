"""The faces analysed lately, in memory only, so that what people saw a moment ago can still be flagged."""

from collections import deque
from collections.abc import Collection

from ..errors import SampleError
from .sample import SamplesConfig
from .sighting import Sighting


class RecentFaces:
    """A bounded memory of sightings, oldest first out. Owned by one thread; time is passed in."""

    def __init__(self, config: SamplesConfig) -> None:
        self._config = config
        self._of_camera: dict[str, deque[Sighting]] = {}
        self._n_bytes = 0

    def __len__(self) -> int:
        return sum(len(sightings) for sightings in self._of_camera.values())

    @property
    def n_bytes(self) -> int:
        """Bytes of all chips and embeddings that are kept."""
        return self._n_bytes

    def add(self, sighting: Sighting) -> None:
        """Keep `sighting`, and drop what no longer has room or is too old by its time."""
        own = self._of_camera.setdefault(sighting.camera, deque())
        own.append(sighting)
        self._n_bytes += _bytes_of(sighting)
        while len(own) > self._config.recent_faces:
            self._drop_first(own)
        while self._n_bytes > self._config.recent_mb * 1e6:
            self._drop_first(min(filter(None, self._of_camera.values()), key=lambda d: d[0].captured_ns))
        self.expire(sighting.captured_ns)

    def expire(self, now_ns: int) -> None:
        """Drop what is too old at `now_ns` (monotonic)."""
        for sightings in self._of_camera.values():
            while sightings and now_ns - sightings[0].captured_ns > self._config.recent_s * 1e9:
                self._drop_first(sightings)

    def forget(self, names: Collection[str]) -> None:
        """Drop the faces that were taken for one of `names`."""
        for camera, sightings in self._of_camera.items():
            kept = deque(s for s in sightings if s.identity.person not in names)
            self._n_bytes -= sum(map(_bytes_of, sightings)) - sum(map(_bytes_of, kept))
            self._of_camera[camera] = kept

    @property
    def names(self) -> set[str]:
        """Everybody that a kept face was taken for."""
        return {s.identity.person for of_one in self._of_camera.values() for s in of_one} - {""}

    def reach_s(self, camera: str, now_ns: int) -> float:
        """Return how many seconds back the faces of `camera` can be flagged; 0 when there are none."""
        sightings = self._of_camera.get(camera)
        return (now_ns - sightings[0].captured_ns) / 1e9 if sightings else 0.0

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
        of_track = [s for s in self._of_camera.get(camera, ()) if s.track == track]
        fitting = [s for s in of_track if seq is None or s.seq <= seq]
        if fitting:
            return fitting[-1]
        reach = f"faces of {camera} can be flagged for {self.reach_s(camera, now_ns):.0f} s back"
        if of_track:
            raise SampleError(
                f"track {track} of camera {camera} at frame {seq} is gone from memory, which begins at frame "
                f"{of_track[0].seq}; {reach}, [samples] recent_faces, recent_mb and recent_s say how far"
            )
        raise SampleError(
            f"there is no face of track {track} of camera {camera} in memory; {reach}, and `visaged watch` "
            "shows the tracks"
        )

    def _drop_first(self, sightings: deque[Sighting]) -> None:
        self._n_bytes -= _bytes_of(sightings.popleft())


def _bytes_of(sighting: Sighting) -> int:
    return sighting.chip.nbytes + (0 if sighting.embedding is None else sighting.embedding.nbytes)
