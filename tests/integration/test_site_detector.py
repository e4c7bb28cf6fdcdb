"""A camera that hangs upside down: the daemon finds a face there by the site's own detector only."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from visaged.daemon.camera import CameraConfig
from visaged.daemon.client import Subscriber
from visaged.kernels.boxes import iou
from visaged.pipelines.detector import DetectorConfig, build_detector
from visaged.pipelines.message import FaceFrame
from visaged.pipelines.model_store import ModelStore
from visaged.tools.temporary_daemon import TemporaryDaemon

from tests.turned_astronaut import FACE, turned
from tests.videos import pan, write_video

U8 = npt.NDArray[np.uint8]
N_FRAMES = 12
PATIENCE_S = 40.0


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory, astronaut: U8) -> Path:
    """A pan over the astronaut upside down, 2 px a frame."""
    path = tmp_path_factory.mktemp("video") / "astronaut.avi"
    return write_video(path, pan(turned(astronaut), N_FRAMES, left=0, step=2), 30)


def frames_of(video: Path) -> Iterator[U8]:
    reader = cv2.VideoCapture(str(video))
    while (read := reader.read())[0]:
        yield cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB).astype(np.uint8)


def test_the_daemon_finds_by_the_site_s_detector_whom_it_does_not_find_without(
    video: Path, store: ModelStore, site_detector: Path
) -> None:
    without = build_detector(DetectorConfig(), store)
    camera = CameraConfig(name="ceiling", source=str(video))
    tables = {"detector": {"site": str(site_detector)}}
    with TemporaryDaemon([camera], cache=store.cache_dir, wheels=None, tables=tables) as daemon:
        daemon.runtime.mkdir(exist_ok=True)
        with Subscriber(daemon.endpoint, ["ceiling"], timeout_s=PATIENCE_S) as subscriber:
            daemon.start()
            results = [result for result, _ in subscriber if isinstance(result, FaceFrame)]
        code = daemon.stop()

    assert [found for frame in frames_of(video) for found in without.detect(frame)] == []
    assert code == 0
    assert [result.frame_seq for result in results] == list(range(1, N_FRAMES + 1))
    faces = [(result.frame_seq, face) for result in results for face in result.faces]
    assert len(faces) >= N_FRAMES - 2
    assert len({face.track for _, face in faces}) == 1
    for seq, face in faces:
        true = FACE + np.array([2, 0, 2, 0], np.float32) * (seq - 1)
        assert iou(np.array([face.box], np.float32), true[None]) > 0.6
