"""The public-domain photo upside down, where dlib's frontal detector finds nobody, as a task of boxes."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]

FACE = np.array([245, 341, 333, 429], np.float32)  # in the photo upside down: as dlib boxes it upright
SIDE = 220
TASK = """
name = "upside-down"
input = "frame"
output = "box"
[folders]
train = "train.xml"
tune = "tune.xml"
test = "test.xml"
"""
VIEWS = {
    "train": ((60, 60, 1.0), (20, 90, 1.1), (100, 30, 0.95), (40, 20, 1.2)),
    "tune": ((80, 50, 1.05),),
    "test": ((30, 70, 1.15), (90, 90, 1.0)),
}
"""Of each photo: where the face begins, px from left and top, and how much it is enlarged."""


def turned(astronaut: U8) -> U8:
    """Return the photo upside down."""
    return np.ascontiguousarray(astronaut[::-1, ::-1])


def view(photo: U8, left: int, top: int, scale: float) -> tuple[U8, list[int]]:
    """Return a square around the face, and the face's left, top, width and height in it."""
    large = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    padded = np.pad(large, ((SIDE, SIDE), (SIDE, SIDE), (0, 0)), mode="edge")
    x, y = (round(float(edge) * scale) for edge in FACE[:2])
    side = round(float(FACE[2] - FACE[0]) * scale)
    piece = padded[SIDE + y - top : 2 * SIDE + y - top, SIDE + x - left : 2 * SIDE + x - left]
    return np.ascontiguousarray(piece, np.uint8), [left, top, side, side]


def write_task(folder: Path, astronaut: U8) -> Path:
    """Write photos, their boxes and the task file; return the latter."""
    photo = turned(astronaut)
    for part, views in VIEWS.items():
        lines = []
        for index, (left, top, scale) in enumerate(views):
            picture, box = view(photo, left, top, scale)
            name = f"{part}-{index}.png"
            cv2.imwrite(str(folder / name), picture[..., ::-1])
            lines.append(image_line(name, [box]))
        write_boxes(folder / f"{part}.xml", lines)
    (folder / "task.toml").write_text(TASK)
    return folder / "task.toml"


def write_boxes(path: Path, lines: Sequence[str]) -> None:
    """Write an XML file of `image_line`s."""
    path.write_text(f"<dataset><images>{''.join(lines)}</images></dataset>")


def image_line(name: str, boxes: Sequence[Sequence[float]], more: str = "") -> str:
    """Return the element of one photo, with `boxes` of left, top, width and height."""
    drawn = "".join(
        f"<box left='{left}' top='{top}' width='{width}' height='{height}'/>"
        for left, top, width, height in boxes
    )
    return f"<image file='{name}'{more}>{drawn}</image>"
