"""Read a still photo safely: whatever the file is, the answer is RGB pixels or one clear sentence."""

import struct
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from .errors import PhotoError

U8 = npt.NDArray[np.uint8]

MAX_PIXELS = 40_000_000
MAX_FILE_BYTES = 200_000_000
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
JPEG_SCAN = 0xDA
JPEG_SIZE_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def photos_below(folder: Path) -> list[Path]:
    """Return every photo in `folder` and below, by its name's ending, in order of their paths."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def read_photo(path: Path) -> U8:
    """Return the photo as `(H, W, 3)` uint8 RGB, upright as its EXIF orientation says.

    Raises:
        PhotoError: missing, empty, truncated, no picture, or over 40 megapixels.
    """
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MAX_FILE_BYTES:
            raise PhotoError(f"{path} has {size_bytes / 1e6:.0f} MB, too large for a photo; scale it down")
        content = path.read_bytes()
    except OSError as error:
        raise PhotoError(f"{path} cannot be read: {error.strerror}; check the path") from error
    if not content:
        raise PhotoError(f"{path} is empty (0 bytes); copy the photo again")
    size = size_in_header(content)
    if size is not None and size[0] * size[1] > MAX_PIXELS:
        raise PhotoError(
            f"{path} has {size[0]}x{size[1]} pixels, over the limit of {MAX_PIXELS // 1_000_000} megapixels; "
            "scale it down"
        )
    if not is_whole(content):
        raise PhotoError(f"{path} is cut off: the end of the picture is missing; copy the photo again")
    try:
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise PhotoError(f"{path} cannot be decoded ({error.err}); convert it to JPEG or PNG") from error
    if decoded is None:
        raise PhotoError(f"{path} is not a picture that can be read; convert it to JPEG or PNG")
    rgb: U8 = decoded.astype(np.uint8, copy=False)
    if rgb.shape[0] * rgb.shape[1] > MAX_PIXELS:
        raise PhotoError(f"{path} has over {MAX_PIXELS // 1_000_000} megapixels; scale it down")
    return rgb


def size_in_header(content: bytes) -> tuple[int, int] | None:
    """Return width and height as a PNG, JPEG, BMP or WebP header says; None when it says nothing."""
    try:
        if content[:8] == b"\x89PNG\r\n\x1a\n":
            width, height = struct.unpack(">II", content[16:24])
            return width, height
        if content[:2] == b"BM":
            width, height = struct.unpack("<ii", content[18:26])
            return width, abs(height)
        if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
            return _webp_size(content)
        if content[:2] == b"\xff\xd8":
            return _jpeg_size(content)
    except struct.error:
        pass
    return None


def is_whole(content: bytes) -> bool:
    """Return whether a JPEG or PNG has its end; decoders fill what is missing with grey and say nothing."""
    if content[:8] == b"\x89PNG\r\n\x1a\n":
        return b"IEND" in content[-4096:]
    if content[:2] != b"\xff\xd8":
        return True
    start = next((at for marker, at in _jpeg_segments(content) if marker == JPEG_SCAN), len(content))
    return content.find(b"\xff\xd9", start) >= 0  # a thumbnail before it has an end marker of its own


def _jpeg_size(content: bytes) -> tuple[int, int] | None:
    for marker, at in _jpeg_segments(content):
        if marker in JPEG_SIZE_MARKERS:
            height, width = struct.unpack(">HH", content[at + 5 : at + 9])
            return width, height
    return None


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield marker and offset of each segment up to the first scan."""
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        yield marker, at
        if marker == JPEG_SCAN:
            return
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")


def _webp_size(content: bytes) -> tuple[int, int] | None:
    kind = content[12:16]
    if kind == b"VP8X":
        width = int.from_bytes(content[24:27], "little") + 1
        return width, int.from_bytes(content[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(content[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", content[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return None
