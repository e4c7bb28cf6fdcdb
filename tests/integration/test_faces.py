"""Faces through the whole daemon: a real video in, names and emotions out, every frame in the book."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from visaged.daemon.camera import CameraConfig
from visaged.daemon.client import Subscriber
from visaged.daemon.control import ControlClient, EnrolTrack, Status
from visaged.pipelines.assembly import StageConfigs, assemble
from visaged.pipelines.errors import VisagedError
from visaged.pipelines.message import FaceFrame
from visaged.tools.temporary_daemon import TemporaryDaemon

from tests.videos import pan, write_video

pytestmark = pytest.mark.patient

U8 = npt.NDArray[np.uint8]
N_FRAMES = 60
PATIENCE_S = 40.0


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory, astronaut: U8) -> Path:
    """A pan over the astronaut, 60 frames of 640x480."""
    path = tmp_path_factory.mktemp("video") / "astronaut.avi"
    return write_video(path, pan(astronaut[:480], N_FRAMES), 30)


def wait_for(subscriber: Subscriber, wanted: Callable[[FaceFrame], bool]) -> FaceFrame:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        received = subscriber.receive(1.0)
        if received is not None and isinstance(received[0], FaceFrame) and wanted(received[0]):
            return received[0]
    raise AssertionError("the daemon did not publish what was waited for")


def test_replaying_a_video_publishes_every_frame_with_the_person_named(
    video: Path, astronaut: U8, cache: Path
) -> None:
    camera = CameraConfig(name="stage", source=str(video))
    with TemporaryDaemon([camera], cache=cache, wheels=None) as daemon:
        with assemble(StageConfigs(), state=daemon.folder / "state", cache=cache) as stages:
            embedding = stages.photo_reader().read(astronaut)[0].embedding
            stages.identifier.enrol("Eileen Collins", embedding[None], source="photo")
        daemon.runtime.mkdir(exist_ok=True)
        with Subscriber(daemon.endpoint, ["stage"], timeout_s=PATIENCE_S) as subscriber:
            daemon.start()
            results = [result for result, _ in subscriber]
            lost = subscriber.n_lost
        code = daemon.stop()
        book = daemon.books()["stage"]

    assert code == 0
    assert lost == 0
    assert [result.frame_seq for result in results] == list(range(1, N_FRAMES + 1))
    assert [result.seq for result in results] == list(range(1, N_FRAMES + 1))
    assert (book.captured, book.published, book.in_flight) == (N_FRAMES, N_FRAMES, 0)
    faces = [face for result in results[2:] for face in result.faces]
    assert {face.track for face in faces} == {faces[0].track}
    assert len(faces) == N_FRAMES - 2
    assert {face.identity.person for face in faces} == {"Eileen Collins"}
    assert faces[-1].emotion.label == "happiness"
    assert len({result.release for result in results}) == 1


def test_a_stranger_seen_live_gets_a_name_by_order(video: Path, cache: Path) -> None:
    camera = CameraConfig(name="stage", source=str(video), policy="live", loop=True)
    with TemporaryDaemon([camera], cache=cache, wheels=None) as daemon:
        daemon.start()
        daemon.runtime.mkdir(exist_ok=True)
        with Subscriber(daemon.endpoint, ["stage"]) as subscriber:
            seen = wait_for(subscriber, lambda r: bool(r.faces) and r.faces[0].identity.state == "unknown")
            with ControlClient(daemon.runtime) as control:
                track = seen.faces[0].track
                enrolled = control.request(EnrolTrack(camera="stage", track=track, name="Eileen Collins"))
                with pytest.raises(VisagedError, match="no track 999"):
                    control.request(EnrolTrack(camera="stage", track=999, name="Nobody"))
                status = control.request(Status())
            known = wait_for(subscriber, lambda r: bool(r.faces) and r.faces[0].identity.state == "known")
        assert daemon.stop() == 0
        book = daemon.books()["stage"]

    assert enrolled["person"] == "Eileen Collins"
    assert seen.faces[0].identity.person == "unknown-1"
    assert known.faces[0].identity.person == "Eileen Collins"
    assert status["release"]["running"] == known.release
    assert book.captured == book.published + sum(book.dropped.values())
    assert book.published > 0
