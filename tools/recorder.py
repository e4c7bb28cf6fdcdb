"""Record what the cameras saw and what was made of it: an annotated video and a contact sheet.

The video shows all cameras side by side in their common time, with the emotions of the first one below.
A `Recorder` is owned by one thread. It writes to a temporary name and renames at the end, so a file
with its final name is whole.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from ..pipelines.errors import SourceError
from ..pipelines.message import FaceFrame
from .drawing import GAP_S, PAPER, Moment, annotate, contact_sheet, emotion_strip, fit
from .tally import main_face

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

VIDEO_FPS = 15  # enough to see what happens, and the cores belong to the daemon
STRIP_HEIGHT = 132
STRIP_EVERY_NS = 500_000_000  # the strip is redrawn this often
MOMENTS_KEPT = 24
STRETCHES_KEPT = 600
PANEL_WIDTH, TILE_WIDTH = 640, 400


@dataclass(slots=True)
class Moments:
    """Pictures at even intervals of a time whose length is not known in advance.

    When there are too many, every second one is let go and the interval doubles.
    """

    interval_ns: int = 250_000_000
    pictures: list[tuple[int, Moment]] = field(default_factory=list)

    def is_due(self, at_ns: int) -> bool:
        """Return whether a picture at `at_ns` would be kept."""
        return not self.pictures or at_ns - self.pictures[-1][0] >= self.interval_ns

    def add(self, at_ns: int, moment: Moment) -> None:
        """Keep `moment`."""
        self.pictures.append((at_ns, moment))
        if len(self.pictures) > MOMENTS_KEPT:
            self.pictures = self.pictures[::2]
            self.interval_ns *= 2

    def spread(self, n: int) -> list[Moment]:
        """Return at most `n` moments, evenly spread from the first to the last."""
        if not self.pictures:
            return []
        picks = np.linspace(0, len(self.pictures) - 1, min(n, len(self.pictures))).round().astype(int)
        return [self.pictures[i][1] for i in picks]


class MoodHistory:
    """Emotions over a time whose length is not known in advance: means over short, even stretches.

    When there are too many stretches they are joined in pairs, so drawing a day costs what drawing a
    minute does.
    """

    def __init__(self) -> None:
        self.stretch_s = 0.1
        self._sums: dict[int, tuple[F32, int]] = {}  # stretch -> sum of probabilities, how many

    def add(self, at_s: float, probabilities: Sequence[float]) -> None:
        """Count one face's `probabilities` at `at_s`."""
        self._count(int(at_s / self.stretch_s), np.array(probabilities, dtype=np.float32), 1)
        if len(self._sums) > STRETCHES_KEPT:
            self.stretch_s *= 2
            old, self._sums = self._sums, {}
            for stretch, (total, n) in old.items():
                self._count(stretch // 2, total, n)

    @property
    def end_s(self) -> float:
        """Where the last stretch ends; 0 when there is none."""
        return (max(self._sums) + 1) * self.stretch_s if self._sums else 0.0

    def samples(self) -> list[tuple[float, list[float]]]:
        """Return the middle of every stretch and its mean probabilities, oldest first."""
        return [
            ((stretch + 0.5) * self.stretch_s, (total / n).tolist())
            for stretch, (total, n) in sorted(self._sums.items())
        ]

    def _count(self, stretch: int, total: F32, n: int) -> None:
        before = self._sums.get(stretch)
        self._sums[stretch] = (total, n) if before is None else (before[0] + total, before[1] + n)


class Recorder:
    """Draws results on their frames and writes the video as they come."""

    def __init__(self, video: Path, cameras: Sequence[str], *, span_s: float) -> None:
        """Begin `video`; `cameras` from left to right; `span_s` is the expected length in seconds."""
        self.path = video
        self._part = video.with_name(f".{video.stem}.part{video.suffix}")
        self._panels: dict[str, U8 | None] = dict.fromkeys(cameras)
        self._moments = {camera: Moments() for camera in cameras}
        self._drawn_ns: dict[str, int] = {}
        self._moods = MoodHistory()
        self._span_s = span_s
        self._start_ns = self._next_ns = self._strip_ns = 0
        self._strip: U8 | None = None
        self._writer: cv2.VideoWriter | None = None
        self._shape = (0, 0)

    def is_due(self, result: FaceFrame) -> bool:
        """Return whether the video wants a new picture of this camera by now."""
        return result.captured_ns - self._drawn_ns.get(result.camera, 0) >= 0.9e9 / VIDEO_FPS

    def add(self, result: FaceFrame, rgb: U8) -> None:
        """Draw `result` on its frame `rgb` `(H, W, 3)` and move the video on to its time."""
        camera, now_ns = result.camera, result.captured_ns
        self._start_ns = self._start_ns or now_ns
        panel = annotate(rgb, result, width=PANEL_WIDTH)
        self._panels[camera] = panel
        self._drawn_ns[camera] = now_ns
        if self._moments[camera].is_due(now_ns):
            tile = annotate(rgb, result, width=TILE_WIDTH)  # drawn small, so that its text is not shrunk
            self._moments[camera].add(now_ns, Moment(tile, self._caption(result)))
        face = main_face(result.faces)
        if face is not None and camera == next(iter(self._panels)):
            self._moods.add((now_ns - self._start_ns) / 1e9, face.emotion.probabilities)
        self._advance(now_ns)

    def close(self) -> Path | None:
        """Finish the video and return its path; None when there was nothing to record."""
        if self._writer is None:
            return None
        self._writer.release()
        self._writer = None
        self._part.replace(self.path)
        return self.path

    def abandon(self) -> None:
        """Give up: remove what was written so far."""
        if self._writer is not None:
            self._writer.release()
        self._part.unlink(missing_ok=True)

    def write_sheet(self, path: Path, title: str, *, per_camera: int = 8) -> Path | None:
        """Write the contact sheet, all cameras below each other; None when there was nothing to show."""
        moments = [m for kept in self._moments.values() for m in kept.spread(per_camera)]
        if not moments:
            return None
        sheet = contact_sheet(title, moments, tile_width=TILE_WIDTH)
        strip, _ = fit(self._draw_strip(sheet.shape[1]), sheet.shape[1])
        write_png(path, np.concatenate([sheet, strip], axis=0))
        return path

    def _caption(self, result: FaceFrame) -> str:
        at_s = (result.captured_ns - self._start_ns) / 1e9
        face = main_face(result.faces)
        mood = f"  {face.emotion.label} {face.emotion.probability:.0%}" if face else ""
        return f"{result.camera}  {at_s:.1f} s{mood}"

    def _advance(self, now_ns: int) -> None:
        """Write video frames until the video's time has caught up with `now_ns`."""
        if any(panel is None for panel in self._panels.values()) and self._writer is None:
            return  # wait until every camera has shown something: the video's size depends on it
        if self._writer is None:
            self._next_ns = now_ns
        if self._next_ns > now_ns:
            return
        if self._strip is None or now_ns - self._strip_ns >= STRIP_EVERY_NS:
            self._strip, self._strip_ns = self._draw_strip(PANEL_WIDTH * len(self._panels)), now_ns
        picture = stack_panels([p for p in self._panels.values() if p is not None], self._strip)
        writer = self._writer or self._open(picture)
        while self._next_ns <= now_ns:
            writer.write(picture[..., ::-1])
            self._next_ns += 1_000_000_000 // VIDEO_FPS

    def _draw_strip(self, width: int) -> U8:
        camera = next(iter(self._panels))
        span_s = max(self._span_s, self._moods.end_s)
        gap_s = max(GAP_S, 1.5 * self._moods.stretch_s)
        samples, size = self._moods.samples(), (width, STRIP_HEIGHT)
        return emotion_strip(f"{camera}: emotions", samples, span_s, size=size, gap_s=gap_s)

    def _open(self, picture: U8) -> cv2.VideoWriter:
        make_folder(self.path.parent)
        size = (picture.shape[1], picture.shape[0])
        writer = cv2.VideoWriter(str(self._part), cv2.VideoWriter.fourcc(*"mp4v"), VIDEO_FPS, size)
        if not writer.isOpened():
            raise SourceError(f"{self.path} cannot be written as a video; is the folder writable?")
        self._writer = writer
        return writer


def stack_panels(panels: Iterable[U8], strip: U8) -> U8:
    """Return panels of equal width side by side, centred in height, with `strip` below them."""
    panels = list(panels)
    height = max(panel.shape[0] for panel in panels)
    row: list[U8] = []
    for panel in panels:
        cell: U8 = np.full((height, panel.shape[1], 3), PAPER, dtype=np.uint8)
        top = (height - panel.shape[0]) // 2
        cell[top : top + panel.shape[0]] = panel
        row.append(cell)
    return np.concatenate([np.concatenate(row, axis=1), strip], axis=0)


def write_png(path: Path, rgb: U8) -> None:
    """Write `rgb` `(H, W, 3)` as a PNG, whole or not at all.

    Raises:
        SourceError: the file cannot be written there.
    """
    make_folder(path.parent)
    part = path.with_name(f".{path.stem}.part.png")
    if not cv2.imwrite(str(part), rgb[..., ::-1]):
        raise SourceError(f"{path} cannot be written; is the folder writable and the disk not full?")
    part.replace(path)


def make_folder(path: Path) -> None:
    """Make folder `path` unless it is there.

    Raises:
        SourceError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SourceError(
            f"the folder {path} cannot be made ({error.strerror}); choose another place"
        ) from error
