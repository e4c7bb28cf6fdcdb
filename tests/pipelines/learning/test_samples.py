"""Samples and their split: by group, decided once, before anything is done to them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from visaged.pipelines.errors import ConfigError
from visaged.pipelines.learning.samples import PARTS, TEST, Samples, picture_digests, require_real, split_of


def samples_of(n: int) -> Samples:
    pictures = np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
    targets = np.eye(2, dtype=np.float32)[np.arange(n) % 2]
    return Samples(pictures, targets, np.array([f"p{i // 2}" for i in range(n)]), ("no", "yes"))


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=50))
def test_a_group_is_never_in_two_parts_and_keeps_its_part_when_others_come(groups: list[str]) -> None:
    parts = split_of(groups)

    assert set(parts) <= set(PARTS)
    for group in groups:
        assert set(parts[np.array(groups) == group]) == {split_of([group])[0]}


def test_the_parts_have_about_the_shares_asked_for() -> None:
    parts = split_of([f"person {i}" for i in range(5000)], tune=0.1, test=0.2)

    shares = [float((parts == part).mean()) for part in PARTS]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.02)


def test_no_test_share_gives_no_test_part() -> None:
    assert TEST not in split_of([f"person {i}" for i in range(500)], test=0.0)


def test_taking_keeps_pictures_labels_and_groups_together() -> None:
    taken = samples_of(6).take(np.array([5, 0]))

    assert taken.pictures[:, 0, 0, 0].tolist() == [5, 0]
    assert taken.labels.tolist() == [1, 0]
    assert taken.groups.tolist() == ["p2", "p0"]


def test_what_does_not_fit_together_is_refused() -> None:
    good = samples_of(2)

    with pytest.raises(ValueError, match="one row of targets"):
        Samples(good.pictures, good.targets[:1], good.groups, good.classes)
    with pytest.raises(ValueError, match="sum to 1"):
        Samples(good.pictures, good.targets * 2, good.groups, good.classes)
    with pytest.raises(ValueError, match="uint8"):
        Samples(good.pictures[..., 0], good.targets, good.groups, good.classes)


def test_equal_pictures_have_equal_digests() -> None:
    pictures = np.concatenate([samples_of(2).pictures, samples_of(1).pictures])

    first, second, third = picture_digests(pictures)
    assert first == third != second


def test_a_networks_other_classes_get_no_share_and_a_class_it_has_not_is_refused() -> None:
    wider = samples_of(3).in_classes(("maybe", "yes", "no"))

    assert wider.targets.tolist() == [[0, 0, 1], [0, 1, 0], [0, 0, 1]]
    assert wider.classes == ("maybe", "yes", "no")
    with pytest.raises(ConfigError, match="the class 'yes', which the network does not know"):
        samples_of(3).in_classes(("no", "maybe"))


def test_children_have_the_label_and_the_group_of_their_parent_and_are_marked() -> None:
    real = samples_of(4)

    both = real.with_children(real.pictures[[3, 0]] + 9, np.array([3, 0]))

    assert both.is_synthetic.tolist() == [False] * 4 + [True] * 2
    assert both.labels[4:].tolist() == real.labels[[3, 0]].tolist()
    assert both.groups[4:].tolist() == real.groups[[3, 0]].tolist()
    assert both.take(both.is_synthetic).is_synthetic.all()
    assert (split_of(both.groups)[4:] == split_of(real.groups)[[3, 0]]).all()


def test_there_are_never_more_synthetic_samples_than_real_ones() -> None:
    real = samples_of(2)
    full = real.with_children(real.pictures, np.arange(2))

    with pytest.raises(ValueError, match="3 synthetic samples to 2 real"):
        full.with_children(real.pictures[:1], np.array([0]))


def test_a_synthetic_sample_has_no_children() -> None:
    real = samples_of(4)
    both = real.with_children(real.pictures[:1], np.array([0]))

    with pytest.raises(ValueError, match="real ones only"):
        both.with_children(real.pictures[:1], np.array([4]))


def test_marks_of_another_length_are_refused() -> None:
    real = samples_of(2)

    with pytest.raises(ValueError, match="one mark for each"):
        Samples(real.pictures, real.targets, real.groups, real.classes, np.ones(3, np.bool_))


def test_a_synthetic_sample_is_refused_where_it_would_measure() -> None:
    real = samples_of(4)

    require_real(real, "hold-out")
    with pytest.raises(ValueError, match="1 synthetic samples in the hold-out part"):
        require_real(real.with_children(real.pictures[:1], np.array([0])), "hold-out")
