"""`visaged explain` on a photo: a picture that holds what its help says, or one sentence."""

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from typer.testing import CliRunner
from visaged.pipelines.errors import ConfigError, PhotoError
from visaged.tools.cli import build_app

pytest.importorskip("torch", reason="torch is not installed (extra `learn`)")

pytestmark = pytest.mark.torch
U8 = npt.NDArray[np.uint8]


def run(*words: str) -> str:
    done = CliRunner().invoke(build_app("explain"), ["explain", *words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


@pytest.fixture
def photo(tmp_path: Path, astronaut: U8) -> Path:
    path = tmp_path / "astronaut.png"
    cv2.imwrite(str(path), cv2.cvtColor(astronaut, cv2.COLOR_RGB2BGR))
    return path


def test_a_smile_is_explained_in_eight_tiles(tmp_path: Path, photo: Path) -> None:
    said = run(str(photo), "--out", str(tmp_path / "why.png"))

    picture = cv2.imread(str(tmp_path / "why.png"))
    assert picture is not None
    assert "happiness" in said
    height, width = picture.shape[:2]
    tiles = [
        picture[y : y + height // 2, x : x + width // 4]
        for y in (0, height // 2)
        for x in range(0, width - 3, width // 4)
    ]
    assert len(tiles) == 8
    assert all(tile[40:-20, 20:-20].std() > 10 for tile in tiles), "an empty tile"


def test_an_unknown_emotion_names_those_known(photo: Path) -> None:
    with pytest.raises(ConfigError, match=r"'joy'.*happiness"):
        run(str(photo), "--emotion", "joy")


def test_a_photo_without_a_face_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "wall.png"
    cv2.imwrite(str(path), np.full((200, 200, 3), 128, np.uint8))

    with pytest.raises(PhotoError, match="no face was found"):
        run(str(path), "--out", str(tmp_path / "why.png"))
    assert not (tmp_path / "why.png").exists()
