"""What ends up in the annotated video and on the contact sheet, read back from the files."""

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from visaged.pipelines.errors import SourceError
from visaged.pipelines.message import EMOTIONS, Emotion, Face, FaceFrame
from visaged.tools.drawing import Moment
from visaged.tools.recorder import (
    MOMENTS_KEPT,
    STRETCHES_KEPT,
    Moments,
    MoodHistory,
    Recorder,
    stack_panels,
    write_png,
)

U8 = npt.NDArray[np.uint8]
MS = 1_000_000


def result(camera: str, at_ms: int, label: str = "happiness") -> FaceFrame:
    mood = Emotion(label=label, probability=0.9, probabilities=[0.9 if e == label else 0.0 for e in EMOTIONS])
    face = Face(track=1, box=(200, 100, 300, 200), emotion=mood)
    return FaceFrame(
        camera=camera, run="r", seq=1, frame_seq=1, captured_ns=10**9 + at_ms * MS, captured_at=0.0,
        published_ns=0, width=640, height=360, release="", embedding_space="", embedding_dim=0, faces=[face],
    )  # fmt: skip


def flat(level: int, height: int = 360) -> U8:
    return np.full((height, 640, 3), level, dtype=np.uint8)


def frames_of(path: Path) -> list[U8]:
    capture = cv2.VideoCapture(str(path))
    frames: list[U8] = []
    while True:
        is_good, bgr = capture.read()
        if not is_good:
            return frames
        frames.append(np.asarray(bgr, dtype=np.uint8))


def test_the_video_runs_in_the_cameras_time_with_both_side_by_side(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.mp4", ["left", "right"], span_s=2)

    for at_ms in range(0, 2000, 100):  # 10 frames a second in, 15 out
        recorder.add(result("left", at_ms), flat(60))
        recorder.add(result("right", at_ms + 5), flat(200))
    path = recorder.close()

    assert path == tmp_path / "a.mp4"
    frames = frames_of(path)
    assert 28 <= len(frames) <= 30
    assert frames[10].shape[1] == 1280
    assert frames[10][300, 100].mean() == pytest.approx(60, abs=8)
    assert frames[10][300, 740].mean() == pytest.approx(200, abs=8)


def test_a_fast_camera_is_not_drawn_more_often_than_the_video_needs(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.mp4", ["left"], span_s=2)

    drawn = 0
    for at_ms in range(0, 2000, 10):
        if recorder.is_due(result("left", at_ms)):
            recorder.add(result("left", at_ms), flat(60))
            drawn += 1
    recorder.close()

    assert 28 <= drawn <= 35


def test_nothing_is_written_until_every_camera_has_shown_something(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.mp4", ["left", "right"], span_s=2)

    recorder.add(result("left", 0), flat(60))

    assert recorder.close() is None
    assert list(tmp_path.iterdir()) == []


def test_an_abandoned_recording_leaves_no_file(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.mp4", ["left"], span_s=2)
    recorder.add(result("left", 0), flat(60))
    assert list(tmp_path.iterdir()) != []

    recorder.abandon()

    assert list(tmp_path.iterdir()) == []


def test_the_sheet_shows_moments_of_every_camera(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.mp4", ["left", "right"], span_s=2)
    for at_ms in range(0, 2000, 250):
        recorder.add(result("left", at_ms), flat(60))
        recorder.add(result("right", at_ms), flat(200))
    recorder.close()

    path = recorder.write_sheet(tmp_path / "sheet.png", "demo", per_camera=4)

    assert path is not None
    sheet = cv2.imread(str(path))
    assert sheet is not None
    dark, light = (np.abs(sheet.astype(int) - level).max(axis=-1) < 3 for level in (60, 200))
    assert dark.sum() == pytest.approx(light.sum(), rel=0.1)
    assert dark.sum() > 3 * 400 * 200


def test_moments_stay_few_and_even_however_long_it_runs() -> None:
    moments = Moments()

    for at_ms in range(0, 600_000, 40):
        if moments.is_due(at_ms * MS):
            moments.add(at_ms * MS, Moment(flat(0, 2), str(at_ms)))

    times = [at_ns for at_ns, _ in moments.pictures]
    assert MOMENTS_KEPT / 3 <= len(times) <= MOMENTS_KEPT
    assert times[0] == 0
    assert max(np.diff(times)) < 2.1 * min(np.diff(times))
    assert moments.spread(3)[0].caption == "0"


def test_moods_of_hours_stay_few_and_keep_their_time_and_mean() -> None:
    moods = MoodHistory()

    for tenth in range(36_000):  # an hour
        moods.add(tenth / 10, [1.0, 0.0] if tenth < 18_000 else [0.25, 0.75])

    samples = moods.samples()
    assert STRETCHES_KEPT / 3 < len(samples) <= STRETCHES_KEPT
    assert moods.end_s == pytest.approx(3600, abs=moods.stretch_s)
    assert samples[3][1] == [1.0, 0.0]
    assert samples[-3][1] == [0.25, 0.75]


def test_panels_of_different_height_are_centred() -> None:
    stacked = stack_panels([flat(60, 100), flat(200, 200)], np.zeros((10, 1280, 3), np.uint8))

    assert stacked.shape == (210, 1280, 3)
    assert (stacked[50:150, :640] == 60).all()


def test_a_picture_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()

    with pytest.raises(SourceError, match="choose another place"):
        write_png(file / "a.png", flat(0))
