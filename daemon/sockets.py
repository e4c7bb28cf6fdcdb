"""The door to ZeroMQ: one small owner per end of a channel of `channels.py`.

Every object here belongs to the thread that made it. Limits are set before bind or connect, nothing
blocks without a deadline, and whatever receives has a size limit.
"""

import contextlib
import errno
import stat
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Self

import zmq

from ..pipelines.errors import ConfigError, VisagedError
from ..pipelines.message import MAX_EMBEDDINGS_BYTES, MAX_HEADER_BYTES
from .channels import CHANNELS, endpoint_of, is_listening
from .curve import (
    HEARTBEAT_MS,
    HEARTBEAT_TIMEOUT_MS,
    ClientKey,
    ClientMonitor,
    Trouble,
    encrypt_client,
    explain,
)

LINGER_MS = 200  # a closing socket may flush for this long
MAX_DESCRIPTOR_BYTES = 1 << 16
MAX_SUBSCRIPTION_BYTES = 1 << 10
MAX_RESULT_BYTES = max(MAX_HEADER_BYTES, MAX_EMBEDDINGS_BYTES)
MAX_CONTROL_BYTES = 1 << 16  # over this a request is answered with an error
DISCONNECT_CONTROL_BYTES = 1 << 20  # over this ZeroMQ disconnects the sender


class _Owner:
    """One socket, closed once. Owned by the thread that made it."""

    def __init__(
        self,
        kind: int,
        depth: int,
        max_receive_bytes: int,
        context: "zmq.Context[zmq.Socket[bytes]] | None" = None,
    ) -> None:
        self._socket: zmq.Socket[bytes] = (context or zmq.Context.instance()).socket(kind)
        self._files: list[Path] = []  # socket files we bound
        self._socket.setsockopt(zmq.SNDHWM, depth)
        self._socket.setsockopt(zmq.RCVHWM, depth)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        self._socket.setsockopt(zmq.MAXMSGSIZE, max_receive_bytes)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)

    def close(self) -> None:
        """Close the socket and remove its file; a second call does nothing."""
        while self._files:  # before closing: afterwards a file of this name may be a successor's
            self._files.pop().unlink(missing_ok=True)
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _retry_every(self, milliseconds: int) -> None:
        """Try again as often when nobody serves the endpoint; waits do not grow."""
        self._socket.setsockopt(zmq.RECONNECT_IVL, milliseconds)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 0)

    def _bind(self, endpoint: str) -> None:
        try:
            if endpoint.startswith("ipc://"):
                _free_socket_file(Path(endpoint.removeprefix("ipc://")))
            self._socket.bind(endpoint)
        except ConfigError:
            self.close()
            raise
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(_bind_sentence(endpoint, error)) from error
        if endpoint.startswith("ipc://"):
            self._files.append(Path(endpoint.removeprefix("ipc://")))

    def _connect(self, endpoint: str) -> None:
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(
                f"cannot connect to {endpoint} ({error}); it looks like tcp://HOST:PORT"
            ) from error


class FramesWriter(_Owner):
    """The capture end of channel "frames": one per camera."""

    def __init__(self, runtime: Path, camera: str) -> None:
        """Bind under `runtime`, an existing folder.

        Raises:
            ConfigError: another process serves this camera, or the path is too long.
        """
        endpoint = endpoint_of(runtime, "frames", camera)
        super().__init__(zmq.PUSH, CHANNELS["frames"].depth, MAX_DESCRIPTOR_BYTES)
        self._bind(endpoint)

    def send(self, data: bytes) -> bool:
        """Return whether `data` was queued: false when nobody listens or the queue is full."""
        try:
            self._socket.send(data, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True


class FramesReader:
    """The infer end of channel "frames": one socket per camera, which may not be up yet."""

    def __init__(self, runtime: Path, cameras: Iterable[str]) -> None:
        """Connect to `cameras`; each may start, stop and start again at any time."""
        self._poller = zmq.Poller()
        self._owners: dict[str, _Owner] = {}
        self._names: dict[zmq.Socket[bytes], str] = {}
        for camera in cameras:
            endpoint = endpoint_of(runtime, "frames", camera)
            owner = _Owner(zmq.PULL, CHANNELS["frames"].depth, MAX_DESCRIPTOR_BYTES)
            # a camera starts after us: every 20 ms of waiting is a frame dropped as queue_full
            owner._retry_every(20)
            owner._connect(endpoint)
            self._owners[camera] = owner
            self._names[owner._socket] = camera
            self._poller.register(owner._socket, zmq.POLLIN)

    def wait(self, timeout_ms: float, without: Collection[str] = ()) -> list[str]:
        """Return the cameras of which a descriptor is ready, after at most `timeout_ms`.

        Those `without` are not looked at.
        """
        if not without:
            return [self._names[socket] for socket, _ in self._poller.poll(round(timeout_ms))]
        others = zmq.Poller()
        for camera, owner in self._owners.items():
            if camera not in without:
                others.register(owner._socket, zmq.POLLIN)
        return [self._names[socket] for socket, _ in others.poll(round(timeout_ms))]

    def take(self, camera: str) -> bytes | None:
        """Return the oldest descriptor of `camera`, or None when there is none now."""
        try:
            return self._owners[camera]._socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def close(self) -> None:
        """Close all sockets."""
        for owner in self._owners.values():
            owner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ResultsPublisher(_Owner):
    """The infer end of channel "results". A slow or dead subscriber loses messages, nobody else does."""

    def __init__(self, runtime: Path) -> None:
        """Bind under `runtime`.

        Raises:
            ConfigError: another process serves this runtime folder, or the path is too long.
        """
        endpoint = endpoint_of(runtime, "results")
        super().__init__(zmq.XPUB, CHANNELS["results"].depth, MAX_SUBSCRIPTION_BYTES)
        self._socket.setsockopt(zmq.XPUB_NODROP, 1)  # only to hear of it; see `send`
        self._socket.setsockopt(zmq.XPUB_VERBOSER, 1)  # every (un)subscription, not only first and last
        self._bind(endpoint)
        self._subscriptions = 0

    def send(self, parts: list[bytes]) -> bool:
        """Queue `parts` for every subscriber with room; never blocks. Return whether all had room."""
        try:
            self._socket.send_multipart(parts, zmq.NOBLOCK)
        except zmq.Again:  # nobody got it yet: somebody's queue is full, who is to be left out
            self._socket.setsockopt(zmq.XPUB_NODROP, 0)
            self._socket.send_multipart(parts, zmq.NOBLOCK)
            self._socket.setsockopt(zmq.XPUB_NODROP, 1)
            return False
        return True

    def count_subscriptions(self) -> int:
        """Return how many subscriptions clients hold now; one client may hold several."""
        while True:
            try:
                request = self._socket.recv_multipart(zmq.NOBLOCK)[0]
            except zmq.Again:
                return self._subscriptions
            if request[:1] == b"\x01":
                self._subscriptions += 1
            elif request[:1] == b"\x00":
                self._subscriptions = max(0, self._subscriptions - 1)


class _Client(_Owner):
    """An end that connects, encrypted where it has a key, and can say why it is not connected."""

    _monitor: ClientMonitor | None = None

    def _connect_as(self, endpoint: str, key: ClientKey | None) -> None:
        self._endpoint, self._key = endpoint, key
        if endpoint.startswith("tcp://"):
            self._monitor = ClientMonitor(self._socket)
            self._socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
            self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        if key is not None:
            encrypt_client(self._socket, key)
        self._connect(endpoint)

    @property
    def trouble(self) -> str:
        """Why there is no connection, in a sentence; empty when there is one, and for local sockets."""
        if self._monitor is None:
            return ""
        return explain(self._monitor.trouble(), self._endpoint, self._key)

    @property
    def is_refused(self) -> bool:
        """Whether the other side knows us and does not let us in: waiting will not help."""
        return self._monitor is not None and self._monitor.trouble() is Trouble.REFUSED

    def close(self) -> None:
        """Close the socket; a second call does nothing."""
        if self._monitor is not None:
            self._monitor.close()
        super().close()

    def _wait(self, timeout_ms: int | None) -> bool:
        """Return whether a message is there within `timeout_ms`.

        Raises:
            VisagedError: the other side does not let us in.
        """
        if self._monitor is None:
            return bool(self._socket.poll(timeout_ms))
        deadline = None if timeout_ms is None else time.monotonic() + timeout_ms / 1e3
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor.socket, zmq.POLLIN)
        while True:
            left_ms = None if deadline is None else max(0, round((deadline - time.monotonic()) * 1e3))
            ready = dict(poller.poll(left_ms))
            if self._socket in ready:
                return True
            if self.is_refused:
                raise VisagedError(self.trouble)
            if left_ms == 0:
                return False


class ResultsSubscriber(_Client):
    """A client's end of channel "results"."""

    def __init__(self, endpoint: str, topics: Iterable[bytes], key: ClientKey | None = None) -> None:
        """Connect to `endpoint`, which may come up later, and follow `topics` (prefixes)."""
        super().__init__(zmq.SUB, CHANNELS["results"].depth, MAX_RESULT_BYTES)
        for topic in topics:
            self._socket.subscribe(topic)
        if endpoint.startswith("ipc://"):
            # a client may be there before the daemon: what is published while it waits is lost to it
            self._retry_every(20)
        self._connect_as(endpoint, key)

    def receive(self, timeout_ms: int | None) -> list[bytes] | None:
        """Return the parts of the next message, or None after `timeout_ms` (None: wait for ever).

        Raises:
            VisagedError: the daemon does not let this client in.
        """
        if not self._wait(timeout_ms):
            return None
        return self._socket.recv_multipart()


class Request:
    """A control request as it came: where the answer goes, and the raw body."""

    __slots__ = ("body", "route")

    def __init__(self, route: list[bytes], body: bytes) -> None:
        self.route = route
        self.body = body


class ControlServer(_Owner):
    """The infer end of channel "control": every request is answered once."""

    def __init__(self, runtime: Path) -> None:
        """Bind under `runtime`.

        Raises:
            ConfigError: another process serves this runtime directory, or the path is too long.
        """
        endpoint = endpoint_of(runtime, "control")
        super().__init__(zmq.ROUTER, CHANNELS["control"].depth, DISCONNECT_CONTROL_BYTES)
        self._bind(endpoint)

    def receive(self) -> Request | None:
        """Return the next request, or None when there is none now; never blocks."""
        while True:
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return None
            if len(parts) == 3:  # route, request id, body
                return Request(parts[:2], parts[2])
            # without a request id an answer could not be matched, but silence would look like a hang
            return Request([parts[0], parts[1] if len(parts) > 1 else b""], b"")

    def reply(self, request: Request, body: bytes) -> None:
        """Answer `request`; an asker that has gone is ignored."""
        with contextlib.suppress(zmq.Again):  # its queue is full: it does not read its answers
            self._socket.send_multipart([*request.route, body], zmq.NOBLOCK)


class ControlSocket(_Client):
    """The operator's end of channel "control"."""

    def __init__(self, where: Path | str, key: ClientKey | None = None) -> None:
        """Connect to the daemon of a runtime folder, or with a `key` to that at `tcp://HOST:PORT`."""
        endpoint = endpoint_of(where, "control") if isinstance(where, Path) else where
        super().__init__(zmq.DEALER, CHANNELS["control"].depth, DISCONNECT_CONTROL_BYTES)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._where = where
        self._next_id = 0
        self._connect_as(endpoint, key)

    def ask(self, body: bytes, timeout_s: float) -> bytes:
        """Return the answer to `body`.

        Raises:
            VisagedError: no answer within `timeout_s`, or the daemon does not let this client in.
        """
        self._next_id += 1
        request_id = self._next_id.to_bytes(8, "little")
        deadline = time.monotonic() + timeout_s
        sentence = (
            f"no answer from the daemon in {self._where} within {timeout_s:g} s; is `visaged run` running?"
        )
        try:
            self._socket.send_multipart([request_id, body], zmq.NOBLOCK)
        except zmq.Again as error:
            raise VisagedError(sentence) from error
        while (left_s := deadline - time.monotonic()) > 0:
            if self._wait(max(1, int(left_s * 1000))):
                parts = self._socket.recv_multipart()
                if len(parts) == 2 and parts[0] == request_id:  # else: a late answer to an earlier question
                    return parts[1]
        raise VisagedError(self.trouble or sentence)


def _free_socket_file(path: Path) -> None:
    """Remove the socket file of a dead process; refuse that of a living one.

    ZeroMQ itself would silently take the address from the living one.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"cannot look at {path} ({error}); check [paths] runtime") from error
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} exists and is no socket; remove it or set another [paths] runtime")
    if is_listening(path):
        raise ConfigError(
            f"{path} is served by another running visaged; stop it or set another [paths] runtime"
        )
    path.unlink(missing_ok=True)


def _bind_sentence(endpoint: str, error: zmq.ZMQError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"cannot bind {endpoint}: the address is in use by another program; choose another port"
    return f"cannot bind {endpoint} ({error}); check that the folder, address or port exists and is allowed"
