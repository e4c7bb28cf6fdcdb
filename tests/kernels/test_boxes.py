"""Boxes: overlap and forms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from visaged.kernels.boxes import centre_form, corner_form, iou, overlap_of_smaller


def box(*sides: float) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.array([sides], dtype=np.float32)


def test_half_of_two_equal_boxes_shared_is_a_third_of_their_union() -> None:
    assert iou(box(0, 0, 10, 10), box(5, 0, 15, 10))[0, 0] == pytest.approx(1 / 3)


def test_touching_boxes_share_nothing_because_right_is_exclusive() -> None:
    assert iou(box(0, 0, 10, 10), box(10, 0, 20, 10))[0, 0] == 0


def test_a_box_inside_another_is_wholly_covered() -> None:
    assert overlap_of_smaller(box(0, 0, 100, 100), box(10, 10, 20, 20))[0, 0] == pytest.approx(1)


def test_empty_boxes_do_not_divide_by_zero() -> None:
    assert iou(box(5, 5, 5, 5), box(5, 5, 5, 5))[0, 0] == 0


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"a.shape=\(4,\)"):
        iou(np.zeros(4, np.float32), box(0, 0, 1, 1))


side = st.integers(-1000, 1000)
size = st.integers(1, 500)


@given(side, side, size, size)
def test_both_forms_say_the_same(x: int, y: int, w: int, h: int) -> None:
    corners = box(x, y, x + w, y + h)

    np.testing.assert_array_equal(corner_form(centre_form(corners)), corners)
