"""Flags over the real socket to the real daemon: what was acknowledged is on disk, whatever happens next."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest
from visaged.daemon.camera import CameraConfig
from visaged.daemon.client import Subscriber
from visaged.daemon.control import ControlClient, Flag, Status
from visaged.pipelines.errors import VisagedError
from visaged.pipelines.identity.gallery import Gallery
from visaged.pipelines.loop.sample import State
from visaged.pipelines.loop.sample_store import SampleStore
from visaged.pipelines.message import FaceFrame
from visaged.tools.temporary_daemon import TemporaryDaemon

from tests.videos import pan, write_video

pytestmark = pytest.mark.patient

U8 = npt.NDArray[np.uint8]
PATIENCE_S = 30.0


@pytest.fixture
def video(tmp_path: Path, astronaut: U8) -> Path:
    """Two seconds of a pan over the astronaut, 640x480."""
    return write_video(tmp_path / "astronaut.avi", pan(astronaut[:480], 30), 15)


def wait_for(subscriber: Subscriber, wanted: Callable[[FaceFrame], bool]) -> FaceFrame:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        received = subscriber.receive(1.0)
        if received is not None and isinstance(received[0], FaceFrame) and wanted(received[0]):
            return received[0]
    raise AssertionError("the daemon did not publish what was waited for")


def infer_of(daemon: TemporaryDaemon) -> psutil.Process:
    family = psutil.Process(daemon.pid).children(recursive=True)
    return next(process for process in family if "infer" in process.cmdline())


def test_an_acknowledged_flag_outlives_infer_and_names_the_person(video: Path, cache: Path) -> None:
    camera = CameraConfig(name="stage", source=str(video), policy="live", loop=True)
    with TemporaryDaemon([camera], cache=cache, wheels=None) as daemon:
        daemon.runtime.mkdir(exist_ok=True)
        daemon.start()
        with (
            Subscriber(daemon.endpoint, ["stage"]) as subscriber,
            ControlClient(daemon.runtime) as control,
        ):
            seen = wait_for(subscriber, lambda r: bool(r.faces) and r.faces[0].analysed_seq > 0)
            face = seen.faces[0]
            order = Flag(camera="stage", track=face.track, seq=seen.frame_seq, emotion="anger", person="Ada")
            first = control.request(order)
            again = control.request(order)
            with pytest.raises(VisagedError, match=r"no face of track 999 .*for \d+ s back"):
                control.request(Flag(camera="stage", track=999, confirm=True))
            last = control.request(Flag(camera="stage", track=face.track, seq=seen.frame_seq, emotion="fear"))
            infer = infer_of(daemon)
            os.kill(infer.pid, signal.SIGKILL)
            infer.wait(10)
            named = wait_for(subscriber, lambda r: r.run != seen.run and bool(r.faces))
            status = control.request(Status(), timeout_s=PATIENCE_S)
        assert daemon.stop() == 0
        with SampleStore(daemon.folder / "state") as store, Gallery(daemon.folder / "state") as gallery:
            (sample,) = store.samples()
            stored = store.face(sample.id)
            templates = {person.name: person.templates for person in gallery.people()}

    assert first == again | {"age_s": first["age_s"]}
    assert sample.id == first["sample"]["id"] == last["sample"]["id"]
    assert (sample.seq, sample.shown_emotion) == (face.analysed_seq, face.emotion.label)
    assert (sample.label.emotion, sample.label.person, sample.state) == ("fear", "Ada", State.CORRECTED)
    assert stored.chip.std() > 20
    assert templates["Ada"] == 1
    assert named.faces[0].identity.person == "Ada"
    assert status["samples"] == {"review": 0, "corrected": 1, "confirmed": 0}
