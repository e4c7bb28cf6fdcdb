"""The sheet shows the pictures where it says, and any preset."""

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from visaged.pipelines.errors import ConfigError, SourceError
from visaged.pipelines.learning.contact_sheet import (
    GAP_PX,
    LABELS_PX,
    PAPER,
    TITLE_PX,
    contact_sheet,
    sheet_of_preset,
    write_png,
)

U8 = npt.NDArray[np.uint8]
CELL_PX = 48


def plain(values: list[int], n_channels: int = 3, side: int = 16) -> U8:
    """`(N, S, S, C)`: pictures of one value each."""
    return np.array(values, np.uint8)[:, None, None, None] * np.ones((1, side, side, n_channels), np.uint8)


def cell(sheet: U8, row: int, column: int, margin: int) -> U8:
    top, left = TITLE_PX + row * (CELL_PX + GAP_PX), margin + GAP_PX + column * (CELL_PX + GAP_PX)
    return sheet[top : top + CELL_PX, left : left + CELL_PX]


@pytest.mark.parametrize("n_channels", [1, 3])
def test_every_picture_is_in_its_row_and_column(n_channels: int) -> None:
    columns = [plain([10, 20, 30], n_channels), plain([110, 120, 130], n_channels, side=64)]

    sheet = contact_sheet(columns, ["left", "right"], cell_px=CELL_PX)

    assert sheet.shape == (TITLE_PX + 3 * (CELL_PX + GAP_PX), GAP_PX + 2 * (CELL_PX + GAP_PX), 3)
    for column, values in enumerate(([10, 20, 30], [110, 120, 130])):
        for row, value in enumerate(values):
            assert (cell(sheet, row, column, 0) == value).all()


def test_titles_and_labels_are_drawn_beside_the_pictures_not_over_them() -> None:
    columns = [plain([10, 20])] * 2

    sheet = contact_sheet(columns, ["original", "a title that is far too long"], ["Ngọc", "b"], CELL_PX)

    assert (sheet[:TITLE_PX, LABELS_PX:] < PAPER - 50).any()
    assert (sheet[:TITLE_PX, LABELS_PX + GAP_PX + 2 * CELL_PX :] == PAPER).all()  # cut off
    for row in range(2):
        top = TITLE_PX + row * (CELL_PX + GAP_PX)
        assert (sheet[top : top + CELL_PX, :LABELS_PX] < PAPER - 50).any()
        assert (cell(sheet, row, 0, LABELS_PX) == 10 * (row + 1)).all()


def test_a_sheet_survives_its_png(tmp_path: Path) -> None:
    sheet = contact_sheet([plain([10, 200])], ["one"])
    sheet[0, 0] = (255, 0, 0)

    write_png(sheet, tmp_path / "sheet.png")

    read = cv2.imread(str(tmp_path / "sheet.png"))
    assert read is not None
    assert np.array_equal(read[..., ::-1], sheet)
    with pytest.raises(SourceError, match="cannot write"):
        write_png(sheet, tmp_path / "missing" / "sheet.png")


def test_what_does_not_fit_together_is_refused() -> None:
    good = plain([1, 2])

    for columns, titles, labels in (
        ([], [], []),
        ([good[:0]], ["a"], []),
        ([good, good[:1]], ["a", "b"], []),
        ([good[..., 0]], ["a"], []),
        ([good], [], []),
        ([good], ["a"], ["only one"]),
    ):
        with pytest.raises(ValueError, match="columns"):
            contact_sheet(columns, titles, labels)


@pytest.mark.torch
@pytest.mark.parametrize("preset", ["none", "slides", "face", "base"])
def test_a_preset_is_shown_beside_the_original(preset: str, astronaut: U8) -> None:
    pytest.importorskip("torch", reason="torch is not installed (extra `learn`)").set_num_threads(1)
    face = cv2.resize(astronaut[60:200, 165:305], (96, 96), interpolation=cv2.INTER_AREA)
    pictures = np.stack([face, 255 - face]).astype(np.uint8)

    sheet = sheet_of_preset(pictures, preset, n_draws=3, labels=["face", "negative"])
    again = sheet_of_preset(pictures, preset, n_draws=3, labels=["face", "negative"])

    pitch, start = 96 + GAP_PX, LABELS_PX + GAP_PX
    cells = [sheet[TITLE_PX : TITLE_PX + 96, start + k * pitch : start + k * pitch + 96] for k in range(4)]
    assert np.array_equal(cells[0], face)
    assert np.array_equal(sheet, again)
    assert len({drawn.tobytes() for drawn in cells}) == (1 if preset == "none" else 4)


@pytest.mark.torch
def test_an_unknown_preset_is_one_sentence() -> None:
    pytest.importorskip("torch", reason="torch is not installed (extra `learn`)")

    with pytest.raises(ConfigError, match="no augmentation is called 'faces'"):
        sheet_of_preset(plain([1, 2]), "faces")
