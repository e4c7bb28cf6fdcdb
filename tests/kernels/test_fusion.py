"""Fusion on numbers a person can check."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from visaged.kernels import fusion

F32 = npt.NDArray[np.float32]
ALL = np.ones((2, 3), bool)


def members(*rows: list[float]) -> F32:
    """One face (N = 1), a row of K probabilities per member."""
    return np.array(rows, np.float32)[:, None]


def test_logits_become_probabilities_over_the_classes_a_member_knows() -> None:
    logits = np.array([[[0.0, np.log(3.0), 99.0]]], np.float32)

    p = fusion.probabilities(logits, np.array([[True, True, False]]))

    assert p[0, 0] == pytest.approx([0.25, 0.75, 0.0])


def test_huge_logits_do_not_overflow() -> None:
    p = fusion.probabilities(np.array([[[1e4, -1e4]]], np.float32), np.ones((1, 2), bool))

    assert np.isfinite(p).all()


def test_the_sum_rule_is_the_mean() -> None:
    assert fusion.fuse_sum(members([0.2, 0.8, 0.0], [0.6, 0.2, 0.2]), ALL)[0] == pytest.approx(
        [0.4, 0.5, 0.1]
    )


def test_a_class_only_one_member_knows_is_not_halved() -> None:
    knows = np.array([[True, True, False], [True, True, True]])

    fused = fusion.fuse_sum(members([0.5, 0.5, 0.0], [0.2, 0.2, 0.6]), knows)[0]

    assert fused.argmax() == 2
    assert fused.sum() == pytest.approx(1.0)


def test_the_max_rule_follows_the_surest() -> None:
    fused = fusion.fuse_max(members([0.6, 0.4, 0.0], [0.05, 0.05, 0.9]), ALL)[0]

    assert fused == pytest.approx([0.6 / 1.9, 0.4 / 1.9, 0.9 / 1.9])


def test_a_majority_outvotes_one_sure_member() -> None:
    p = members([0.4, 0.6, 0.0], [0.4, 0.6, 0.0], [1.0, 0.0, 0.0])

    assert fusion.fuse_vote(p, np.ones((3, 3), bool))[0].argmax() == 1
    assert fusion.fuse_sum(p, np.ones((3, 3), bool))[0].argmax() == 0


def test_a_tied_vote_goes_to_the_larger_sum() -> None:
    assert fusion.fuse_vote(members([0.9, 0.1, 0.0], [0.2, 0.8, 0.0]), ALL)[0].argmax() == 0


def test_weights_can_silence_a_member() -> None:
    p = members([1.0, 0.0, 0.0], [0.0, 1.0, 0.0])

    for rule in (fusion.fuse_sum, fusion.fuse_vote, fusion.fuse_max):
        assert rule(p, ALL, np.array([0.0, 1.0], np.float32))[0].argmax() == 1


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[0.3, 0.7], [0.3, 0.7]], 0.0),
        ([[1.0, 0.0], [0.0, 1.0]], 1.0),
        ([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], 1.0),
    ],
)
def test_disagreement_goes_from_the_same_answer_to_sure_and_different_ones(
    rows: list[list[float]], expected: float
) -> None:
    p = members(*rows)

    assert fusion.disagreement(p, np.ones((len(p), p.shape[2]), bool)) == pytest.approx([expected], abs=1e-6)


def test_a_class_one_member_does_not_know_is_no_disagreement() -> None:
    knows = np.array([[True, True, False], [True, True, True]])

    assert fusion.disagreement(members([0.5, 0.5, 0.0], [0.2, 0.2, 0.6]), knows) == pytest.approx(
        [0.0], abs=1e-6
    )


@given(arrays(np.float32, (3, 2, 4), elements=st.floats(-20, 20, width=32)))
def test_every_rule_gives_probabilities(logits: F32) -> None:
    knows = np.array([[1, 1, 1, 0], [1, 1, 1, 1], [0, 1, 1, 1]], bool)
    p = fusion.probabilities(logits, knows)

    for rule in (fusion.fuse_sum, fusion.fuse_vote, fusion.fuse_max):
        fused = rule(p, knows)
        assert fused.sum(axis=1) == pytest.approx([1.0, 1.0], abs=1e-5)
        assert (fused >= 0).all()
    apart = fusion.disagreement(p, knows)
    assert ((apart >= 0) & (apart <= 1)).all()


def test_a_cascade_makes_members_of_any_scale_comparable() -> None:
    small, large = np.array([[1.0, -1.0]], np.float32), np.array([[3e4, 3e4, 3e4, 3e4]], np.float32)

    joined = fusion.cascade([small, large])

    assert joined[0] == pytest.approx([0.7071, -0.7071, 0.5, 0.5, 0.5, 0.5], abs=1e-4)


def test_a_weighted_cascade_scales_each_members_part() -> None:
    one = np.array([[1.0, 0.0]], np.float32)

    assert fusion.weighted_cascade([one, one], np.array([2.0, 0.5], np.float32))[0] == pytest.approx(
        [2, 0, 0.5, 0]
    )


def test_accuracy_weights_favour_the_better_and_average_to_one() -> None:
    weights = fusion.accuracy_weights(np.array([0.5, 0.6], np.float32))

    assert weights[1] > weights[0]
    assert weights.mean() == pytest.approx(1.0)


def test_disagreeing_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="shape"):
        fusion.probabilities(np.zeros((2, 1, 3), np.float32), np.ones((2, 4), bool))
