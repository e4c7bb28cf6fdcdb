"""The labelled faces of the site that are evidence: held out, labelled, and known from nothing learned."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from visaged.pipelines.loop.sample import HOLD_OUT, TRAIN, Label, Sample, Source, bucket_of
from visaged.pipelines.loop.sample_store import SampleStore
from visaged.pipelines.loop.sighting import Sighting
from visaged.pipelines.loop.site_faces import held_out
from visaged.pipelines.message import EMOTIONS, Identity

MakeSighting = Callable[..., Sighting]
NOBODY = Identity(state="unknown")
FEAR = Label(emotion="fear", is_face=True)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    with SampleStore(tmp_path) as store:
        yield store


@pytest.fixture
def add(store: SampleStore, make_sighting: MakeSighting) -> Callable[..., Sample]:
    """Add a face of a track in one of `buckets`, with a picture of its own unless `seed` says which."""
    tracks = iter(range(1, 10_000))

    def add(buckets: tuple[int, ...], seed: int | None = None, label: Label | None = FEAR) -> Sample:
        at = make_sighting().captured_at
        track = next(track for track in tracks if bucket_of("door", track, at) in buckets)
        seen = make_sighting(track, track=track, seed=track if seed is None else seed, identity=NOBODY)
        return store.add(seen, Source.USER, label)

    return add


def test_what_people_said_of_the_hold_out_part_is_evidence_and_nothing_else(
    store: SampleStore, add: Callable[..., Sample], make_sighting: MakeSighting
) -> None:
    wanted = [add(HOLD_OUT) for _ in range(3)]
    add(TRAIN)
    add(HOLD_OUT, label=None)
    add(HOLD_OUT, label=Label(is_face=False))

    faces = held_out(store, learned=())
    chips = [chip for chip, _ in faces.faces]

    assert len(faces) == len(chips) == 3 and len(set(faces.truth.groups)) == 3
    assert faces.truth.targets.argmax(axis=1).tolist() == [EMOTIONS.index("fear")] * 3
    for sample, (chip, landmarks) in zip(wanted, faces.faces, strict=True):
        kept = store.face(sample.id)
        np.testing.assert_array_equal(chip, kept.chip)
        np.testing.assert_array_equal(landmarks, kept.landmarks)


def test_what_was_learned_from_is_no_evidence_nor_is_what_looks_like_it_or_is_of_that_person(
    store: SampleStore, add: Callable[..., Sample]
) -> None:
    """A nameless face that was trained on gets the name of somebody who is held out."""
    ada = next(f"ada{n}" for n in range(100) if bucket_of("", 0, 0, f"ada{n}") in HOLD_OUT)
    first, second, twin, good = add(TRAIN), add(HOLD_OUT), add(HOLD_OUT, seed=77), add(HOLD_OUT)
    other = add(TRAIN, seed=77)
    for sample in (first, second):
        store.label(sample.id, Label(person=ada, is_face=True))

    def found(*learned: Sample) -> int:
        return len(held_out(store, {sample.id for sample in learned}))

    assert found() == 4  # Ada twice, one of the two that look the same, and another
    assert found(first) == 2, "Ada was learned from"
    assert found(twin, good) == 2
    assert found(other) == 3, "the look was learned from on another track"


def test_an_empty_store_has_no_evidence(store: SampleStore) -> None:
    assert len(held_out(store, ())) == 0
