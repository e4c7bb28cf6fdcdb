"""The threshold of a site: from distances that people vouch for, or not at all."""

import numpy as np
import pytest
from visaged.pipelines.identity.person import Templates
from visaged.pipelines.identity.threshold import Distances, Said, Share, distances_of, errors_at, suggest

TEMPLATES = Templates(
    np.array([[0, 0], [0.3, 0], [1, 0]], np.float32), np.array([0, 0, 1], np.intp), ("Ada", "Ben")
)


def test_faces_count_for_their_person_and_against_everybody_else() -> None:
    only_templates = distances_of(TEMPLATES, [])
    more = distances_of(
        TEMPLATES,
        [
            Said(np.array([0, 0.4], np.float32), person="ada"),
            Said(np.array([1, 0.25], np.float32), not_people=("Ben",)),
            Said(np.array([0.3, 0], np.float32), person="Ada"),  # the template itself
        ],
    )

    assert only_templates.genuine == pytest.approx([0.3, 0.3])  # Ben's only template has none beside it
    assert only_templates.impostor == pytest.approx([1.0, 0.7, 0.7])
    assert more.genuine == pytest.approx([0.3, 0.3, 0.4])
    assert more.impostor == pytest.approx([1.0, 0.7, 0.7, np.hypot(1, 0.4), 0.25])


def test_the_interval_of_a_share_is_that_of_clopper_and_pearson() -> None:
    assert Share(0, 100).interval == pytest.approx((0, 0.0362), abs=1e-4)
    assert Share(10, 100).interval == pytest.approx((0.0490, 0.1762), abs=1e-4)
    assert Share(5, 5).interval == pytest.approx((0.4782, 1), abs=1e-4)


def test_the_largest_threshold_that_surely_misnames_few_is_suggested() -> None:
    random = np.random.default_rng(0)
    many = Distances(random.normal(0.35, 0.05, 400), random.normal(0.75, 0.07, 2000))
    few = Distances(random.normal(0.35, 0.05, 30), np.concatenate([[0.47], random.normal(0.8, 0.05, 150)]))

    found, careful = suggest(many), suggest(few)

    assert found is not None and 0.55 <= found.threshold <= 0.6
    assert found.misnamed.interval[1] <= 0.01
    assert errors_at(many, found.threshold).unnamed.n == (many.genuine >= found.threshold).sum()
    assert careful is not None and careful.threshold == pytest.approx(0.47) and careful.misnamed.n == 0
    assert suggest(Distances(many.genuine[:19], many.impostor)) is None
    assert suggest(Distances(many.genuine, many.impostor[:99])) is None
