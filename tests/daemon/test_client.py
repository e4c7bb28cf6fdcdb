"""The subscriber that users import: gaps, restarts, malformed messages, prefixes."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from visaged.daemon.channels import CHANNELS, endpoint_of
from visaged.daemon.client import Subscriber
from visaged.daemon.publisher import Publisher
from visaged.daemon.sockets import ResultsPublisher
from visaged.pipelines.errors import MessageError
from visaged.pipelines.message import FaceFrame, encode, topic_of


def result(camera: str = "door", seq: int = 1, run: str = "r") -> FaceFrame:
    return FaceFrame(
        camera=camera,
        run=run,
        seq=seq,
        frame_seq=seq,
        captured_ns=1,
        captured_at=1.0,
        published_ns=2,
        width=4,
        height=3,
        release="x",
        embedding_space="s",
        embedding_dim=2,
    )


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def receive_all(
    runtime: Path, messages: list[list[bytes]], cameras: list[str] | None = None, is_strict: bool = False
) -> tuple[Subscriber, list[FaceFrame]]:
    """Send `messages` to a subscriber; return it, closed, and the results it gave."""
    with (
        ResultsPublisher(runtime) as publisher,
        Subscriber(
            endpoint_of(runtime, "results"), cameras, timeout_s=0.5, is_strict=is_strict
        ) as subscriber,
    ):
        wait_until(lambda: publisher.count_subscriptions() == (1 if cameras is None else len(cameras)))
        for parts in messages:
            publisher.send(parts)
        return subscriber, [r for r, _ in subscriber]


def test_holes_in_seq_are_counted_per_camera(runtime: Path) -> None:
    sent = [encode(result("a", seq)) for seq in (5, 6, 9)] + [encode(result("b", seq)) for seq in (1, 2)]

    subscriber, received = receive_all(runtime, sent)

    assert len(received) == 5
    assert subscriber.lost == {"a": 2, "b": 0}
    assert subscriber.n_lost == 2


def test_joining_late_is_not_a_loss(runtime: Path) -> None:
    subscriber, _ = receive_all(runtime, [encode(result(seq=1000))])

    assert subscriber.n_lost == 0


def test_a_restart_of_the_daemon_is_not_a_loss(runtime: Path) -> None:
    sent = [
        encode(result(seq=70, run="old")),
        encode(result(seq=1, run="new")),
        encode(result(seq=2, run="new")),
    ]

    subscriber, received = receive_all(runtime, sent)

    assert len(received) == 3
    assert (subscriber.n_lost, subscriber.n_runs) == (0, 2)


def test_malformed_messages_are_counted_and_skipped(runtime: Path) -> None:
    topic = topic_of("door")
    bad = [[topic], [topic, b"\xc1", b""], [topic, b"x" * 2_000_000, b""], [topic, b"\x80", b"", b""]]

    subscriber, received = receive_all(runtime, [*bad, encode(result())])

    assert [r.seq for r in received] == [1]
    assert subscriber.n_malformed == len(bad)


def test_malformed_messages_raise_when_asked_to(runtime: Path) -> None:
    with pytest.raises(MessageError, match="malformed"):
        receive_all(runtime, [[topic_of("door"), b"\xc1", b""]], is_strict=True)


def test_a_camera_whose_name_begins_like_another_is_kept_apart(runtime: Path) -> None:
    sent = [encode(result("cam1", 1)), encode(result("cam10", 1)), encode(result("cam1", 2))]

    subscriber, received = receive_all(runtime, sent, cameras=["cam1"])

    assert [r.camera for r in received] == ["cam1", "cam1"]
    assert "cam10" not in subscriber.lost


def test_iteration_ends_when_the_followed_cameras_have_ended(runtime: Path) -> None:
    with (
        Publisher(runtime) as publisher,
        Subscriber(endpoint_of(runtime, "results"), ["a", "b"], timeout_s=30) as subscriber,
    ):
        wait_until(lambda: publisher.count_subscriptions() == 2)
        publisher.publish(result("a"))
        publisher.publish_end("a", "end of file")
        publisher.publish(result("b"))
        publisher.publish_end("b", "end of file")
        start_s = time.monotonic()
        received = [r.camera for r, _ in subscriber]

    assert received == ["a", "b"]
    assert time.monotonic() - start_s < 10


def test_a_reader_slower_than_the_queue_sees_how_much_it_lost(runtime: Path) -> None:
    n = 8 * CHANNELS["results"].depth

    with (
        Publisher(runtime) as publisher,
        Subscriber(endpoint_of(runtime, "results"), timeout_s=1.0) as subscriber,
    ):
        wait_until(lambda: publisher.count_subscriptions() == 1)
        publisher.publish(result())
        assert subscriber.receive(5) is not None
        for _ in range(n):  # nobody reads meanwhile
            publisher.publish(result())
        threading.Event().wait(0.3)
        received = []
        while (message := subscriber.receive(0.3)) is not None:
            received.append(message[0].seq)
        publisher.publish(result())
        assert subscriber.receive(5) is not None

    assert subscriber.n_lost > 0
    assert len(received) + subscriber.n_lost == n


def test_the_client_loads_only_what_it_says() -> None:
    program = (
        "import sys, visaged.daemon.client;\n"
        "tops = {name.partition('.')[0] for name in sys.modules} & "
        "{'cv2', 'prometheus_client', 'rich', 'typer', 'scipy', 'onnxruntime', 'dlib', 'psutil', 'onnx'}\n"
        "print(tops)"
    )

    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "set()"


def test_a_daemon_that_is_not_there_ends_with_the_timeout(runtime: Path) -> None:
    start_s = time.monotonic()

    with Subscriber(endpoint_of(runtime, "results"), timeout_s=0.2) as subscriber:
        assert list(subscriber) == []

    assert time.monotonic() - start_s < 5


def test_a_daemon_that_comes_back_is_followed_again(runtime: Path) -> None:
    with Subscriber(endpoint_of(runtime, "results"), timeout_s=5) as subscriber:
        for _ in range(2):
            with Publisher(runtime) as publisher:
                # a subscriber follows a new daemon while it is receiving, as it does in its loop
                while publisher.count_subscriptions() == 0:
                    assert subscriber.receive(0.01) is None
                publisher.publish(result())
                assert subscriber.receive(5) is not None

    assert (subscriber.n_runs, subscriber.n_lost) == (2, 0)
