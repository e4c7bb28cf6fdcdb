"""Photos whose faces are boxed, many in one XML file: what dlib's imglab writes.

    <dataset><images>
      <image file="door/0001.jpg" width="640" height="480">
        <box top="90" left="194" width="80" height="80"/>
        <box top="20" left="12" width="30" height="30" ignore="1"/>
      </image>
    </images></dataset>

Shape letters: N faces, M places where something may be a face or not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path, PurePosixPath
from xml.parsers import expat

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from ..errors import PhotoError, SourceError

F32 = npt.NDArray[np.float32]

MAX_XML_BYTES = 100_000_000
MAX_PX = 100_000
SMALLEST_PX = 20  # side of a face; the detector cannot be asked for smaller ones
MIN_OVERLAP = 0.5  # IoU from which a window covers a face, to dlib's trainer and in what is measured


@dataclass(frozen=True, slots=True, eq=False)
class FaceBoxes:
    """The boxes of one photo, in px: left, top, right, bottom, the last two exclusive.

    `faces` `(N, 4)` are there to be found; in `ignored` `(M, 4)` it counts neither to find nor to miss one.
    `size` is the photo's width and height as the file says; None: it does not.
    """

    faces: F32
    ignored: F32
    size: tuple[int, int] | None = None


class FaceCounts(Struct, frozen=True, kw_only=True):
    """What is boxed, by part: faces, ignored boxes, and photos without a face.

    `sides_px` is smallest, median and largest side of a face, the root of its area. `n_small` are too small
    to be looked for, `n_odd` too wide or too high for a window of the usual shape.
    """

    n_faces: dict[str, int]
    n_ignored: dict[str, int]
    n_faceless: dict[str, int]
    sides_px: tuple[int, int, int]
    n_small: int
    n_odd: int


def read_boxes(path: Path) -> dict[Path, FaceBoxes]:
    """Return the boxes of every photo that the XML file `path` names, in its order.

    Raises:
        SourceError: unreadable, no XML, or a photo or box that cannot be; the sentence names the line.
    """
    try:
        if path.stat().st_size > MAX_XML_BYTES:
            raise SourceError(f"{path} is too large for boxes; split it")
        content = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror}); check the path") from error
    parser = expat.ParserCreate()
    reader = _Reader(path, parser)
    parser.StartElementHandler = reader.start
    parser.StartDoctypeDeclHandler = reader.refuse_doctype
    try:
        parser.Parse(content, True)
    except (expat.ExpatError, LookupError, ValueError) as error:  # also an encoding that nobody knows
        raise SourceError(f"{path} is no XML as imglab writes it: {error}; save it again there") from error
    return {photo: boxes.as_arrays() for photo, boxes in reader.photos.items()}


def check_boxes(photo: Path, boxes: FaceBoxes, shape: Sequence[int]) -> None:
    """Refuse boxes that were drawn on another picture than `photo`, of `shape` `(H, W, …)`.

    Raises:
        PhotoError: another size than the XML says, or a box whose middle is outside.
    """
    height, width = shape[:2]
    if boxes.size is not None and boxes.size != (width, height):
        said = "x".join(map(str, boxes.size))
        raise PhotoError(
            f"{photo} has {width}x{height} px, and its boxes were drawn on {said}; "
            "turn it as its EXIF data say, or scale it back, and box it again"
        )
    for box in np.concatenate([boxes.faces, boxes.ignored]):
        x, y = (box[:2] + box[2:]) / 2
        if not (0 <= x < width and 0 <= y < height):
            left, top, right, bottom = (int(edge) for edge in box)
            raise PhotoError(
                f"{photo} has {width}x{height} px, and a box at left {left}, top {top}, "
                f"width {right - left}, height {bottom - top} lies outside; draw it again"
            )


def sides_px(boxes: F32) -> F32:
    """Return `(N,)` px: the side of a square of each box's area."""
    sides: F32 = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    return sides


def aspect_of(boxes: F32) -> float:
    """Return width over height of the window that dlib's trainer makes for `(N, 4)` boxes: of their means."""
    width, height = (boxes[:, 2:] - boxes[:, :2]).mean(axis=0)
    return float(width / height)


def is_within_reach(boxes: F32, aspect: float) -> npt.NDArray[np.bool_]:
    """Return `(N,)` whether a window of `aspect`, of the best size, covers each box well enough.

    A window and a box around the same middle, one `r` times as wide for its height as the other, have at
    best an IoU of `1 / (2 √r - 1)`.
    """
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    shape = width / height / aspect
    ratio = np.maximum(shape, 1 / shape)
    covers: npt.NDArray[np.bool_] = 1 / (2 * np.sqrt(ratio) - 1) >= MIN_OVERLAP
    return covers


def count_faces(parts: Sequence[str], boxes: Sequence[FaceBoxes], names: Sequence[str]) -> FaceCounts:
    """Return what is boxed in some photos.

    Args:
        parts: the part that each photo is in.
        boxes: of each photo.
        names: of all parts.
    """

    def by_part(count: list[int]) -> dict[str, int]:
        return {name: sum(n for n, part in zip(count, parts, strict=True) if part == name) for name in names}

    faces = np.concatenate([found.faces for found in boxes])
    sides = sides_px(faces) if len(faces) else np.zeros(1, np.float32)
    return FaceCounts(
        n_faces=by_part([len(found.faces) for found in boxes]),
        n_ignored=by_part([len(found.ignored) for found in boxes]),
        n_faceless=by_part([int(not len(found.faces)) for found in boxes]),
        sides_px=(int(sides.min()), int(np.median(sides)), int(sides.max())),
        n_small=int((sides < SMALLEST_PX).sum()) if len(faces) else 0,
        n_odd=int((~is_within_reach(faces, aspect_of(faces))).sum()) if len(faces) else 0,
    )


def advice_on_boxes(n_faces: int) -> str:
    """Return what detector so many faces to learn from support. Rules of thumb, not measured."""
    if n_faces < 30:
        return f"{n_faces} faces to learn from: for a first look; box a hundred, of everybody it should find"
    if n_faces < 300:
        return f"{n_faces} faces to learn from: enough for one view of one camera; more make it surer"
    return f"{n_faces} faces to learn from: enough; add photos where it is wrong rather than more of the same"


@dataclass(slots=True)
class _Boxes:
    """The boxes of one photo while its file is read."""

    faces: list[tuple[float, ...]]
    ignored: list[tuple[float, ...]]
    size: tuple[int, int] | None

    def as_arrays(self) -> FaceBoxes:
        faces, ignored = (np.array(b, np.float32).reshape(-1, 4) for b in (self.faces, self.ignored))
        return FaceBoxes(faces, ignored, self.size)


class _Reader:
    """Takes what expat meets, element by element."""

    def __init__(self, path: Path, parser: expat.XMLParserType) -> None:
        self.photos: dict[Path, _Boxes] = {}
        self._path, self._parser = path, parser
        self._open: _Boxes | None = None

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """Take an opening tag; those that are neither a photo nor a box mean nothing here."""
        if name == "image":
            photo = self._path.parent / self._inside(attributes.get("file", ""))
            if photo in self.photos:
                raise self._wrong(f"names {photo.name} again", "put its boxes into one place")
            size = None
            if "width" in attributes or "height" in attributes:
                size = int(self._number(attributes, "width")), int(self._number(attributes, "height"))
            self._open = self.photos[photo] = _Boxes([], [], size)
        elif name == "box":
            if self._open is None:
                raise self._wrong("has a box before any photo", "put it inside of its <image>")
            left, top, width, height = (
                self._number(attributes, key) for key in ("left", "top", "width", "height")
            )
            if width < 1 or height < 1:
                raise self._wrong(f"has a box of {width:g}x{height:g} px", "draw it again")
            box = (left, top, left + width, top + height)
            is_ignored = attributes.get("ignore", "0").strip() not in ("", "0", "false")
            (self._open.ignored if is_ignored else self._open.faces).append(box)

    def refuse_doctype(self, *_: object) -> None:
        """Entities could grow without an end, and imglab writes none."""
        raise self._wrong("defines a document type", "imglab writes none: save it again there")

    def _inside(self, name: str) -> PurePosixPath:
        inside = PurePosixPath(name)
        if not name or inside.is_absolute() or ".." in inside.parts:
            raise self._wrong(
                f"names the photo {name!r}", "say where it lies, from the folder of this file or below"
            )
        return inside

    def _number(self, attributes: dict[str, str], key: str) -> float:
        text = attributes.get(key, "")
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if not isfinite(number) or abs(number) > MAX_PX:
            raise self._wrong(f"has {key} = {text!r}, which is no number of pixels", "draw the box again")
        return number

    def _wrong(self, what: str, mend: str) -> SourceError:
        return SourceError(f"{self._path}, line {self._parser.CurrentLineNumber}: {what}; {mend}")
