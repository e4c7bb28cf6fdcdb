"""What leaves the daemon: numbering, slow and dead subscribers, refused endpoints."""

import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from visaged.daemon.channels import CHANNELS, endpoint_of
from visaged.daemon.publisher import Publisher
from visaged.daemon.sockets import ResultsSubscriber
from visaged.pipelines import message
from visaged.pipelines.errors import ConfigError
from visaged.pipelines.message import TOPIC_PREFIX, CameraEnded, Face, FaceFrame


def draft(camera: str = "door", frame_seq: int = 1) -> FaceFrame:
    return FaceFrame(
        camera=camera,
        run="",
        seq=0,
        frame_seq=frame_seq,
        captured_ns=time.monotonic_ns(),
        captured_at=time.time(),
        published_ns=0,
        width=640,
        height=480,
        release="r1",
        embedding_space="face-resnet",
        embedding_dim=128,
    )


def subscribe(runtime: Path, publisher: Publisher, *topics: bytes) -> ResultsSubscriber:
    """Return a subscriber of which the publisher knows."""
    before = publisher.count_subscriptions()
    subscriber = ResultsSubscriber(endpoint_of(runtime, "results"), topics or [TOPIC_PREFIX.encode()])
    wait_until(lambda: publisher.count_subscriptions() > before)
    return subscriber


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def test_every_topic_is_numbered_from_one_without_gaps(runtime: Path) -> None:
    with Publisher(runtime) as publisher, subscribe(runtime, publisher) as subscriber:
        for camera in ("a", "b", "a", "a", "b"):
            publisher.publish(draft(camera))
        publisher.publish_end("a", "end of file")
        received = [message.decode(parts)[0] for parts in iter(lambda: subscriber.receive(500), None)]

    assert [(r.camera, r.seq) for r in received] == [
        ("a", 1),
        ("b", 1),
        ("a", 2),
        ("a", 3),
        ("b", 2),
        ("a", 4),
    ]
    assert {r.run for r in received} == {publisher.run}
    assert isinstance(received[-1], CameraEnded)


def test_embeddings_arrive_bit_for_bit(runtime: Path) -> None:
    embeddings = np.random.default_rng(1).normal(size=(2, 128)).astype(np.float32)
    faces = [Face(track=i, box=(0, 0, 1, 1), embedding_row=i) for i in range(2)]

    with Publisher(runtime) as publisher, subscribe(runtime, publisher) as subscriber:
        sent = publisher.publish(msgspec.structs.replace(draft(), faces=faces), embeddings)
        parts = subscriber.receive(2000)
        assert parts is not None
        result, received = message.decode(parts)

    assert result == sent
    np.testing.assert_array_equal(received, embeddings)


def test_publishing_time_is_filled_in(runtime: Path) -> None:
    before = time.monotonic_ns()

    with Publisher(runtime) as publisher:
        sent = publisher.publish(draft())

    assert before <= sent.published_ns <= time.monotonic_ns()


def test_a_subscriber_that_never_reads_does_not_slow_the_daemon(runtime: Path) -> None:
    embeddings = np.zeros((64, 128), np.float32)
    n = 20 * CHANNELS["results"].depth

    with Publisher(runtime) as publisher:
        alone_s = timed_publishing(publisher, embeddings, n)
        with subscribe(runtime, publisher):
            beside_a_sleeper_s = timed_publishing(publisher, embeddings, n)

    assert beside_a_sleeper_s < alone_s + 2.0  # blocking would be for ever, not slow


def timed_publishing(publisher: Publisher, embeddings: message.F32, n: int) -> float:
    start_s = time.perf_counter()
    for _ in range(n):
        publisher.publish(draft(), embeddings)
    return time.perf_counter() - start_s


def test_a_sleeper_costs_a_reader_nothing(runtime: Path) -> None:
    n = 4 * CHANNELS["results"].depth

    with (
        Publisher(runtime) as publisher,
        subscribe(runtime, publisher),
        subscribe(runtime, publisher) as reader,
    ):
        seqs = []
        for _ in range(n):
            publisher.publish(draft())
            parts = reader.receive(2000)
            assert parts is not None
            seqs.append(message.decode(parts)[0].seq)

    assert seqs == list(range(1, n + 1))


def test_subscriptions_are_counted_up_and_down(runtime: Path) -> None:
    with Publisher(runtime) as publisher:
        first = subscribe(runtime, publisher, b"faces.v1.a", b"faces.v1.b")
        wait_until(lambda: publisher.count_subscriptions() == 2)
        second = subscribe(runtime, publisher, b"faces.v1.a")
        wait_until(lambda: publisher.count_subscriptions() == 3)
        first.close()
        wait_until(lambda: publisher.count_subscriptions() == 1)
        second.close()
        wait_until(lambda: publisher.count_subscriptions() == 0)


def test_a_second_daemon_in_the_same_folder_is_refused(runtime: Path) -> None:
    with Publisher(runtime), pytest.raises(ConfigError, match="another running visaged"):
        Publisher(runtime)


def test_a_socket_file_left_by_a_killed_process_is_replaced(runtime: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(runtime / "results.ipc"))

    with Publisher(runtime) as publisher, subscribe(runtime, publisher):
        pass
    assert not (runtime / "results.ipc").exists()


def test_a_path_too_long_for_a_socket_is_said_in_a_sentence(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 100)
    folder.mkdir()

    with pytest.raises(ConfigError, match=r"107.*\[paths\] runtime"):
        Publisher(folder)
