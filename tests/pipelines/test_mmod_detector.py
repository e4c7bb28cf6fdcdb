"""The CNN detector against dlib itself: on real photos, every coordinate of every box the same."""

from pathlib import Path
from typing import Any

import cv2
import dlib
import numpy as np
import numpy.typing as npt
import pytest
from visaged.kernels.boxes import iou
from visaged.pipelines.engines.ort_engine import OrtEngine
from visaged.pipelines.mmod_detector import MmodDetector
from visaged.pipelines.model_store import ModelStore

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

PHOTOS = {  # in shared/data/detect: how many faces dlib must find, lest the comparison be of nothing
    "2007_007763.jpg": 0,
    "2008_001009.jpg": 2,
    "2008_001322.jpg": 3,
    "2008_002079.jpg": 0,
    "2008_002470.jpg": 0,
    "2008_002506.jpg": 3,
    "2008_004176.jpg": 0,
    "2008_007676.jpg": 0,
    "2009_004587.jpg": 2,
    "Tom_Cruise_avp_2014_4.jpg": 1,
}
BIG_PHOTOS = {"bald_guys.jpg": 24, "dogs.jpg": 0}  # minutes in dlib


@pytest.fixture(scope="module")
def mmod(store: ModelStore) -> MmodDetector:
    return MmodDetector(OrtEngine(store.ensure("mmod")))


@pytest.fixture(scope="module")
def oracle(store: ModelStore) -> Any:
    return dlib.cnn_face_detection_model_v1(str(store.weights_file("mmod_human_face_detector.dat")))


def assert_the_same(mmod: MmodDetector, oracle: Any, rgb: U8, at_least: int) -> None:
    """Compare with dlib in this very run: boxes exactly, in order, scores to 1e-3."""
    expected = oracle(rgb)

    found = mmod.boxes(rgb)

    assert len(expected) >= at_least
    assert [box.tolist() for box, _ in found] == [
        [face.rect.left(), face.rect.top(), face.rect.right() + 1, face.rect.bottom() + 1]
        for face in expected
    ]
    assert [score for _, score in found] == pytest.approx([face.confidence for face in expected], abs=1e-3)


def read(path: Path) -> U8:
    bgr = cv2.imread(str(path))
    assert bgr is not None, path
    return np.ascontiguousarray(bgr[..., ::-1]).astype(np.uint8)


def test_boxes_on_the_astronaut_are_dlibs(mmod: MmodDetector, oracle: Any, astronaut: U8) -> None:
    assert_the_same(mmod, oracle, astronaut, 1)


@pytest.mark.parametrize("size", [(301, 257), (97, 512), (430, 90), (150, 150)])
def test_boxes_are_dlibs_at_odd_sizes(
    mmod: MmodDetector, oracle: Any, astronaut: U8, size: tuple[int, int]
) -> None:
    middle_y, middle_x = 112, 222  # of the face: sizes differ, the face stays whole or is cut
    height, width = size
    top, left = max(0, middle_y - height // 2), max(0, middle_x - width // 2)
    piece = np.ascontiguousarray(astronaut[top : top + height, left : left + width])

    assert_the_same(mmod, oracle, piece, 0)


@pytest.mark.parametrize("name", PHOTOS)
def test_boxes_on_a_photo_are_dlibs(mmod: MmodDetector, oracle: Any, shared_data: Path, name: str) -> None:
    assert_the_same(mmod, oracle, read(shared_data / "detect" / name), PHOTOS[name])


def test_boxes_in_a_crowd_are_dlibs(mmod: MmodDetector, oracle: Any, shared_data: Path) -> None:
    crowd = read(shared_data / "detect" / "bald_guys.jpg")[350:850, 50:750]

    assert_the_same(mmod, oracle, np.ascontiguousarray(crowd), 4)


@pytest.mark.soak
@pytest.mark.parametrize("name", BIG_PHOTOS)
def test_boxes_on_a_big_photo_are_dlibs(
    mmod: MmodDetector, oracle: Any, shared_data: Path, name: str
) -> None:
    assert_the_same(mmod, oracle, read(shared_data / "detect" / name), BIG_PHOTOS[name])


@pytest.mark.parametrize("shape", [(0, 0, 3), (0, 9, 3), (1, 1, 3), (1, 3000, 3), (3000, 1, 3), (40, 40, 3)])
def test_empty_and_tiny_frames_have_no_faces(mmod: MmodDetector, shape: tuple[int, int, int]) -> None:
    assert mmod.boxes(np.zeros(shape, np.uint8)) == []


@pytest.mark.parametrize("frame", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3)), np.zeros((9, 9, 4))])
def test_what_is_no_frame_is_refused(mmod: MmodDetector, frame: U8) -> None:
    with pytest.raises(ValueError, match="frame must be"):
        mmod.boxes(frame)


def test_a_small_face_needs_a_small_minimum(mmod: MmodDetector, astronaut: U8) -> None:
    true = mmod.boxes(astronaut)[0][0]
    third = cv2.resize(astronaut, None, fx=1 / 3, fy=1 / 3, interpolation=cv2.INTER_AREA).astype(np.uint8)

    assert mmod.boxes(third) == []
    box = mmod.boxes(third, min_face_px=27)[0][0]
    assert box.dtype == np.float32
    assert iou(box[None] * 3, true[None]) > 0.7


def test_a_large_minimum_still_finds_a_large_face(mmod: MmodDetector, astronaut: U8) -> None:
    true = mmod.boxes(astronaut)[0][0]

    assert iou(mmod.boxes(astronaut, min_face_px=100)[0][0][None], true[None]) > 0.7
    assert mmod.boxes(astronaut, min_face_px=400) == []


def test_a_higher_threshold_leaves_only_surer_faces(mmod: MmodDetector, astronaut: U8) -> None:
    found = mmod.boxes(astronaut, threshold=-1.0)
    best = found[0][1]

    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    assert [score for _, score in mmod.boxes(astronaut, threshold=best - 0.01)] == [best]
    assert mmod.boxes(astronaut, threshold=best) == []
