"""Processes that die while they store a flag: every acknowledged one is there, each once, none in part."""

import multiprocessing
import os
import resource
import shutil
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
from visaged.pipelines.loop.sample import Label, Source
from visaged.pipelines.loop.sample_store import SampleStore
from visaged.pipelines.loop.sighting import SIDE_PX, Sighting
from visaged.pipelines.message import Identity

SPAWN = multiprocessing.get_context("spawn")
EARLIER, FIRST, SECOND = (Label(emotion=e, is_face=True) for e in ("neutral", "fear", "anger"))
STRIDE = 11  # steps of SQLite's machine from one death to the next
WRITE_STRIDE_BYTES = 1999  # bytes of the log from one death to the next; a page of it has 4120


class Outcome(NamedTuple):
    """After a death: was the flag acknowledged, its label in the store then, and after asking again."""

    is_acknowledged: bool
    found: str | None
    after_retry: str | None
    n_samples: int
    is_whole: bool


def seen(seq: int) -> Sighting:
    pixels = np.add.outer(np.arange(SIDE_PX), np.arange(SIDE_PX) * seq)[..., None] % 251
    return Sighting(
        camera="door", track=3, seq=seq, captured_ns=0, captured_at=float(seq),
        chip=np.repeat(pixels, 3, axis=2).astype(np.uint8), landmarks=np.ones((5, 2), np.float32),
        face_px=100, quality=1, embedding=np.full(128, seq, np.float32), space="s", probabilities=None,
        members={}, disagreement=0, identity=Identity(), release="r",
    )  # fmt: skip


def label_in(store: SampleStore) -> str | None:
    """The label that is stored of the face that is flagged."""
    return next((s.label.emotion for s in store.samples() if s.seq == 2), None)


def flag_and_die(state: Path, arm: Callable[[SampleStore], None]) -> bool:
    """Flag in a child that dies where `arm` says; return whether it acknowledged the flag before."""
    reader, writer = os.pipe()
    if not os.fork():
        with SampleStore(state) as store:
            arm(store)
            store.add(seen(2), Source.USER, SECOND)
            os.write(writer, b"!")
            os._exit(0)
    os.close(writer)
    acknowledged = os.read(reader, 1) == b"!"
    os.close(reader)
    os.wait()
    return acknowledged


def at_step(step: int) -> Callable[[SampleStore], None]:
    """Die at the `step`th instruction of SQLite's machine."""

    def arm(store: SampleStore) -> None:
        left = step

        def count() -> int:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return 0

        store._file._db.set_progress_handler(count, 1)

    return arm


def after_bytes(n_bytes: int) -> Callable[[SampleStore], None]:
    """Die in the write that makes a file longer than `n_bytes`: what fits is written, the rest is lost."""

    def arm(store: SampleStore) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))

    return arm


def die_everywhere(state: Path, before: Label | None, how: str, answers: Connection) -> None:
    """Send an outcome for every place to die at, until a child gets through."""
    with SampleStore(state / "before") as store:
        store.add(seen(1), Source.USER, EARLIER)
        if before is not None:
            store.add(seen(2), Source.USER, before)
    place, is_done = 0, False
    while not is_done:
        place += STRIDE if how == "step" else WRITE_STRIDE_BYTES
        folder = shutil.copytree(state / "before", state / str(place))
        is_done = flag_and_die(folder, at_step(place) if how == "step" else after_bytes(place))
        with SampleStore(folder) as store:
            found = label_in(store)
            store.add(seen(2), Source.USER, SECOND)
            samples = store.samples()
            is_whole = all(np.array_equal(store.face(s.id).chip, seen(s.seq).chip) for s in samples)
            answers.send(Outcome(is_done, found, label_in(store), len(samples), is_whole))
    answers.send(None)


def outcomes_of(state: Path, before: Label | None, how: str) -> list[Outcome]:
    ours, theirs = SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=die_everywhere, args=(state, before, how, theirs))
    process.start()
    theirs.close()
    outcomes = []
    while (outcome := ours.recv()) is not None:
        outcomes.append(outcome)
    process.join(60)
    assert process.exitcode == 0
    return outcomes


def check(outcomes: list[Outcome], before: Label | None) -> None:
    old = before.emotion if before is not None else None
    assert [o.is_acknowledged for o in outcomes] == [False] * (len(outcomes) - 1) + [True]
    assert {o.found for o in outcomes} == {old, "anger"}, "a flag was stored in part"
    assert outcomes[-1].found == "anger", "an acknowledged flag was lost"
    assert {(o.after_retry, o.n_samples, o.is_whole) for o in outcomes} == {("anger", 2, True)}


def test_dying_at_any_step_of_a_flag_leaves_all_of_it_or_nothing(tmp_path: Path) -> None:
    outcomes = outcomes_of(tmp_path, None, "step")

    check(outcomes, None)
    assert len(outcomes) > 10, "hardly a step was tried"


def test_dying_at_any_step_of_a_second_flag_leaves_the_first_or_the_second(tmp_path: Path) -> None:
    check(outcomes_of(tmp_path, FIRST, "step"), FIRST)


def test_a_write_torn_at_any_byte_leaves_all_of_it_or_nothing(tmp_path: Path) -> None:
    outcomes = outcomes_of(tmp_path, None, "write")

    check(outcomes, None)
    assert len(outcomes) > 10, "hardly a write was torn"
