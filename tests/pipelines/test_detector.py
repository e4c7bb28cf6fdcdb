"""Faces in the public-domain photo: found, found again, and not found where there are none."""

import threading
from pathlib import Path

import cv2
import dlib
import numpy as np
import numpy.typing as npt
import pytest
from visaged.kernels.boxes import iou
from visaged.pipelines.detector import Detector, DetectorConfig, build_detector
from visaged.pipelines.dlib_faces import HogDetector, LandmarkPredictor, SiteDetector, with_digest
from visaged.pipelines.errors import ModelError
from visaged.pipelines.model_store import ModelStore

from tests.turned_astronaut import FACE, turned

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


@pytest.fixture(scope="module")
def frontal_again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dlib's frontal detector as a file: what finds the same faces again."""
    path = tmp_path_factory.mktemp("site") / "frontal.svm"
    dlib.get_frontal_face_detector().save(str(path))
    path.write_bytes(with_digest(path.read_bytes()))
    return path


def test_a_site_s_detector_finds_what_dlib_s_does_not_and_that_is_still_found(
    store: ModelStore, detector: Detector, site_detector: Path, astronaut: U8
) -> None:
    both = build_detector(DetectorConfig(site=site_detector), store)
    alone = build_detector(DetectorConfig(kind="site", site=site_detector), store)
    upside_down = turned(astronaut)

    assert detector.detect(upside_down) == []
    for one in (both, alone):
        found = one.detect(upside_down)[0]
        assert iou(found.box[None], FACE[None]) > 0.6
        assert one.detect_near(upside_down, FACE[None])[0] is not None
    assert [face.box.tolist() for face in both.detect(astronaut)] == [
        face.box.tolist() for face in detector.detect(astronaut)
    ]
    assert alone.detect(astronaut) == []


def test_a_face_that_both_find_is_one_face(
    store: ModelStore, detector: Detector, frontal_again: Path, astronaut: U8
) -> None:
    config = DetectorConfig(site=frontal_again, threshold=-0.5)
    one = build_detector(DetectorConfig(threshold=-0.5), store).detect(astronaut)

    twice = build_detector(config, store).detect(astronaut)

    assert [face.box.tolist() for face in twice] == [face.box.tolist() for face in one]


def test_every_thread_runs_its_own_copy_of_the_site_s_detector(frontal_again: Path) -> None:
    hog = HogDetector(SiteDetector(frontal_again), is_frontal=False)
    seen = [hog._detectors()[0]]

    thread = threading.Thread(target=lambda: seen.append(hog._detectors()[0]))
    thread.start()
    thread.join()

    assert seen[0] is not seen[1]


@pytest.mark.parametrize("at", [9, 400, -1])  # a cell of 0 px; a weight; the digest
def test_a_site_s_detector_that_is_damaged_is_named(tmp_path: Path, frontal_again: Path, at: int) -> None:
    content = bytearray(frontal_again.read_bytes())
    content[at] ^= 8
    (tmp_path / "site.svm").write_bytes(content)

    with pytest.raises(ModelError, match=r"site\.svm is no face detector of visaged, or damaged; make one"):
        SiteDetector(tmp_path / "site.svm")


def test_what_dlib_cannot_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "site.svm").write_bytes(with_digest(b"no detector"))

    with pytest.raises(ModelError, match=r"site\.svm is no face detector that dlib can read"):
        SiteDetector(tmp_path / "site.svm")


def test_a_corrupt_predictor_is_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("weights") / "shape_predictor_5_face_landmarks.dat"
    path.write_bytes(b"not a predictor")

    with pytest.raises(ModelError, match="5-point predictor"):
        LandmarkPredictor(path)
