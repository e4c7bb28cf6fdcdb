"""A folder of photos as a camera: sorted by name, each photo one frame."""

from pathlib import Path

import cv2
import numpy as np

from ...pipelines.errors import SourceError
from ..camera import U8, Broken, CameraConfig
from .device import be_quiet

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm"})
MAX_FILE_BYTES = 256 << 20
DEFAULT_FPS = 10.0  # when played by a clock


class FolderCamera:
    """The photos directly inside a folder; what cannot be used is answered with `Broken`."""

    def __init__(self, config: CameraConfig, folder: Path) -> None:
        """List the photos; files that come later are not seen.

        Raises:
            SourceError: there is no photo.
        """
        be_quiet()
        self._max_pixels = config.max_pixels
        self.fps = config.fps or DEFAULT_FPS
        try:
            paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        except OSError as error:
            raise SourceError(f"camera {config.name}: {folder} cannot be read ({error.strerror})") from error
        if not paths:
            raise SourceError(
                f"camera {config.name}: {folder} holds no photo; put {', '.join(sorted(SUFFIXES))} into it"
            )
        self._paths = iter(paths)

    def read(self) -> U8 | Broken | None:
        """Return the next photo as a frame, or None after the last."""
        path = next(self._paths, None)
        return None if path is None else read_photo(path, self._max_pixels)

    def close(self) -> None:
        """Nothing is held open."""


def read_photo(path: Path, max_pixels: int) -> U8 | Broken:
    """Return the photo as `(H, W, 3)` uint8 RGB, turned upright by its EXIF tag, or why it is unusable."""
    try:
        n_bytes = path.stat().st_size
        data = path.read_bytes() if n_bytes <= MAX_FILE_BYTES else b""
    except OSError as error:
        return Broken(f"{path} cannot be read ({error.strerror})")
    if n_bytes == 0:
        return Broken(f"{path} is empty")
    if not data:
        return Broken(f"{path} has {n_bytes / 1e6:.0f} MB, allowed are {MAX_FILE_BYTES / 1e6:.0f}")
    height, width = announced_size(data)
    if height * width > max_pixels:
        return Broken(too_large(str(path), height, width, max_pixels))
    try:
        rgb = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:  # OpenCV refuses absurd sizes by raising
        rgb = None
    if rgb is None:
        return Broken(f"{path} cannot be decoded; it is no photo, or a damaged one")
    return np.asarray(rgb, np.uint8)


def announced_size(data: bytes) -> tuple[int, int]:
    """Return height and width from the header of a PNG or JPEG, (0, 0) where it does not say.

    Looked at before decoding: a few kB of PNG can announce gigabytes.
    Source: ISO/IEC 15948 section 11.2.2 (IHDR); ITU-T T.81 annex B.2.2 (SOFn).
    """
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 24:
        return int.from_bytes(data[20:24]), int.from_bytes(data[16:20])
    if data[:2] != b"\xff\xd8":
        return 0, 0
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return 0, 0


def too_large(what: str, height: int, width: int, max_pixels: int) -> str:
    """Return the sentence about a frame of too many pixels."""
    return (
        f"{what} has {height * width / 1e6:.1f} megapixels, allowed are {max_pixels / 1e6:.1f}; "
        f"make it smaller or raise max_pixels"
    )
