"""Which part of learning each sample is for: no track and nobody is in two parts."""

import hashlib
import time
from collections import defaultdict
from collections.abc import Sequence

from .sample import HOLD_OUT, N_BUCKETS, TRAIN, TUNE, Sample

LEFT_OUT = "left out"
PARTS = {"train": TRAIN, "tune": TUNE, "hold-out": HOLD_OUT}


def person_of(sample: Sample) -> str:
    """Return who it is, as people say or else as the daemon thought; strangers have numbers, "" is nobody."""
    label = sample.label
    taken_for = "" if sample.identity.person in label.not_people else sample.identity.person
    return (label.person or taken_for).casefold()


def track_of(sample: Sample) -> str:
    """Return the name of its track on its day, which is what `bucket_of` decides by."""
    return f"{sample.camera}/{sample.track}/{time.strftime('%Y-%m-%d', time.gmtime(sample.captured_at))}"


def group_of(sample: Sample) -> str:
    """Return the name of those samples that are alike: of one person, else of one track."""
    return person_of(sample) or track_of(sample)


def parts_of(samples: Sequence[Sample]) -> list[str]:
    """Return the part of each sample: "train", "tune", "hold-out", or "left out".

    A person's name decides alone, so that a person keeps the part when samples are added; so it does for
    samples without a name on a track of theirs. Without any name the sample's own bucket decides. Left out
    is what would break a promise: a track of people in different parts, and a sample to train on that its
    bucket reserves for something else.
    """
    people_on: defaultdict[str, set[str]] = defaultdict(set)
    for sample in samples:
        if person := person_of(sample):
            people_on[track_of(sample)].add(_part_of_bucket(_bucket_of_person(person)))
    return [_part_of(sample, people_on[track_of(sample)]) for sample in samples]


def _part_of(sample: Sample, on_track: set[str]) -> str:
    own = _part_of_bucket(sample.bucket)
    if not on_track:
        return own
    if len(on_track) > 1:
        return LEFT_OUT
    (part,) = on_track
    return LEFT_OUT if part == "train" != own else part


def _bucket_of_person(person: str) -> int:
    return int.from_bytes(hashlib.sha256(f"person {person}".encode()).digest()[:8]) % N_BUCKETS


def _part_of_bucket(bucket: int) -> str:
    return next(part for part, buckets in PARTS.items() if bucket in buckets)
