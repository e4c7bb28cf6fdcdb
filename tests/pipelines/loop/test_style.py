"""Memory in the style of the site: the light's shift is carried over, the expressions stay apart."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from visaged.pipelines.loop.style import in_style_of

from tests.pipelines.loop.learning_world import N_FEATURES, nothing, remembered, two_places

F32 = npt.NDArray[np.float32]

BASE, _ = two_places()


def lit(features: npt.NDArray[np.floating]) -> F32:
    """A change that is the same for every face: each feature is shifted and flattened."""
    random = np.random.default_rng(9)
    return (features * random.uniform(0.3, 0.8, N_FEATURES) + random.normal(0, 1, N_FEATURES)).astype("f4")


def test_remembered_faces_land_where_their_own_in_that_light_would() -> None:
    memory = remembered(*BASE.faces(1600, 1))
    shown, labels = BASE.faces(400, 2)
    only = np.isin(labels, (1, 3))  # the site shows two of eight expressions
    site = remembered(lit(shown[only]), labels[only])

    moved = in_style_of(site, memory)

    truth = lit(memory.features)
    error, before = np.abs(moved.features - truth).mean(), np.abs(memory.features - truth).mean()
    assert error < 0.15 * before
    assert (moved.targets == memory.targets).all() and (moved.groups == memory.groups).all()


def test_a_site_that_shows_one_expression_does_not_move_all_to_it() -> None:
    """Without the weights by class, what tells the expression would be taken for the light."""
    memory = remembered(*BASE.faces(1600, 1))
    shown, labels = BASE.faces(1600, 2)
    site = remembered(shown[labels == 5], labels[labels == 5])

    moved = in_style_of(site, memory)

    unweighted = np.abs(site.features.mean(axis=0) - memory.features.mean(axis=0)).mean()
    assert (
        np.abs((moved.features - memory.features).mean(axis=0)).mean() < 0.4 * unweighted
    )  # the rest is chance


def test_too_few_faces_or_classes_nobody_remembers_move_nothing() -> None:
    memory = remembered(*BASE.faces(200, 1))
    features, labels = BASE.faces(40, 2)

    assert len(in_style_of(remembered(features[:9], labels[:9]), memory)) == 0
    seven = memory.take(memory.labels == 7)
    assert len(in_style_of(remembered(features, np.zeros(40, np.int64)), seven)) == 0
    assert len(in_style_of(remembered(features, labels), nothing())) == 0


def test_of_maps_every_place_is_moved_for_itself() -> None:
    memory = remembered(*BASE.faces(1600, 1))
    shown, labels = BASE.faces(400, 2)
    maps = replace(memory, features=memory.features.reshape(-1, 4, 4, 4).astype(np.float16))
    site = remembered(lit(shown).reshape(-1, 4, 4, 4), labels)

    moved = in_style_of(site, maps).features

    expected = in_style_of(remembered(lit(shown), labels), memory).features
    assert moved.shape == (1600, 4, 4, 4) and moved.dtype == np.float32
    np.testing.assert_allclose(moved.reshape(1600, -1), expected, atol=0.02)
