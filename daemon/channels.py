"""Every ZeroMQ channel of the daemon in one table: who talks to whom, and what is dropped.

Nothing else in the repository names an endpoint pattern or a high-water mark.
"""

import errno
import socket
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ..pipelines.errors import ConfigError

MAX_SOCKET_PATH_BYTES = 107  # sun_path of a Unix socket, less the closing zero


class Overflow(Enum):
    """What happens to a message when its reader is slow."""

    DROP_NEW = "drop new"  # counted by the writer, or seen by the reader as a gap in `seq`
    BLOCK = "block"  # every request must be answered


@dataclass(frozen=True, slots=True)
class Channel:
    """One row of the table. `endpoint` is relative to the runtime directory."""

    writer: str
    readers: tuple[str, ...]
    endpoint: str
    depth: int  # messages queued on each side (ZeroMQ high-water mark)
    overflow: Overflow


CHANNELS = {
    # name               writer      readers       endpoint               depth  overflow
    "frames":   Channel("capture",  ("infer",),   "frames-{camera}.ipc",   16, Overflow.DROP_NEW),
    "results":  Channel("infer",    ("clients",), "results.ipc",          256, Overflow.DROP_NEW),
    "control":  Channel("operator", ("infer",),   "control.ipc",           16, Overflow.BLOCK),
}  # fmt: skip


def socket_file(runtime: Path, channel: str, camera: str = "") -> Path:
    """Return the socket of `channel` under the runtime directory; it exists while the channel is served."""
    return runtime.absolute() / CHANNELS[channel].endpoint.format(camera=camera)


def endpoint_of(runtime: Path, channel: str, camera: str = "") -> str:
    """Return the `ipc://` endpoint of `channel` under the runtime directory.

    Raises:
        ConfigError: the path is longer than a Unix socket may have.
    """
    path = socket_file(runtime, channel, camera)
    length = len(str(path).encode())
    if length > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(
            f"the socket path {path} has {length} bytes, a Unix socket allows {MAX_SOCKET_PATH_BYTES}; "
            f"set [paths] runtime to a shorter folder"
        )
    return f"ipc://{path}"


def is_listening(path: Path) -> bool:
    """Whether a living process serves the socket file `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(str(path)) in (0, errno.EAGAIN)
