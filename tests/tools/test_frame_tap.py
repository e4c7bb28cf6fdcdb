"""A second reader of the rings gets exactly the frame a result is about, or none."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from visaged.daemon.ring import FrameRing
from visaged.pipelines.message import FaceFrame
from visaged.tools.frame_tap import FrameTap

HEIGHT, WIDTH = 4, 6


def result(captured_ns: int, camera: str = "door") -> FaceFrame:
    return FaceFrame(
        camera=camera, run="r", seq=1, frame_seq=1, captured_ns=captured_ns, captured_at=0.0, published_ns=0,
        width=WIDTH, height=HEIGHT, release="", embedding_space="", embedding_dim=0,
    )  # fmt: skip


def frame(level: int) -> npt.NDArray[np.uint8]:
    return np.full((HEIGHT, WIDTH, 3), level, np.uint8)


@pytest.fixture
def ring_of_door(tmp_path: Path) -> FrameRing:
    return FrameRing(tmp_path, "box-door", 3, HEIGHT * WIDTH * 3)


def test_the_frame_of_a_result_is_found_among_others(tmp_path: Path, ring_of_door: FrameRing) -> None:
    for level in (1, 2, 3):
        ring_of_door.write(frame(level), level * 1000)

    rgb = FrameTap(tmp_path, "box").frame_of(result(2000))

    assert rgb is not None
    assert (rgb == 2).all()


def test_a_frame_that_was_overwritten_is_none_and_counted(tmp_path: Path, ring_of_door: FrameRing) -> None:
    tap = FrameTap(tmp_path, "box")
    for level in (1, 2, 3, 4):
        ring_of_door.write(frame(level), level * 1000)

    assert tap.frame_of(result(1000)) is None
    assert tap.missed == 1


def test_a_capture_that_started_again_is_followed_to_its_new_ring(
    tmp_path: Path, ring_of_door: FrameRing
) -> None:
    tap = FrameTap(tmp_path, "box")
    ring_of_door.write(frame(1), 1000)
    assert tap.frame_of(result(1000)) is not None
    ring_of_door.close()

    with FrameRing(tmp_path, "box-door", 3, HEIGHT * WIDTH * 3) as second:
        second.write(frame(9), 9000)

        rgb = tap.frame_of(result(9000))

    assert rgb is not None
    assert (rgb == 9).all()


def test_a_camera_whose_name_begins_alike_is_not_mixed_up(tmp_path: Path, ring_of_door: FrameRing) -> None:
    with FrameRing(tmp_path, "box-door-2", 3, HEIGHT * WIDTH * 3) as other:
        other.write(frame(7), 1000)
        ring_of_door.write(frame(1), 1000)

        rgb = FrameTap(tmp_path, "box").frame_of(result(1000))

    assert rgb is not None
    assert (rgb == 1).all()


def test_no_daemon_is_no_frame(tmp_path: Path) -> None:
    assert FrameTap(tmp_path, "box").frame_of(result(1)) is None
