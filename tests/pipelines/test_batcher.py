"""Places in a batch: never more than wanted, nobody starved, what is left over goes round."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from visaged.pipelines.batcher import share_places

WANTED = st.lists(st.integers(0, 40), max_size=8)
PLACES = st.integers(0, 64)


@pytest.mark.parametrize(
    ("wanted", "places", "granted"),
    [
        ([], 16, []),
        ([3, 2], 16, [3, 2]),
        ([20, 20], 16, [8, 8]),
        ([1, 20, 20], 16, [1, 8, 7]),
        ([20, 0, 3], 16, [13, 0, 3]),
        ([5, 5, 5], 2, [1, 1, 0]),
        ([5, 5], 0, [0, 0]),
    ],
)
def test_places_are_shared_as_a_person_would(wanted: list[int], places: int, granted: list[int]) -> None:
    assert share_places(wanted, places) == granted


@given(WANTED, PLACES, st.integers(0, 20))
def test_nobody_gets_more_than_wanted_and_no_place_is_wasted(
    wanted: list[int], places: int, first: int
) -> None:
    granted = share_places(wanted, places, first)

    assert len(granted) == len(wanted)
    assert all(0 <= given <= asked for given, asked in zip(granted, wanted, strict=True))
    assert sum(granted) == min(places, sum(wanted))


@given(WANTED, PLACES, st.integers(0, 20))
def test_who_is_not_satisfied_has_as_much_as_anybody_but_for_one_place(
    wanted: list[int], places: int, first: int
) -> None:
    granted = share_places(wanted, places, first)

    unsatisfied = [given for given, asked in zip(granted, wanted, strict=True) if given < asked]
    if unsatisfied:
        assert max(granted) - min(unsatisfied) <= 1


@given(WANTED.filter(bool), PLACES, st.integers(0, 20))
def test_what_is_left_over_goes_to_the_first_and_those_after(
    wanted: list[int], places: int, first: int
) -> None:
    granted = share_places(wanted, places, first)

    order = [(first + step) % len(wanted) for step in range(len(wanted))]
    level = [granted[index] for index in order if granted[index] < wanted[index]]
    assert level == sorted(level, reverse=True), "a later one was served before an earlier one"


@given(st.integers(1, 8), st.integers(0, 64))
def test_over_a_whole_round_equals_get_the_same(n_cameras: int, places: int) -> None:
    total = [0] * n_cameras
    for first in range(n_cameras):
        for index, given_now in enumerate(share_places([64] * n_cameras, places, first)):
            total[index] += given_now

    assert len(set(total)) == 1
