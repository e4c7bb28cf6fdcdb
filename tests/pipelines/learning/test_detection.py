"""Precision, recall and average precision: by hand, and as dlib measures them."""

import cv2
import dlib
import numpy as np
import numpy.typing as npt
import pytest
from visaged.pipelines.learning.boxed_photos import FaceBoxes
from visaged.pipelines.learning.detection import average_precision, judge

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

NONE = np.zeros((0, 4), np.float32)
HERE, THERE = [10, 10, 50, 50], [100, 10, 140, 50]


def boxes(*corners: list[int]) -> F32:
    return np.array(corners, np.float32).reshape(-1, 4)


def found(*corners: list[int], scores: tuple[float, ...]) -> tuple[F32, F32]:
    return boxes(*corners), np.array(scores, np.float32)


def test_a_face_is_found_once_and_a_second_box_on_it_is_wrong() -> None:
    figures = judge([found(HERE, HERE, scores=(2, 1))], [FaceBoxes(boxes(HERE, THERE), NONE)])

    assert (figures.n_faces, figures.n_found, figures.n_false) == (2, 1, 1)
    assert (figures.precision, figures.recall, figures.average_precision) == (0.5, 0.5, 0.5)


def test_what_lies_on_an_ignored_box_counts_neither_way() -> None:
    figures = judge([found(HERE, THERE, scores=(2, 1))], [FaceBoxes(boxes(THERE), boxes(HERE))])

    assert (figures.n_found, figures.n_false, figures.average_precision) == (1, 0, 1.0)


def test_boxes_below_the_threshold_count_for_the_average_only() -> None:
    figures = judge([found(HERE, THERE, scores=(1, -0.5))], [FaceBoxes(boxes(HERE, THERE), NONE)])

    assert (figures.recall, figures.average_precision) == (0.5, 1.0)


def test_a_box_that_is_half_beside_is_wrong() -> None:
    beside = [10, 30, 50, 70]

    figures = judge([found(beside, scores=(1,))], [FaceBoxes(boxes(HERE), NONE)])

    assert (figures.n_found, figures.n_false) == (0, 1)


def test_the_average_takes_the_best_precision_to_the_right() -> None:
    is_hit = np.array([True, False, False, True, True])

    assert average_precision(is_hit, 4) == pytest.approx((1 + 0.6 + 0.6) / 4)
    assert average_precision(np.zeros(0, bool), 2) == 0
    assert average_precision(np.zeros(0, bool), 0) == 1


def test_figures_are_dlibs(astronaut: U8) -> None:
    grey = cv2.cvtColor(astronaut, cv2.COLOR_RGB2GRAY).astype(np.uint8)
    frontal = dlib.get_frontal_face_detector()
    there, here = [179, 83, 267, 171], [20, 300, 120, 400]
    truth = [boxes(there), NONE, boxes(here), boxes(there, here)]  # found, false, missed, one of two
    photos = [grey, np.ascontiguousarray(grey[:300]), np.ascontiguousarray(grey[200:]), grey]
    rectangles = [
        [dlib.rectangle(*(int(v) for v in (b[0], b[1], b[2] - 1, b[3] - 1))) for b in t] for t in truth
    ]
    theirs = dlib.test_simple_object_detector(photos, rectangles, frontal)

    runs = [frontal.run(photo, 0, 0) for photo in photos]
    ours = judge(
        [
            found(
                *([r.left(), r.top(), r.right() + 1, r.bottom() + 1] for r in boxes_of), scores=tuple(scores)
            )
            for boxes_of, scores, _ in runs
        ],
        [FaceBoxes(t, NONE) for t in truth],
    )

    assert 0 < theirs.precision < 1 and 0 < theirs.recall < 1
    assert ours.precision == pytest.approx(theirs.precision)
    assert ours.recall == pytest.approx(theirs.recall)
    assert ours.average_precision == pytest.approx(theirs.average_precision)
