"""Photos: good ones in every form, and bad ones that each get one sentence."""

import contextlib
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from visaged.pipelines.errors import PhotoError
from visaged.pipelines.photo import read_photo, size_in_header

WIDTH, HEIGHT = 64, 40
ORIENTATION_ROTATED_RIGHT = 6


def picture() -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """Red left half, blue right half, in RGB."""
    rgb = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    rgb[:, : WIDTH // 2, 0] = 255
    rgb[:, WIDTH // 2 :, 2] = 255
    return rgb


def encoded(suffix: str) -> bytes:
    ok, content = cv2.imencode(suffix, cv2.cvtColor(picture(), cv2.COLOR_RGB2BGR))
    assert ok
    return content.tobytes()


def save(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tiff"])
def test_a_photo_is_red_on_the_left_and_blue_on_the_right(tmp_path: Path, suffix: str) -> None:
    rgb = read_photo(save(tmp_path / f"photo{suffix}", encoded(suffix)))

    assert rgb.shape == (HEIGHT, WIDTH, 3)
    assert rgb[20, 5, 0] > 200 > 50 > rgb[20, 5, 2]
    assert rgb[20, 60, 2] > 200 > 50 > rgb[20, 60, 0]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp"])
def test_the_header_says_the_size_before_anything_is_decoded(suffix: str) -> None:
    assert size_in_header(encoded(suffix)) == (WIDTH, HEIGHT)


def test_exif_orientation_turns_the_photo_upright(tmp_path: Path) -> None:
    tiff = b"II*\x00\x08\x00\x00\x00\x01\x00" + struct.pack(
        "<HHIHHI", 0x0112, 3, 1, ORIENTATION_ROTATED_RIGHT, 0, 0
    )
    app1 = b"Exif\x00\x00" + tiff
    jpeg = encoded(".jpg")
    with_exif = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(app1) + 2) + app1 + jpeg[2:]

    rgb = read_photo(save(tmp_path / "phone.jpg", with_exif))

    assert rgb.shape == (WIDTH, HEIGHT, 3)
    assert rgb[5, 20, 0] > 200  # the left of the sensor is the top


@pytest.mark.parametrize(
    "pixels",
    [
        pytest.param(np.full((8, 8), 100, np.uint8), id="grey"),
        pytest.param(np.full((8, 8, 4), 100, np.uint8), id="alpha"),
        pytest.param(np.full((8, 8, 3), 100 * 257, np.uint16), id="16 bit"),
        pytest.param(np.full((8, 8), 100 * 257, np.uint16), id="16 bit grey"),
    ],
)
def test_grey_alpha_and_16_bit_become_rgb(
    tmp_path: Path, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8 | np.uint16]]
) -> None:
    path = save(tmp_path / "photo.png", cv2.imencode(".png", pixels)[1].tobytes())

    rgb = read_photo(path)

    assert rgb.shape == (8, 8, 3)
    assert rgb.dtype == np.uint8
    assert (rgb == 100).all()


def bomb_png() -> bytes:
    """A few bytes that claim to be 50,000 x 50,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def thumbnail_then_cut() -> bytes:
    """A JPEG with a whole thumbnail in its EXIF part, cut off in the picture itself."""
    jpeg = encoded(".jpg")
    segment = b"\xff\xe1" + struct.pack(">H", len(jpeg) + 2) + jpeg
    return (jpeg[:2] + segment + jpeg[2:])[:-40]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("empty.jpg", b"", "empty"),
        ("text.jpg", b"this is no picture", "not a picture"),
        ("cut.jpg", encoded(".jpg")[:-40], "cut off"),
        ("thumbnail.jpg", thumbnail_then_cut(), "cut off"),
        ("cut.png", encoded(".png")[:-20], "cut off"),
        ("head.jpg", b"\xff\xd8\xff", "cut off"),
        ("bomb.png", bomb_png(), "50000x50000 pixels"),
        ("big.bmp", b"BM" + bytes(16) + struct.pack("<ii", 9000, -9000) + bytes(99), "9000x9000 pixels"),
    ],
)
def test_a_bad_photo_is_one_clear_sentence(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    path = save(tmp_path / name, content)

    with pytest.raises(PhotoError, match=sentence) as raised:
        read_photo(path)
    assert name in str(raised.value)


def test_a_missing_photo_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.jpg", tmp_path):
        with pytest.raises(PhotoError, match="cannot be read"):
            read_photo(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp"])
def test_no_truncation_crashes_the_reader(tmp_path: Path, suffix: str) -> None:
    whole = encoded(suffix)
    for length in range(1, len(whole), max(1, len(whole) // 40)):
        path = save(tmp_path / "cut", whole[:length])
        with contextlib.suppress(PhotoError):
            assert read_photo(path).shape == (HEIGHT, WIDTH, 3)
