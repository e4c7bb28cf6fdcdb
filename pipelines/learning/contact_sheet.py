"""A contact sheet: what an augmentation makes of some faces, to be looked at before it is trained with.

Shape letters: N faces, k draws, C channels, H W sheet.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from ..cache_files import write_atomically
from ..errors import SourceError

U8 = npt.NDArray[np.uint8]

GAP_PX, TITLE_PX, LABELS_PX = 4, 22, 96
LETTER_PX = 7  # width of a letter of the font at this size, about
PAPER, INK = 250, 30


def sheet_of_preset(
    pictures: U8, preset: str, n_draws: int = 6, seed: int = 0, labels: Sequence[str] = ()
) -> U8:
    """Return a sheet of an augmentation: a row per face, first as it is, then `n_draws` draws.

    Args:
        pictures: `(N, S, S, C)` uint8, C = 1 grey or 3 RGB. Mixup mixes these with each other.
        preset: name of the augmentation.
        n_draws: k.
        seed: of the draws.
        labels: one for each face, or none.

    Returns:
        `(H, W, 3)` uint8 RGB.

    Raises:
        ConfigError: no preset is called so.
        ValueError: wrong shapes, no pictures, or another number of labels.
    """
    import torch  # the sheet itself needs none of it

    from .augmentation import Augmenter
    from .augmentation import preset as preset_named

    augmenter = Augmenter(preset_named(preset), seed)
    given = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
    columns = [pictures]
    for _ in range(n_draws):
        drawn, _ = augmenter.augment(given, torch.eye(len(pictures)))
        columns.append(drawn.round().clamp(0, 255).to(torch.uint8).numpy().transpose(0, 2, 3, 1))
    titles = ["original", *(f"{preset} {number}" for number in range(1, n_draws + 1))]
    return contact_sheet(columns, titles, labels)


def contact_sheet(
    columns: Sequence[U8], titles: Sequence[str], labels: Sequence[str] = (), cell_px: int = 96
) -> U8:
    """Return pictures side by side, under the titles of their columns and beside the labels of their rows.

    Args:
        columns: each `(N, S, S, C)` uint8, C = 1 grey or 3 RGB; S may differ between columns.
        titles: one for each column; what does not fit is cut off.
        labels: one for each row, or none.
        cell_px: side of a picture on the sheet.

    Returns:
        `(H, W, 3)` uint8 RGB.

    Raises:
        ValueError: wrong shapes, nothing to show, another number of titles or labels.
    """
    n_rows = len(columns[0]) if columns else 0
    if n_rows == 0 or any(c.ndim != 4 or c.shape[3] not in (1, 3) or len(c) != n_rows for c in columns):
        raise ValueError(f"columns must be (N, S, S, 1 or 3), N > 0: {[c.shape for c in columns]}")
    if len(titles) != len(columns) or len(labels) not in (0, n_rows):
        raise ValueError(f"{len(columns)} columns, {len(titles)=}; {n_rows} rows, {len(labels)=}")
    margin = LABELS_PX if labels else 0
    pitch = cell_px + GAP_PX
    shape = (TITLE_PX + n_rows * pitch, margin + GAP_PX + len(columns) * pitch, 3)
    sheet: U8 = np.full(shape, PAPER, np.uint8)
    for row, label in enumerate(labels):
        _write(sheet, label, GAP_PX, TITLE_PX + row * pitch + cell_px // 2, LABELS_PX)
    for index, (column, title) in enumerate(zip(columns, titles, strict=True)):
        left = margin + GAP_PX + index * pitch
        _write(sheet, title, left, TITLE_PX // 2, cell_px)
        for row, picture in enumerate(column):
            top = TITLE_PX + row * pitch
            sheet[top : top + cell_px, left : left + cell_px] = _cell(picture, cell_px)
    return sheet


def write_png(sheet: U8, path: Path, mode: int = 0o644) -> None:
    """Write an `(H, W, 3)` uint8 RGB sheet as PNG, whole or not at all, with the permissions `mode`.

    Raises:
        SourceError: the folder cannot be written to.
    """
    data = cv2.imencode(".png", np.ascontiguousarray(sheet[..., ::-1]))[1].tobytes()
    try:
        write_atomically(path, data, mode)
    except OSError as error:
        raise SourceError(f"cannot write {path} ({error.strerror}); choose another folder") from error


def _cell(picture: U8, cell_px: int) -> U8:
    """One picture at the size of a cell; its pixels stay visible when it grows."""
    how = cv2.INTER_AREA if picture.shape[0] > cell_px else cv2.INTER_NEAREST
    resized = np.asarray(cv2.resize(picture, (cell_px, cell_px), interpolation=how), np.uint8)
    return resized[..., None] if resized.ndim == 2 else resized


def _write(sheet: U8, text: str, left: int, middle: int, width_px: int) -> None:
    """Draw one line, cut to what fits; the font has ASCII only."""
    fitting = text.encode("ascii", "replace").decode()[: width_px // LETTER_PX]
    ink = (INK, INK, INK)
    cv2.putText(sheet, fitting, (left, middle + 4), cv2.FONT_HERSHEY_SIMPLEX, 0.38, ink, 1, cv2.LINE_AA)
