"""A real RTSP camera: GStreamer's server with H.264, switched off and on again under a running capture.

Needs Debian's python3-gi, gir1.2-gst-rtsp-server-1.0 and gstreamer1.0-plugins-ugly; FFmpeg has no server.
"""

import os
import subprocess
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

SYSTEM_PYTHON = "/usr/bin/python3"
PATIENCE_S = 60.0
SERVER = """
import sys
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
assert Gst.ElementFactory.find("x264enc"), "no x264enc"
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(sys.argv[1])
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(
    "( videotestsrc is-live=true pattern=ball ! video/x-raw,width=320,height=240,framerate=25/1 "
    "! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=12 ! rtph264pay name=pay0 pt=96 )"
)
factory.set_shared(True)
server.get_mount_points().add_factory("/live", factory)
assert server.attach(None), "cannot bind"
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
"""


class RtspServer:
    """A process that serves rtsp://127.0.0.1:PORT/live."""

    def __init__(self, port: int = 0) -> None:
        self._process = subprocess.Popen(
            [SYSTEM_PYTHON, "-c", SERVER, str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        self.port = int(line) if line.strip() else 0

    def stop(self) -> str:
        """Kill it, as a power cut would; return what it complained about."""
        self._process.kill()
        return self._process.communicate()[1]


@pytest.fixture
def server() -> Iterator[RtspServer]:
    if not Path(SYSTEM_PYTHON).exists():
        _skip(f"no {SYSTEM_PYTHON}")
    made = RtspServer()
    if not made.port:
        _skip(made.stop().strip().rpartition("\n")[2])
    yield made
    made.stop()


def _skip(why: str) -> None:
    if "rtsp" in os.environ.get("VISAGED_REQUIRE", ""):
        pytest.fail(f"RTSP is required and cannot be tested: {why}")
    pytest.skip(f"NOT TESTED: RTSP ({why}; install python3-gi, gir1.2-gst-rtsp-server-1.0, plugins-ugly)")


def test_an_rtsp_camera_yields_frames_and_comes_back_after_a_power_cut(
    tmp_path: Path, server: RtspServer
) -> None:
    camera = CameraConfig(
        name="a",
        source=f"rtsp://127.0.0.1:{server.port}/live",
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
        again = RtspServer(server.port)
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
