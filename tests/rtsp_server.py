"""A real RTSP camera: GStreamer's server with H.264 and sound, for a test to stall, switch off or resize.

Needs Debian's python3-gi, gir1.2-gst-rtsp-server-1.0 and gstreamer1.0-plugins-ugly; FFmpeg has no server.
"""

import subprocess

from tests.conftest import skip_or_fail

SYSTEM_PYTHON = "/usr/bin/python3"
SERVER = """
import sys
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
assert Gst.ElementFactory.find("x264enc"), "no x264enc"
port, pictures = sys.argv[1:]

server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(port)
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(
    f"( {pictures} ! videoscale ! capsfilter name=size "
    "! x264enc tune=zerolatency threads=1 speed-preset=ultrafast key-int-max=10 "
    "! rtph264pay name=pay0 pt=96 config-interval=-1 "
    "audiotestsrc is-live=true ! alawenc ! rtppcmapay name=pay1 pt=8 )"
)
factory.set_shared(True)
sizes = []
factory.connect("media-configure", lambda _, media: sizes.append(media.get_element().get_by_name("size")))


def resize(*_):
    width, height = sys.stdin.readline().split()
    sizes[-1].set_property("caps", Gst.Caps.from_string(f"video/x-raw,width={width},height={height}"))
    return True


GLib.io_add_watch(sys.stdin, GLib.IO_IN, resize)
server.get_mount_points().add_factory("/live", factory)
assert server.attach(None), "cannot bind"
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
"""


class RtspServer:
    """A process that serves `url`. Whoever makes it stops it."""

    def __init__(self, pictures: str, port: int = 0) -> None:
        """Serve what the GStreamer elements `pictures` give; port 0: a free one. Skips where it cannot."""
        try:
            self.process = subprocess.Popen(
                [SYSTEM_PYTHON, "-c", SERVER, str(port), pictures],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        except OSError as error:
            _skip(str(error))
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            _skip(self.stop().strip().rpartition("\n")[2])
        self.port = int(line)
        self.url = f"rtsp://127.0.0.1:{self.port}/live"

    def resize(self, width: int, height: int) -> None:
        """Send pictures of another size from now on, without a word to those who are connected."""
        assert self.process.stdin is not None
        print(width, height, file=self.process.stdin, flush=True)

    def stop(self) -> str:
        """Kill it, as a power cut would; return what it complained about."""
        self.process.kill()
        return self.process.communicate()[1]


def _skip(why: str) -> None:
    names = "python3-gi, gir1.2-gst-rtsp-server-1.0, gstreamer1.0-plugins-ugly"
    skip_or_fail("rtsp", f"NOT TESTED: RTSP ({why}; install {names})")
