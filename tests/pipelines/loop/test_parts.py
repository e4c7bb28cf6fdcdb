"""The parts of learning: nobody, no track and no look is in two, whatever the samples are."""

import time
from collections import defaultdict

import msgspec
import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st
from visaged.kernels.looks import looks_like
from visaged.pipelines.loop.parts import LEFT_OUT, parts_of, person_of, track_of
from visaged.pipelines.loop.sample import (
    TRAIN,
    Label,
    Sample,
    Source,
    State,
    bucket_of,
    bucket_of_person,
    who,
)
from visaged.pipelines.message import Identity

U64 = npt.NDArray[np.uint64]

DAY_S = 86_400


def sample(
    track: int = 1,
    day: int = 0,
    person: str = "",
    taken_for: str = "",
    bucket: int | None = None,
    not_people: tuple[str, ...] = (),
) -> Sample:
    """A sample; without a `bucket` it has the one that the store gives it when its label comes later."""
    at, seen = 1_700_000_000.0 + day * DAY_S, Identity(state="uncertain", person=taken_for)
    return Sample(
        id=f"{track}-{day}-{person}-{taken_for}-{bucket}-{not_people}",
        source=Source.USER,
        state=State.CORRECTED,
        camera="door",
        track=track,
        seq=1,
        captured_at=at,
        stored_at=time.time(),
        bucket=bucket_of("door", track, at, who(Label(), seen)) if bucket is None else bucket,
        release="abc",
        space="face-resnet",
        quality=1.0,
        disagreement=0.0,
        shown_emotion="neutral",
        identity=seen,
        label=Label(emotion="fear", person=person, not_people=not_people, is_face=True),
    )


def others(n: int) -> U64:
    """Looks that differ."""
    return np.random.default_rng(0).integers(0, 2**63, n).astype(np.uint64)


def parts(samples: list[Sample]) -> list[str]:
    """The parts of samples that look different."""
    return parts_of(samples, others(len(samples)))


NAMES = st.sampled_from(["", "Ada", "ada", "Ben", "Cy", "unknown-7"])
BUCKETS = st.none() | st.integers(0, 9)
DENIED = st.sampled_from([(), ("Ada",), ("unknown-7", "Ben")])
SAMPLES = st.builds(sample, st.integers(1, 12), st.integers(0, 2), NAMES, NAMES, BUCKETS, DENIED)
LOOKS = st.integers(0, 29).map(lambda kind: int(others(30)[kind]))


@settings(deadline=None)
@given(st.lists(st.tuples(SAMPLES, LOOKS, st.integers(0, 63)), max_size=40))
def test_nobody_no_track_and_no_look_is_in_two_parts_and_reserved_buckets_are_never_trained_on(
    drawn: list[tuple[Sample, int, int]],
) -> None:
    samples = [one for one, _, _ in drawn]
    looks = np.array([look ^ (1 << bit) for _, look, bit in drawn], np.uint64)

    found = parts_of(samples, looks)

    of_person, of_track = defaultdict(set), defaultdict(set)
    for one, part in zip(samples, found, strict=True):
        if part != LEFT_OUT:
            of_track[track_of(one)].add(part)
            if person := person_of(one):
                of_person[person].add(part)
        assert part != "train" or one.bucket in TRAIN
    assert all(len(found) == 1 for found in (*of_person.values(), *of_track.values()))
    used = looks[[part != LEFT_OUT for part in found]]
    assert all(looks_like(int(look), used).sum() == 1 for look in used), "two samples look the same"


@settings(deadline=None)
@given(st.lists(SAMPLES, max_size=20), st.lists(SAMPLES, max_size=20))
def test_a_person_keeps_the_part_when_samples_are_added(before: list[Sample], added: list[Sample]) -> None:
    first = dict(zip(before, parts(before), strict=True)) if _all_differ(before) else {}
    then = parts([*before, *added])

    for one, part in zip(before, then, strict=False):
        if first and person_of(one) and LEFT_OUT not in (part, first[one]):
            assert part == first[one]


def test_of_people_and_strangers_no_sample_is_left_out_nor_of_tracks_without_any_name() -> None:
    strangers = [sample(track=n, taken_for=f"unknown-{n // 2}") for n in range(200)]
    nameless = [sample(track=n) for n in range(200, 400)]

    assert LEFT_OUT not in parts([*strangers, *nameless])


def test_a_track_whose_name_was_denied_is_where_its_most_reserved_bucket_says() -> None:
    """The denied sample has the bucket of somebody else, the nameless one that of the track."""
    denied = sample(taken_for="Ada", not_people=("Ada",), bucket=5)

    for bucket, part in ((0, "hold-out"), (2, "tune"), (9, "train")):
        assert parts([denied, sample(bucket=bucket)]) == [part, part]
        assert parts([sample(bucket=bucket), denied]) == [part, part]


def test_a_look_that_comes_back_counts_once_also_under_another_name_and_on_another_track() -> None:
    still = [sample(track=n, taken_for=f"unknown-{n}") for n in range(50)]

    found = parts_of(still, np.full(50, others(1)[0]))

    assert found[0] != LEFT_OUT and set(found[1:]) == {LEFT_OUT}


def test_a_look_that_is_left_out_itself_leaves_no_other_out() -> None:
    name = next(f"p{n}" for n in range(100) if bucket_of_person(f"p{n}") in TRAIN)
    reserved, fit = sample(track=1, taken_for=name, bucket=0), sample(track=2, taken_for=name)

    assert parts_of([reserved, fit], np.full(2, others(1)[0])) == [LEFT_OUT, "train"]


def test_who_a_sample_is_not_is_nobody() -> None:
    denied = msgspec.structs.replace(
        sample(taken_for="Ada"), label=Label(emotion="fear", not_people=("Ada",), is_face=True)
    )

    assert person_of(denied) == ""
    assert person_of(sample(taken_for="Ada", person="Ben")) == "ben"
    assert person_of(sample(taken_for="Ada")) == "ada"


def _all_differ(samples: list[Sample]) -> bool:
    return len({one.id for one in samples}) == len(samples)
