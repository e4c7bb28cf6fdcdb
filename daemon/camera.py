"""What a camera is: its configuration, the protocol all kinds share, and how one is opened.

The kinds live in `cameras/`, one module each. All of them answer `read` with RGB frames and raise
`SourceError` when the source is lost; who calls them decides whether to try again.
"""

import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal, Protocol
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

from ..pipelines.errors import SourceError

U8 = npt.NDArray[np.uint8]

STREAM_SCHEMES = ("rtsp", "rtsps", "http", "https")


class SourceKind(Enum):
    """What the `source` of a camera names."""

    DEVICE = "device"  # /dev/videoN
    STREAM = "stream"  # rtsp://, http://
    PATH = "path"  # a video file or a folder of photos
    SYNTHETIC = "synthetic"


class CameraConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[camera]]` of the configuration."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
    """Short name: topic, metrics label and file names are made from it. Small letters, digits, `_`, `-`."""
    source: Annotated[str, Meta(min_length=1)]
    """`/dev/video0`, `rtsp://…`, `http://…`, a video file, a folder of photos, `synthetic:pattern`, or
    `synthetic:pan?photo=PATH&width=640&height=480&fps=30&seconds=20` (a view that wanders over a photo)."""
    policy: Literal["auto", "live", "replay"] = "auto"
    """`live`: newest frame wins, late ones are dropped and counted. `replay`: no frame is lost, the source
    waits. `auto`: `replay` for files and folders, `live` for everything else."""
    width: Annotated[int, Meta(ge=0, le=16384)] = 0
    """px asked of a device or synthetic camera; 0 = its own choice. Others keep the size they have."""
    height: Annotated[int, Meta(ge=0, le=16384)] = 0
    """px asked of a device or synthetic camera; 0 = its own choice."""
    fps: Annotated[float, Meta(ge=0, le=1000)] = 0.0
    """Frames per second asked of a device or synthetic camera, or at which a paced file or folder is
    played; 0 = the source's own."""
    rotate: Literal[0, 90, 180, 270] = 0
    """Degrees clockwise that make its frames upright: for a camera on its side or head down. Faces are found,
    and landmarks placed, upright only."""
    loop: bool = False
    """Start a file or folder again when it ends."""
    pace: bool | None = None
    """Play files, folders and synthetic cameras at their frame rate instead of as fast as frames are taken.
    Left out: yes under policy `live`, no under `replay`."""
    silent_after_s: Annotated[float, Meta(ge=0.2, le=3600)] = 5.0
    """Seconds without a frame after which the source is closed and opened again."""
    reconnect_min_s: Annotated[float, Meta(gt=0, le=3600)] = 0.5
    """Seconds before the first attempt to open a lost source again; doubled with every attempt."""
    reconnect_max_s: Annotated[float, Meta(gt=0, le=3600)] = 30.0
    """Longest wait in seconds between two attempts."""
    identity: bool = True
    """Say who the faces of this camera are."""
    emotion: bool = True
    """Say what the faces of this camera show."""
    max_pixels: Annotated[int, Meta(ge=1, le=1 << 28)] = 7680 * 4320
    """px a frame may have (width times height); larger ones are skipped and counted as `decode_error`."""
    ring_slots: Annotated[int, Meta(ge=3, le=32)] = 8
    """Frames the ring in shared memory holds."""

    def __post_init__(self) -> None:
        """Refuse a source of unknown kind, half a size, and back-off bounds in the wrong order."""
        scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*)://", self.source)
        if scheme and scheme[1].lower() not in STREAM_SCHEMES:
            raise ValueError(
                f"camera {self.name}: source {shown_source(self.source)} has an unknown scheme; "
                f"use one of {', '.join(STREAM_SCHEMES)}, /dev/videoN, a path or synthetic:"
            )
        if bool(self.width) != bool(self.height):
            raise ValueError(f"camera {self.name}: set both width and height, or neither")
        if self.reconnect_min_s > self.reconnect_max_s:
            raise ValueError(
                f"camera {self.name}: reconnect_min_s {self.reconnect_min_s:g} is greater than "
                f"reconnect_max_s {self.reconnect_max_s:g}"
            )

    @property
    def kind(self) -> SourceKind:
        """What `source` names; nothing is opened."""
        if self.source.startswith("/dev/video"):
            return SourceKind.DEVICE
        if self.source.split("://")[0].lower() in STREAM_SCHEMES:
            return SourceKind.STREAM
        if self.source.startswith("synthetic:"):
            return SourceKind.SYNTHETIC
        return SourceKind.PATH

    @property
    def is_lossless(self) -> bool:
        """Whether the policy in force is `replay`."""
        if self.policy == "auto":
            return self.kind is SourceKind.PATH
        return self.policy == "replay"

    @property
    def is_paced(self) -> bool:
        """Whether frames are handed out at the source's frame rate by a clock of ours."""
        if self.kind in (SourceKind.DEVICE, SourceKind.STREAM):
            return False
        return not self.is_lossless if self.pace is None else self.pace


@dataclass(frozen=True, slots=True)
class Broken:
    """A frame that the source delivered and nobody can use; `why` completes "skipped a frame: "."""

    why: str


class Camera(Protocol):
    """An open source of frames. Owned by the thread that opened it."""

    @property
    def fps(self) -> float:
        """Frames per second the source claims; 0 when it does not say."""

    def read(self) -> U8 | Broken | None:
        """Return the next frame, `(H, W, 3)` uint8 RGB, or None at the end; may block.

        Raises:
            SourceError: the source is lost.
        """

    def close(self) -> None:
        """Let go of the source; a second call does nothing."""


def open_camera(config: CameraConfig) -> Camera:
    """Return the open camera that `config` describes, its frames upright; may block for some seconds.

    Raises:
        SourceError: the source does not exist, does not answer, or is none we can read.
        ConfigError: the options of a synthetic camera are wrong.
    """
    if not config.rotate:
        return _open(config)
    from .cameras.turned import TurnedCamera

    return TurnedCamera(_open(config), config.rotate)


def _open(config: CameraConfig) -> Camera:
    # here, not above: the kinds import this module, and each process needs the libraries of one
    match config.kind:
        case SourceKind.DEVICE:
            from .cameras.device import DeviceCamera

            return DeviceCamera(config)
        case SourceKind.STREAM:
            from .cameras.video import open_stream

            return open_stream(config)
        case SourceKind.SYNTHETIC:
            from .cameras.synthetic import open_synthetic

            return open_synthetic(config)
        case SourceKind.PATH:
            return _open_path(config, Path(config.source).expanduser())


def _open_path(config: CameraConfig, path: Path) -> Camera:
    if path.is_dir():
        from .cameras.folder import FolderCamera

        return FolderCamera(config, path)
    if path.exists():
        from .cameras.video import FileCamera

        return FileCamera(config, path)
    raise SourceError(f"camera {config.name}: {path} does not exist; correct `source` or bring the file")


def shown_source(source: str) -> str:
    """Return `source` without user and password, fit for a log."""
    if "://" not in source:
        return source
    parts = urlsplit(source)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))
