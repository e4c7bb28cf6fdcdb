"""Requests to the running daemon: every one is answered, whatever comes."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from visaged.daemon.control import Control, ControlClient, EnrolTrack, Flag, Ping, Status
from visaged.daemon.sockets import DISCONNECT_CONTROL_BYTES, MAX_CONTROL_BYTES, ControlSocket
from visaged.pipelines.errors import ConfigError, GalleryError, VisagedError


@contextmanager
def daemon(runtime: Path, prepare: Callable[[Control], None] = lambda control: None) -> Iterator[list[str]]:
    """Poll a Control in a thread, as the inference loop does; give the reasons of its refusals."""
    errors: list[str] = []
    stop, ready = threading.Event(), threading.Event()

    def loop() -> None:
        with Control(runtime, errors.append) as control:
            prepare(control)
            ready.set()
            while not stop.wait(0.005):
                control.poll()

    thread = threading.Thread(target=loop)
    thread.start()
    assert ready.wait(5)
    try:
        yield errors
    finally:
        stop.set()
        thread.join()


def ask_raw(runtime: Path, body: bytes) -> dict[str, Any]:
    with ControlSocket(runtime) as socket:
        answer: dict[str, Any] = msgspec.msgpack.decode(socket.ask(body, 5.0))
    return answer


def test_ping_is_answered_without_any_handler(runtime: Path) -> None:
    with daemon(runtime), ControlClient(runtime) as client:
        assert client.request(Ping()) == {}


def test_a_handler_gets_the_order_and_its_values_come_back(runtime: Path) -> None:
    def prepare(control: Control) -> None:
        control.handle(
            EnrolTrack, lambda order: {"person": order.name, "from": f"{order.camera}:{order.track}"}
        )

    with daemon(runtime, prepare), ControlClient(runtime) as client:
        answer = client.request(EnrolTrack(camera="door", track=7, name="Ada"))

    assert answer == {"person": "Ada", "from": "door:7"}


def test_what_a_handler_refuses_arrives_as_its_sentence(runtime: Path) -> None:
    def refuse(order: EnrolTrack) -> dict[str, Any]:
        raise GalleryError(f"camera {order.camera} has no track {order.track} now")

    with daemon(runtime, lambda c: c.handle(EnrolTrack, refuse)) as errors, ControlClient(runtime) as client:
        with pytest.raises(VisagedError, match="door has no track 7"):
            client.request(EnrolTrack(camera="door", track=7, name="Ada"))
        assert client.request(Ping()) == {}  # the daemon goes on

    assert errors == ["refused"]


@pytest.mark.parametrize(
    ("body", "reason", "sentence"),
    [
        (b"", "malformed", "not a MessagePack map"),
        (b"\xc1garbage", "malformed", "not a MessagePack map"),
        (msgspec.msgpack.encode([1, 2]), "malformed", "not a MessagePack map"),
        (msgspec.msgpack.encode({"op": "reboot"}), "unknown_op", "'reboot'; known: ping"),
        (msgspec.msgpack.encode({"op": "reboot" * 1000}), "unknown_op", "known: ping"),
        (msgspec.msgpack.encode({"op": ["ping"]}), "unknown_op", "known: ping"),
        (msgspec.msgpack.encode({"op": "enrol_track", "camera": "a"}), "malformed", "enrol_track.*track"),
        (
            msgspec.msgpack.encode({"op": "enrol_track", "camera": "a", "track": -1, "name": "x"}),
            "malformed",
            ">= 1.*track",
        ),
        (b"x" * (MAX_CONTROL_BYTES + 1), "oversized", f"{MAX_CONTROL_BYTES}"),
    ],
)
def test_bad_requests_get_a_sentence_and_are_counted(
    runtime: Path, body: bytes, reason: str, sentence: str
) -> None:
    with daemon(runtime) as errors:
        answer = ask_raw(runtime, body)

    assert answer["answer"] == "refused"
    assert len(answer["sentence"]) < 300
    assert re.search(sentence, answer["sentence"])
    assert errors == [reason]


def test_a_flood_of_bytes_is_cut_off_and_others_are_served(runtime: Path) -> None:
    with daemon(runtime), ControlClient(runtime) as other:
        with pytest.raises(VisagedError, match="no answer"), ControlSocket(runtime) as flooder:
            flooder.ask(b"x" * (DISCONNECT_CONTROL_BYTES + 1), 0.3)
        assert other.request(Ping()) == {}


def test_a_known_op_without_handler_is_refused(runtime: Path) -> None:
    with (
        daemon(runtime),
        ControlClient(runtime) as client,
        pytest.raises(VisagedError, match="does not answer"),
    ):
        client.request(Status())


def test_no_daemon_is_an_error_after_the_deadline(runtime: Path) -> None:
    with ControlClient(runtime) as client, pytest.raises(VisagedError, match="visaged run"):
        client.request(Ping(), timeout_s=0.1)


def test_a_late_answer_is_not_taken_for_the_next_one(runtime: Path) -> None:
    answers = iter(range(100))

    with ControlClient(runtime) as client:
        with pytest.raises(VisagedError, match="no answer"):
            client.request(Status(), timeout_s=0.05)  # sent when the daemon comes up, answered too late
        with daemon(runtime, lambda c: c.handle(Status, lambda _: {"n": next(answers)})):
            assert client.request(Status())["n"] == 1


def test_many_clients_are_answered_each(runtime: Path) -> None:
    def prepare(control: Control) -> None:
        control.handle(EnrolTrack, lambda order: {"person": order.name})

    answers: dict[int, str] = {}

    def ask(i: int) -> None:
        with ControlClient(runtime) as client:
            answers[i] = client.request(EnrolTrack(camera="a", track=1, name=f"p{i}"))["person"]

    with daemon(runtime, prepare):
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert answers == {i: f"p{i}" for i in range(20)}


def test_one_poll_answers_a_few_only_so_that_frames_go_first(runtime: Path) -> None:
    with Control(runtime) as control:
        clients = [ControlSocket(runtime) for _ in range(30)]
        for client in clients:
            client._socket.send_multipart([b"id", b""])
        deadline = threading.Event()
        deadline.wait(0.5)
        first = control.poll()
        rest = control.poll()
        for client in clients:
            client.close()

    assert 0 < first < 30
    assert rest > 0


def test_a_second_daemon_in_the_same_folder_is_refused(runtime: Path) -> None:
    with Control(runtime), pytest.raises(ConfigError, match="another running visaged"):
        Control(runtime)


def test_an_order_that_takes_time_is_answered_when_it_is_done_and_others_meanwhile(runtime: Path) -> None:
    is_done = threading.Event()

    def prepare(control: Control) -> None:
        control.handle(Flag, lambda order: lambda: {"track": order.track} if is_done.is_set() else None)

    answers: list[dict[str, Any]] = []

    def ask() -> None:
        with ControlClient(runtime) as client:
            answers.append(client.request(Flag(camera="door", track=7, confirm=True)))

    with daemon(runtime, prepare), ControlClient(runtime) as other:
        asker = threading.Thread(target=ask)
        asker.start()
        for _ in range(3):
            assert other.request(Ping()) == {}
        assert answers == []
        is_done.set()
        asker.join(5)

    assert answers == [{"track": 7}]


def test_an_order_that_fails_later_is_refused_with_its_sentence(runtime: Path) -> None:
    def fail() -> dict[str, Any] | None:
        raise GalleryError("the disk is full")

    with (
        daemon(runtime, lambda c: c.handle(Flag, lambda order: fail)) as errors,
        ControlClient(runtime) as client,
        pytest.raises(VisagedError, match="the disk is full"),
    ):
        client.request(Flag(camera="door", track=7, confirm=True))

    assert errors == ["refused"]


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"emotion": "fear", "confirm": True},
        {"emotion": "fear", "is_face": False},
        {"person": "Ada", "not_person": "Ben"},
        {"confirm": True, "is_face": False},
        {"emotion": "joy"},
    ],
)
def test_a_flag_says_one_thing(runtime: Path, said: dict[str, Any]) -> None:
    with daemon(runtime) as errors:
        answer = ask_raw(runtime, msgspec.msgpack.encode({"op": "flag", "camera": "a", "track": 1, **said}))

    assert answer["answer"] == "refused"
    assert errors == ["malformed"]
