"""Which part of learning each sample is for: no track, nobody and no look is in two parts."""

import time
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ...kernels.looks import repeats
from .sample import HOLD_OUT, TRAIN, TUNE, Sample, bucket_of_person, who

U64 = npt.NDArray[np.uint64]

LEFT_OUT = "left out"
PARTS = {"hold-out": HOLD_OUT, "tune": TUNE, "train": TRAIN}
"""The most reserved first."""


def person_of(sample: Sample) -> str:
    """Return who it is, as `who` says."""
    return who(sample.label, sample.identity)


def track_of(sample: Sample) -> str:
    """Return the name of its track on its day."""
    return f"{sample.camera}/{sample.track}/{time.strftime('%Y-%m-%d', time.gmtime(sample.captured_at))}"


def group_of(sample: Sample) -> str:
    """Return the name of those samples that are alike: of one person, else of one track."""
    return person_of(sample) or track_of(sample)


def parts_of(samples: Sequence[Sample], looks: U64) -> list[str]:
    """Return the part of each sample: "train", "tune", "hold-out", or "left out".

    A person's name decides alone, so that a person keeps the part when samples are added; so it does for
    samples without a name on a track of theirs. On a track without any name the most reserved of its buckets
    does. Left out is what would break a promise: a track of people in different parts, a sample to train on
    that its bucket reserves for something else, and whatever looks the same as a sample before it.

    Args:
        samples: N of them, those first that are to be preferred among equals.
        looks: `(N,)` their pictures' `difference_hash`.
    """
    people_on: defaultdict[str, set[str]] = defaultdict(set)
    buckets_on: defaultdict[str, set[str]] = defaultdict(set)
    for sample in samples:
        track = track_of(sample)
        buckets_on[track].add(_part_of_bucket(sample.bucket))
        if person := person_of(sample):
            people_on[track].add(_part_of_bucket(bucket_of_person(person)))
    parts = np.array([_part_of(s, people_on[track_of(s)], buckets_on[track_of(s)]) for s in samples], object)
    used = np.flatnonzero(parts != LEFT_OUT)
    parts[used[repeats(looks[used])]] = LEFT_OUT
    found: list[str] = parts.tolist()
    return found


def _part_of(sample: Sample, people: set[str], buckets: set[str]) -> str:
    """Return the part of a sample on a track of people, and of buckets, that are in these parts."""
    if not people:
        return next(part for part in PARTS if part in buckets)
    if len(people) > 1:
        return LEFT_OUT
    (part,) = people
    return LEFT_OUT if part == "train" != _part_of_bucket(sample.bucket) else part


def _part_of_bucket(bucket: int) -> str:
    return next(part for part, buckets in PARTS.items() if bucket in buckets)
