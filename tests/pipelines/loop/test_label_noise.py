"""One person's word: softened towards the committee, and doubted where the others contradict it."""

import numpy as np
import pytest
from visaged.pipelines.loop.label_noise import find_suspects, soft_targets

from tests.pipelines.loop.learning_world import N_CLASSES, mislabelled, two_places

_, SITE = two_places()


def test_a_word_counts_for_most_and_the_committee_for_the_rest() -> None:
    committee = np.array([[0.5, 0.5, 0, 0], [np.nan] * 4], np.float32)

    targets = soft_targets(np.array([2, 0]), committee)

    assert targets[0] == pytest.approx([0.075, 0.075, 0.85, 0])
    assert targets[1] == pytest.approx([0.85 + 0.15 / 4, 0.15 / 4, 0.15 / 4, 0.15 / 4])


def test_wrong_labels_are_found_and_most_right_ones_are_not() -> None:
    features, labels = SITE.faces(120, 2)
    said = mislabelled(labels, 0.1, 3)
    is_wrong = said != labels

    suspects = find_suspects(features, said, np.arange(120).astype(str), N_CLASSES)

    doubted = suspects & np.isin(said, SITE.classes)  # of other classes there are too few to doubt them
    assert (doubted & is_wrong).sum() >= 0.5 * (is_wrong & np.isin(said, SITE.classes)).sum()
    assert (suspects & ~is_wrong).mean() < 0.15
    assert suspects.mean() <= 0.25


def test_few_labels_and_few_groups_are_not_doubted() -> None:
    features, labels = SITE.faces(40, 2)
    rare = labels.copy()
    rare[:4] = 7

    suspects = find_suspects(features, rare, np.arange(40).astype(str), N_CLASSES)

    assert not suspects[:4].any()
    assert not find_suspects(features, rare, np.array(["a", "b"] * 20), N_CLASSES).any()
