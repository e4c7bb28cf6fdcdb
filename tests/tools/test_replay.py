"""Replaying files through the real networks: every frame, the same answers, nothing kept, clear refusals."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from visaged.daemon.cameras.synthetic import draw_pan
from visaged.pipelines.assembly import StageConfigs, Stages, assemble
from visaged.pipelines.errors import SourceError
from visaged.pipelines.identity.gallery import Gallery
from visaged.pipelines.message import FaceFrame
from visaged.tools.replay import Replayed, copy_gallery, replay_source, summary_lines

from tests.videos import write_video

U8 = npt.NDArray[np.uint8]
N_FRAMES = 24


@pytest.fixture(scope="module")
def stages(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stages]:
    with assemble(StageConfigs(), state=tmp_path_factory.mktemp("state"), cache=cache) as stages:
        yield stages


@pytest.fixture(scope="module")
def video(astronaut: U8, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second of a view that wanders over the photo of one smiling person."""
    path = tmp_path_factory.mktemp("video") / "one.avi"  # AVI: what is cut off can be read up to there
    return write_video(path, (draw_pan(astronaut, index / 24, 480, 480) for index in range(N_FRAMES)), 24)


def replayed_lines(stages: Stages, source: Path, lines: Path) -> tuple[Replayed, list[FaceFrame]]:
    with lines.open("wb") as file:
        replayed = replay_source(stages, source, json_lines=file)
    decoder = msgspec.json.Decoder(FaceFrame)
    return replayed, [decoder.decode(line) for line in lines.read_bytes().splitlines()]


def without_times(results: list[FaceFrame]) -> list[FaceFrame]:
    return [msgspec.structs.replace(r, published_ns=0, stages_ms={}) for r in results]


def test_every_frame_is_answered_and_the_face_is_found(stages: Stages, video: Path, tmp_path: Path) -> None:
    replayed, results = replayed_lines(stages, video, tmp_path / "lines")

    assert [r.frame_seq for r in results] == list(range(1, N_FRAMES + 1))
    assert [r.seq for r in results] == list(range(1, N_FRAMES + 1))
    assert sum(bool(r.faces) for r in results) >= N_FRAMES - 2
    assert {f.emotion.label for r in results for f in r.faces} == {"happiness"}
    assert replayed.tally.ledger_sentence() == "24 captured = 24 published + 0 dropped, ledger balanced"
    assert "emotions happiness 0 s" in "\n".join(summary_lines(replayed))


def test_the_same_file_gives_the_same_answers(
    stages: Stages, video: Path, tmp_path: Path, cache: Path
) -> None:
    def fresh(name: str) -> list[FaceFrame]:
        with assemble(StageConfigs(), state=tmp_path / name, cache=cache) as own:
            return without_times(replayed_lines(own, video, tmp_path / f"{name}.jsonl")[1])

    assert fresh("first") == fresh("second")


def test_the_annotated_video_is_whole(stages: Stages, video: Path, tmp_path: Path) -> None:
    replay_source(stages, video, annotated=tmp_path / "out.mp4")

    capture = cv2.VideoCapture(str(tmp_path / "out.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) >= 14  # a second at 15 per second
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]


def test_a_cut_off_video_is_answered_up_to_the_cut_and_says_so(
    stages: Stages, video: Path, tmp_path: Path
) -> None:
    data = video.read_bytes()
    cut = tmp_path / "cut.avi"
    cut.write_bytes(data[: len(data) // 2])

    replayed, results = replayed_lines(stages, cut, tmp_path / "lines")

    assert 5 < len(results) < N_FRAMES
    assert len(replayed.broken) >= 1
    assert replayed.tally.in_flight == 0
    assert replayed.tally.dropped["decode_error"] == len(replayed.broken)


def test_a_folder_with_a_broken_photo_answers_the_others(
    stages: Stages, astronaut: U8, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a", "c"):
        cv2.imwrite(str(photos / f"{name}.png"), astronaut[..., ::-1])
    (photos / "b.png").write_bytes(b"no picture")

    replayed, results = replayed_lines(stages, photos, tmp_path / "lines")

    assert [r.frame_seq for r in results] == [1, 3]
    assert [r.drops for r in results] == [{}, {"decode_error": 1}]
    assert len(replayed.broken) == 1
    assert "b.png" in replayed.broken[0]
    assert replayed.tally.in_flight == 0


@pytest.mark.parametrize("content", [b"", b"this is no video" * 100])
def test_a_file_that_is_no_video_is_one_sentence(stages: Stages, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)

    with pytest.raises(SourceError, match=r"bad\.mp4"):
        replay_source(stages, path, annotated=tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists()


def configured(tmp_path: Path, cache: Path) -> Path:
    """A configuration whose gallery is in `tmp_path`, with the networks that are there already."""
    file = tmp_path / "visaged.toml"
    paths = {"state": tmp_path / "state", "runtime": tmp_path / "run", "cache": cache}
    file.write_text("[paths]\n" + "".join(f'{key} = "{path}"\n' for key, path in paths.items()))
    return file


def visaged(*words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "visaged.tools.cli", *words]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_the_command_recognises_the_enrolled_and_keeps_no_strangers(
    video: Path, tmp_path: Path, cache: Path
) -> None:
    config = configured(tmp_path, cache)
    photo = cache / "archives" / "demo" / "astronaut.png"
    assert visaged("enroll", "--config", str(config), "Eileen Collins", str(photo)).returncode == 0
    lines = tmp_path / "out.jsonl"

    done = visaged("replay", str(video), "--config", str(config), "--json", str(lines))

    assert done.returncode == 0, done.stderr
    assert "Eileen Collins in 2" in done.stdout
    assert len(lines.read_text().splitlines()) == N_FRAMES
    with Gallery(tmp_path / "state") as gallery:
        assert [person.name for person in gallery.people()] == ["Eileen Collins"]


def test_a_missing_file_is_one_sentence_and_exit_code_1(tmp_path: Path, cache: Path) -> None:
    done = visaged("replay", str(tmp_path / "none.mp4"), "--config", str(configured(tmp_path, cache)))

    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "none.mp4 does not exist" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_no_gallery_is_an_empty_copy(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()

    copy_gallery(tmp_path / "state", tmp_path / "copy")

    assert list((tmp_path / "copy").iterdir()) == []
