"""The z-buffer: what lies where, what is in front, and what is not covered."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from visaged.kernels.rasteriser import rasterise

SQUARE = np.array([[0.0, 0, 0], [9, 0, 0], [9, 9, 0], [0, 9, 0]])
HALVES = np.array([[0, 1, 2], [0, 2, 3]])


def test_two_triangles_cover_their_square_without_a_gap_on_the_shared_edge() -> None:
    which, weights = rasterise(SQUARE, HALVES, 10, 10)

    assert which.min() == 0
    assert which[1, 8] == 0 and which[8, 1] == 1
    assert weights.sum(axis=2) == pytest.approx(np.ones((10, 10)), abs=1e-5)


def test_weights_give_back_the_place_of_every_pixel() -> None:
    which, weights = rasterise(SQUARE, HALVES, 10, 10)

    places = (weights[..., None] * SQUARE[HALVES[which], :2]).sum(axis=2)
    x, y = np.meshgrid(np.arange(10), np.arange(10))
    assert places == pytest.approx(np.stack([x, y], axis=2), abs=1e-4)


@given(st.floats(-5, 5), st.floats(-5, 5), st.booleans())
def test_the_nearer_surface_is_seen_whatever_the_order(one: float, other: float, is_swapped: bool) -> None:
    if abs(one - other) < 1e-6:
        return
    points = np.concatenate([SQUARE + np.array([0, 0, one]), SQUARE + np.array([0, 0, other])])
    order = [1, 0] if is_swapped else [0, 1]
    triangles = np.concatenate([[HALVES, HALVES + 4][index] for index in order])

    which, _ = rasterise(points, triangles, 10, 10)

    nearest = triangles[which[5, 5]].min() // 4
    assert nearest == (0 if one > other else 1)


def test_what_no_triangle_covers_is_a_hole_and_what_is_outside_is_cut_off() -> None:
    which, weights = rasterise(SQUARE + np.array([5, -5, 0]), HALVES, 10, 12)

    assert (which[:5, 5:12] >= 0).all()
    assert (which[5:] == -1).all() and (which[:, :5] == -1).all()
    assert not weights[which < 0].any()


def test_a_triangle_without_area_and_no_triangle_at_all_are_holes() -> None:
    which, _ = rasterise(SQUARE, np.array([[0, 1, 1]]), 4, 4)
    nothing, _ = rasterise(SQUARE, np.zeros((0, 3), np.int64), 4, 4)

    assert (which == -1).all() and (nothing == -1).all()


def test_wrong_shapes_and_points_at_infinity_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        rasterise(np.full((3, 3), np.inf), HALVES[:1], 4, 4)
    with pytest.raises(ValueError, match=r"\(V, 3\)"):
        rasterise(SQUARE[:, :2], HALVES, 4, 4)
