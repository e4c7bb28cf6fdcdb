import random
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from visaged.daemon.ledger import CAPTURE_REASONS, INFER_REASONS, REASONS, Ledger
from visaged.pipelines.errors import RingError


def test_seq_goes_on_where_a_killed_capture_left_it(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger-a") as ledger:
        assert [ledger.count_captured() for _ in range(3)] == [1, 2, 3]
    with Ledger.open(tmp_path / "ledger-a") as ledger:
        assert ledger.count_captured() == 4


def test_the_book_reads_as_a_sentence(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger-a") as ledger:
        for _ in range(5):
            ledger.count_captured()
        ledger.publish()
        ledger.drop_at_capture("queue_full")
        ledger.drop_at_infer("stale", 2)

        assert str(ledger.snapshot()) == (
            "5 captured = 1 published + 3 dropped (1 queue_full, 2 stale) + 1 in flight"
        )


def test_frames_that_died_with_a_process_become_restart(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger-a") as ledger:
        for _ in range(6):
            ledger.count_captured()
        ledger.publish()

        assert ledger.settle_before(6, dropped_before=0) == 4  # 2, 3, 4 and 5
        assert ledger.settle_before(6, dropped_before=0) == 0
        ledger.publish()
        assert ledger.snapshot().in_flight == 0
        assert ledger.snapshot().dropped["restart"] == 4


def test_a_damaged_descriptor_cannot_unbalance_the_book(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger-a") as ledger:
        ledger.count_captured()

        assert ledger.settle_before(1 << 50, dropped_before=0) == 1
        assert ledger.snapshot().in_flight == 0


def test_drops_of_later_frames_do_not_hide_a_lost_one(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger-a") as ledger:
        for _ in range(3):
            ledger.count_captured()
        ledger.drop_at_capture("queue_full")  # frame 3, before infer looks at frame 2; frame 1 was lost

        assert ledger.settle_before(2, dropped_before=0) == 1


def test_what_is_left_when_all_processes_have_ended_is_shutdown(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger-a") as ledger:
        ledger.count_captured()

        assert ledger.settle_all() == 1
        assert ledger.snapshot().dropped["shutdown"] == 1
        assert ledger.snapshot().in_flight == 0


def test_each_half_tells_only_what_it_owns(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger-a") as ledger:
        ledger.count_captured()
        ledger.count_captured()
        ledger.publish()

        capture, infer = ledger.capture_counts(), ledger.infer_counts()
        assert (capture.captured, capture.published, capture.in_flight) == (2, None, None)
        assert (infer.captured, infer.published, infer.in_flight) == (None, 1, 1)
        assert (set(capture.dropped), set(infer.dropped)) == (set(CAPTURE_REASONS), set(INFER_REASONS))


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"VSG")
    (tmp_path / "foreign").write_bytes(bytes(4096))

    for name in ("short", "foreign"):
        with pytest.raises(RingError, match="no frame ledger"):
            Ledger.open(tmp_path / name)
    with pytest.raises(RingError, match="cannot open"):
        Ledger.open(tmp_path / "missing", create=False)
    with pytest.raises(RingError, match="cannot make"):
        Ledger.open(tmp_path / "no" / "folder")


def test_a_full_disk_is_one_sentence_and_leaves_nothing(small_shm: Path) -> None:
    (small_shm / "filler").write_bytes(bytes(2 << 20))

    with pytest.raises(RingError, match="No space left on device"):
        Ledger.open(small_shm / "ledger-a")
    assert [path.name for path in small_shm.iterdir()] == ["filler"]


def test_two_processes_that_make_it_at_once_share_one(tmp_path: Path) -> None:
    ledgers: list[Ledger] = []
    threads = [
        threading.Thread(target=lambda: ledgers.append(Ledger.open(tmp_path / "ledger-a"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledgers[0].count_captured()

    assert {ledger.snapshot().captured for ledger in ledgers} == {1}
    assert [path.name for path in tmp_path.iterdir()] == ["ledger-a"]


class World:
    """Capture, channel and infer as a model: any of them may die between any two steps."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.channel: deque[tuple[int, int]] = deque()
        self.half_done: int | None = None

    def capture(self, fate: str) -> None:
        before = self.ledger.dropped_at_capture()
        seq = self.ledger.count_captured()
        if fate == "sent":
            self.channel.append((seq, before))
        elif fate in CAPTURE_REASONS:
            self.ledger.drop_at_capture(fate)
        # else: killed between counting and sending

    def infer(self, fate: str) -> None:
        if not self.channel:
            return
        seq, before = self.channel.popleft()
        self.ledger.settle_before(seq, before)
        if fate == "published":
            self.ledger.publish()
        elif fate in INFER_REASONS:
            self.ledger.drop_at_infer(fate)
        # else: killed with this frame in hand, and with all that was queued for it
        else:
            self.channel.clear()


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("capture"), st.sampled_from(["sent", "sent", "queue_full", "decode_error", "killed"])
        ),
        st.tuples(st.just("infer"), st.sampled_from(["published", "published", "stale", "swap", "killed"])),
    ),
    max_size=120,
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_the_book_balances_after_every_step_and_settles_with_a_mark(
    tmp_path: Path, steps: list[tuple[str, str]]
) -> None:
    path = tmp_path / f"ledger-{random.random()}"
    with Ledger.open(path) as ledger:
        world = World(ledger)
        for who, fate in steps:
            world.capture(fate) if who == "capture" else world.infer(fate)
            book = ledger.snapshot()
            assert book.captured == book.published + sum(book.dropped.values()) + book.in_flight
            assert book.in_flight >= len(world.channel)
        while world.channel:
            world.infer("published")
        ledger.settle_before(ledger.snapshot().captured + 1, ledger.dropped_at_capture())  # the mark

        assert ledger.snapshot().in_flight == 0
        assert set(ledger.snapshot().dropped) == set(REASONS)
    path.unlink()


CAPTURE = """
import sys, time
from pathlib import Path
from visaged.daemon.ledger import Ledger
ledger = Ledger.open(Path(sys.argv[1]))
while True:
    before = ledger.dropped_at_capture()
    seq = ledger.count_captured()
    if seq % 5 == 0:
        ledger.drop_at_capture("queue_full")
    else:
        sys.stdout.buffer.write(seq.to_bytes(8, "little") + before.to_bytes(8, "little"))
        sys.stdout.buffer.flush()
"""
INFER = """
import sys
from pathlib import Path
from visaged.daemon.ledger import Ledger
ledger = Ledger.open(Path(sys.argv[1]))
while len(data := sys.stdin.buffer.read(16)) == 16:
    seq, before = int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little")
    ledger.settle_before(seq, before)
    ledger.publish() if seq % 3 else ledger.drop_at_infer("stale")
"""


def start(code: str, path: Path, **pipes: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code, str(path)], **pipes)  # type: ignore[call-overload, no-any-return]


def look_at(observer: Ledger, for_s: float) -> int:
    until, n_looks = time.monotonic() + for_s, 0
    while time.monotonic() < until or observer.snapshot().published == 0:
        book = observer.snapshot()
        assert book.in_flight >= 0
        assert book.captured == book.published + sum(book.dropped.values()) + book.in_flight
        n_looks += 1
    return n_looks


@pytest.mark.parametrize("victim", ["capture", "infer"])
def test_the_book_balances_while_two_processes_write_and_one_is_killed(tmp_path: Path, victim: str) -> None:
    path = tmp_path / "ledger-a"
    observer = Ledger.open(path)
    n_looks = 0
    for _ in range(2):  # the second round goes on in the book of the first
        with (
            start(CAPTURE, path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as capture,
            start(INFER, path, stdin=capture.stdout) as infer,
        ):
            assert capture.stdout is not None
            capture.stdout.close()  # infer has it
            try:
                n_looks += look_at(observer, 0.6)
            finally:
                (capture if victim == "capture" else infer).kill()
            # the other one meets the end of the pipe and ends

    book = observer.snapshot()
    assert n_looks > 100
    assert book.published > 100
    assert book.dropped["queue_full"] > 10
    last = observer.settle_before(book.captured + 1, observer.dropped_at_capture())
    assert observer.snapshot().in_flight == 0
    assert last == book.in_flight
