"""Ensembles on numbers a person can check, and on members whose faults are known."""

import logging

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from visaged.kernels import fusion
from visaged.pipelines.fuser import RULES, CommitteeFusion, Group, fuse_group
from visaged.pipelines.learning.ensembles import (
    Members,
    diversity,
    fit_cascade,
    fit_committee,
    fit_temperatures,
    learn_gates,
    select_greedily,
    tune_weights,
)
from visaged.pipelines.learning.metrics import ACCURACY, LOG_LOSS, METRICS, log_loss

F32 = npt.NDArray[np.float32]

# Multiples of 1/2: members that are the last bit apart from a tie would make accuracies jump.
LOGITS = arrays(np.float32, (3, 10, 4), elements=st.integers(-12, 12).map(lambda i: i / 2))
SLOWLY = settings(deadline=None, max_examples=50)  # the cores are shared
LABELS = arrays(np.int64, 10, elements=st.integers(0, 3))


def members_of(logits: F32) -> Members:
    knows = np.ones((logits.shape[0], logits.shape[2]), bool)
    return Members(tuple("abcdefgh"[: len(logits)]), fusion.probabilities(logits, knows), knows)


def one_hot(labels: npt.NDArray[np.int64], n_classes: int = 4) -> F32:
    return np.eye(n_classes, dtype=np.float32)[labels]


def members_with_skill(*skills: float, n: int = 600) -> tuple[Members, F32]:
    """Return members that see the truth through noise of their own, and the truth."""
    random = np.random.default_rng(0)
    targets = one_hot(random.integers(0, 4, n))
    noise = random.normal(0, 1, (len(skills), n, 4))
    return members_of((noise + np.array(skills)[:, None, None] * targets).astype(np.float32)), targets


def from_faults(*wrong: str) -> tuple[Members, F32]:
    """Return members with an x where they are wrong, on faces that all show class 0."""
    is_wrong = np.array([[mark == "x" for mark in marks] for marks in wrong])
    p = np.stack([~is_wrong, is_wrong], axis=2).astype(np.float32)
    return Members(tuple("abc"[: len(p)]), p, np.ones((len(p), 2), bool)), one_hot(
        np.zeros(p.shape[1], np.int64), 2
    )


def group(name: str, *parts: Group | str) -> Group:
    return Group(name=name, parts=parts)


def answer_of(committee: CommitteeFusion, members: Members) -> F32:
    return fuse_group(committee.top, members.of)[0]


def weights_of(group: Group) -> dict[str, F32]:
    """Return the weights of every group, by its name."""
    weights = {group.name: np.array(group.weights, np.float32)}
    for part in group.parts:
        weights |= weights_of(part) if isinstance(part, Group) else {}
    return weights


def test_members_need_a_name_each_and_shapes_that_fit() -> None:
    members = members_of(np.zeros((2, 3, 4), np.float32))

    with pytest.raises(ValueError, match="one name"):
        Members(("a", "a"), members.p, members.knows)
    with pytest.raises(ValueError, match="must be"):
        Members(members.names, members.p, members.knows[:, :3])


def test_the_product_rule_multiplies_what_members_say() -> None:
    p = np.array([[[0.5, 0.5]], [[0.2, 0.8]]], np.float32)

    fused = fusion.fuse_product(p, np.ones((2, 2), bool))[0]

    assert fused == pytest.approx(np.sqrt([0.1, 0.4]) / np.sqrt([0.1, 0.4]).sum())


def test_a_veto_counts_in_the_product_but_not_in_the_sum() -> None:
    p = np.array([[[0.9, 0.1]], [[0.9, 0.1]], [[0.0, 1.0]]], np.float32)
    knows = np.ones((3, 2), bool)

    assert fusion.fuse_product(p, knows)[0].argmax() == 1
    assert fusion.fuse_sum(p, knows)[0].argmax() == 0
    assert fusion.fuse_product(p, knows, np.array([1, 1, 0], np.float32))[0] == pytest.approx([0.9, 0.1])


def test_the_product_does_not_punish_a_class_for_being_known_to_few_or_to_many() -> None:
    knows = np.array([[True, True, False], [True, True, True]])
    p = np.array([[[0.5, 0.5, 0.0]], [[0.25, 0.25, 0.5]]], np.float32)

    fused = fusion.fuse_product(p, knows)[0]

    assert fused == pytest.approx(np.array([8**-0.5, 8**-0.5, 0.5]) / (2 * 8**-0.5 + 0.5), abs=1e-6)
    assert fusion.fuse_product(p[:1], knows[:1])[0] == pytest.approx([0.5, 0.5, 0.0])
    with pytest.raises(ValueError, match="no member"):
        fusion.fuse_product(p, knows, np.zeros(2, np.float32))


@SLOWLY
@given(LOGITS)
def test_every_rule_gives_probabilities_and_one_member_alone_stays_itself(logits: F32) -> None:
    members = members_of(logits)

    for name, rule in RULES.items():
        fused = rule(members.p, members.knows, None)
        assert fused.sum(axis=1) == pytest.approx(np.ones(10), abs=1e-5)
        alone = rule(members.p[:1], members.knows[:1], None)
        assert np.take_along_axis(alone, members.p[0].argmax(axis=1)[:, None], 1).ravel() == pytest.approx(
            alone.max(axis=1), abs=1e-6
        ), name


def test_temperatures_are_found_on_the_classes_a_member_knows() -> None:
    logits = np.random.default_rng(0).normal(0, 1.5, (2, 2000, 4)).astype(np.float32)
    knows = np.array([[True, True, True, True], [True, True, True, False]])
    seen = fusion.probabilities(logits[:1], knows[:1])[0]
    logits[1, :, :3] = logits[0, :, :3] * 4
    logits[1, :, 3] = 99.0  # it has no such class: whatever stands there must not count

    assert fit_temperatures(logits, knows, seen) == pytest.approx([1.0, 4.0], rel=0.02)
    unknown = np.arange(2000) >= 1900  # faces that show only what the second member does not know
    seen[unknown] = one_hot(np.full(100, 3))
    assert fit_temperatures(logits, knows, seen)[1] == pytest.approx(4.0, rel=0.02)


@SLOWLY
@given(LOGITS, LABELS)
def test_with_q_zero_va_expo_wa_is_the_mean(logits: F32, labels: npt.NDArray[np.int64]) -> None:
    members = members_of(logits)

    weighting = tune_weights(members, one_hot(labels), grid=(0.0,))

    assert weighting.weights.tolist() == [1.0, 1.0, 1.0]
    assert fusion.fuse_sum(members.p, members.knows, weighting.weights) == pytest.approx(
        members.p.mean(axis=0), abs=1e-6
    )


def test_the_weights_are_accuracies_to_the_power_of_q() -> None:
    members, targets = from_faults("....xxxxxx", "....xxxx..")  # accuracies 0.4 and 0.6

    weights = tune_weights(members, targets, grid=(2.0,)).weights

    assert weights == pytest.approx(np.array([0.16, 0.36]) / 0.26)


def test_a_large_q_is_chosen_when_all_but_one_member_are_bad_and_the_smallest_of_equals() -> None:
    bad_and_good, targets = members_with_skill(0.3, 0.3, 0.3, 3.0)
    alike, same_targets = members_with_skill(2.0, 2.0, 2.0)

    q = tune_weights(bad_and_good, targets).q
    assert q > 1
    weights = tune_weights(bad_and_good, targets).weights
    assert ACCURACY(fusion.fuse_sum(bad_and_good.p, bad_and_good.knows, weights), targets) > ACCURACY(
        bad_and_good.p.mean(axis=0), targets
    )
    assert tune_weights(alike, same_targets, grid=(0.0, 0.001)).q == 0.0


@SLOWLY
@given(LOGITS, LABELS)
def test_tuned_weights_are_never_worse_than_the_mean_on_the_tuning_part(
    logits: F32, labels: npt.NDArray[np.int64]
) -> None:
    members, targets = members_of(logits), one_hot(labels)

    for metric in METRICS.values():
        weights = tune_weights(members, targets, metric).weights
        value = metric(fusion.fuse_sum(members.p, members.knows, weights), targets)
        mean = metric(fusion.fuse_sum(members.p, members.knows), targets)
        assert metric.best_of([value, mean]) == 0


def test_members_that_are_never_right_still_get_weights() -> None:
    members, targets = from_faults("xxx", "xxx")

    assert tune_weights(members, targets, grid=(150.0,)).weights.tolist() == [1.0, 1.0]


@SLOWLY
@given(LOGITS, LABELS)
def test_a_committee_of_one_group_is_va_expo_wa(logits: F32, labels: npt.NDArray[np.int64]) -> None:
    members, targets = members_of(logits), one_hot(labels)
    flat = tune_weights(members, targets)
    plain = fusion.fuse_sum(members.p, members.knows, flat.weights)
    inner = group("all", "a", "b", "c")

    for parts in (inner, group("committee", inner)):
        committee = fit_committee(parts, members, targets)
        assert answer_of(committee, members) == pytest.approx(plain, abs=1e-5)
        assert weights_of(committee.top)["all"] == pytest.approx(flat.weights)


def test_a_committee_of_three_levels_weighs_members_groups_and_groups_of_groups() -> None:
    members, targets = members_with_skill(0.2, 2.0, 1.5, 1.5, 1.8)
    levels = group("all", group("first", group("grey", "a", "b"), "c"), group("second", "d", "e"))

    committee = fit_committee(levels, members, targets)

    w = {name: weights / weights.sum() for name, weights in weights_of(committee.top).items()}
    grey = np.tensordot(w["grey"], members.p[:2], 1)
    first = w["first"][0] * grey + w["first"][1] * members.p[2]
    second = np.tensordot(w["second"], members.p[3:], 1)
    assert set(w) == {"grey", "first", "second", "all"}
    assert w["grey"][1] > w["grey"][0]
    assert answer_of(committee, members) == pytest.approx(
        w["all"][0] * first + w["all"][1] * second, abs=1e-5
    )
    reversed_members = Members(members.names[::-1], members.p[::-1], members.knows[::-1])
    assert answer_of(committee, reversed_members) == pytest.approx(
        answer_of(committee, members)
    )  # found by name


def test_a_class_that_only_one_group_knows_survives_the_committee() -> None:
    knows = np.array([[True, True, False], [True, True, True]])
    p = np.array([[[0.5, 0.5, 0.0]], [[0.1, 0.1, 0.8]]], np.float32)
    members = Members(("a", "b"), p, knows)

    committee = fit_committee(
        group("all", group("seven", "a"), group("eight", "b")), members, one_hot(np.array([2]), 3)
    )

    assert answer_of(committee, members)[0].argmax() == 2


def test_a_committee_with_a_stranger_or_with_two_groups_of_one_name_is_refused() -> None:
    members, targets = from_faults("..x", ".x.")

    with pytest.raises(ValueError, match="no member is called z"):
        fit_committee(group("all", "a", "z"), members, targets)
    with pytest.raises(ValueError, match="two groups"):
        fit_committee(group("all", group("all", "a"), "b"), members, targets)


@SLOWLY
@given(LOGITS, LABELS)
def test_a_greedy_selection_is_never_worse_than_the_best_single_member_on_its_set(
    logits: F32, labels: npt.NDArray[np.int64]
) -> None:
    members, targets = members_of(logits), one_hot(labels)

    for metric in METRICS.values():
        selection = select_greedily(members, targets, metric, n_choices=6)
        fused = metric(fusion.fuse_sum(members.p, members.knows, selection.weights), targets)
        assert fused == selection.values[-1]
        for p in members.p:
            single = metric(p, targets)
            assert metric.best_of([fused, single]) == 0 or fused == pytest.approx(single, abs=1e-6)
        assert selection.counts.sum() == len(selection.path) == len(selection.values)


def test_a_selection_takes_the_best_first_and_leaves_out_who_only_harms() -> None:
    members, targets = members_with_skill(2.0, 1.6, 0.0)

    selection = select_greedily(members, targets, LOG_LOSS)

    assert selection.path[0] == "a"
    assert selection.counts[0] >= selection.counts[1] > selection.counts[2]
    assert selection.weights.mean() == pytest.approx(1.0)
    assert (
        list(selection.values) == sorted(selection.values, reverse=True)
        or min(selection.values) == selection.values[-1]
    )


def test_members_with_the_same_faults_have_q_one_and_with_opposite_faults_minus_one() -> None:
    same, targets = from_faults("..xx", "..xx")
    opposite, _ = from_faults("..xx", "xx..")

    (pair,), (contrary,) = diversity(same, targets), diversity(opposite, targets)

    assert (pair.first, pair.second, pair.disagreement, pair.double_fault) == ("a", "b", 0.0, 0.5)
    assert [pair.q, pair.correlation] == pytest.approx([1.0, 1.0])
    assert [contrary.q, contrary.correlation] == pytest.approx([-1.0, -1.0])
    assert (contrary.disagreement, contrary.double_fault) == (1.0, 0.0)


def test_independent_faults_have_q_zero() -> None:
    exact, targets = from_faults("..xx", ".x.x")
    random = np.random.default_rng(0).random((2, 20000)) < 0.3
    drawn = from_faults(*["".join("x" if wrong else "." for wrong in row) for row in random])

    assert diversity(exact, targets)[0].q == diversity(exact, targets)[0].correlation == 0.0
    assert diversity(*drawn)[0].q == pytest.approx(0.0, abs=0.05)
    assert diversity(*drawn)[0].double_fault == pytest.approx(0.09, abs=0.01)


def test_all_pairs_are_reported_and_what_is_undefined_is_nan() -> None:
    members, targets = from_faults("....", "..x.", ".xx.")

    pairs = {(pair.first, pair.second): pair for pair in diversity(members, targets)}

    assert list(pairs) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert np.isnan([pairs["a", "b"].q, pairs["a", "b"].correlation]).all()
    assert pairs["a", "b"].disagreement == 0.25
    assert pairs["b", "c"].q == 1.0  # b's faults are among c's


def features_and_targets(n: int = 300) -> tuple[list[F32], F32]:
    """Return features of a member that sees the class and of one that sees nothing, and the classes."""
    random = np.random.default_rng(0)
    targets = one_hot(random.integers(0, 4, n))
    seeing = targets @ random.normal(0, 2, (4, 6)) + random.normal(0, 1, (n, 6))
    return [seeing.astype(np.float32), random.normal(0, 50, (n, 9)).astype(np.float32)], targets


def test_exported_weights_and_bias_reproduce_the_probabilities_as_a_gemm_would() -> None:
    features, targets = features_and_targets()
    gates = fusion.accuracy_weights(np.array([0.8, 0.3], np.float32))

    head = fit_cascade(features, targets, gates)

    shares = np.exp(fusion.cascade(features) @ head.weights + head.bias)
    assert head.weights.shape == (15, 4)
    assert shares / shares.sum(axis=1, keepdims=True) == pytest.approx(head.probabilities(features), abs=1e-5)
    assert ACCURACY(head.probabilities(features), targets) > 0.8
    assert head.gates.tolist() == gates.tolist()


@pytest.mark.parametrize("gates", [[1.0, 1.0], [1.5, 0.5]])
def test_the_fit_is_a_minimum_of_its_loss(gates: list[float]) -> None:
    features, targets = features_and_targets(80)
    joined, c = fusion.cascade(features), 2.0
    head = fit_cascade(features, targets, np.array(gates, np.float32), c)
    opened = np.repeat(gates, [6, 9])[:, None]

    def loss(weights: F32) -> float:
        total = c * len(targets) * log_loss(joined @ weights + head.bias, targets)
        return total + float(((weights / opened) ** 2).sum()) / 2

    random = np.random.default_rng(1)
    for _ in range(20):
        step = random.normal(0, 0.03, head.weights.shape).astype(np.float32)
        assert loss(head.weights + step) > loss(head.weights)


def test_a_small_c_leaves_only_how_frequent_classes_are() -> None:
    features, _ = features_and_targets(200)
    targets = one_hot(np.repeat([0, 1, 2, 3], [100, 50, 30, 20]))

    head = fit_cascade(features, targets, c=1e-6)

    assert head.probabilities(features)[0] == pytest.approx([0.5, 0.25, 0.15, 0.1], abs=0.01)


def test_learned_gates_close_for_who_sees_nothing_and_stay_open_for_all_who_see_something() -> None:
    random = np.random.default_rng(0)
    targets = one_hot(random.integers(0, 4, 1200))
    features = [
        (sees * targets @ random.normal(0, 1, (4, n)) + random.normal(0, 1, (1200, n))).astype(np.float32)
        for sees, n in ((0.5, 20), (0.0, 200), (0.5, 20))
    ]
    train, test = [f[:400] for f in features], [f[400:] for f in features]

    gates = learn_gates(train, targets[:400], np.arange(400) % 2 == 0)

    plain = fit_cascade(train, targets[:400]).probabilities(test)
    weighted = fit_cascade(train, targets[:400], gates).probabilities(test)
    assert gates.sum() == pytest.approx(3.0)
    assert gates[1] < 0.5 < 1.0 < min(gates[0], gates[2])
    assert LOG_LOSS(weighted, targets[400:]) < 0.95 * LOG_LOSS(plain, targets[400:])


def test_gates_of_one_are_the_plain_cascade() -> None:
    features, targets = features_and_targets(60)

    plain, ones = (fit_cascade(features, targets, gates) for gates in (None, np.ones(2, np.float32)))

    assert plain.weights.tolist() == ones.weights.tolist()


def test_a_fit_finishes_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    features, targets = features_and_targets()

    with caplog.at_level(logging.WARNING):
        fit_cascade(features, targets, learn_gates(features, targets, np.arange(300) % 3 == 0))

    assert not caplog.records


def test_gates_that_do_not_fit_are_refused() -> None:
    features, targets = features_and_targets(20)

    with pytest.raises(ValueError, match="2 members"):
        fit_cascade(features, targets, np.ones(3, np.float32))
    with pytest.raises(ValueError, match="shape"):
        fit_cascade(features, targets[:10])
