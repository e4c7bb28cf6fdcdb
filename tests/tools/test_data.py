"""`visaged data augmented`: what a network would see, as a picture."""

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from typer.testing import CliRunner
from visaged.pipelines.errors import PhotoError
from visaged.tools.cli import build_app

pytest.importorskip("kornia", reason="kornia is not installed (extra `learn`)")

U8 = npt.NDArray[np.uint8]

pytestmark = pytest.mark.torch


def test_a_sheet_shows_a_face_as_it_is_and_six_times_changed(astronaut: U8, tmp_path: Path) -> None:
    photo, wall, sheet = (str(tmp_path / name) for name in ("eileen.png", "wall.png", "sheet.png"))
    cv2.imwrite(photo, astronaut[..., ::-1])
    cv2.imwrite(wall, np.full((200, 200, 3), 90, np.uint8))
    words = ["data", "augmented", photo, "--preset", "slides", "--size", "64", "--out", sheet]

    done = CliRunner().invoke(build_app("data"), words, catch_exceptions=False)
    drawn = cv2.imread(sheet)

    assert "wrote" in done.output and drawn is not None
    assert drawn.shape[1] > 7 * 64 and drawn.shape[0] > 64
    with pytest.raises(PhotoError, match=r"wall\.png shows no face"):
        CliRunner().invoke(build_app("data"), ["data", "augmented", wall], catch_exceptions=False)
