"""The reader's end of a ring, with the writer's end in the same process."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from visaged.daemon.intake import Ended, Intake, Taken
from visaged.daemon.ledger import Ledger, ledger_path
from visaged.daemon.ring import Descriptor, FrameRing, encode_descriptor
from visaged.daemon.sockets import FramesWriter


@dataclass
class Camera:
    """What a capture process does, step by step."""

    ring: FrameRing
    ledger: Ledger
    socket: FramesWriter
    policy: Literal["live", "replay"] = "live"

    def capture(self) -> None:
        seq = self.ledger.count_captured()
        slot, generation = self.ring.write(np.full((4, 4, 3), seq, np.uint8), seq)
        self.send(
            Descriptor(
                kind="frame", policy=self.policy, seq=seq, dropped_before=self.ledger.dropped_at_capture(),
                ring=self.ring.name, slot=slot, generation=generation, captured_ns=seq, width=4, height=4,
            )
        )  # fmt: skip

    def end(self) -> None:
        seq = self.ledger.snapshot().captured + 1
        self.send(Descriptor(kind="end", policy=self.policy, seq=seq, dropped_before=0, reason="end of file"))

    def send(self, descriptor: Descriptor) -> None:
        deadline = time.monotonic() + 5
        while not self.socket.send(encode_descriptor(descriptor)):  # until the reader has connected
            assert time.monotonic() < deadline
            time.sleep(0.005)


@pytest.fixture
def camera(runtime: Path, tmp_path: Path) -> Iterator[Camera]:
    with (
        FrameRing(tmp_path, "t-a", 4, 48) as ring,
        Ledger.open(ledger_path(runtime, "a")) as ledger,
        FramesWriter(runtime, "a") as socket,
    ):
        yield Camera(ring, ledger, socket)


@pytest.fixture
def malformed() -> list[str]:
    """The cameras of which garbage came."""
    return []


@pytest.fixture
def intake(camera: Camera, runtime: Path, tmp_path: Path, malformed: list[str]) -> Iterator[Intake]:
    intake = Intake(["a"], runtime, tmp_path, malformed.append)
    yield intake
    intake.close()


def take_all(intake: Intake) -> list[Taken | Ended]:
    time.sleep(0.2)  # what was sent has arrived
    found = []
    while intake.wait(100):
        taken = intake.take("a")
        if isinstance(taken, Taken):
            intake.ledgers["a"].publish()
        if taken is not None:
            found.append(taken)
    return found


def test_live_takes_the_newest_frame_and_counts_the_others_as_stale(camera: Camera, intake: Intake) -> None:
    for _ in range(3):
        camera.capture()

    taken = take_all(intake)

    assert [t.frame.seq for t in taken if isinstance(t, Taken)] == [3]
    assert camera.ledger.snapshot().dropped["stale"] == 2
    assert camera.ledger.snapshot().in_flight == 0


def test_the_last_frame_of_a_live_source_is_taken_before_its_end(camera: Camera, intake: Intake) -> None:
    camera.capture()
    camera.end()

    first, second = take_all(intake)

    assert isinstance(first, Taken)
    assert isinstance(second, Ended)
    assert camera.ledger.snapshot().published == 1


def test_replay_takes_every_frame_in_order(camera: Camera, intake: Intake) -> None:
    camera.policy = "replay"
    for _ in range(3):
        camera.capture()
    camera.end()

    taken = take_all(intake)

    assert [t.frame.seq for t in taken[:-1] if isinstance(t, Taken)] == [1, 2, 3]
    assert [int(t.frame.rgb[0, 0, 0]) for t in taken[:-1] if isinstance(t, Taken)] == [1, 2, 3]
    assert isinstance(taken[-1], Ended)


def test_an_overwritten_frame_is_counted_and_not_taken(camera: Camera, intake: Intake) -> None:
    camera.policy = "replay"
    for _ in range(6):  # the ring has 4 slots
        camera.capture()

    taken = take_all(intake)

    assert [t.frame.seq for t in taken if isinstance(t, Taken)] == [3, 4, 5, 6]
    assert camera.ledger.snapshot().dropped["ring_overrun"] == 2


def test_garbage_on_the_socket_is_counted_and_ignored(
    camera: Camera, intake: Intake, malformed: list[str]
) -> None:
    camera.capture()
    camera.socket.send(b"\xff garbage")
    camera.capture()

    assert [t.frame.seq for t in take_all(intake) if isinstance(t, Taken)] == [2]
    assert malformed == ["a"]
