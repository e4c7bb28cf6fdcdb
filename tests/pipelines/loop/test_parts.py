"""The parts of learning: nobody and no track is in two, whatever the samples are."""

import time
from collections import defaultdict

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from visaged.pipelines.loop.parts import LEFT_OUT, parts_of, person_of, track_of
from visaged.pipelines.loop.sample import TRAIN, Label, Sample, Source, State, bucket_of
from visaged.pipelines.message import Identity

DAY_S = 86_400


def sample(track: int = 1, day: int = 0, person: str = "", taken_for: str = "", id: str = "") -> Sample:
    at = 1_700_000_000.0 + day * DAY_S
    return Sample(
        id=id or f"{track}-{day}-{person}-{taken_for}",
        source=Source.USER,
        state=State.CORRECTED,
        camera="door",
        track=track,
        seq=1,
        captured_at=at,
        stored_at=time.time(),
        bucket=bucket_of("door", track, at),
        release="abc",
        space="face-resnet",
        quality=1.0,
        disagreement=0.0,
        shown_emotion="neutral",
        identity=Identity(state="uncertain", person=taken_for),
        label=Label(emotion="fear", person=person, is_face=True),
    )


NAMES = st.sampled_from(["", "Ada", "ada", "Ben", "Cy", "unknown-7"])
SAMPLES = st.builds(sample, st.integers(1, 12), st.integers(0, 2), NAMES, NAMES)


@settings(deadline=None)
@given(st.lists(SAMPLES, max_size=40))
def test_nobody_and_no_track_is_in_two_parts_and_reserved_buckets_are_never_trained_on(
    samples: list[Sample],
) -> None:
    parts = parts_of(samples)

    of_person, of_track = defaultdict(set), defaultdict(set)
    for one, part in zip(samples, parts, strict=True):
        if part != LEFT_OUT:
            of_track[track_of(one)].add(part)
            if person := person_of(one):
                of_person[person].add(part)
        assert part != "train" or one.bucket in TRAIN
    assert all(len(found) == 1 for found in (*of_person.values(), *of_track.values()))


@settings(deadline=None)
@given(st.lists(SAMPLES, max_size=20), st.lists(SAMPLES, max_size=20))
def test_a_person_keeps_the_part_when_samples_are_added(before: list[Sample], added: list[Sample]) -> None:
    first = dict(zip(before, parts_of(before), strict=True)) if _all_differ(before) else {}
    then = parts_of([*before, *added])

    for one, part in zip(before, then, strict=False):
        if first and person_of(one) and LEFT_OUT not in (part, first[one]):
            assert part == first[one]


def test_who_a_sample_is_not_is_nobody() -> None:
    denied = msgspec.structs.replace(
        sample(taken_for="Ada"), label=Label(emotion="fear", not_people=("Ada",), is_face=True)
    )

    assert person_of(denied) == ""
    assert person_of(sample(taken_for="Ada", person="Ben")) == "ben"
    assert person_of(sample(taken_for="Ada")) == "ada"


def _all_differ(samples: list[Sample]) -> bool:
    return len({one.id for one in samples}) == len(samples)
