"""Which faces are kept without anybody asking: reasons, budgets, gaps, chance."""

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from visaged.kernels.looks import difference_hash
from visaged.pipelines.loop.flag_policy import FlagPolicy, FlagsConfig, Kept
from visaged.pipelines.loop.sample import Source
from visaged.pipelines.loop.sighting import SIDE_PX, Sighting
from visaged.pipelines.message import EMOTIONS, Identity

MakeSighting = Callable[..., Sighting]
U8 = npt.NDArray[np.uint8]
NO_CHANCE = FlagsConfig(random_share=0)
HOUR = 36_000  # frames of a tenth of a second


def blots(seed: int) -> U8:
    """A chip of soft blots, another for every seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(coarse, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_CUBIC), np.uint8)


def kept_at(at: tuple[float, ...]) -> Kept:
    """What is stored: faces of these times, of which nothing else is known."""
    return Kept(np.zeros((0, 128), np.float32), np.zeros(0, np.uint64), at)


def shares(first: float, second: float, winner: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    probabilities = np.zeros(len(EMOTIONS), np.float32)
    probabilities[winner], probabilities[winner - 1] = first, second
    return probabilities


@pytest.mark.parametrize(
    ("changes", "source"),
    [
        ({}, None),
        ({"disagreement": 0.36}, Source.DISAGREEMENT),
        ({"disagreement": 0.35}, None),
        ({"probabilities": shares(0.5, 0.4)}, Source.LOW_MARGIN),
        ({"probabilities": shares(0.6, 0.4)}, None),
        ({"identity": Identity(state="uncertain", person="Ada", distance=0.55)}, Source.IDENTITY_GREY),
        ({"identity": Identity(state="unknown", person="unknown-1", distance=0.65)}, Source.IDENTITY_GREY),
        ({"identity": Identity(state="unknown", person="unknown-1", distance=0.66)}, None),
        ({"identity": Identity(state="unknown", person="unknown-1")}, None),
        ({"probabilities": None, "members": {}, "disagreement": 0.9}, None),
    ],
)
def test_a_face_is_kept_for_its_reason(
    make_sighting: MakeSighting, changes: dict[str, Any], source: Source | None
) -> None:
    assert FlagPolicy(NO_CHANCE).judge(make_sighting(**changes)) == source


@pytest.mark.parametrize("changes", [{"quality": 0.19}, {"face_px": 79.0}])
def test_a_poor_look_is_kept_by_chance_only(make_sighting: MakeSighting, changes: dict[str, Any]) -> None:
    poor = make_sighting(disagreement=0.9, **changes)

    assert FlagPolicy(NO_CHANCE).judge(poor) is None
    assert FlagPolicy(FlagsConfig(random_share=1)).judge(poor) is Source.RANDOM


def test_one_sample_of_a_track_in_ten_seconds(make_sighting: MakeSighting) -> None:
    policy = FlagPolicy(NO_CHANCE)

    kept = [
        (seq, track)
        for seq in range(0, 201, 10)
        for track in (1, 2)
        if policy.judge(make_sighting(seq, track=track, disagreement=0.9))
    ]

    assert kept == [(0, 1), (0, 2), (100, 1), (100, 2), (200, 1), (200, 2)]


def test_a_novel_face_is_far_from_all_that_is_stored(make_sighting: MakeSighting) -> None:
    """Every picture is another: only the embeddings decide."""
    near, far = make_sighting(seed=1).embedding, make_sighting(seed=2).embedding
    assert near is not None
    policy = FlagPolicy(NO_CHANCE, Kept(np.stack([near] * 4), np.zeros(0, np.uint64)))
    assert policy.judge(make_sighting(seed=3, embedding=far)) is None  # too few are stored to say what is new
    policy.remember(make_sighting(seed=4, embedding=near))

    assert policy.judge(make_sighting(seed=5, embedding=near)) is None
    assert policy.judge(make_sighting(seed=6, embedding=far)) is Source.NOVELTY
    for seed in range(7, 12):
        policy.remember(make_sighting(seed=seed, embedding=far))
    assert policy.judge(make_sighting(200, seed=12, embedding=far)) is None


def test_a_look_that_is_stored_is_not_kept_again_for_any_reason(make_sighting: MakeSighting) -> None:
    """A poster on the wall, in the light of the day and under one track after the other."""
    poster, painting, window = blots(1), blots(2), blots(3)
    stored = np.array([difference_hash(poster)], np.uint64)
    config = FlagsConfig(random_share=1, random_per_hour=1000)
    policy = FlagPolicy(config, Kept(np.zeros((0, 128), np.float32), stored))

    assert policy.judge(make_sighting(10, chip=poster)) is None
    assert policy.judge(make_sighting(20, chip=painting)) is Source.RANDOM
    policy.remember(make_sighting(20, chip=painting))
    for n in range(10, 50):
        chip = (painting * (n / 50)).astype(np.uint8)
        again = make_sighting(n * 100, track=n, chip=chip, disagreement=0.9, probabilities=shares(0.5, 0.5))
        assert policy.judge(again) is None
    assert policy.judge(make_sighting(9000, chip=window)) is Source.RANDOM


def test_a_face_without_an_embedding_is_remembered_by_its_look(make_sighting: MakeSighting) -> None:
    policy = FlagPolicy(FlagsConfig(random_share=1))

    policy.remember(make_sighting(seed=1, embedding=None))

    assert policy.judge(make_sighting(seed=1)) is None
    assert policy.judge(make_sighting(seed=2)) is Source.RANDOM


@given(steps=st.lists(st.integers(1, 6 * HOUR), min_size=8, max_size=40), budget=st.integers(1, 4))
def test_no_day_has_more_than_its_budget_whatever_the_reasons_and_a_restart_forgets_nothing(
    make_sighting: MakeSighting, steps: list[int], budget: int
) -> None:
    config = FlagsConfig(per_day=budget, random_share=0, track_gap_s=0)
    policy, kept = FlagPolicy(config), list[float]()
    for n, seq in enumerate(itertools.accumulate(steps)):
        seen = make_sighting(seq, **({"disagreement": 0.9} if n % 2 else {"probabilities": shares(0.5, 0.4)}))
        in_this_day = sum(seen.captured_at - at < 86_400 for at in kept)
        if n % 3 == 2:
            policy = FlagPolicy(config, kept_at(tuple(kept[::-1])))

        source = policy.judge(seen)

        assert (source is not None) == (in_this_day < budget)
        if source:
            kept.append(seen.captured_at)


def test_faces_kept_under_a_clock_that_was_wrong_block_nobody(make_sighting: MakeSighting) -> None:
    years = 3 * 365 * 86_400
    now = make_sighting().captured_at
    policy = FlagPolicy(FlagsConfig(per_day=1, random_share=1), kept_at((now + years, now - years)))

    assert policy.judge(make_sighting()) is Source.RANDOM


def test_an_emotion_that_keeps_changing_is_kept(make_sighting: MakeSighting) -> None:
    def judge(step: int) -> list[Source | None]:
        policy = FlagPolicy(NO_CHANCE)
        return [
            policy.judge(make_sighting(n * step, probabilities=shares(0.8, 0.2, winner=n % 2)))
            for n in range(6)
        ]

    assert judge(step=3) == [None, None, None, None, Source.FLICKER, None]
    assert judge(step=15) == [None] * 6


@given(budget=st.integers(1, 4), steps=st.lists(st.integers(1, HOUR), min_size=5, max_size=40))
def test_no_hour_has_more_than_its_budget_and_none_is_wasted(
    make_sighting: MakeSighting, budget: int, steps: list[int]
) -> None:
    policy = FlagPolicy(FlagsConfig(random_share=0, disagreement_per_hour=budget, track_gap_s=0))
    kept: list[int] = []
    for seq in itertools.accumulate(steps):
        in_this_hour = sum(seq - HOUR < earlier for earlier in kept)

        source = policy.judge(make_sighting(seq, disagreement=0.9))

        assert source is (Source.DISAGREEMENT if in_this_hour < budget else None)
        if source:
            kept.append(seq)


def test_a_reason_without_budget_leaves_the_face_to_the_next(make_sighting: MakeSighting) -> None:
    policy = FlagPolicy(FlagsConfig(random_share=0, disagreement_per_hour=0))

    assert policy.judge(make_sighting(disagreement=0.9, probabilities=shares(0.5, 0.5))) is Source.LOW_MARGIN


def test_chance_takes_its_share_of_all_faces_and_the_same_again(make_sighting: MakeSighting) -> None:
    config = FlagsConfig(random_share=0.1, random_per_hour=10_000, per_day=10_000)
    sightings = [make_sighting(seq, track=seq % 7 + 1, quality=0.0) for seq in range(1000)]

    drawn = [[FlagPolicy(config).judge(s) for s in sightings] for _ in range(2)]

    assert drawn[0] == drawn[1]
    assert 70 < Counter(drawn[0])[Source.RANDOM] < 130
