"""Pairs of faces and the figures about them: what a person can count."""

import numpy as np
import pytest
from visaged.pipelines.errors import SourceError
from visaged.pipelines.learning.verification import (
    MOST_EACH,
    accuracy_at,
    best_threshold,
    equal_error_rate,
    pairs_of,
    true_accepts,
)

SAME = np.array([True, True, True, False, False, False])


def test_there_are_as_many_pairs_of_two_people_as_of_one_and_none_twice() -> None:
    people = np.array(["ann"] * 3 + ["bob"] * 2 + ["eve"])

    pairs = pairs_of(people, "test")

    drawn = list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    assert len(set(drawn)) == len(drawn) == len(pairs) == 8
    assert all(low < high for low, high in drawn)
    assert {pair for pair, same in zip(drawn, pairs.same, strict=True) if same} == {
        (0, 1), (0, 2), (1, 2), (3, 4),
    }  # fmt: skip
    assert np.array_equal(people[pairs.first] == people[pairs.second], pairs.same)


def test_nobody_decides_alone_and_the_draw_is_the_same_twice() -> None:
    people = np.array(["often"] * 40 + ["twice"] * 2 + [f"p{i}" for i in range(30)])

    pairs, again, other = pairs_of(people, "test"), pairs_of(people, "test"), pairs_of(people, "test", 1)

    assert pairs.same.sum() == MOST_EACH + 1
    assert np.array_equal(pairs.first, again.first) and not np.array_equal(pairs.first, other.first)


@pytest.mark.parametrize("people", [["ann", "bob"], ["ann", "ann"], []])
def test_people_who_cannot_be_compared_are_one_sentence(people: list[str]) -> None:
    with pytest.raises(SourceError, match=f"part tune has {len(set(people))} people"):
        pairs_of(np.array(people, np.str_), "tune")


def test_two_people_have_no_more_pairs_than_there_are() -> None:
    pairs = pairs_of(np.array(["ann"] * 4 + ["bob"]), "test")

    assert (pairs.same.sum(), (~pairs.same).sum()) == (6, 4)


def test_figures_are_those_one_counts() -> None:
    distances = np.array([0.1, 0.2, 0.7, 0.4, 0.8, 0.9])

    threshold = best_threshold(distances, SAME)

    assert 0.2 < threshold < 0.4 and accuracy_at(distances, SAME, threshold) == 5 / 6
    assert equal_error_rate(distances, SAME) == pytest.approx(1 / 3)
    assert true_accepts(distances, SAME, 0.0) == pytest.approx(2 / 3)
    assert true_accepts(distances, SAME, 0.34) == 1.0


def test_who_is_told_apart_without_an_error_has_the_threshold_in_the_middle() -> None:
    distances = np.array([0.1, 0.2, 0.3, 0.7, 0.8, 0.9])

    assert best_threshold(distances, SAME) == pytest.approx(0.5)
    assert equal_error_rate(distances, SAME) == 0.0


def test_equal_distances_decide_nothing() -> None:
    distances = np.full(6, 0.5)

    threshold = best_threshold(distances, SAME)

    assert accuracy_at(distances, SAME, threshold) == 0.5 and threshold != 0.5
    assert equal_error_rate(distances, SAME) == 0.5
    assert true_accepts(distances, SAME) == 0.0
