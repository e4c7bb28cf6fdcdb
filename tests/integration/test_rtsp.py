"""A real RTSP camera that is switched off and on again, or that changes its size, under a running capture."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from visaged.daemon.camera import CameraConfig, open_camera
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


def part(pattern: str, size: str, n_frames: int) -> str:
    width, height = size.split("x")
    caps = f"video/x-raw,width={width},height={height},framerate=25/1"
    return f"videotestsrc is-live=true pattern={pattern} num-buffers={n_frames} ! {caps} ! c."


@pytest.mark.parametrize("size", ["160x120", "640x480", "640x360"])
def test_a_size_that_changes_without_a_new_connection_is_scaled_to_the_first(size: str) -> None:
    """The limit that docs/operations.md tells: the new pictures come whole, in the old size, be it squeezed.

    When this fails OpenCV may have learned to say the size, and the capture can open the stream again.
    """
    made = RtspServer(f"concat name=c {part('red', '320x240', 50)} {part('smpte', size, 2000)} c.")
    camera = open_camera(CameraConfig(name="a", source=made.url))
    until, n_changed = time.monotonic() + PATIENCE_S, 0
    try:
        while n_changed < 15:  # the first key frame may come with half its slices
            read = camera.read()
            assert isinstance(read, np.ndarray) and time.monotonic() < until
            frame = read
            assert frame.shape == (240, 320, 3)
            n_changed += bool(frame[..., 2].max() > 100)  # blue: no longer the red part
    finally:
        camera.close()
        made.stop()

    white, blue, dark_blue = (frame[y, x].astype(int) for y, x in ((8, 8), (8, -8), (-8, 8)))
    assert white.min() > 150
    assert blue[2] > 150 and blue[:2].max() < 80
    assert dark_blue[2] > 80 and dark_blue[0] < 60
