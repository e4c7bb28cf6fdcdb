"""A real RTSP camera that is switched off and on again, or that changes its size, under a running capture."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from visaged.daemon.camera import U8, CameraConfig
from visaged.daemon.capture import run_capture
from visaged.daemon.intake import Intake, Taken
from visaged.daemon.metrics import CaptureMetrics
from visaged.daemon.outline import Outline, PathsConfig
from visaged.daemon.ring import rings_of

from tests.rtsp_server import RtspServer

PATIENCE_S = 60.0
NOTICED_S = 3.0  # from another size sent to frames of it taken
PICTURES = "videotestsrc is-live=true pattern=smpte ! video/x-raw,width=320,height=240,framerate=25/1"


@pytest.fixture
def server() -> Iterator[RtspServer]:
    made = RtspServer(PICTURES)
    yield made
    made.stop()


class Running:
    """`run_capture` in a thread, and infer's part. Use it in a `with` statement."""

    def __init__(self, folder: Path, source: str) -> None:
        camera = CameraConfig(
            name="a", source=source, reconnect_min_s=0.1, reconnect_max_s=0.5, silent_after_s=3
        )
        outline = Outline(instance="t", paths=PathsConfig(runtime=folder, shm=folder))
        self.metrics, self._stop = CaptureMetrics("capture@a"), threading.Event()
        self._intake = Intake(["a"], folder, folder)
        self.ledger = self._intake.ledgers["a"]
        self._thread = threading.Thread(target=run_capture, args=(outline, camera, self.metrics, self._stop))

    def __enter__(self) -> "Running":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it, and settle what it still has captured."""
        self._stop.set()
        until = time.monotonic() + PATIENCE_S
        while self._thread.is_alive() and time.monotonic() < until:
            self.take()
        self.book = self.ledger.snapshot()
        self._intake.close()

    def value(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(f"visaged_camera_{name}", {"camera": "a"}) or 0.0

    def take(self) -> U8 | None:
        """Return the next frame, or None when none comes soon."""
        for camera in self._intake.wait(20):
            taken = self._intake.take(camera)
            if isinstance(taken, Taken):
                self.ledger.publish()
                return taken.frame.rgb
        return None

    def take_until(self, condition: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + PATIENCE_S
        while not condition():
            assert self._thread.is_alive() and time.monotonic() < until, f"waited in vain for {what}"
            self.take()

    def frame_of(self, width: int, height: int, within_s: float) -> U8:
        until = time.monotonic() + within_s
        while (rgb := self.take()) is None or rgb.shape != (height, width, 3):
            assert time.monotonic() < until, f"no frame of {width}x{height} within {within_s:g} s"
        return rgb


def test_an_rtsp_camera_yields_frames_and_comes_back_after_a_power_cut(
    tmp_path: Path, server: RtspServer
) -> None:
    with Running(tmp_path, server.url) as running:
        running.take_until(lambda: running.ledger.snapshot().published >= 25, "frames")
        server.stop()
        running.take_until(lambda: running.value("up") == 0, "the loss to be noticed")
        published = running.ledger.snapshot().published
        again = RtspServer(PICTURES, server.port)
        try:
            running.take_until(
                lambda: running.ledger.snapshot().published >= published + 25, "frames after the power cut"
            )
        finally:
            again.stop()
        assert running.value("reconnects_total") >= 1

    book = running.book
    assert book.captured == book.published + sum(book.dropped.values())
    assert book.dropped["decode_error"] == 0
    assert list(rings_of(tmp_path, "t")) == []


def test_another_size_without_a_new_connection_is_noticed_and_said(
    tmp_path: Path, server: RtspServer, caplog: pytest.LogCaptureFixture
) -> None:
    with Running(tmp_path, server.url) as running:
        running.frame_of(320, 240, PATIENCE_S)
        for width, height in ((640, 480), (640, 360), (160, 120)):  # larger, wider, smaller
            server.resize(width, height)
            frame = running.frame_of(width, height, NOTICED_S)

            white, blue, dark_blue = (frame[y, x].astype(int) for y, x in ((8, 8), (8, -8), (-8, 8)))
            assert white.min() > 150  # whole, and nothing else
            assert blue[2] > 150 and blue[:2].max() < 80
            assert dark_blue[2] > 80 and dark_blue[0] < 60

    assert [line for line in caplog.messages if "pictures" in line] == [
        "camera a: pictures are now 640x480, were 320x240",
        "camera a: pictures are now 640x360, were 640x480",
        "camera a: pictures are now 160x120, were 640x360",
    ]
    assert running.value("size_changes_total") == 3
    assert running.value("reconnects_total") == 0
    book = running.book
    assert book.captured == book.published + sum(book.dropped.values())
    assert book.dropped["decode_error"] == book.dropped["ring_overrun"] == 0
