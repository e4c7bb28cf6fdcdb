"""The gateway process: the only one that talks to other machines.

It passes results on to subscribers there and requests on to infer, for clients whose keys have the role.
Handshakes, floods and garbage end here, at a lower priority: they cost infer nothing. One thread owns
everything. Without `[remote]` in the configuration there is no gateway.
"""

import logging
import resource
import threading
import time
from typing import Self

from ..pipelines.errors import VisagedError
from ..pipelines.privacy.audit import note
from .control import MAX_PER_POLL, ROLES, OrderError, Ping, Status, decode_order, refusal
from .curve import KeyPair
from .keys import Client, KeyStore, Role
from .metrics import GatewayMetrics
from .notify import Notifier
from .outline import Outline
from .remote_sockets import RemoteRequest, RemoteServer, RemoteSockets
from .token_bucket import TokenBucket

log = logging.getLogger(__name__)

WAIT_MS = 100
LOOK_S = 0.2  # how often to look whether a key was revoked
FORGET_S = 30.0  # an answer that infer owes for this long is not waited for any more
MAX_WAITING = 256  # requests that infer has not answered


def run_gateway(
    outline: Outline, metrics: GatewayMetrics, stop: threading.Event, notifier: Notifier | None = None
) -> int:
    """Serve other machines until `stop` is set; return the exit code.

    Raises:
        ConfigError: no keys, or an address that cannot be bound.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 8 * outline.remote.max_connections + 256), most))
    with Gateway(outline, metrics) as gateway:
        gateway.serve(stop, notifier or Notifier())
    return 0


class Gateway:
    """Decides who may connect and ask. Owned by the thread that made it."""

    def __init__(self, outline: Outline, metrics: GatewayMetrics) -> None:
        """Bind the configured endpoints.

        Raises:
            ConfigError: no keys, or an address that cannot be bound.
        """
        self._config, self._metrics, self._state = outline.remote, metrics, outline.paths.state
        self._keys = KeyStore(outline.keys) if self._config.needs_keys else None
        self._subscribers = self._keys.having(Role.SUBSCRIBE) if self._keys else set()
        self._server = self._keys.server if self._keys else None
        self._buckets: dict[str, TokenBucket] = {}
        self._waiting: dict[int, tuple[RemoteRequest, float]] = {}
        self._n_asked = 0
        self._look_at_s = 0.0
        self._told_at_s: dict[str, float] = {}
        self._sockets = RemoteSockets(outline.paths.runtime, self._config.results, self._config.control)
        try:
            for server in self._sockets.servers:
                server.serve(self._pair_of(server))
        except VisagedError:
            self._sockets.close()
            raise
        for reason in ("unknown_key", "revoked", "role", "rate", "connections", "handshake"):
            metrics.refused.labels(reason).inc(0)

    @property
    def servers(self) -> list[RemoteServer]:
        """The endpoints: results, then control, as far as they are configured."""
        return [*self._sockets.servers]

    def serve(self, stop: threading.Event, notifier: Notifier) -> None:
        """Pass on until `stop` is set; what infer published by then is passed on too."""
        self._say_what_is_served()
        served = (("results", self._config.results), ("control", self._config.control))
        notifier.ready(", ".join(f"{channel} at {endpoint}" for channel, endpoint in served if endpoint))
        while not stop.is_set():
            self.step(WAIT_MS)
            notifier.alive()
        if self._sockets.results is not None:
            self._sockets.results.forward()

    def step(self, wait_ms: int) -> None:
        """Do what there is to do, after waiting at most `wait_ms` for it."""
        self._sockets.wait(wait_ms)
        if time.monotonic() >= self._look_at_s:
            self._keep_house()
        if self._sockets.results is not None:
            self._sockets.results.forward()
        self._sockets.admit(self._may_enter)
        if self._sockets.control is not None:
            self._take_requests()
            self._return_answers()

    def close(self) -> None:
        """Close all sockets; a second call does nothing."""
        self._sockets.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _keep_house(self) -> None:
        now_s = time.monotonic()
        self._look_at_s = now_s + LOOK_S
        self._read_keys()
        for server in self._sockets.servers:
            self._watch(server)
        if self._sockets.results is not None:
            self._metrics.subscriptions.set(self._sockets.results.n_subscriptions)
        late = [n for n, (_, asked_s) in self._waiting.items() if now_s - asked_s > FORGET_S]
        for number in late:
            del self._waiting[number]

    def _watch(self, server: RemoteServer) -> None:
        """Count what connected; with too many at once disconnect all, before descriptors run out."""
        monitor = server.monitor
        monitor.poll()
        self._metrics.connections.inc(monitor.n_accepted)
        self._metrics.refused.labels("handshake").inc(monitor.n_failed)
        monitor.n_accepted = monitor.n_failed = 0
        if monitor.n_open > self._config.max_connections:
            self._refuse("connections", f"{monitor.n_open} connections at once; all have to connect again")
            self._cut(server)

    def _cut(self, server: RemoteServer) -> None:
        server.serve_anew(self._pair_of(server))
        self._metrics.cuts.inc()

    def _pair_of(self, server: RemoteServer) -> KeyPair | None:
        is_plain = server is self._sockets.results and self._config.allow_plaintext_tcp
        return None if is_plain or self._keys is None else self._keys.server

    def _read_keys(self) -> None:
        """Take over what changed in the folder of keys; cut connections that lost their right."""
        if self._keys is None or not self._keys.refresh():
            return
        for problem in self._keys.problems:
            log.error("somebody may not connect: %s", problem)
        subscribers = self._keys.having(Role.SUBSCRIBE)
        is_rotated = self._keys.server != self._server
        lost = self._subscribers - subscribers
        self._subscribers, self._server = subscribers, self._keys.server
        log.info("read the keys, %d clients may subscribe", len(subscribers))
        results, control = self._sockets.results, self._sockets.control
        if results is not None and self._pair_of(results) and (lost or is_rotated):
            self._cut(results)
            log.info("disconnected all subscribers, those that still may will come back")
        if control is not None and is_rotated:
            self._cut(control)

    def _may_enter(self, channel: str, public: str) -> bool:
        self._read_keys()
        client = self._keys.find(public) if self._keys else None
        role = Role.SUBSCRIBE if channel == "results" else None
        return self._may(client, public, role) == ""

    def _may(self, client: Client | None, public: str, role: Role | None) -> str:
        """Return why `client` may not do what needs `role` (None: any); empty when it may."""
        if client is None:
            return self._refuse("unknown_key", f"the key {public} is not known here")
        if client.revoked_at:
            return self._refuse("revoked", f"the key of {client.name} was revoked at {client.revoked_at}")
        if role is not None and not client.may(role):
            has = ", ".join(role.value for role in client.roles) or "none"
            return self._refuse("role", f"{client.name} needs the role {role.value} for this; it has: {has}")
        return ""

    def _take_requests(self) -> None:
        control = self._sockets.control
        assert control is not None
        for _ in range(MAX_PER_POLL):
            request = control.receive()
            if request is None:
                return
            self._metrics.requests.inc()
            sentence = self._pass_on(request)
            if sentence:
                control.reply(request, refusal(sentence))

    def _pass_on(self, request: RemoteRequest) -> str:
        """Ask infer if the client may; return why not, empty when infer was asked."""
        assert self._keys is not None
        assert self._sockets.control is not None
        self._read_keys()
        client = self._keys.find(request.public)
        if sentence := self._may(client, request.public, None):
            return sentence
        assert client is not None
        now_s = time.monotonic()
        if not self._bucket_of(client, now_s).take(now_s):
            allowed = f"{self._config.requests_per_s:g} requests a second"
            return self._refuse("rate", f"{client.name} asks too often: {allowed} are allowed")
        try:
            order = decode_order(request.body)
        except OrderError as error:
            return self._refuse(error.reason, str(error))
        if sentence := self._may(client, request.public, ROLES.get(type(order), Role.ADMIN)):
            return sentence
        number = self._n_asked = self._n_asked + 1
        if len(self._waiting) >= MAX_WAITING or not self._sockets.control.ask_infer(number, request.body):
            return "the daemon does not keep up with requests, or is starting; ask again in a moment"
        self._waiting[number] = request, now_s
        if not isinstance(order, Ping | Status):
            log.info("%s asked for %s", client.name, type(order).__name__)
            note(self._state, f"asked for {type(order).__name__}", who=f"client {client.name}")
        return ""

    def _return_answers(self) -> None:
        control = self._sockets.control
        assert control is not None
        while (answer := control.infers_answer()) is not None:
            number, body = answer
            if asked := self._waiting.pop(number, None):
                control.reply(asked[0], body)

    def _bucket_of(self, client: Client, now_s: float) -> TokenBucket:
        fresh = TokenBucket(self._config.requests_per_s, self._config.burst, now_s)
        return self._buckets.setdefault(client.public, fresh)

    def _refuse(self, reason: str, sentence: str) -> str:
        """Count a refusal and return its sentence; the log hears of each reason once a minute at most."""
        self._metrics.refused.labels(reason).inc()
        now_s = time.monotonic()
        if now_s >= self._told_at_s.get(reason, 0.0):
            self._told_at_s[reason] = now_s + 60.0
            log.warning("refused (%s): %s", reason, sentence)
        return sentence

    def _say_what_is_served(self) -> None:
        if self._config.results and self._config.allow_plaintext_tcp:
            log.warning(
                "results at %s are not encrypted: anybody there reads every face", self._config.results
            )
        elif self._config.results:
            log.info("results at %s for %d clients", self._config.results, len(self._subscribers))
        if self._config.control:
            log.info("control at %s", self._config.control)
