"""The thread that writes samples: it never makes the inference thread wait, and loses nothing it accepted."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from visaged.daemon.sample_writer import DEPTH, RESERVED, SampleWriter
from visaged.pipelines.errors import SampleError, StoreError
from visaged.pipelines.loop.sample import Sample, State
from visaged.pipelines.loop.sample_store import SampleStore


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[SampleWriter]:
    writer = SampleWriter(lambda: SampleStore(tmp_path))
    yield writer
    writer.close()


@pytest.fixture
def slow_disk(writer: SampleWriter) -> Iterator[Callable[[], None]]:
    """Keep the writer busy until the returned function is called."""
    is_busy, may_go_on = threading.Event(), threading.Event()

    def hang(store: SampleStore) -> None:
        is_busy.set()
        may_go_on.wait(30)

    writer.submit(hang, is_urgent=True)
    assert is_busy.wait(5)
    yield may_go_on.set
    may_go_on.set()


def nothing(store: SampleStore) -> None:
    """A job that does nothing."""


def test_on_a_slow_disk_nobody_waits_and_people_go_first(
    writer: SampleWriter, slow_disk: Callable[[], None]
) -> None:
    start = time.perf_counter()
    accepted = [writer.submit(nothing, is_urgent=False) for _ in range(DEPTH - RESERVED)]
    with pytest.raises(SampleError, match="wait to be written"):
        writer.submit(nothing, is_urgent=False)
    accepted += [writer.submit(nothing, is_urgent=True) for _ in range(RESERVED)]
    with pytest.raises(SampleError, match="wait to be written"):
        writer.submit(nothing, is_urgent=True)
    took_s = time.perf_counter() - start

    assert took_s < 1
    assert not any(future.done() for future in accepted)
    slow_disk()
    assert [future.result(5) for future in accepted] == [None] * DEPTH


def test_what_was_accepted_is_written_before_it_closes(
    writer: SampleWriter, slow_disk: Callable[[], None]
) -> None:
    accepted = [writer.submit(nothing, is_urgent=True) for _ in range(5)]
    slow_disk()

    writer.close()

    assert all(future.done() for future in accepted)


def test_a_job_that_fails_says_so_and_the_next_is_done(writer: SampleWriter) -> None:
    def full(store: SampleStore) -> Sample | None:
        raise SampleError("the disk is full")

    failed, done = (writer.submit(job, is_urgent=True) for job in (full, nothing))

    with pytest.raises(SampleError, match="the disk is full"):
        failed.result(5)
    assert done.result(5) is None
    assert writer.counts == dict.fromkeys(State, 0)


def test_a_store_that_cannot_be_opened_is_said_at_once(tmp_path: Path) -> None:
    SampleStore(tmp_path).close()
    (tmp_path / "samples.key").unlink()

    with pytest.raises(StoreError, match="restore it"):
        SampleWriter(lambda: SampleStore(tmp_path))
