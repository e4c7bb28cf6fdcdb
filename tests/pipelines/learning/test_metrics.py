"""Metrics on numbers a person can check, and intervals that hold what they should as often as they say."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from visaged.pipelines.learning.metrics import (
    ACCURACY,
    BRIER,
    ECE,
    LOG_LOSS,
    MACRO_F1,
    METRICS,
    Bootstrap,
    ClassReport,
    Truth,
    confusion_matrix,
    difference,
    fit_temperature,
    interval,
    log_loss,
    recall_of,
    reliability,
    subgroup_table,
)

F32 = npt.NDArray[np.float32]
Text = npt.NDArray[np.str_]

P = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.8, 0.2]], np.float32)
SAW_FIRST = np.array([[1, 0], [0, 1], [0, 1], [1, 0]], np.float32)  # of P, all but the second are right
RESULTS = arrays(np.float32, (12, 3), elements=st.floats(0.125, 1, width=32))


def shares_of(values: F32) -> F32:
    shares: F32 = (values / values.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares


def right_and_wrong(is_right: npt.NDArray[np.bool_]) -> F32:
    """Return answers for faces that all show class 0."""
    return np.stack([is_right, ~is_right], axis=1).astype(np.float32)


def truth_of(groups: Text) -> Truth:
    return Truth(np.tile(np.array([1, 0], np.float32), (len(groups), 1)), groups)


def each_alone(n: int) -> Text:
    return np.array([f"person {i}" for i in range(n)])


def test_a_confusion_matrix_has_a_row_for_what_is_true_and_a_column_for_what_was_said() -> None:
    labels, said = np.array([0, 0, 0, 1, 2]), np.array([0, 0, 2, 1, 1])

    assert confusion_matrix(labels, said, 3).tolist() == [[2, 0, 1], [0, 1, 0], [0, 1, 0]]


def test_recall_precision_and_f1_of_every_class() -> None:
    report = ClassReport(np.array([[2, 0, 1], [0, 1, 0], [0, 1, 0]]))

    assert report.recall == pytest.approx([2 / 3, 1, 0])
    assert report.precision == pytest.approx([1, 1 / 2, 0])
    assert report.f1 == pytest.approx([0.8, 2 / 3, 0])
    assert report.accuracy == pytest.approx(3 / 5)
    assert report.macro_f1 == pytest.approx((0.8 + 2 / 3) / 3)


def test_a_class_neither_shown_nor_said_does_not_lower_the_macro_f1() -> None:
    report = ClassReport(np.array([[3, 0, 0], [0, 2, 0], [0, 0, 0]]))

    assert report.macro_f1 == 1.0
    assert np.isnan([report.recall[2], report.precision[2], report.f1[2]]).all()


def test_metrics_by_hand() -> None:
    assert ACCURACY(P, SAW_FIRST) == 0.75
    assert MACRO_F1(P, SAW_FIRST) == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert BRIER(P, SAW_FIRST) == pytest.approx(2 * (0.01 + 0.36 + 0.09 + 0.04) / 4)
    assert LOG_LOSS(P, SAW_FIRST) == pytest.approx(-np.log([0.9, 0.4, 0.7, 0.8]).mean())
    assert ECE(P, SAW_FIRST) == pytest.approx((0.1 + 0.6 + 0.3 + 0.2) / 4)  # every face has a bin of its own
    assert recall_of(1, "sad")(P, SAW_FIRST) == 0.5


def test_faces_of_one_bin_are_sure_and_right_together() -> None:
    p = np.array([[0.97, 0.03], [0.95, 0.05], [0.96, 0.04], [0.52, 0.48]], np.float32)
    targets = np.array([[1, 0], [1, 0], [0, 1], [1, 0]], np.float32)

    bins = reliability(p, targets, n_bins=10)

    assert bins.n_faces.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 3]
    assert [bins.confidence[9], bins.accuracy[9]] == pytest.approx([0.96, 2 / 3])
    assert np.isnan(bins.accuracy[0])
    assert bins.ece == pytest.approx(3 / 4 * (0.96 - 2 / 3) + 1 / 4 * 0.48)


def test_a_vote_against_does_less_harm_than_all_votes_against() -> None:
    split = np.array([[0.7, 0.3]], np.float32)

    assert BRIER(split, split) == pytest.approx(0.0)
    assert LOG_LOSS(split, split) < LOG_LOSS(split, np.array([[0.0, 1.0]], np.float32))


@given(RESULTS, RESULTS)
def test_metrics_stay_in_their_range_and_do_not_mind_the_order_of_faces(p: F32, targets: F32) -> None:
    p, targets = shares_of(p), shares_of(targets)

    for metric in METRICS.values():
        value = metric(p, targets)
        assert metric(p[::-1], targets[::-1]) == pytest.approx(value, abs=1e-6)
        assert 0 <= value <= {"Brier score": 2, "log loss": -np.log(1e-9)}.get(metric.name, 1)
    report = ClassReport(confusion_matrix(targets.argmax(axis=1), p.argmax(axis=1), 3))
    assert ACCURACY(p, targets) == pytest.approx(report.accuracy)
    assert MACRO_F1(p, targets) == pytest.approx(report.macro_f1)
    assert ECE(p, targets) == pytest.approx(reliability(p, targets).ece)


@given(RESULTS)
def test_nothing_scores_better_than_the_shares_of_votes_themselves(p: F32) -> None:
    p, targets = shares_of(p), shares_of(p[::-1])

    for metric in (BRIER, LOG_LOSS):
        assert metric(targets, targets) <= metric(p, targets) + 1e-6


def test_a_probability_of_zero_does_not_cost_an_infinity() -> None:
    assert LOG_LOSS(np.array([[1, 0]], np.float32), np.array([[0, 1]], np.float32)) == pytest.approx(
        20.72, abs=0.01
    )


def test_better_means_larger_or_smaller_and_nothing_is_worse_than_unknown() -> None:
    assert ACCURACY.best_of([0.5, 0.6, 0.6]) == 1
    assert LOG_LOSS.best_of([np.nan, 0.6, 0.5]) == 2
    assert ACCURACY.best_of([np.nan, 0.0]) == 1


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        ACCURACY(P, SAW_FIRST[:2])
    with pytest.raises(ValueError, match="one group"):
        Truth(SAW_FIRST, each_alone(3))
    with pytest.raises(ValueError, match="shape"):
        confusion_matrix(np.array([0, 1]), np.array([0]), 2)
    with pytest.raises(ValueError, match="one subgroup"):
        subgroup_table(P, Truth(SAW_FIRST, each_alone(4)), each_alone(3))


def test_an_interval_is_about_two_standard_errors_wide_and_the_same_twice() -> None:
    is_right = np.arange(400) % 4 > 0
    truth = truth_of(each_alone(400))

    found = interval(ACCURACY, right_and_wrong(is_right), truth)

    error = (0.75 * 0.25 / 400) ** 0.5
    assert found.value == 0.75
    assert [found.low, found.high] == pytest.approx([0.75 - 1.96 * error, 0.75 + 1.96 * error], abs=0.005)
    assert found == interval(ACCURACY, right_and_wrong(is_right), truth)
    few = [
        interval(ACCURACY, right_and_wrong(is_right), truth, Bootstrap(40, seed=seed)) for seed in range(3)
    ]
    assert len({(other.low, other.high) for other in few}) > 1


def test_resampling_gives_what_measuring_on_the_drawn_faces_gives() -> None:
    random = np.random.default_rng(0)
    p, targets = shares_of(random.random((60, 4), np.float32)), shares_of(random.random((60, 4), np.float32))
    groups = np.array([f"{i // 3:02d}" for i in range(60)])
    drawn = np.random.default_rng(5).integers(0, 20, (1, 20))[0]
    rows = np.concatenate([np.flatnonzero(groups == f"{group:02d}") for group in drawn])

    for metric in METRICS.values():
        found = interval(metric, p, Truth(targets, groups), Bootstrap(n_resamples=1, seed=5))
        assert found.low == found.high == pytest.approx(metric(p[rows], targets[rows]))


def test_copies_of_a_face_in_one_group_do_not_narrow_the_interval_but_as_persons_they_do() -> None:
    is_right = np.random.default_rng(0).random(200) < 0.8
    copies, groups = np.repeat(is_right, 10), np.repeat(each_alone(200), 10)

    once = interval(ACCURACY, right_and_wrong(is_right), truth_of(each_alone(200)))
    grouped = interval(ACCURACY, right_and_wrong(copies), truth_of(groups))
    ungrouped = interval(ACCURACY, right_and_wrong(copies), truth_of(each_alone(2000)))

    assert grouped.high - grouped.low == pytest.approx(once.high - once.low, rel=0.1)
    assert (grouped.high - grouped.low) / (ungrouped.high - ungrouped.low) == pytest.approx(10**0.5, rel=0.15)


def test_with_one_group_there_is_no_interval() -> None:
    found = interval(ACCURACY, P, Truth(SAW_FIRST, np.full(4, "one track")))

    assert found.value == 0.75
    assert np.isnan([found.low, found.high]).all()


def test_a_difference_of_nothing_is_in_the_95_percent_interval_about_95_times_in_100() -> None:
    n_runs, n_tracks, frames = 200, 80, 5
    groups = np.repeat(each_alone(n_tracks), frames)
    n_inside = {"by track": 0, "by frame": 0}
    for run in range(n_runs):
        random = np.random.default_rng(run)
        pair = [  # both are right on 7 of 10 tracks, and seldom change their mind within one
            np.repeat(random.random(n_tracks) < 0.7, frames) ^ (random.random(n_tracks * frames) < 0.05)
            for _ in range(2)
        ]
        answers = (right_and_wrong(pair[0]), right_and_wrong(pair[1]))
        for name, of in (("by track", groups), ("by frame", each_alone(len(groups)))):
            found = difference(ACCURACY, answers, truth_of(of), Bootstrap(n_resamples=300, seed=run))
            n_inside[name] += found.low <= 0 <= found.high

    assert 0.90 <= n_inside["by track"] / n_runs <= 0.99
    assert n_inside["by frame"] / n_runs < 0.80  # frames of a track are not as many opinions


def test_what_is_hard_for_both_does_not_widen_the_interval_of_their_difference() -> None:
    is_right = np.random.default_rng(0).random(500) < 0.6
    better = is_right.copy()
    better[np.flatnonzero(~is_right)[:10]] = True
    truth = truth_of(each_alone(500))

    paired = difference(ACCURACY, (right_and_wrong(better), right_and_wrong(is_right)), truth)
    alone = interval(ACCURACY, right_and_wrong(better), truth)

    assert paired.value == pytest.approx(0.02)
    assert paired.low > 0
    assert paired.high - paired.low < 0.4 * (alone.high - alone.low)
    reverse = difference(ACCURACY, (right_and_wrong(is_right), right_and_wrong(better)), truth)
    assert [reverse.low, reverse.high] == pytest.approx([-paired.high, -paired.low])


def test_resamples_without_a_rare_class_are_left_out() -> None:
    found = interval(recall_of(1, "sad"), P, Truth(SAW_FIRST, each_alone(4)))

    assert found.value == 0.5
    assert 0 <= found.low <= found.high <= 1


def test_every_subgroup_has_a_row_measured_on_its_faces_alone() -> None:
    groups = np.array(["a", "a", "b", "c"])

    young, old = subgroup_table(
        P,
        Truth(SAW_FIRST, groups),
        np.array(["20 to 30", "20 to 30", "60 and more", "60 and more"]),
        (ACCURACY,),
    )

    assert (young.name, young.n_faces, young.n_groups) == ("20 to 30", 2, 1)
    assert young.intervals["accuracy"].value == 0.5
    assert (old.name, old.n_faces, old.n_groups) == ("60 and more", 2, 2)
    assert old.intervals["accuracy"].value == old.intervals["accuracy"].low == 1.0


@pytest.mark.parametrize("times", [0.5, 3.0])
def test_the_temperature_of_logits_is_what_they_were_multiplied_by(times: float) -> None:
    logits = np.random.default_rng(0).normal(0, 1.5, (3000, 5)).astype(np.float32)
    shares = shares_of(np.exp(logits))

    assert fit_temperature(logits * np.float32(times), shares) == pytest.approx(times, rel=0.02)


def test_the_log_loss_of_logits_is_that_of_their_probabilities() -> None:
    logits = np.random.default_rng(0).normal(0, 2, (50, 4)).astype(np.float32)
    targets = shares_of(np.random.default_rng(1).random((50, 4), np.float32))

    assert log_loss(logits, targets) == pytest.approx(LOG_LOSS(shares_of(np.exp(logits)), targets), rel=1e-5)
    assert np.isfinite(log_loss(logits * 1000, targets))
