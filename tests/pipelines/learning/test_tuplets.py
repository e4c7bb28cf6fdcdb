"""Tuplets: which are drawn from a batch, what they cost, and the order that puts them into one batch."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="torch is not installed (extra `learn`)")
pytestmark = pytest.mark.torch

from visaged.pipelines.learning.tuplets import tuplet_loss, tuplet_order, tuplets_of  # noqa: E402


@pytest.fixture(autouse=True)
def _one_core() -> None:
    torch.set_num_threads(1)


def tuplets(
    features: Sequence[Sequence[float]], labels: Sequence[int], groups: Sequence[int], sizes: tuple[int, int]
) -> float:
    rows = torch.nn.functional.normalize(torch.tensor(features, dtype=torch.float64))
    reference = torch.tensor(1.0, dtype=torch.float64)
    return float(tuplet_loss(rows, torch.tensor(labels), torch.tensor(groups), reference, 0.8, sizes))


def test_tuplets_cost_nothing_where_clusters_are_apart() -> None:
    apart = [[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]  # squared distances across: about 2, above 1.4
    near = [[1.0, 0.0], [1.0, 0.1], [1.0, 0.8], [0.9, 1.0]]

    assert tuplets(apart, [0, 0, 1, 1], [0, 1, 0, 1], (4, 5)) == 0
    assert tuplets(near, [0, 0, 1, 1], [0, 1, 0, 1], (4, 5)) > 0.5


def test_the_tuplet_loss_has_the_value_a_person_computes() -> None:
    # Queries 0 and 1: the centre (0.5, 0.5) is 0.5 from both, below 0.6, and from sample 2: 1.4 - 0.5.
    # Query 2 is alone in its class, so the centre; sample 0, the same person, is 0 from it: 1.4 - 0.
    value = tuplets([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], [0, 0, 1], [0, 1, 0], (2, 1))

    assert value == pytest.approx((0.9 + 0.9 + 1.4) / 3)


def test_positives_that_are_too_far_from_their_centre_cost() -> None:
    # The centre of two opposite ones is 0, 1 from both: 1 - 0.6 over the limit; there is no negative.
    assert tuplets([[1, 0], [-1, 0]], [0, 0], [0, 1], (2, 1)) == pytest.approx(0.4)


def test_the_same_person_is_the_first_negative_though_others_are_nearer() -> None:
    features = torch.tensor([[1.0, 0], [-1, 0], [1, 0]])
    labels, groups = torch.tensor([0, 1, 1]), torch.tensor([0, 0, 7])

    _, (one, _) = tuplets_of(features, labels, groups, (2, 1))
    _, (two, is_negative) = tuplets_of(features, labels, groups, (2, 2))

    assert one[0].tolist() == [1]
    assert two[0].tolist() == [1, 2]
    assert is_negative[0].all()


def test_a_positive_beyond_the_nearest_negative_gives_way_to_better_ones() -> None:
    # squared distances from sample 0: itself, stray 4, good 0.4, also good 0.2; the negative 2
    features = torch.tensor([[1.0, 0], [-1, 0], [0.8, 0.6], [0.9, 0.19**0.5], [0, 1]])
    labels, groups = torch.tensor([0, 0, 0, 0, 1]), torch.tensor([0, 1, 2, 3, 0])

    (positives, _), _ = tuplets_of(features, labels, groups, (4, 1))

    assert positives[0].tolist() == [0, 2, 3, 1]


def test_samples_of_the_same_person_are_no_positives() -> None:
    labels, groups = torch.tensor([0, 0, 0]), torch.tensor([5, 5, 6])

    (positives, is_positive), (_, is_negative) = tuplets_of(torch.eye(3), labels, groups, (3, 2))

    chosen = [row[counts].tolist() for row, counts in zip(positives, is_positive, strict=True)]
    assert [set(row) for row in chosen] == [{0, 2}, {1, 2}, {0, 1, 2}]
    assert [row[0] for row in chosen] == [0, 1, 2]  # the query
    assert not is_negative.any()


def test_the_reference_distance_follows_what_violates_it() -> None:
    reference = torch.tensor(1.0, requires_grad=True)
    opposite, alike = torch.tensor([[1.0, 0], [-1, 0]]), torch.tensor([[1.0, 0], [1, 0]])
    one, two, groups = torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([0, 1])

    (far,) = torch.autograd.grad(tuplet_loss(opposite, one, groups, reference, 0.8, (2, 1)), reference)
    (near,) = torch.autograd.grad(tuplet_loss(alike, two, groups, reference, 0.8, (2, 1)), reference)

    assert float(far) == pytest.approx(-1)  # descending raises it for positives that are too far
    assert float(near) == pytest.approx(1)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=60), st.integers(0, 9))
def test_the_order_for_tuplets_holds_every_sample_once(pairs: list[tuple[int, int]], seed: int) -> None:
    labels, groups = np.array([p[0] for p in pairs], dtype=np.int64), [f"person {p[1]}" for p in pairs]

    order = tuplet_order(labels, groups, seed)

    assert sorted(order.tolist()) == list(range(len(pairs)))
    assert order.tolist() == tuplet_order(labels, groups, seed).tolist()


def test_batches_in_the_order_for_tuplets_hold_far_more_of_them_than_chance() -> None:
    random = np.random.default_rng(0)
    labels, groups = random.integers(0, 7, 2000), random.integers(0, 200, 2000)

    def share_with_negatives(order: npt.NDArray[np.int64]) -> float:
        shares = []
        for rows in np.array_split(order, 40):
            same_person = groups[rows][:, None] == groups[rows]
            other_class = labels[rows][:, None] != labels[rows]
            shares.append(((same_person & other_class).sum(1) >= 2).mean())
        return float(np.mean(shares))

    assert share_with_negatives(random.permutation(2000)) < 0.05
    assert share_with_negatives(tuplet_order(labels, groups, 1)) > 0.35
