"""Pictures for people: annotated frames, contact sheets and emotions over time. RGB everywhere.

Frames are scaled to a given width before anything is drawn on them, so text and lines have the same,
readable size whatever the camera.
"""

import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from ..pipelines.message import EMOTIONS, Face, FaceFrame

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
RGB = tuple[int, int, int]

INK: RGB = (245, 245, 245)
FAINT: RGB = (150, 155, 165)
PAPER: RGB = (24, 26, 31)
STRANGER: RGB = (176, 182, 192)
PEOPLE: tuple[RGB, ...] = (
    (86, 180, 233), (240, 190, 60), (80, 200, 140), (236, 120, 170),
    (150, 130, 240), (240, 130, 70), (90, 210, 210), (200, 215, 90),
)  # fmt: skip
"""Colours of the boxes; a person keeps one from run to run, two people may share one."""
EMOTION_COLOURS: dict[str, RGB] = dict(
    zip(
        EMOTIONS,
        ((150, 155, 165), (250, 200, 60), (250, 140, 60), (80, 140, 230),
         (225, 75, 70), (110, 170, 80), (165, 105, 200), (150, 110, 85)),
        strict=True,
    )
)  # fmt: skip

FONT = cv2.FONT_HERSHEY_SIMPLEX
SMALL, NORMAL = 0.40, 0.50  # font scale; 0.40 is about 12 px high with cv2's font
DASH_PX = 6.0
PAD_PX = 4
LINE_PX = 15
GAP_S = 0.5


def annotate(rgb: U8, result: FaceFrame, *, width: int = 640) -> U8:
    """Return a copy of a frame, `width` px wide, with every face's box, name and emotion on it.

    Args:
        rgb: `(H, W, 3)` the frame `result` is about.
        result: boxes and landmarks in px of `rgb`.
        width: of the returned picture, px; the aspect ratio is kept.

    A face that coasts (`is_visible` false) has a dashed box and no landmarks.
    """
    picture, scale = fit(rgb, width)
    for face in result.faces:
        _draw_box(picture, face, scale)
    for face in result.faces:  # after all boxes, so that none crosses a text
        _draw_label(picture, face, scale)
    _text(
        picture, f"{result.camera}  #{result.frame_seq}", (8, picture.shape[0] - 9), INK, SMALL, shadow=True
    )
    return picture


def fit(rgb: U8, width: int) -> tuple[U8, float]:
    """Return a copy of `rgb` that is `width` px wide, and the factor from its px to those of the copy."""
    scale = width / rgb.shape[1]
    height = max(2, round(rgb.shape[0] * scale) // 2 * 2)  # video codecs want even sides
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    picture = np.ascontiguousarray(cv2.resize(rgb, (width, height), interpolation=way), dtype=np.uint8)
    return picture, scale


def _draw_box(picture: U8, face: Face, scale: float) -> None:
    """Box and landmarks of one face, in place; `scale` is `picture` px per frame px."""
    colour = colour_of(face)
    left, top, right, bottom = (round(edge * scale) for edge in face.box)
    if face.is_visible:
        cv2.rectangle(picture, (left, top), (right, bottom), colour, 2, cv2.LINE_AA)
        for x, y in face.landmarks:
            cv2.circle(picture, (round(x * scale), round(y * scale)), 2, INK, -1, cv2.LINE_AA)
    else:
        corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
        for start, end in itertools.pairwise(corners):
            _dashed(picture, start, end, colour)


def colour_of(face: Face) -> RGB:
    """Return the colour of a face's box: a person's own, grey for somebody nobody has named."""
    if face.identity.state == "known":
        return PEOPLE[zlib.crc32(face.identity.person.encode()) % len(PEOPLE)]
    return STRANGER


def name_of(face: Face) -> str:
    """Return what to call a face: its person, a doubtful person with a question mark, or its track."""
    if face.identity.state == "pending" or not face.identity.person:
        return f"track {face.track}"
    doubt = "?" if face.identity.state == "uncertain" else ""
    return f"{face.identity.person}{doubt}"


def _draw_label(picture: U8, face: Face, scale: float) -> None:
    """Two lines on a dark plate above the box, below it where there is no room: name; emotion and its bar."""
    colour = colour_of(face)
    left, top, _, bottom = (round(edge * scale) for edge in face.box)
    name, track = name_of(face), f"#{face.track}"
    emotion = face.emotion
    mood = f"{emotion.label} {emotion.probability:.0%}" if emotion.label else ""
    name_px, track_px = _width(name), _width(track)
    width = max(name_px + track_px + 8, _width(mood)) + 2 * PAD_PX
    height = LINE_PX * (2 if mood else 1) + PAD_PX

    x = int(np.clip(left - 1, 0, max(0, picture.shape[1] - width)))
    y = top - height - 2 if top - height - 2 >= 0 else min(bottom + 2, picture.shape[0] - height)
    y = max(0, y)
    _plate(picture, (x, y, width, height), PAPER, 0.8)
    cv2.line(picture, (x, y), (x, y + height - 1), colour, 2)
    _text(picture, name, (x + PAD_PX + 1, y + 13), colour, SMALL)
    _text(picture, track, (x + width - track_px - PAD_PX, y + 13), FAINT, SMALL)
    if mood:
        bar = round((width - 4) * min(1.0, emotion.probability))
        _plate(picture, (x + 2, y + LINE_PX + 2, bar, LINE_PX), EMOTION_COLOURS[emotion.label], 0.7)
        _text(picture, mood, (x + PAD_PX + 1, y + LINE_PX + 14), INK, SMALL)


@dataclass(frozen=True, slots=True)
class Moment:
    """One picture of a contact sheet; `rgb` is `(H, W, 3)`."""

    rgb: U8
    caption: str


def contact_sheet(title: str, moments: Sequence[Moment], *, columns: int = 4, tile_width: int = 400) -> U8:
    """Return `moments` in a grid, in reading order, each with its caption, under a title.

    Raises:
        ValueError: there are no moments.
    """
    if not moments:
        raise ValueError("a contact sheet needs at least one moment")
    columns = min(columns, len(moments))
    tiles = [fit(moment.rgb, tile_width)[0] for moment in moments]
    tile_height = max(tile.shape[0] for tile in tiles)
    gap, head, foot = 10, 40, 22
    rows = -(-len(tiles) // columns)
    shape = (head + rows * (tile_height + foot + gap) + gap, columns * (tile_width + gap) + gap, 3)
    sheet: U8 = np.full(shape, PAPER, dtype=np.uint8)
    _text(sheet, title, (gap, 27), INK, 0.6)
    for index, (tile, moment) in enumerate(zip(tiles, moments, strict=True)):
        row, column = divmod(index, columns)
        x, y = gap + column * (tile_width + gap), head + row * (tile_height + foot + gap)
        sheet[y : y + tile.shape[0], x : x + tile_width] = tile
        _text(sheet, moment.caption, (x + 2, y + tile_height + 15), INK, SMALL)
    return sheet


def emotion_strip(
    title: str,
    samples: Sequence[tuple[float, Sequence[float]]],
    span_s: float,
    *,
    size: tuple[int, int],
    gap_s: float = GAP_S,
) -> U8:
    """Return emotions over time as stacked bands, with a legend and seconds below.

    Args:
        title: written at the top left.
        samples: seconds since the start and probabilities in the order of `EMOTIONS`, oldest first.
        span_s: seconds from the left edge to the right one, > 0.
        size: width and height of the picture in px.
        gap_s: a column farther than this from every sample stays dark: nobody was there to read.
    """
    width, height = size
    strip: U8 = np.full((height, width, 3), PAPER, dtype=np.uint8)
    left, right, top, bottom = 8, width - 8, 24, height - 18
    _paint_bands(strip[top:bottom, left:right], samples, span_s, gap_s)
    _text(strip, title, (left, 16), INK, SMALL)
    x = right
    for label in reversed(EMOTIONS):
        x -= _width(label) + 20
        cv2.circle(strip, (x, 12), 4, EMOTION_COLOURS[label], -1, cv2.LINE_AA)
        _text(strip, label, (x + 8, 16), FAINT, SMALL)
    step = next((s for s in (1, 2, 5, 10, 30, 60, 300) if span_s / s <= 10.5), 3600)
    for second in range(0, int(span_s) + 1, step):
        _text(
            strip,
            f"{second} s",
            (left + round((right - left - 26) * second / span_s), height - 5),
            FAINT,
            SMALL,
        )
    return strip


def _paint_bands(
    area: U8, samples: Sequence[tuple[float, Sequence[float]]], span_s: float, gap_s: float
) -> None:
    """Fill `area` `(H, W, 3)`, a view: column by column, one band per emotion, neutral at the bottom."""
    if not samples:
        return
    height, width = area.shape[:2]
    at = (np.arange(width) + 0.5) / width * span_s
    times = np.array([second for second, _ in samples])
    nearest = np.abs(times[None, :] - at[:, None]).argmin(axis=1)
    shares = np.array([probabilities for _, probabilities in samples], dtype=np.float32)[nearest]
    edges = np.cumsum(shares, axis=1) / np.maximum(shares.sum(axis=1, keepdims=True), 1e-6)
    edges[:, -1] = 1.0  # rounding must not leave a sliver above the last band
    heights = (np.arange(height, 0, -1) - 0.5) / height  # 1 at the top, 0 at the bottom
    bands = (heights[:, None, None] > edges[None]).sum(axis=-1)  # (H, W)
    palette = np.array([EMOTION_COLOURS[label] for label in EMOTIONS], dtype=np.uint8)
    is_known = np.abs(times[nearest] - at) < gap_s
    area[:, is_known] = palette[bands[:, is_known]]


def _plate(picture: U8, place: tuple[int, int, int, int], colour: RGB, opacity: float) -> None:
    """Lay a translucent rectangle (x, y, width, height) over `picture`, in place."""
    x, y, width, height = place
    part = picture[y : y + height, x : x + width]
    if part.size:
        part[:] = (part * (1 - opacity) + np.array(colour) * opacity).astype(np.uint8)


def _dashed(picture: U8, start: tuple[int, int], end: tuple[int, int], colour: RGB) -> None:
    """Draw a dashed line, in place."""
    a, b = np.array(start, dtype=float), np.array(end, dtype=float)
    pieces = max(1, int(np.linalg.norm(b - a) / DASH_PX))
    for index in range(0, pieces, 2):
        p, q = a + (b - a) * index / pieces, a + (b - a) * min(index + 1, pieces) / pieces
        cv2.line(picture, (round(p[0]), round(p[1])), (round(q[0]), round(q[1])), colour, 2, cv2.LINE_AA)


def _width(text: str) -> int:
    return int(cv2.getTextSize(text, FONT, SMALL, 1)[0][0])


def _text(
    picture: U8, text: str, at: tuple[int, int], colour: RGB, size: float, *, shadow: bool = False
) -> None:
    if shadow:
        cv2.putText(picture, text, (at[0] + 1, at[1] + 1), FONT, size, (0, 0, 0), 1, cv2.LINE_AA)
    cv2.putText(picture, text, at, FONT, size, colour, 1, cv2.LINE_AA)
