"""Publishes results: one topic per camera, numbered without gaps, never waiting for a subscriber."""

import secrets
import time
from pathlib import Path
from typing import Self

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from ..pipelines import message
from ..pipelines.errors import ConfigError
from ..pipelines.message import CameraEnded, FaceFrame
from .sockets import ResultsPublisher

F32 = npt.NDArray[np.float32]


class PublisherConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where results go besides the socket `results.ipc` in the runtime folder."""

    endpoint: str = ""
    """A second endpoint for subscribers on other machines, such as `tcp://10.0.0.5:5560`. Default: none."""
    allow_plaintext_tcp: bool = False
    """Must be true for a `tcp://` endpoint: whoever can reach the port reads every face, unencrypted."""


def check_endpoint(config: PublisherConfig) -> None:
    """Refuse an endpoint that would publish faces in the clear without having been asked to.

    Raises:
        ConfigError: not `tcp://` or `ipc://`, or plain `tcp://` without `allow_plaintext_tcp`.
    """
    if not config.endpoint:
        return
    if not config.endpoint.startswith(("tcp://", "ipc://")):
        raise ConfigError(
            f"[publisher] endpoint {config.endpoint!r} must start with tcp:// or ipc://, as tcp://10.0.0.5:5560"
        )
    if config.endpoint.startswith("tcp://") and not config.allow_plaintext_tcp:
        raise ConfigError(
            f"[publisher] endpoint {config.endpoint} would send faces unencrypted; "
            f"use the ipc socket, or set allow_plaintext_tcp = true if the network is yours alone"
        )


class Publisher:
    """Numbers and sends results. Owned by the inference thread."""

    def __init__(self, runtime: Path, config: PublisherConfig | None = None) -> None:
        """Bind in `runtime`, an existing folder, and to the configured endpoint.

        Raises:
            ConfigError: the endpoint is refused or in use.
        """
        config = config or PublisherConfig()
        check_endpoint(config)
        self.run = secrets.token_hex(8)
        self._socket = ResultsPublisher(runtime, config.endpoint)
        self._seq: dict[str, int] = {}

    def publish(self, draft: FaceFrame, embeddings: F32 | None = None) -> FaceFrame:
        """Send `draft` with run, number and time filled in; return what was sent.

        `embeddings` is `(n, D)`, rows as the faces say.
        """
        result = msgspec.structs.replace(
            draft, run=self.run, seq=self._next(draft.camera), published_ns=time.monotonic_ns()
        )
        self._socket.send(message.encode(result, embeddings))
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
