"""`visaged train-detector`: the photo upside down, in which dlib's frontal detector finds nobody."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from typer.testing import CliRunner
from visaged.daemon.config import load_config
from visaged.pipelines.dlib_faces import HogDetector, SiteDetector
from visaged.pipelines.errors import ConfigError, SourceError, VisagedError
from visaged.pipelines.learning.boxed_photos import FaceBoxes
from visaged.pipelines.learning.hog_trainer import HogSettings, HogTrainer, scaled
from visaged.pipelines.learning.samples import TEST, TRAIN
from visaged.pipelines.learning.site_detector import boxed_parts, smallest_face
from visaged.pipelines.learning.task import read_task
from visaged.tools.cli import build_app
from visaged.tools.drawing import PAPER

from tests.turned_astronaut import image_line, view, write_boxes, write_task

U8 = npt.NDArray[np.uint8]

NO_BOX = np.zeros((0, 4), np.float32)


@pytest.fixture
def task(tmp_path: Path, astronaut: U8) -> Path:
    return write_task(tmp_path, astronaut)


def run(task: Path, *words: str) -> str:
    words = ("train-detector", str(task), "--out", str(task.parent / "out" / "site.svm"), *words)
    return CliRunner().invoke(build_app("train-detector"), words, catch_exceptions=False).output


def test_it_finds_the_faces_that_dlib_s_detector_does_not(site_detector: Path) -> None:
    card = json.loads(site_detector.with_suffix(".json").read_text())

    assert card["test"]["the site's"] == {
        "n_faces": 2, "n_found": 2, "n_false": 0, "precision": 1, "recall": 1, "average_precision": 1,
    }  # fmt: skip
    assert card["test"]["dlib's"]["n_found"] == 0
    assert card["test"]["both"]["n_found"] == 2
    assert card["c"] == 4  # with the other one it learns nothing
    assert card["photos"] == {"train": 4, "tune": 1, "test": 2}


def test_the_daemon_takes_it(site_detector: Path, tmp_path: Path) -> None:
    smallest = json.loads(site_detector.with_suffix(".json").read_text())["min_face_px"]
    (tmp_path / "v.toml").write_text(f'[detector]\nsite = "{site_detector}"\nmin_face_px = {smallest}\n')

    config = load_config(tmp_path / "v.toml")

    assert config.detector.site == site_detector
    assert 80 <= smallest <= 88


def test_the_picture_shows_the_test_photos_with_their_boxes(site_detector: Path) -> None:
    sheet = cv2.imread(str(site_detector.with_suffix(".png")))

    assert sheet is not None
    colours = {tuple(colour) for colour in sheet[..., ::-1].reshape(-1, 3).tolist()}
    assert {(90, 200, 110), (250, 200, 60), PAPER} <= colours
    assert (225, 75, 70) not in colours  # nothing is found where nothing is boxed


def test_the_same_photos_give_the_same_detector_with_any_number_of_threads(astronaut: U8) -> None:
    photo, box = view(astronaut, 50, 50, 1.0)
    left, top, width, height = box
    boxes = FaceBoxes(np.array([[left, top, left + width, top + height]], np.float32), NO_BOX)
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY).astype(np.uint8)
    made, steps = [], []
    for threads in (1, 2):
        with HogTrainer(HogSettings(epsilon=0.5, mirror=True, threads=threads)) as trainer:
            trainer.add("one", grey, boxes)
            made.append(trainer.fit(1.0, lambda iteration, gap: steps.append((iteration, gap))))

    assert made[0] == made[1]
    assert len(steps) >= 2 and steps[: len(steps) // 2] == steps[len(steps) // 2 :]
    assert steps[0][0] == 1 and steps[-1][1] < 0.5


def test_mirror_images_are_learned_from_when_asked_for(astronaut: U8, tmp_path: Path) -> None:
    photo, (left, top, width, height) = view(astronaut, 50, 50, 1.0)
    boxes = FaceBoxes(np.array([[left, top, left + width, top + height]], np.float32), NO_BOX)
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY).astype(np.uint8)
    scores = {}
    for mirror in (False, True):
        with HogTrainer(HogSettings(epsilon=0.1, mirror=mirror, threads=1)) as trainer:
            trainer.add("one", grey, boxes)
            (tmp_path / "site.svm").write_bytes(trainer.fit(4.0))
        hog = HogDetector(SiteDetector(tmp_path / "site.svm"), is_frontal=False)
        scores[mirror] = float(hog.boxes(np.ascontiguousarray(photo[:, ::-1]), 1.0, -1.0)[1][0])

    assert scores[True] > scores[False] + 0.2


def test_what_dlib_refuses_is_one_sentence(astronaut: U8) -> None:
    wide = FaceBoxes(np.array([[0, 0, 80, 80], [0, 100, 200, 120]], np.float32), NO_BOX)

    with HogTrainer(HogSettings(epsilon=0.5, mirror=False, threads=1)) as trainer:
        trainer.add("one", np.ascontiguousarray(astronaut[:220, :220, 0]), wide)
        with pytest.raises(SourceError, match=r"dlib cannot train on these photos: .*aspect ratio") as caught:
            trainer.fit(1.0)

    assert "\n" not in str(caught.value)


def test_faces_too_small_for_the_window_are_neither_learned_nor_wrong() -> None:
    boxes = FaceBoxes(np.array([[0, 0, 160, 160], [0, 0, 100, 100]], np.float32), NO_BOX)

    half = scaled(boxes, 0.5)

    assert half.faces.tolist() == [[0, 0, 80, 80]]
    assert half.ignored.tolist() == [[0, 0, 50, 50]]


def test_one_face_far_away_does_not_decide_what_is_searched_for() -> None:
    near = [FaceBoxes(np.array([[0, 0, 90, 90]] * 39, np.float32), NO_BOX)]
    far = FaceBoxes(np.array([[0, 0, 30, 30]], np.float32), NO_BOX)

    assert smallest_face([*near, far]) == 90
    assert smallest_face([far]) == 30
    assert smallest_face([FaceBoxes(np.array([[0, 0, 9, 9]], np.float32), NO_BOX)]) == 20


def test_a_photo_that_is_tested_on_is_not_learned_from(task: Path) -> None:
    (task.parent / "train-3.png").write_bytes((task.parent / "test-1.png").read_bytes())

    parts = boxed_parts(read_task(task))

    assert parts.n_repeated == 1
    assert [photo.path.name for photo in parts.photos[TRAIN]] == ["train-0.png", "train-1.png", "train-2.png"]
    assert len(parts.photos[TEST]) == 2


@pytest.mark.parametrize(
    ("file", "lines", "words", "sentence"),
    [
        ("test.xml", [image_line("test-0.png", [])], (), "no boxed face to measure on in its part test"),
        ("tune.xml", [image_line("tune-0.png", [])], (), "no boxed face to choose C by in its part tune"),
        ("train.xml", [image_line("train-0.png", [])], (), "no boxed face to learn from"),
        ("train.xml", [image_line("gone.png", [])], (), "gone.png cannot be read"),
        (
            "train.xml",
            [image_line("train-0.png", [(60, 60, 88, 88), (0, 150, 200, 30)])],
            ("--c", "1"),
            r"train-0.png: the face at left 0, top 150, width 200, height 30 is out of reach",
        ),
    ],
)
def test_photos_that_cannot_be_learned_from_are_one_sentence(
    task: Path, file: str, lines: list[str], words: tuple[str, ...], sentence: str
) -> None:
    write_boxes(task.parent / file, lines)

    with pytest.raises(VisagedError, match=sentence):
        run(task, *words)

    assert not (task.parent / "out").exists()


def test_where_it_goes_is_looked_at_before_the_work(task: Path) -> None:
    (task.parent / "file").write_text("")

    with pytest.raises(SourceError, match="choose another folder"):
        run(task, "--out", str(task.parent / "file" / "site.svm"))
    with pytest.raises(SourceError, match="is a folder; name a file in it"):
        run(task, "--out", str(task.parent))


def test_another_task_is_refused(task: Path) -> None:
    for words in (("--out", "a.png"), ("--c", "nan"), ("--c", "0")):
        assert "must not end in" in run(task, *words)
    task.write_text('name = "x"\nclasses = ["a", "b"]\n[folders]\ntrain = "."\n')

    with pytest.raises(ConfigError, match=r'one of "box"'):
        run(task)


@pytest.mark.torch
def test_a_network_is_not_trained_on_boxes(task: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed (extra `learn`)")
    recipe = Path(__file__).parents[2] / "pipelines" / "learning" / "recipes" / "trial.toml"
    words = ["train", str(recipe), "--data", f"ferplus={task}", "--out", str(task.parent / "net")]

    with pytest.raises(ConfigError, match="train-detector"):
        CliRunner().invoke(build_app("train"), words, catch_exceptions=False)


def test_an_interrupted_training_leaves_nothing(task: Path) -> None:
    (task.parent / "tmp").mkdir()
    out = task.parent / "out" / "site.svm"
    words = ["train-detector", str(task), "--out", str(out), "--c", "1000", "--epsilon", "1e-4"]
    process = subprocess.Popen(
        [sys.executable, "-m", "visaged.tools.cli", *words],
        env={**os.environ, "TMPDIR": str(task.parent / "tmp")},
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 30
    while not list((task.parent / "tmp").glob("*/errors")):  # dlib's process is about to start
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()

    process.send_signal(signal.SIGINT)

    assert process.wait(10) == 130
    assert not out.exists() and list((task.parent / "tmp").iterdir()) == []
    assert [child for child in children if Path(f"/proc/{child}").exists()] == []
