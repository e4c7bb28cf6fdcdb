"""Look at the frames that results are about, in the rings of a daemon on this machine.

The frame is still in the ring when its result arrives: the ring holds a quarter of a second, an answer takes
a tenth of that. It is found by its `captured_ns` and copied under the ring's own check against torn
frames, so a picture is never drawn on another frame; when it is gone, there is no picture. This serves
cameras, files and streams alike, and the daemon does not notice.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..daemon.ring import Descriptor, RingReader, rings_of
from ..pipelines.errors import RingError
from ..pipelines.message import FaceFrame

U8 = npt.NDArray[np.uint8]


class FrameTap:
    """A second reader of every camera's ring. Owned by one thread."""

    def __init__(self, shm: Path, instance: str) -> None:
        """Read the rings that the daemon called `instance` has in folder `shm`."""
        self._shm = shm
        self._instance = instance
        self._rings: dict[str, RingReader] = {}
        self.missed = 0

    def frame_of(self, result: FaceFrame) -> U8 | None:
        """Return a copy of the frame that `result` is about, `(H, W, 3)`, or None when it is gone."""
        ring = self._rings.get(result.camera) or self._open(result.camera)
        if ring is not None and ring.find(result.captured_ns) is None:
            ring = self._open(result.camera)  # the capture process may have started again
        rgb = None if ring is None else _read(ring, result)
        self.missed += rgb is None
        return rgb

    def close(self) -> None:
        """Let go of all rings."""
        for ring in self._rings.values():
            ring.close()
        self._rings.clear()

    def _open(self, camera: str) -> RingReader | None:
        prefix = f"visaged-{self._instance}-{camera}-"
        names = [p.name for p in rings_of(self._shm, f"{self._instance}-{camera}")]
        names = [name for name in names if name.rpartition("-")[0] + "-" == prefix]
        old = self._rings.get(camera)
        if old is not None and old.id in names:
            return old
        for name in names:
            try:
                ring = RingReader(self._shm, name)
            except RingError:  # just being made, or just gone
                continue
            if old is not None:
                old.close()
            self._rings[camera] = ring
            return ring
        return old


def _read(ring: RingReader, result: FaceFrame) -> U8 | None:
    found = ring.find(result.captured_ns)
    if found is None:
        return None
    slot, generation = found
    descriptor = Descriptor(
        kind="frame", policy="live", seq=result.frame_seq, dropped_before=0, ring=ring.id, slot=slot,
        generation=generation, width=result.width, height=result.height,
    )  # fmt: skip
    if generation % 2:  # it is being overwritten at this moment
        return None
    return ring.read(descriptor)
