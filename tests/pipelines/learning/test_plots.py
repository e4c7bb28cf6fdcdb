"""Pictures: written whole, the same twice, of what they should be, and nothing left open."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from visaged.pipelines.learning.metrics import Reliability, reliability

pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra `learn`)")
from visaged.pipelines.learning.plots import (
    draw_confusion,
    draw_reliability,
    draw_training,
    draw_verification,
)

CONFUSION = np.array([[90, 10, 0], [30, 20, 0], [0, 0, 0]])
CLASSES = ("neutral", "happiness", "contempt")


@dataclass(frozen=True, slots=True)
class Pass:
    number: int
    train_loss: float
    train_accuracy: float
    tune_loss: float
    tune_accuracy: float


def passes(n: int) -> list[Pass]:
    return [Pass(i, 2 / i, 1 - 1 / (i + 1), 2 / i + 0.1, 1 - 1.2 / (i + 1)) for i in range(1, n + 1)]


def bins_of(n: int) -> Reliability:
    random = np.random.default_rng(0)
    p = random.random((n, 3), np.float32)
    p /= p.sum(axis=1, keepdims=True)
    return reliability(p, np.eye(3, dtype=np.float32)[random.integers(0, 3, n)])


def read(path: Path) -> npt.NDArray[np.uint8]:
    bgr = cv2.imread(str(path))
    assert bgr is not None
    return np.asarray(bgr, np.uint8)


def test_every_picture_is_a_png_in_a_folder_that_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "pictures"

    paths = [
        draw_confusion(CONFUSION, CLASSES, folder / "confusion.png", "a title"),
        draw_training(passes(12), folder / "training.png", "a title"),
        draw_verification(passes(12), folder / "verification.png", "a title"),
        draw_reliability(bins_of(300), folder / "reliability.png", "a title"),
    ]

    assert sorted(folder.iterdir()) == sorted(paths)  # and no unfinished file beside them
    for path in paths:
        assert min(read(path).shape[:2]) > 500
        assert read(path).std() > 5  # not an empty sheet


def test_a_picture_is_the_same_twice_and_another_for_other_numbers(tmp_path: Path) -> None:
    first, second, other = (
        draw_confusion(counts, CLASSES, tmp_path / f"{index}.png", "a title").read_bytes()
        for index, counts in enumerate((CONFUSION, CONFUSION, CONFUSION.T.copy()))
    )

    assert first == second != other


def test_a_field_is_as_dark_as_its_share_of_the_row(tmp_path: Path) -> None:
    grid = np.array([[100, 0], [0, 100]])

    picture = read(draw_confusion(grid, ("a", "b"), tmp_path / "c.png", "t")).astype(int)

    blue_over_red = picture[..., 0] - picture[..., 2] > 60
    assert 0.15 < blue_over_red.mean() < 0.4  # two of the four fields, in a picture with names around them


@pytest.mark.parametrize("n", [1, 60])
def test_one_epoch_and_many_can_be_drawn(n: int, tmp_path: Path) -> None:
    assert draw_training(passes(n), tmp_path / "t.png", "a title").stat().st_size > 1000


def test_pyplot_is_not_asked_for(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from test_plots import *; "
        "draw_training(passes(3), Path(sys.argv[1]) / 't.png', 'a title'); "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )

    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=Path(__file__).parent)


def test_nothing_to_draw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no epochs"):
        draw_training([], tmp_path / "t.png", "a title")
    with pytest.raises(ValueError, match="no faces"):
        draw_reliability(bins_of(0), tmp_path / "r.png", "a title")
    with pytest.raises(ValueError, match="2 classes"):
        draw_confusion(CONFUSION, ("a", "b"), tmp_path / "c.png", "a title")
    assert not list(tmp_path.iterdir())
