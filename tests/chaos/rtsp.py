"""A real RTSP camera that shows a photo: GStreamer's server, for a test to stall or restart."""

import subprocess
from pathlib import Path

SYSTEM_PYTHON = "/usr/bin/python3"
SERVER = """
import sys
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
assert Gst.ElementFactory.find("x264enc"), "no x264enc"
port, photo, size = sys.argv[1:]
width, height = size.split("x")

server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(port)
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(
    f"( filesrc location={photo} ! pngdec ! imagefreeze is-live=true ! videoconvert ! videoscale "
    f"! video/x-raw,format=I420,width={width},height={height},framerate=10/1 "
    "! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 "
    "! rtph264pay name=pay0 pt=96 config-interval=-1 )"
)
factory.set_shared(True)
server.get_mount_points().add_factory("/live", factory)
assert server.attach(None), "cannot bind"
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
"""


class RtspServer:
    """A process that serves rtsp://127.0.0.1:PORT/live. Whoever makes it stops it."""

    def __init__(self, photo: Path, size: str = "512x512", port: int = 0) -> None:
        """Serve `photo` (PNG) in `size`, `WIDTHxHEIGHT` px; port 0: a free one.

        Raises:
            OSError: it does not run here; the message says what is missing.
        """
        self.process = subprocess.Popen(
            [SYSTEM_PYTHON, "-c", SERVER, str(port), str(photo), size],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise OSError(self.stop().strip().splitlines()[-1:])
        self.port = int(line)

    def stop(self) -> str:
        """Kill it, as a power cut would; return what it complained about."""
        self.process.kill()
        return self.process.communicate()[1]
