"""The kinds of camera, on real files; streams are in test_capture.py and integration/test_rtsp.py."""

import os
import struct
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import msgspec
import numpy as np
import pytest
from av.video.frame import VideoFrame
from visaged.daemon.camera import U8, Broken, Camera, CameraConfig, SourceKind, open_camera, shown_source
from visaged.daemon.cameras.folder import announced_size
from visaged.daemon.cameras.reader import Pace
from visaged.daemon.cameras.synthetic import draw_pan
from visaged.pipelines.errors import ConfigError, SourceError

from tests.videos import write_video

MakeVideo = Callable[..., Path]


def config_of(source: object, **fields: Any) -> CameraConfig:
    return CameraConfig(name="a", source=str(source), **fields)


def read_all(camera: Camera) -> list[U8 | Broken]:
    items = []
    while (item := camera.read()) is not None:
        items.append(item)
    camera.close()
    return items


def shape_of(item: U8 | Broken) -> tuple[int, ...]:
    assert not isinstance(item, Broken), item.why
    return item.shape


def write_photo(path: Path, height: int = 60, width: int = 80, value: int = 90) -> Path:
    assert cv2.imwrite(str(path), np.full((height, width, 3), value, np.uint8))
    return path


def png_header(height: int, width: int) -> bytes:
    """Return a PNG that announces a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 64))


# configuration


@pytest.mark.parametrize(
    ("source", "kind", "is_lossless"),
    [
        ("/dev/video0", SourceKind.DEVICE, False),
        ("rtsp://user:secret@door/1", SourceKind.STREAM, False),
        ("HTTP://door/1", SourceKind.STREAM, False),
        ("synthetic:pattern", SourceKind.SYNTHETIC, False),
        ("/videos/a.mp4", SourceKind.PATH, True),
        ("photos", SourceKind.PATH, True),
    ],
)
def test_the_source_decides_kind_and_policy(source: str, kind: SourceKind, is_lossless: bool) -> None:
    config = config_of(source)

    assert (config.kind, config.is_lossless) == (kind, is_lossless)
    assert config_of(source, policy="live").is_lossless is False
    assert config_of(source, policy="replay").is_lossless is True


def test_a_file_is_played_by_the_clock_when_it_is_live() -> None:
    assert not config_of("a.mp4").is_paced
    assert config_of("a.mp4", policy="live").is_paced
    assert not config_of("a.mp4", policy="live", pace=False).is_paced
    assert config_of("a.mp4", pace=True).is_paced
    assert not config_of("/dev/video0").is_paced


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"name": "Front Door"}, "matching regex"),
        ({"source": ""}, "length >= 1"),
        ({"source": "rtmp://door/1"}, "unknown scheme"),
        ({"reconnect_min_s": 9, "reconnect_max_s": 3}, "is greater than"),
        ({"ring_slots": 2}, ">= 3"),
        ({"width": 1280}, "both width and height"),
        ({"rotate": 45}, "Invalid enum value 45"),
        ({"colour": "red"}, "unknown field `colour`"),
    ],
)
def test_a_wrong_camera_is_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=why):
        msgspec.convert({"name": "a", "source": "/dev/video0", **fields}, CameraConfig)


def test_passwords_do_not_reach_the_log() -> None:
    assert shown_source("rtsp://user:secret@door:554/live?token=abc") == "rtsp://door:554/live"
    assert shown_source("/videos/a@b.mp4") == "/videos/a@b.mp4"


# files


def test_a_video_is_read_from_the_first_frame_to_the_last(make_video: MakeVideo) -> None:
    camera = open_camera(config_of(make_video(n_frames=40, fps=25)))
    assert camera.fps == 25
    frames = read_all(camera)

    assert len(frames) == 40
    assert {shape_of(frame) for frame in frames} == {(120, 160, 3)}
    assert abs(int(frames[10][60, 80, 0]) - 40) <= 2  # type: ignore[index]
    assert camera.read() is None  # and stays so


def test_colours_are_red_green_blue(tmp_path: Path) -> None:
    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 0] = 200
    cv2.imwrite(str(tmp_path / "red.png"), red[..., ::-1])
    write_video(tmp_path / "red.avi", [red], 25)

    for source in (tmp_path, tmp_path / "red.avi"):
        frame = open_camera(config_of(source)).read()
        assert isinstance(frame, np.ndarray)
        assert abs(int(frame[32, 32, 0]) - 200) <= 4
        assert frame[32, 32, 2] <= 4


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
def test_a_cut_off_video_yields_what_it_has_and_one_broken_frame(make_video: MakeVideo, keep: float) -> None:
    path = make_video(n_frames=100)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    *frames, last = read_all(open_camera(config_of(path)))

    assert isinstance(last, Broken)
    assert "announces 100 frames and ends after" in last.why
    assert keep * 100 - 20 < len(frames) <= keep * 100 + 5
    assert all(shape_of(frame) == (120, 160, 3) for frame in frames)


@pytest.mark.parametrize(("matrix", "full_range"), [("ITU601", False), ("ITU709", True)])
def test_a_video_is_shown_upright_and_in_the_colours_it_names(
    tmp_path: Path, matrix: str, full_range: bool
) -> None:
    upright = np.empty((161, 121, 3), np.uint8)  # odd sizes, which leave padding between the rows
    upright[:80], upright[80:] = (200, 40, 60), (20, 180, 90)
    as_sent = VideoFrame.from_ndarray(np.ascontiguousarray(np.rot90(upright, -1)), "rgb24").reformat(
        format="yuv420p", dst_colorspace=matrix, dst_color_range="JPEG" if full_range else "MPEG"
    )
    with av.open(tmp_path / "a.mkv", "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width = as_sent.height, as_sent.width
        stream.codec_context.colorspace = as_sent.colorspace
        stream.codec_context.color_range = as_sent.color_range
        stream.set_display_rotation(90)
        container.mux(stream.encode(as_sent))
        container.mux(stream.encode())

    frame = open_camera(config_of(tmp_path / "a.mkv")).read()
    assert isinstance(frame, np.ndarray) and frame.flags.c_contiguous
    assert frame.shape == upright.shape
    assert np.abs(frame[8::140].astype(int) - upright[8::140]).max() <= 4  # one row of each colour


def test_a_damaged_frame_of_a_video_is_broken_and_the_next_are_not(make_video: MakeVideo) -> None:
    path = make_video(n_frames=6)
    data = bytearray(path.read_bytes())
    start_of_second = data.find(b"\xff\xd8", data.find(b"\xff\xd8") + 2)
    data[start_of_second : start_of_second + 200] = bytes(200)
    path.write_bytes(data)
    items = read_all(open_camera(config_of(path)))

    assert [isinstance(item, Broken) for item in items] == [False, True, False, False, False, False]


def test_a_video_of_too_large_frames_is_broken_before_it_is_decoded(make_video: MakeVideo) -> None:
    items = read_all(open_camera(config_of(make_video(n_frames=2), max_pixels=160 * 120 // 4)))

    assert len(items) == 2
    assert all(isinstance(item, Broken) and "raise max_pixels" in item.why for item in items)


def test_a_video_cut_off_before_its_index_is_one_sentence(make_video: MakeVideo) -> None:
    path = make_video("video.mp4", n_frames=100)  # MP4 keeps its index at the end
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    with pytest.raises(SourceError, match=r"video\.mp4 cannot be opened"):
        open_camera(config_of(path))


def test_files_that_are_no_video_are_one_sentence_each(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video" * 1000)
    os.mkfifo(tmp_path / "pipe.mp4")

    for name, why in (
        ("pipe.mp4", "is no regular file"),
        ("empty.mp4", "is empty"),
        ("text.mp4", "cannot be opened"),
        ("none.mp4", "does not exist"),
    ):
        with pytest.raises(SourceError, match=why):
            open_camera(config_of(tmp_path / name))


def test_a_device_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(SourceError, match="/dev/video99 does not exist"):
        open_camera(config_of("/dev/video99"))


@pytest.mark.camera
def test_a_device_yields_frames() -> None:
    devices = sorted(Path("/dev").glob("video*"))
    if not devices:
        pytest.skip("NOT TESTED: V4L2 (no /dev/video*)")
    camera = open_camera(config_of(devices[0], width=640, height=480))
    frame = camera.read()
    camera.close()

    assert shape_of(frame)[2] == 3  # type: ignore[arg-type]


# folders


def test_the_photos_of_a_folder_come_in_order_and_bad_ones_say_why(tmp_path: Path) -> None:
    write_photo(tmp_path / "a.jpg", 60, 80)
    (tmp_path / "b.jpg").touch()
    (tmp_path / "c.png").write_bytes(png_header(5000, 8000))  # 40 megapixels
    (tmp_path / "d.jpg").write_bytes(b"\xff\xd8 no photo")
    write_photo(tmp_path / "e.PNG", 100, 50)
    (tmp_path / "notes.txt").write_text("not looked at")
    items = read_all(open_camera(config_of(tmp_path)))

    assert [shape_of(items[0]), shape_of(items[4])] == [(60, 80, 3), (100, 50, 3)]
    whys = [item.why for item in items if isinstance(item, Broken)]
    assert len(items) == 5
    assert "b.jpg is empty" in whys[0]
    assert "40.0 megapixels, allowed are 33.2" in whys[1]
    assert "d.jpg cannot be decoded" in whys[2]


@pytest.mark.parametrize("rotate", [90, 180, 270])
def test_a_camera_on_its_side_or_head_down_is_turned_upright(tmp_path: Path, rotate: int) -> None:
    upright = np.random.default_rng(rotate).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    seen = np.rot90(upright, rotate // 90)  # counterclockwise
    assert cv2.imwrite(str(tmp_path / "a.png"), seen[..., ::-1])
    (tmp_path / "b.png").write_bytes(b"")

    photo, broken = read_all(open_camera(config_of(tmp_path, rotate=rotate)))

    assert isinstance(photo, np.ndarray) and photo.flags.c_contiguous
    np.testing.assert_array_equal(photo, upright)
    assert isinstance(broken, Broken)


def test_a_real_photo_of_40_megapixels_is_skipped_before_it_is_decoded(tmp_path: Path) -> None:
    write_photo(tmp_path / "large.jpg", 5000, 8000)

    (item,) = read_all(open_camera(config_of(tmp_path)))
    assert isinstance(item, Broken)
    assert read_all(open_camera(config_of(tmp_path, max_pixels=1 << 26)))[0].shape == (5000, 8000, 3)  # type: ignore[union-attr]


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_the_announced_size_is_the_decoded_one(tmp_path: Path, suffix: str) -> None:
    data = write_photo(tmp_path / f"a{suffix}", 61, 83).read_bytes()

    assert announced_size(data) == (61, 83)
    for length in range(40):
        announced_size(data[:length])  # a cut header is no error


def test_a_folder_without_photos_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no photo"):
        open_camera(config_of(tmp_path))


# synthetic cameras


def test_the_pattern_moves_and_ends_after_its_seconds() -> None:
    frames = read_all(open_camera(config_of("synthetic:pattern?width=64&height=48&fps=10&seconds=2")))

    assert len(frames) == 20
    assert {shape_of(frame) for frame in frames} == {(48, 64, 3)}
    assert len({frame.tobytes() for frame in frames if isinstance(frame, np.ndarray)}) == 20


def test_a_pan_shows_only_the_photo_and_all_of_it_is_reached(tmp_path: Path) -> None:
    photo = np.zeros((200, 300, 3), np.uint8)
    photo[..., 0] = np.linspace(50, 250, 300)[None, :]
    photo[..., 1] = np.linspace(50, 250, 200)[:, None]
    views = np.stack([draw_pan(photo, n / 5, 96, 128) for n in range(5 * 63)])

    assert views[..., :2].min() >= 49  # nothing from outside
    for channel in (0, 1):
        assert views[..., channel].min() < 60
        assert views[..., channel].max() > 240


def test_a_pan_takes_its_size_from_source_or_camera(tmp_path: Path) -> None:
    photo = write_photo(tmp_path / "a b&c.png", 300, 400)
    quoted = str(photo).replace("&", "%26").replace(" ", "%20")

    first = open_camera(config_of(f"synthetic:pan?photo={quoted}&width=100&height=80")).read()
    second = open_camera(config_of(f"synthetic:pan?photo={quoted}", width=120, height=90, fps=5))
    assert shape_of(first) == (80, 100, 3)  # type: ignore[arg-type]
    assert shape_of(second.read()) == (90, 120, 3)  # type: ignore[arg-type]
    assert second.fps == 5


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("synthetic:pan", "use synthetic:pattern or"),
        ("synthetic:noise", "is unknown"),
        ("synthetic:pattern?speed=3", "options are photo, width"),
        ("synthetic:pattern?fps=fast", "fps"),
        ("synthetic:pattern?width=0", "width"),
    ],
)
def test_a_wrong_synthetic_camera_is_a_configuration_error(source: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        open_camera(config_of(source))


def test_a_pan_over_a_missing_photo_is_one_sentence() -> None:
    with pytest.raises(SourceError, match=r"none\.jpg cannot be read"):
        open_camera(config_of("synthetic:pan?photo=none.jpg"))


def test_pace_keeps_the_frame_rate_and_forgives_a_long_stall() -> None:
    pace, stop = Pace(100), threading.Event()
    began = time.monotonic()
    for _ in range(11):
        pace.wait(stop)
    took_s = time.monotonic() - began
    time.sleep(0.7)
    began = time.monotonic()
    for _ in range(11):
        pace.wait(stop)

    assert took_s >= 0.099
    assert time.monotonic() - began >= 0.099  # no burst of late frames
