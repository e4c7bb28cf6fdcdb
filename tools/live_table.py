"""The live table of `visaged watch` and the demo: one row per face, cameras in their order.

A `LiveTable` is owned by one thread; what it renders is a snapshot.
"""

from collections import Counter, deque
from dataclasses import dataclass, field

from rich.table import Table
from rich.text import Text

from ..pipelines.message import CameraEnded, Face, FaceFrame, Result

FPS_WINDOW = 60  # results over which frames per second and latency are taken
STATE_STYLES = {"known": "bold green", "unknown": "yellow", "uncertain": "magenta", "pending": "dim"}
EMOTION_STYLES = {
    "happiness": "green",
    "sadness": "blue",
    "anger": "red",
    "surprise": "yellow",
    "fear": "magenta",
    "disgust": "dark_green",
    "contempt": "dark_orange",
}


@dataclass(slots=True)
class CameraView:
    """What the newest results of one camera say."""

    camera: str
    newest: FaceFrame | None = None
    drops: Counter[str] = field(default_factory=Counter)
    captured_ns: deque[int] = field(default_factory=lambda: deque(maxlen=FPS_WINDOW))
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=FPS_WINDOW))
    ended: str = ""

    def add(self, result: Result) -> None:
        """Take in one result of this camera."""
        if isinstance(result, CameraEnded):
            self.ended = result.reason
            return
        self.ended = ""
        self.newest = result
        self.drops.update(result.drops)
        self.captured_ns.append(result.captured_ns)
        self.latencies_ms.append((result.published_ns - result.captured_ns) / 1e6)

    @property
    def fps(self) -> float:
        """Results per second of camera time over the last window; 0 until there are two."""
        span_ns = self.captured_ns[-1] - self.captured_ns[0] if len(self.captured_ns) > 1 else 0
        return (len(self.captured_ns) - 1) * 1e9 / span_ns if span_ns > 0 else 0.0

    @property
    def latency_ms(self) -> float:
        """Median time from capture to publication over the last window; 0 before the first."""
        ordered = sorted(self.latencies_ms)
        return ordered[len(ordered) // 2] if ordered else 0.0

    @property
    def n_dropped(self) -> int:
        """Frames dropped since this view began."""
        return sum(self.drops.values())


class LiveTable:
    """Collects results and draws the newest of every camera."""

    def __init__(self, title: str = "") -> None:
        self._title = title
        self.views: dict[str, CameraView] = {}
        self.n_results = 0

    def add(self, result: Result) -> None:
        """Take in one result."""
        self.views.setdefault(result.camera, CameraView(result.camera)).add(result)
        self.n_results += isinstance(result, FaceFrame)

    def render(self) -> Table:
        """Return the table as it stands, to print or to give to `rich.live.Live`."""
        table = Table(title=self._title or None, expand=False, header_style="bold", pad_edge=False)
        for name in ("camera", "track", "person", "emotion"):
            table.add_column(name, no_wrap=True, overflow="ellipsis")
        for name in ("quality", "fps", "latency", "drops"):
            table.add_column(name, justify="right", no_wrap=True)
        for view in sorted(self.views.values(), key=lambda view: view.camera):
            self._add_rows(table, view)
        return table

    def lines(self, camera: str) -> list[str]:
        """Return the newest result of `camera` as plain lines, one per face."""
        view = self.views[camera]
        if view.newest is None or view.ended:
            return [f"{camera} ended: {view.ended or 'no result'}"]
        numbers = f"{view.fps:.1f} fps {view.latency_ms:.0f} ms {view.n_dropped} dropped"
        if not view.newest.faces:
            return [f"{camera} no face; {numbers}"]
        return [
            f"{camera} track {face.track} {person_of(face)} {emotion_of(face)} "
            f"quality {face.quality:.2f}; {numbers}"
            for face in view.newest.faces
        ]

    def _add_rows(self, table: Table, view: CameraView) -> None:
        numbers = [f"{view.fps:.1f}", f"{view.latency_ms:.0f} ms", str(view.n_dropped)]
        faces = sorted(view.newest.faces, key=lambda face: face.track) if view.newest else []
        if view.ended or not faces:
            what = f"ended: {view.ended}" if view.ended else "no face"
            table.add_row(view.camera, "", Text(printable(what), "dim"), "", "", *numbers)
            return
        for i, face in enumerate(faces):
            table.add_row(
                view.camera if i == 0 else "",
                str(face.track),
                Text(person_of(face), STATE_STYLES[face.identity.state] if face.is_visible else "dim"),
                Text(
                    emotion_of(face), EMOTION_STYLES.get(face.emotion.label, "") if face.is_visible else "dim"
                ),
                f"{face.quality:.2f}",
                *(numbers if i == 0 else ["", "", ""]),
            )


def person_of(face: Face) -> str:
    """Return who the face is, in words."""
    identity = face.identity
    match identity.state:
        case "pending":
            return "..."
        case "known" | "unknown":
            return printable(identity.person)
        case _:
            return f"{printable(identity.person)}?"


def emotion_of(face: Face) -> str:
    """Return the emotion and its probability, `happiness 93 %`; `...` while there is none."""
    emotion = face.emotion
    return (
        f"{printable(emotion.label)} {emotion.probability:.0%}".replace("%", " %") if emotion.label else "..."
    )


def printable(text: str) -> str:
    """Return `text` without control characters, which could move a terminal's cursor."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)
