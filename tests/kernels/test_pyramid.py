"""The tiled pyramid: levels that never touch, resizing by hand-checkable rules, boxes as dlib rounds them."""

from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from visaged.kernels.pyramid import (
    CELL_ORIGIN_PX,
    CELL_PX,
    GAP_PX,
    MARGIN_PX,
    MEAN,
    Layout,
    decode,
    lay_out,
    paint_canvas,
    resize_between_corners,
    suppress,
)

F32 = npt.NDArray[np.float32]

SIDES = st.integers(1, 4000)


@given(SIDES, SIDES)
def test_levels_lie_inside_the_canvas_and_never_touch(height: int, width: int) -> None:
    layout = lay_out(height, width)

    for left, top, w, h in layout.levels:
        assert min(left, top) >= MARGIN_PX
        assert left + w <= layout.width - MARGIN_PX
        assert top + h <= layout.height - MARGIN_PX
    for (al, at, aw, ah), (bl, bt, bw, bh) in combinations(layout.levels, 2):
        apart_x = max(bl - (al + aw), al - (bl + bw))
        apart_y = max(bt - (at + ah), at - (bt + bh))
        assert max(apart_x, apart_y) >= 0


@given(SIDES, SIDES)
def test_every_level_is_five_sixths_of_the_one_before(height: int, width: int) -> None:
    layout = lay_out(height, width)

    assert layout.levels[0] == (MARGIN_PX, MARGIN_PX, width, height)
    for (_, _, w, h), (_, _, next_w, next_h) in zip(layout.levels, layout.levels[1:], strict=False):
        assert (next_w, next_h) == (w * 5 // 6, h * 5 // 6)


def test_the_column_ends_where_the_next_level_fits_beside_it() -> None:
    layout = lay_out(480, 640)

    first_column = [level for level in layout.levels if level[0] == MARGIN_PX]
    bottom = max(top + h for _, top, _, h in first_column)
    _, last_top, last_w, _ = first_column[-1]
    left, top, w, h = layout.levels[len(first_column)]
    assert bottom + MARGIN_PX == layout.height
    assert (left + w, top + h) == (MARGIN_PX + 640, bottom)
    assert MARGIN_PX + last_w + GAP_PX <= left
    assert last_top > MARGIN_PX + 480


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_a_frame_without_pixels_has_no_layout(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="pixels"):
        lay_out(*shape)


def test_resizing_keeps_the_corners_and_the_slope_between_them() -> None:
    x, y = np.meshgrid(np.linspace(0, 12, 13), np.linspace(0, 6, 7))
    ramp = np.stack([x, y, x + 10 * y]).astype(np.float32)

    small = resize_between_corners(ramp, 5, 10)

    x, y = np.meshgrid(np.linspace(0, 12, 10), np.linspace(0, 6, 5))
    assert small == pytest.approx(np.stack([x, y, x + 10 * y]), abs=1e-5)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_a_flat_plane_stays_flat_at_any_size(height: int, width: int, new_h: int, new_w: int) -> None:
    flat = np.full((1, height, width), 0.25, np.float32)

    assert (resize_between_corners(flat, new_h, new_w) == np.full((1, new_h, new_w), 0.25)).all()


def test_the_canvas_holds_the_normalised_frame_and_zero_between_levels() -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (90, 120, 3)).astype(np.uint8)
    layout = lay_out(90, 120)

    canvas = paint_canvas(rgb, layout)

    frame = canvas[0, :, MARGIN_PX : MARGIN_PX + 90, MARGIN_PX : MARGIN_PX + 120]
    assert canvas.shape == (1, 3, layout.height, layout.width)
    assert canvas.dtype == np.float32
    assert frame.transpose(1, 2, 0) * 256 + MEAN == pytest.approx(rgb.astype(float), abs=1e-4)
    for left, top, w, h in layout.levels:
        canvas[0, :, top : top + h, left : left + w] = 0
    assert not canvas.any()


def test_the_layout_of_another_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="another frame"):
        paint_canvas(np.zeros((90, 120, 3), np.uint8), lay_out(120, 90))


def score_map(layout: Layout, *peaks: tuple[int, int, float]) -> F32:
    scores = np.full((layout.height // CELL_PX, layout.width // CELL_PX), -1, np.float32)
    for row, column, score in peaks:
        scores[row, column] = score
    return scores


def test_a_cell_of_the_frame_itself_gives_a_box_of_80_px_around_it() -> None:
    layout = lay_out(480, 640)

    boxes, scores = decode(score_map(layout, (20, 30, 0.75)), layout, 0.0)

    x, y = CELL_ORIGIN_PX + 8 * 30 - MARGIN_PX, CELL_ORIGIN_PX + 8 * 20 - MARGIN_PX
    # x - 39.5 and x + 39.5, halves away from zero
    assert boxes.tolist() == [[x - 39, y - 39, x + 40, y + 40]]
    assert scores.tolist() == [0.75]


def test_a_cell_of_the_third_level_gives_a_box_of_115_px() -> None:
    layout = lay_out(480, 640)
    left, top, w, h = layout.levels[2]
    row, column = (top + h // 2 - 14) // 8, (left + w // 2 - 14) // 8

    boxes, _ = decode(score_map(layout, (row, column, 1.0)), layout, 0.0)

    middle = (boxes[0, :2] + boxes[0, 2:]) / 2
    side = boxes[0, 2:] - boxes[0, :2] + 1
    assert middle == pytest.approx([320, 240], abs=10)
    assert side == pytest.approx(np.array([79, 79]) * 1.44 + 1, abs=1)


def test_a_half_outside_the_frame_is_rounded_away_from_zero() -> None:
    layout = lay_out(480, 640)

    boxes, _ = decode(score_map(layout, (0, 0, 1.0)), layout, 0.0)

    assert boxes.tolist() == [[3 - 40, 3 - 40, 43, 43]]  # 3 - 39.5 = -36.5 becomes -37


def test_candidates_come_most_confident_first_and_only_above_the_threshold() -> None:
    layout = lay_out(480, 640)
    scores = score_map(layout, (5, 5, 0.2), (20, 30, 0.9), (30, 5, 0.5), (31, 50, 0.1))

    boxes, found = decode(scores, layout, 0.1)

    assert found.tolist() == pytest.approx([0.9, 0.5, 0.2])
    assert len(boxes) == 3


def test_no_candidates_give_empty_boxes() -> None:
    layout = lay_out(480, 640)

    boxes, scores = decode(score_map(layout), layout, 0.0)

    assert (boxes.shape, scores.shape, suppress(boxes).shape) == ((0, 4), (0,), (0,))


def shifted(by_x: int, by_y: int) -> list[int]:
    return [by_x, by_y, by_x + 79, by_y + 79]


def test_the_box_around_both_decides_not_their_union() -> None:
    # 22 px diagonally: 58 * 58 / (102 * 102) = 0.32 of the box around both, but 0.36 of their union.
    diagonal = np.array([shifted(0, 0), shifted(22, 22)])
    closer = np.array([shifted(0, 0), shifted(20, 20)])  # 60 * 60 / (100 * 100) = 0.36

    assert suppress(diagonal).tolist() == [0, 1]
    assert suppress(closer).tolist() == [0]


def test_a_suppressed_box_suppresses_nobody() -> None:
    chain = np.array([shifted(0, 0), shifted(30, 0), shifted(60, 0)])

    assert suppress(chain).tolist() == [0, 2]


@given(st.lists(st.tuples(st.integers(-50, 300), st.integers(-50, 300)), max_size=30))
def test_suppressing_twice_changes_nothing(corners: list[tuple[int, int]]) -> None:
    boxes = np.array([shifted(*corner) for corner in corners], np.int64).reshape(-1, 4)
    kept = boxes[suppress(boxes)]

    assert suppress(kept).tolist() == list(range(len(kept)))
