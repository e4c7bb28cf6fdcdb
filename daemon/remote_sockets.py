"""The gateway's ends of the channels: a second door to ZeroMQ, for what faces the network.

All of them live in a ZeroMQ context of their own, so that its ZAP handler is asked about them and nobody
else. Whatever was bound can be bound anew, which cuts every connection: ZAP is asked only in handshakes, so
that is how a subscriber who is already connected loses its right.
"""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import zmq

from ..pipelines.errors import VisagedError
from .channels import CHANNELS, endpoint_of
from .curve import KeyPair, ServerMonitor, Socket, ZapHandler, encrypt_server, limit_server
from .sockets import (
    DISCONNECT_CONTROL_BYTES,
    MAX_RESULT_BYTES,
    MAX_SUBSCRIPTION_BYTES,
    Request,
    _Owner,
)

REBIND_S = 5.0  # the kernel may take a moment to let go of the port
MAX_FORWARDED = 64  # messages per call, so that no channel starves another

Context = zmq.Context[Socket]


class RemoteServer(_Owner):
    """One tcp endpoint, encrypted where there is a key pair; `endpoint` is what clients connect to."""

    def __init__(self, kind: int, channel: str, endpoint: str, context: Context, max_bytes: int) -> None:
        super().__init__(kind, CHANNELS[channel].depth, max_bytes, context)
        self._channel, self.endpoint = channel, endpoint
        self.monitor = ServerMonitor(self._socket)
        limit_server(self._socket)

    def serve(self, pair: KeyPair | None) -> None:
        """Bind.

        Raises:
            ConfigError: the address is in use, or not of this machine.
        """
        if pair is not None:
            encrypt_server(self._socket, pair, self._channel)
        self._bind(self.endpoint)
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)  # port 0 has become one

    def serve_anew(self, pair: KeyPair | None) -> None:
        """Disconnect everybody and bind again; clients come back by themselves and are asked for keys.

        Raises:
            VisagedError: the address was taken meanwhile.
        """
        self._socket.unbind(self.endpoint)
        self.monitor.forget_open()
        if pair is not None:
            encrypt_server(self._socket, pair, self._channel)
        deadline = time.monotonic() + REBIND_S
        while True:
            try:
                self._socket.bind(self.endpoint)
                return
            except zmq.ZMQError as error:
                if time.monotonic() > deadline:
                    raise VisagedError(f"cannot bind {self.endpoint} again ({error})") from error
                time.sleep(0.005)

    def close(self) -> None:
        """Close the socket; a second call does nothing."""
        self.monitor.close()
        super().close()


class RemoteResults(RemoteServer):
    """Results for subscribers on other machines: what infer publishes here, passed on."""

    def __init__(self, runtime: Path, endpoint: str, context: Context) -> None:
        super().__init__(zmq.XPUB, "results", endpoint, context, MAX_SUBSCRIPTION_BYTES)
        self._socket.setsockopt(zmq.XPUB_VERBOSER, 1)
        self.n_subscriptions = 0
        self._source = _Owner(zmq.SUB, CHANNELS["results"].depth, MAX_RESULT_BYTES, context)
        self._source._socket.subscribe(b"")
        self._source._retry_every(20)
        self._source._connect(endpoint_of(runtime, "results"))

    @property
    def sockets(self) -> tuple[Socket, ...]:
        """What to wait for."""
        return self._source._socket, self._socket

    def forward(self) -> int:
        """Pass on what infer has published; return how many messages. Never waits for a subscriber."""
        self._count_subscriptions()
        for n_forwarded in range(MAX_FORWARDED):
            try:
                parts = self._source._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return n_forwarded
            self._socket.send_multipart(parts, zmq.NOBLOCK, copy=False)
        return MAX_FORWARDED

    def close(self) -> None:
        """Close both sockets; a second call does nothing."""
        self._source.close()
        super().close()

    def _count_subscriptions(self) -> None:
        for _ in range(MAX_FORWARDED):
            try:
                request = self._socket.recv_multipart(zmq.NOBLOCK)[0]
            except zmq.Again:
                return
            step = {b"\x01": 1, b"\x00": -1}.get(request[:1], 0)
            self.n_subscriptions = max(0, self.n_subscriptions + step)


class RemoteRequest(Request):
    """A control request and the public key of the client who made it."""

    __slots__ = ("public",)

    def __init__(self, route: list[bytes], body: bytes, public: str) -> None:
        super().__init__(route, body)
        self.public = public


class RemoteControl(RemoteServer):
    """Requests from other machines, and the way to infer for those that may be asked."""

    def __init__(self, runtime: Path, endpoint: str, context: Context) -> None:
        super().__init__(zmq.ROUTER, "control", endpoint, context, DISCONNECT_CONTROL_BYTES)
        self._infer = _Owner(zmq.DEALER, CHANNELS["control"].depth, DISCONNECT_CONTROL_BYTES, context)
        self._infer._socket.setsockopt(zmq.LINGER, 0)
        self._infer._retry_every(20)
        self._infer._connect(endpoint_of(runtime, "control"))

    @property
    def sockets(self) -> tuple[Socket, ...]:
        """What to wait for."""
        return self._socket, self._infer._socket

    def receive(self) -> RemoteRequest | None:
        """Return the next request, or None when there is none now; never blocks."""
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return None
            if len(frames) == 3:  # route, request id, body; anything else cannot be answered
                try:
                    public = str(frames[2].get("User-Id"))
                except zmq.ZMQError:
                    public = ""  # nobody: not admitted by the ZAP handler
                return RemoteRequest([f.bytes for f in frames[:2]], frames[2].bytes, public)

    def reply(self, request: Request, body: bytes) -> None:
        """Answer `request`; an asker that has gone, or does not read, is ignored."""
        with contextlib.suppress(zmq.Again):
            self._socket.send_multipart([*request.route, body], zmq.NOBLOCK)

    def ask_infer(self, number: int, body: bytes) -> bool:
        """Pass `body` on under `number`; return false when infer takes no more now."""
        try:
            self._infer._socket.send_multipart([number.to_bytes(8, "little"), body], zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def infers_answer(self) -> tuple[int, bytes] | None:
        """Return number and body of an answer of infer, or None when there is none now."""
        try:
            parts = self._infer._socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None
        return int.from_bytes(parts[0], "little"), parts[-1]

    def close(self) -> None:
        """Close both sockets; a second call does nothing."""
        self._infer.close()
        super().close()


class RemoteSockets:
    """The context of the gateway, its ZAP handler, and the endpoints that are configured."""

    def __init__(self, runtime: Path, results: str, control: str) -> None:
        self._context: Context = zmq.Context()
        self._zap = ZapHandler(self._context)
        self.results = RemoteResults(runtime, results, self._context) if results else None
        self.control = RemoteControl(runtime, control, self._context) if control else None
        self._poller = zmq.Poller()
        for socket in (self._zap.socket, *(socket for server in self.servers for socket in server.sockets)):
            self._poller.register(socket, zmq.POLLIN)

    @property
    def servers(self) -> list["RemoteResults | RemoteControl"]:
        """What is served."""
        return [server for server in (self.results, self.control) if server is not None]

    def wait(self, timeout_ms: int) -> None:
        """Return when something came, or after `timeout_ms`."""
        self._poller.poll(timeout_ms)

    def admit(self, may_enter: Callable[[str, str], bool]) -> None:
        """Answer the handshakes that wait by `may_enter(channel, public key)`."""
        self._zap.poll(may_enter)

    def close(self) -> None:
        """Close everything; a second call does nothing."""
        for server in self.servers:
            server.close()
        self._zap.close()
        self._context.term()
