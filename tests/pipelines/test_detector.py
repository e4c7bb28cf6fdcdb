"""Faces in the public-domain photo: found, found again, and not found where there are none."""

import threading

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from visaged.kernels.boxes import iou
from visaged.pipelines.detector import Detector, DetectorConfig, build_detector
from visaged.pipelines.dlib_faces import LandmarkPredictor
from visaged.pipelines.errors import ModelError
from visaged.pipelines.model_store import ModelStore

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def detector(store: ModelStore) -> Detector:
    return build_detector(DetectorConfig(), store)


def test_the_face_is_found_with_landmarks_inside(detector: Detector, astronaut: U8) -> None:
    face = detector.detect(astronaut)[0]

    assert iou(face.box[None], np.array([[170, 60, 275, 165]], np.float32)) > 0.5
    assert (face.landmarks > face.box[:2]).all()
    assert (face.landmarks < face.box[2:]).all()


def test_hog_and_mmod_find_the_same_face(store: ModelStore, detector: Detector, astronaut: U8) -> None:
    mmod = build_detector(DetectorConfig(kind="mmod"), store)

    assert iou(mmod.detect(astronaut)[0].box[None], detector.detect(astronaut)[0].box[None]) > 0.4


def test_a_small_face_needs_a_small_minimum(store: ModelStore, detector: Detector, astronaut: U8) -> None:
    small = cv2.resize(astronaut, None, fx=0.45, fy=0.45, interpolation=cv2.INTER_AREA).astype(np.uint8)
    keen = build_detector(DetectorConfig(min_face_px=40), store)

    assert detector.detect(small) == []
    face = keen.detect(small)[0]
    assert iou(face.box[None] / 0.45, detector.detect(astronaut)[0].box[None]) > 0.6


@pytest.mark.parametrize("shift", [(0, 0), (8, -6), (-12, 10)])
def test_a_face_is_found_again_near_where_it_was(
    detector: Detector, astronaut: U8, shift: tuple[int, int]
) -> None:
    true = detector.detect(astronaut)[0].box
    expected = true + np.array([*shift, *shift], np.float32)

    found = detector.detect_near(astronaut, expected[None])[0]

    assert found is not None
    assert iou(found.box[None], true[None]) > 0.7


def test_an_empty_place_gives_none_and_keeps_the_order(detector: Detector, astronaut: U8) -> None:
    true = detector.detect(astronaut)[0].box
    nowhere = np.array([400, 380, 480, 460], np.float32)
    outside = np.array([-900, -900, -800, -800], np.float32)

    found = detector.detect_near(astronaut, np.stack([nowhere, true, outside]))

    assert found[0] is None
    assert found[1] is not None
    assert found[2] is None


@pytest.mark.parametrize(
    "box",
    [
        [np.nan] * 4,
        [-np.inf, -np.inf, np.inf, np.inf],
        [-1e30, -1e30, 1e30, 1e30],
        [275, 165, 170, 60],  # right of its right side
        [200, 100, 200, 100],
    ],
)
def test_an_impossible_expectation_finds_nothing(detector: Detector, astronaut: U8, box: list[float]) -> None:
    assert detector.detect_near(astronaut, np.array([box], np.float32)) == [None]


@pytest.mark.parametrize("shape", [(4,), (1, 3), (1, 4, 1)])
def test_boxes_of_another_shape_are_refused(
    detector: Detector, astronaut: U8, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"boxes must be \(N, 4\)"):
        detector.detect_near(astronaut, np.zeros(shape, np.float32))


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 2000, 3), (30, 30, 3)])
def test_tiny_frames_have_no_faces(detector: Detector, shape: tuple[int, int, int]) -> None:
    assert detector.detect(np.zeros(shape, np.uint8)) == []


@pytest.mark.parametrize(
    "frame", [np.zeros((0, 0, 3), np.uint8), np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3))]
)
def test_what_is_no_frame_is_refused(detector: Detector, frame: U8) -> None:
    with pytest.raises(ValueError, match="shape"):
        detector.detect(frame)


def test_two_threads_may_share_a_detector(detector: Detector, astronaut: U8) -> None:
    expected = [face.box.tolist() for face in detector.detect(astronaut)]
    wrong: list[object] = []

    def detect_often() -> None:
        for _ in range(8):
            found = [face.box.tolist() for face in detector.detect(astronaut)]
            if found != expected:
                wrong.append(found)

    threads = [threading.Thread(target=detect_often) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


def test_a_corrupt_predictor_is_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("weights") / "shape_predictor_5_face_landmarks.dat"
    path.write_bytes(b"not a predictor")

    with pytest.raises(ModelError, match="5-point predictor"):
        LandmarkPredictor(path)
