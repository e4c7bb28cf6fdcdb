"""A real RTSP camera that is switched off and on again under a running capture."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from visaged.daemon.camera import CameraConfig
from visaged.daemon.capture import run_capture
from visaged.daemon.ledger import Ledger, ledger_path
from visaged.daemon.metrics import CaptureMetrics
from visaged.daemon.outline import Outline, PathsConfig
from visaged.daemon.ring import rings_of

from tests.rtsp_server import RtspServer

PATIENCE_S = 60.0
PICTURES = "videotestsrc is-live=true pattern=ball ! video/x-raw,width=320,height=240,framerate=25/1"


@pytest.fixture
def server() -> Iterator[RtspServer]:
    made = RtspServer(PICTURES)
    yield made
    made.stop()


def test_an_rtsp_camera_yields_frames_and_comes_back_after_a_power_cut(
    tmp_path: Path, server: RtspServer
) -> None:
    camera = CameraConfig(
        name="a",
        source=server.url,
        reconnect_min_s=0.1,
        reconnect_max_s=0.5,
        silent_after_s=3,
    )
    outline = Outline(instance="t", paths=PathsConfig(runtime=tmp_path, shm=tmp_path))
    metrics, stop = CaptureMetrics("capture@a"), threading.Event()
    ledger = Ledger.open(ledger_path(tmp_path, "a"))
    thread = threading.Thread(target=run_capture, args=(outline, camera, metrics, stop))
    thread.start()

    def value(name: str) -> float:
        return metrics.registry.get_sample_value(name, {"camera": "a"}) or 0.0

    def wait_for(condition: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + PATIENCE_S
        while not condition():
            assert thread.is_alive() and time.monotonic() < until, f"waited in vain for {what}"
            time.sleep(0.02)

    again: RtspServer | None = None
    try:
        wait_for(lambda: ledger.snapshot().captured >= 25, "frames")
        server.stop()
        wait_for(lambda: value("visaged_camera_up") == 0, "the loss to be noticed")
        captured = ledger.snapshot().captured
        again = RtspServer(PICTURES, server.port)
        wait_for(lambda: ledger.snapshot().captured >= captured + 25, "frames after the power cut")
        assert value("visaged_camera_up") == 1
        assert value("visaged_camera_reconnects_total") >= 1
    finally:
        stop.set()
        thread.join(PATIENCE_S)
        if again is not None:
            again.stop()

    book = ledger.snapshot()
    assert book.captured == book.dropped["queue_full"]  # nobody listened
    assert book.dropped["decode_error"] == 0
    assert list(rings_of(tmp_path, "t")) == []
