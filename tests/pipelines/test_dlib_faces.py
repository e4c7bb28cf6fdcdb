"""The door to dlib: the same boxes and landmarks as dlib, in px of the frame, whatever the scale."""

import threading
from typing import Any

import cv2
import dlib
import numpy as np
import numpy.typing as npt
import pytest
from visaged.kernels.boxes import iou
from visaged.pipelines.dlib_faces import HogDetector, LandmarkPredictor
from visaged.pipelines.model_store import ModelStore

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def hog() -> HogDetector:
    return HogDetector()


@pytest.fixture(scope="module")
def predictor(store: ModelStore) -> LandmarkPredictor:
    return LandmarkPredictor(store.weights_file("shape_predictor_5_face_landmarks.dat"))


def test_boxes_are_dlibs_with_right_and_bottom_exclusive(hog: HogDetector, astronaut: U8) -> None:
    grey = cv2.cvtColor(astronaut, cv2.COLOR_RGB2GRAY)
    found, scores, _ = dlib.get_frontal_face_detector().run(grey, 0, -0.5)
    expected = sorted(zip(scores, found, strict=True), key=lambda pair: -pair[0])

    boxes, ours = hog.boxes(astronaut, 1.0, -0.5)

    assert len(expected) >= 1
    assert boxes.tolist() == [[r.left(), r.top(), r.right() + 1, r.bottom() + 1] for _, r in expected]
    assert ours == pytest.approx([score for score, _ in expected], abs=1e-5)


@pytest.mark.parametrize("scale", [0.9, 1.3, 2.0])
def test_boxes_are_px_of_the_frame_at_every_scale(hog: HogDetector, astronaut: U8, scale: float) -> None:
    at_one, _ = hog.boxes(astronaut, 1.0)

    boxes, _ = hog.boxes(astronaut, scale)

    assert iou(boxes[:1], at_one[:1]) > 0.6


def test_a_lower_threshold_finds_more_and_a_higher_one_less(hog: HogDetector, astronaut: U8) -> None:
    _, many = hog.boxes(astronaut, 1.0, -0.8)
    best = float(many[0])

    assert many.tolist() == sorted(many.tolist(), reverse=True)
    assert len(many) > len(hog.boxes(astronaut, 1.0)[0])
    assert len(hog.boxes(astronaut, 1.0, best + 0.1)[0]) == 0


def test_every_thread_has_its_own_detector(hog: HogDetector) -> None:
    seen: list[Any] = [hog._detectors()[0]]  # kept alive, so that two cannot share an address

    thread = threading.Thread(target=lambda: seen.append(hog._detectors()[0]))
    thread.start()
    thread.join()

    assert seen[0] is hog._detectors()[0]
    assert seen[0] is not seen[1]


def test_landmarks_are_dlibs(
    hog: HogDetector, predictor: LandmarkPredictor, astronaut: U8, store: ModelStore
) -> None:
    box = hog.boxes(astronaut, 1.0)[0][0]
    left, top, right, bottom = (int(side) for side in box)
    theirs = dlib.shape_predictor(str(store.weights_file("shape_predictor_5_face_landmarks.dat")))
    shape = theirs(astronaut, dlib.rectangle(left, top, right - 1, bottom - 1))

    marks = predictor.place(astronaut, box[None])

    assert marks.dtype == np.float32
    assert marks.tolist() == [[[part.x, part.y] for part in shape.parts()]]


def test_landmarks_outside_of_the_frame_and_of_no_face(predictor: LandmarkPredictor, astronaut: U8) -> None:
    outside = np.array([[-900, -900, -800, -800]], np.float32)

    assert np.isfinite(predictor.place(astronaut, outside)).all()
    assert predictor.place(astronaut, np.zeros((0, 4), np.float32)).shape == (0, 5, 2)


@pytest.mark.parametrize("bad", [np.zeros(4, np.float32), np.full((1, 4), np.nan, np.float32)])
def test_boxes_that_are_none_are_refused(predictor: LandmarkPredictor, astronaut: U8, bad: F32) -> None:
    with pytest.raises(ValueError, match="boxes must be"):
        predictor.place(astronaut, bad)
