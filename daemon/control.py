"""Questions and orders to the running daemon, over channel "control". Every request is answered.

A request is one MessagePack map with its `op`; the answer is `done` with what was asked for, or
`refused` with a sentence.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, cast

import msgspec
from msgspec import Meta, Struct

from ..pipelines.errors import MALFORMED, VisagedError
from ..pipelines.loop.said import Said
from .curve import ClientKey
from .keys import Role
from .sockets import MAX_CONTROL_BYTES, ControlServer, ControlSocket, Request

log = logging.getLogger(__name__)

MAX_PER_POLL = 8  # so that a flood of requests cannot starve the frames


class Ping(Struct, frozen=True, kw_only=True, tag="ping", tag_field="op"):
    """Ask whether the daemon is there."""


class Status(Struct, frozen=True, kw_only=True, tag="status", tag_field="op"):
    """Ask how the daemon is: cameras, counts, release."""


class EnrolTrack(Struct, frozen=True, kw_only=True, tag="enrol_track", tag_field="op"):
    """Enrol the person that is seen now as `track` of `camera` under `name`."""

    camera: Annotated[str, Meta(min_length=1, max_length=64)]
    track: Annotated[int, Meta(ge=1)]
    name: Annotated[str, Meta(min_length=1, max_length=100)]
    consent: Annotated[str, Meta(max_length=500)] = ""


class Promote(Struct, frozen=True, kw_only=True, tag="promote", tag_field="op"):
    """Bring a release into service, stage by stage, without those in `skip`.

    `despite_erasure`: also one that learned from samples that are erased.
    """

    release: Annotated[str, Meta(min_length=1, max_length=64)]
    skip: tuple[Literal["gates", "shadow", "canary"], ...] = ()
    despite_erasure: bool = False
    why: Annotated[str, Meta(max_length=200)] = ""


class RollBack(Struct, frozen=True, kw_only=True, tag="roll_back", tag_field="op"):
    """Take back the release on trial; none is: the one that serves."""

    why: Annotated[str, Meta(max_length=200)] = ""


class Flag(Said, frozen=True, kw_only=True, tag="flag", tag_field="op"):
    """Keep the face of `track` of `camera` as the results of frame `seq` show it, with what people say of it.

    Without `seq` it is the latest. Repeating the request changes nothing.
    """

    camera: Annotated[str, Meta(min_length=1, max_length=64)]
    track: Annotated[int, Meta(ge=1)]
    seq: Annotated[int, Meta(ge=1)] | None = None


Order = Ping | Status | EnrolTrack | Promote | RollBack | Flag
OPS = ("ping", "status", "enrol_track", "promote", "roll_back", "flag")
ROLES: dict[type[Struct], Role] = {  # what a client on another machine needs; not listed: admin
    Ping: Role.SUBSCRIBE,
    Status: Role.SUBSCRIBE,
    EnrolTrack: Role.ENROL,
    Flag: Role.FLAG,
}


class Done(Struct, frozen=True, kw_only=True, tag="done", tag_field="answer"):
    """The order was carried out."""

    values: dict[str, Any] = {}


class Refused(Struct, frozen=True, kw_only=True, tag="refused", tag_field="answer"):
    """The order was not carried out; `sentence` says why."""

    sentence: str


OrderKind = TypeVar("OrderKind", Ping, Status, EnrolTrack, Promote, RollBack, Flag)
Later = Callable[[], dict[str, Any] | None]
"""Gives the values once they are there, None until then; a VisagedError it raises becomes the refusal."""
Handler = Callable[[Any], dict[str, Any] | Later]

_encoder = msgspec.msgpack.Encoder()
_orders = msgspec.msgpack.Decoder(Order)
_answers = msgspec.msgpack.Decoder(Done | Refused)
_tag_probe = msgspec.msgpack.Decoder(dict[str, Any])


class OrderError(VisagedError):
    """A request is no order; `reason` is what it is counted under."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


def decode_order(body: bytes) -> Order:
    """Return the order in the `body` of a request.

    Raises:
        OrderError: oversized, malformed or unknown.
    """
    if len(body) > MAX_CONTROL_BYTES:
        raise OrderError("oversized", f"request of {len(body)} bytes, allowed are {MAX_CONTROL_BYTES}")
    try:
        order: Order = _orders.decode(body)
    except MALFORMED as error:
        raise OrderError(*_explain(body, error)) from error
    return order


def refusal(sentence: str) -> bytes:
    """Return the answer to an order that is not carried out."""
    return _encoder.encode(Refused(sentence=sentence))


class Control:
    """Answers requests. Owned by the inference thread, which calls `poll` between batches.

    `on_error(reason)` is called for every refusal: oversized, malformed, unknown_op, refused.
    """

    def __init__(self, runtime: Path, on_error: Callable[[str], None] = lambda reason: None) -> None:
        """Bind in `runtime`, an existing folder.

        Raises:
            ConfigError: another process serves this runtime folder.
        """
        self._socket = ControlServer(runtime)
        self._on_error = on_error
        self._handlers: dict[type[Struct], Handler] = {Ping: lambda order: {}}
        self._unanswered: list[tuple[Request, Later]] = []

    def handle(self, kind: type[OrderKind], handler: Callable[[OrderKind], dict[str, Any] | Later]) -> None:
        """Let `handler` carry out orders of `kind`; a VisagedError it raises becomes the refusal.

        What takes longer than a frame may wait returns a `Later`, which every `poll` asks.
        """
        self._handlers[kind] = handler

    def poll(self) -> int:
        """Take the requests that wait, a few at most; return how many were answered. Never blocks."""
        waiting, self._unanswered = self._unanswered, []
        n_answered = sum(self._reply(request, self._attempt(later)) for request, later in waiting)
        for _ in range(MAX_PER_POLL):
            request = self._socket.receive()
            if request is None:
                break
            n_answered += self._reply(request, self._answer(request.body))
        return n_answered

    def close(self) -> None:
        """Close the socket; a second call does nothing."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _reply(self, request: Request, answer: Done | Refused | Later) -> bool:
        if isinstance(answer, Done | Refused):
            self._socket.reply(request, _encoder.encode(answer))
            return True
        self._unanswered.append((request, answer))
        return False

    def _answer(self, body: bytes) -> Done | Refused | Later:
        try:
            order = decode_order(body)
        except OrderError as error:
            return self._refuse(error.reason, str(error))
        handler = self._handlers.get(type(order))
        if handler is None:
            return self._refuse("unknown_op", f"this daemon does not answer {type(order).__name__} yet")
        return self._attempt(lambda: handler(order))

    def _attempt(self, carry_out: Callable[[], dict[str, Any] | Later | None]) -> Done | Refused | Later:
        try:
            values = carry_out()
        except VisagedError as error:
            return self._refuse("refused", str(error))
        if values is None:  # only a Later has none yet
            return cast(Later, carry_out)
        return Done(values=values) if isinstance(values, dict) else values

    def _refuse(self, reason: str, sentence: str) -> Refused:
        self._on_error(reason)
        log.warning("refused a control request (%s): %s", reason, sentence)
        return Refused(sentence=sentence)


class ControlClient:
    """Asks the running daemon. Owned by the thread that made it."""

    def __init__(self, where: Path | str, key: ClientKey | None = None) -> None:
        """Connect to the daemon whose runtime folder is `where`, or with a `key` to `tcp://HOST:PORT`."""
        self._socket = ControlSocket(where, key)

    def request(self, order: Order, timeout_s: float = 5.0) -> dict[str, Any]:
        """Return what the daemon answers to `order`.

        Raises:
            VisagedError: it refused, with its sentence; or no answer within `timeout_s`; or the
                answer is not one of ours.
        """
        body = self._socket.ask(_encoder.encode(order), timeout_s)
        try:
            answer: Done | Refused = _answers.decode(body)
        except MALFORMED as error:
            raise VisagedError(
                f"the daemon's answer is malformed ({error}); update the older of the two"
            ) from error
        if isinstance(answer, Refused):
            raise VisagedError(answer.sentence)
        return answer.values

    def close(self) -> None:
        """Close the socket; a second call does nothing."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _explain(body: bytes, error: Exception) -> tuple[str, str]:
    try:
        op = _tag_probe.decode(body).get("op")
    except MALFORMED:
        return "malformed", "the request is not a MessagePack map with an `op`"
    if op not in OPS:
        return "unknown_op", f"unknown op {op!r:.60}; known: {', '.join(OPS)}"
    return "malformed", f"{op}: {error}"
