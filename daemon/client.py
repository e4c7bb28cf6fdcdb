"""A subscriber for programs that use visaged's results. Needs pyzmq, msgspec and numpy, nothing else.

from visaged.daemon.client import Subscriber

with Subscriber("ipc:///run/visaged/results.ipc", cameras=["door"], timeout_s=5) as results:
    for result, embeddings in results:
        for face in result.faces:
            print(result.camera, face.track, face.identity.person, face.emotion.label)
    print(results.n_lost, "results were lost")

From another machine: Subscriber("tcp://10.0.0.5:5560", key=Path("laptop.key")), see docs/security.md.
"""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from ..pipelines import message
from ..pipelines.errors import MessageError
from ..pipelines.message import TOPIC_PREFIX, CameraEnded, FaceFrame, Result, topic_of
from .keys import read_client
from .sockets import ResultsSubscriber

F32 = npt.NDArray[np.float32]


class Subscriber:
    """Receives results, notices losses. Owned by the thread that made it.

    `lost` counts, per camera, the results that this subscriber was too slow for (holes in `seq`).
    `n_malformed` counts messages that were not valid results; `n_runs` how often the daemon was seen
    to start. A daemon that is not up yet, or restarts, is waited for.
    """

    def __init__(
        self,
        endpoint: str,
        cameras: Iterable[str] | None = None,
        *,
        key: Path | None = None,
        timeout_s: float | None = None,
        is_strict: bool = False,
    ) -> None:
        """Follow `cameras` (None: all) of the daemon at `endpoint`.

        `key` is the file that the daemon's operator made for this client; `tcp://` endpoints need one.
        Iteration ends after `timeout_s` without a message (None: never). With `is_strict` a malformed
        message raises MessageError instead of being counted.

        Raises:
            ConfigError: `key` cannot be read, or others can read it.
        """
        self._cameras = None if cameras is None else frozenset(cameras)
        topics = [TOPIC_PREFIX.encode()] if self._cameras is None else map(topic_of, sorted(self._cameras))
        self._socket = ResultsSubscriber(endpoint, topics, read_client(key) if key else None)
        self._timeout_s = timeout_s
        self._is_strict = is_strict
        self._last: dict[str, tuple[str, int]] = {}  # camera -> run, seq
        self._runs: set[str] = set()
        self.lost: dict[str, int] = {}
        self.ended: set[str] = set()
        self.n_malformed = 0

    @property
    def n_lost(self) -> int:
        """Results lost on the way to this subscriber, all cameras together."""
        return sum(self.lost.values())

    @property
    def n_runs(self) -> int:
        """How many runs of the daemon were seen."""
        return len(self._runs)

    @property
    def trouble(self) -> str:
        """Why there is no connection to a `tcp://` endpoint, in a sentence; else empty."""
        return self._socket.trouble

    def receive(self, timeout_s: float | None = None) -> tuple[Result, F32] | None:
        """Return the next message, of any kind, with its `(n, D)` embeddings; None after `timeout_s`.

        Raises:
            MessageError: `is_strict` and the message was malformed.
            VisagedError: the daemon does not let this client in, or no longer.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_ms = None if deadline is None else max(0, int((deadline - time.monotonic()) * 1000))
            parts = self._socket.receive(left_ms)
            if parts is None:
                return None
            try:
                result, embeddings = message.decode(parts)
            except MessageError:
                self.n_malformed += 1
                if self._is_strict:
                    raise
                continue
            # topics are prefixes: whoever follows `cam1` is also sent `cam10`
            if self._cameras is None or result.camera in self._cameras:
                self._note(result)
                return result, embeddings

    def __iter__(self) -> Iterator[tuple[FaceFrame, F32]]:
        """Yield results with their embeddings until every followed camera has ended, or the timeout."""
        while (received := self.receive(self._timeout_s)) is not None:
            result, embeddings = received
            if isinstance(result, FaceFrame):
                yield result, embeddings
            elif self._cameras is not None and self._cameras <= self.ended:
                return

    def close(self) -> None:
        """Close the socket; a second call does nothing."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _note(self, result: Result) -> None:
        run, seq = self._last.get(result.camera, (result.run, result.seq - 1))
        if run == result.run and result.seq > seq:
            self.lost[result.camera] = self.lost.get(result.camera, 0) + result.seq - seq - 1
        self._last[result.camera] = (result.run, result.seq)
        self._runs.add(result.run)
        if isinstance(result, CameraEnded):
            self.ended.add(result.camera)
        else:
            self.ended.discard(result.camera)
