"""The door to CURVE: key pairs, encrypted ends of a socket, who may connect (ZAP), and why it failed.

CURVE (Curve25519) encrypts a connection and proves that both ends hold their secret keys. A server alone
admits every client that knows its public key; who may in is decided by the ZAP handler of its ZeroMQ context,
which is asked once per handshake. Every object belongs to the thread that made it.

Source: rfc.zeromq.org, 26/CurveZMQ and 27/ZAP.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

KEY = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")  # 32 bytes as Z85 text
HANDSHAKE_MS = 5000  # a peer that has not proved who it is by then is disconnected
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 5000, 15000  # a peer that vanished is noticed
ZAP_ENDPOINT = "inproc://zeromq.zap.01"
ZAP_PER_POLL = 16

Socket = zmq.Socket[bytes]


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A CURVE key pair, each 40 characters of Z85."""

    public: str
    secret: str


@dataclass(frozen=True, slots=True)
class ClientKey:
    """What a client needs to connect: its own pair and the server's public key."""

    name: str
    pair: KeyPair
    server: str


class Trouble(Enum):
    """Why a client is not connected, as far as its side can tell."""

    NONE = "connected"
    UNREACHABLE = "nobody answers"
    REFUSED = "the server knows its keys, and this one may not in"
    FOREIGN = "the server closes the connection during the handshake"
    OTHER_MECHANISM = "one side encrypts and the other does not"


def new_pair() -> KeyPair:
    """Return a new random key pair."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


def public_of(secret: str) -> str:
    """Return the public key that belongs to `secret`."""
    return zmq.curve_public(secret.encode()).decode()


def encrypt_server(socket: Socket, pair: KeyPair, domain: str) -> None:
    """Encrypt what is bound from now on; the ZAP handler decides about clients of `domain`."""
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret.encode())
    socket.setsockopt(zmq.ZAP_DOMAIN, domain.encode())
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without a handler nobody may in, instead of everybody


def limit_server(socket: Socket) -> None:
    """Disconnect peers that do not finish the handshake, or vanish."""
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)


def encrypt_client(socket: Socket, key: ClientKey) -> None:
    """Encrypt what is connected from now on."""
    socket.setsockopt(zmq.CURVE_PUBLICKEY, key.pair.public.encode())
    socket.setsockopt(zmq.CURVE_SECRETKEY, key.pair.secret.encode())
    socket.setsockopt(zmq.CURVE_SERVERKEY, key.server.encode())


def explain(trouble: Trouble, endpoint: str, key: ClientKey | None) -> str:
    """Return what an operator can do about `trouble`, in a sentence; empty for none."""
    name = f"the key {key.name}" if key else "a client without a key"
    match trouble:
        case Trouble.NONE:
            return ""
        case Trouble.REFUSED:
            return (
                f"{endpoint} refuses {name}: it is unknown there, was revoked or lacks the role; "
                f"`visaged keys list` on that machine says which"
            )
        case Trouble.FOREIGN | Trouble.OTHER_MECHANISM if key is None:
            return f"{endpoint} refuses {name}; give one with --key FILE (`visaged keys add` makes it)"
        case Trouble.FOREIGN:
            return (
                f"{endpoint} does not have the server key that is in the file of {name}: another machine, or "
                f"its key was rotated; put the key that `visaged keys list` shows there into the file"
            )
        case Trouble.OTHER_MECHANISM:
            return f"{endpoint} does not encrypt, and {name} is for an encrypted endpoint; check the port"
    return f"nobody answers at {endpoint}; is the daemon running there, and the port open to this machine?"


class ZapHandler:
    """Answers the question of every handshake in a context: may this key in?"""

    def __init__(self, context: "zmq.Context[Socket]") -> None:
        self.socket: Socket = context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(ZAP_ENDPOINT)

    def poll(self, may_enter: Callable[[str, str], bool]) -> None:
        """Answer a few of those that wait by `may_enter(domain, public key)`.

        The key becomes the User-Id of everything its client sends.
        """
        for _ in range(ZAP_PER_POLL):
            try:
                parts = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            version, request_id, domain, _address, _identity, mechanism, *credentials = parts
            user, status = "", b"400"
            if mechanism == b"CURVE" and len(credentials) == 1:
                user = z85.encode(credentials[0]).decode()
                status = b"200" if may_enter(domain.decode(), user) else b"400"
            self.socket.send_multipart([version, request_id, status, b"", user.encode(), b""])

    def close(self) -> None:
        """Close the socket; a second call does nothing."""
        self.socket.close()


class Monitor:
    """Receives what happens to the connections of one socket; close it before that socket."""

    def __init__(self, watched: Socket, events: int) -> None:
        endpoint = f"inproc://monitor-{id(watched)}"
        self._watched = watched
        self.socket: Socket = watched.context.socket(zmq.PAIR)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, 0)  # a full queue would stop the thread that does the I/O
        watched.monitor(endpoint, events)
        self.socket.connect(endpoint)

    def events(self) -> Iterator[tuple[zmq.Event, int]]:
        """Yield what happened since the last call, and for some events the connection's descriptor."""
        while self.socket.poll(0):
            message = recv_monitor_message(self.socket)
            yield zmq.Event(message["event"]), message["value"]

    def close(self) -> None:
        """Stop receiving; a second call does nothing."""
        if not self.socket.closed:
            self._watched.disable_monitor()
            self.socket.close()


class ServerMonitor(Monitor):
    """Counts connections to a server, and handshakes that failed before ZAP was asked."""

    FAILED = zmq.Event.HANDSHAKE_FAILED_NO_DETAIL | zmq.Event.HANDSHAKE_FAILED_PROTOCOL

    def __init__(self, watched: Socket) -> None:
        super().__init__(watched, self.FAILED | zmq.Event.ACCEPTED | zmq.Event.DISCONNECTED)
        self._open: set[int] = set()
        self.n_accepted, self.n_failed = 0, 0

    @property
    def n_open(self) -> int:
        """How many connections are open, those in a handshake included; as of the last `poll`."""
        return len(self._open)

    def poll(self) -> None:
        """Count what happened since the last call."""
        for event, value in self.events():
            if event == zmq.Event.ACCEPTED:
                self._open.add(value)
                self.n_accepted += 1
            elif event == zmq.Event.DISCONNECTED:
                self._open.discard(value)
            else:
                self.n_failed += 1

    def forget_open(self) -> None:
        """Take all connections for closed, as after closing the endpoint."""
        self.poll()
        self._open.clear()


class ClientMonitor(Monitor):
    """Knows why a client is not connected."""

    MEANING = {  # noqa: RUF012 - a table, never changed
        zmq.Event.HANDSHAKE_SUCCEEDED: Trouble.NONE,
        zmq.Event.HANDSHAKE_FAILED_AUTH: Trouble.REFUSED,
        zmq.Event.HANDSHAKE_FAILED_NO_DETAIL: Trouble.FOREIGN,
        zmq.Event.HANDSHAKE_FAILED_PROTOCOL: Trouble.OTHER_MECHANISM,
        zmq.Event.CLOSED: Trouble.UNREACHABLE,
    }

    def __init__(self, watched: Socket) -> None:
        super().__init__(watched, sum(self.MEANING) | zmq.Event.DISCONNECTED)
        self._trouble = Trouble.UNREACHABLE

    def trouble(self) -> Trouble:
        """Return the state now."""
        for event, _ in self.events():
            if event == zmq.Event.DISCONNECTED:  # also follows a failed handshake, which says more
                if self._trouble is Trouble.NONE:
                    self._trouble = Trouble.UNREACHABLE
            else:
                self._trouble = self.MEANING[event]
        return self._trouble
