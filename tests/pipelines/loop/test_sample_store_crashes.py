"""Processes that die while they store a flag: every acknowledged one is there, each once, none in part."""

import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from visaged.pipelines.loop.sample import Label, Source
from visaged.pipelines.loop.sample_store import SampleStore
from visaged.pipelines.loop.sighting import SIDE_PX, Sighting
from visaged.pipelines.message import Identity

from tests.crashes import die_inside_sqlite, gets_through, outcomes_of

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


def flag_and_die(state: Path, arm: Callable[[SampleStore], None]) -> None:
    """Flag, and die where `arm` says; to get through is to acknowledge the flag."""
    with SampleStore(state) as store:
        arm(store)
        store.add(seen(2), Source.USER, SECOND)
        os._exit(0)  # not closed: no more than a killed process would


def at_step(step: int) -> Callable[[SampleStore], None]:
    """Die at the `step`th instruction of SQLite's machine."""
    return lambda store: die_inside_sqlite(step, store._file._db)


def after_bytes(n_bytes: int) -> Callable[[SampleStore], None]:
    """Die in the write that makes a file longer than `n_bytes`: what fits is written, the rest is lost."""

    def arm(store: SampleStore) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))

    return arm


def die_everywhere(state: Path, before: Label | None, how: str) -> Iterator[Outcome]:
    """Yield an outcome for every place to die at, until a child gets through."""
    with SampleStore(state / "before") as store:
        store.add(seen(1), Source.USER, EARLIER)
        if before is not None:
            store.add(seen(2), Source.USER, before)
    place, is_done = 0, False
    while not is_done:
        place += STRIDE if how == "step" else WRITE_STRIDE_BYTES
        folder = shutil.copytree(state / "before", state / str(place))
        arm = at_step(place) if how == "step" else after_bytes(place)
        is_done = gets_through(partial(flag_and_die, folder, arm))
        with SampleStore(folder) as store:
            found = label_in(store)
            store.add(seen(2), Source.USER, SECOND)
            samples = store.samples()
            is_whole = all(np.array_equal(store.face(s.id).chip, seen(s.seq).chip) for s in samples)
            yield Outcome(is_done, found, label_in(store), len(samples), is_whole)


def check(outcomes: list[Outcome], before: Label | None) -> None:
    old = before.emotion if before is not None else None
    assert [o.is_acknowledged for o in outcomes] == [False] * (len(outcomes) - 1) + [True]
    assert {o.found for o in outcomes} == {old, "anger"}, "a flag was stored in part"
    assert outcomes[-1].found == "anger", "an acknowledged flag was lost"
    assert {(o.after_retry, o.n_samples, o.is_whole) for o in outcomes} == {("anger", 2, True)}


def test_dying_at_any_step_of_a_flag_leaves_all_of_it_or_nothing(tmp_path: Path) -> None:
    outcomes = outcomes_of(die_everywhere, tmp_path, None, "step")

    check(outcomes, None)
    assert len(outcomes) > 10, "hardly a step was tried"


def test_dying_at_any_step_of_a_second_flag_leaves_the_first_or_the_second(tmp_path: Path) -> None:
    check(outcomes_of(die_everywhere, tmp_path, FIRST, "step"), FIRST)


def test_a_write_torn_at_any_byte_leaves_all_of_it_or_nothing(tmp_path: Path) -> None:
    outcomes = outcomes_of(die_everywhere, tmp_path, None, "write")

    check(outcomes, None)
    assert len(outcomes) > 10, "hardly a write was torn"
