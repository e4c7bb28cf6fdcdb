"""Publishes results: one topic per camera, numbered without gaps, never waiting for a subscriber."""

import secrets
import time
from pathlib import Path
from typing import Self

import msgspec
import numpy as np
import numpy.typing as npt

from ..pipelines import message
from ..pipelines.message import CameraEnded, FaceFrame
from .sockets import ResultsPublisher

F32 = npt.NDArray[np.float32]


class Publisher:
    """Numbers and sends results. Owned by the inference thread."""

    def __init__(self, runtime: Path) -> None:
        """Bind in `runtime`, an existing folder.

        Raises:
            ConfigError: another process serves this runtime folder.
        """
        self.run = secrets.token_hex(8)
        self._socket = ResultsPublisher(runtime)
        self._seq: dict[str, int] = {}
        self.n_missed = 0  # results that not every subscriber had room for

    def publish(self, draft: FaceFrame, embeddings: F32 | None = None) -> FaceFrame:
        """Send `draft` with run, number and time filled in; return what was sent.

        `embeddings` is `(n, D)`, rows as the faces say.
        """
        result = msgspec.structs.replace(
            draft, run=self.run, seq=self._next(draft.camera), published_ns=time.monotonic_ns()
        )
        self.n_missed += not self._socket.send(message.encode(result, embeddings))
        return result

    def publish_end(self, camera: str, reason: str) -> CameraEnded:
        """Say that no more frames of `camera` will come; return what was sent."""
        ended = CameraEnded(camera=camera, run=self.run, seq=self._next(camera), reason=reason)
        self._socket.send(message.encode(ended))
        return ended

    def count_subscriptions(self) -> int:
        """Return how many subscriptions clients hold now."""
        return self._socket.count_subscriptions()

    def close(self) -> None:
        """Close the socket; a second call does nothing."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _next(self, camera: str) -> int:
        seq = self._seq[camera] = self._seq.get(camera, 0) + 1
        return seq
