"""`visaged replay`: a video or a folder of photos through the whole pipeline, every frame, in one process.

Time is the video's own, so the tracker sees the same as live and the same file gives the same answers on a
slow and on a fast machine. `published_ns - captured_ns` is the time the frame took here.
"""

import contextlib
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated
from urllib.parse import quote

import msgspec
import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.progress import track

from ..daemon.camera import Broken, CameraConfig, open_camera
from ..daemon.config import find_config
from ..pipelines.answer import Answer
from ..pipelines.assembly import Stages, assemble
from ..pipelines.errors import SourceError
from ..pipelines.frame import Frame
from ..pipelines.message import FaceFrame
from .recorder import Recorder
from .tally import Tally

U8 = npt.NDArray[np.uint8]

STANDARD_OUTPUT = Path("-")
FALLBACK_FPS = 25.0  # of a video that does not say


def replay(
    source: Annotated[Path, typer.Argument(help="A video file or a folder of photos.", show_default=False)],
    as_json: Annotated[
        Path | None,
        typer.Option("--json", help="Write every result as one JSON line here; - is the terminal."),
    ] = None,
    annotate: Annotated[Path | None, typer.Option(help="Write a video with everything drawn here.")] = None,
    config: Annotated[Path | None, typer.Option(help="The TOML file.")] = None,
) -> None:
    """Run a video or a folder of photos through the whole pipeline, losing no frame, and sum it up.

    People are recognised from the configured gallery, which stays as it is. The same file gives the same
    answers every time; only the measured milliseconds differ.

    Examples:
      visaged replay party.mp4
      visaged replay party.mp4 --annotate party-faces.mp4 --json party.jsonl

    Exit code 1 means that the source, or a part of it, could not be read; what could be read was answered.
    """
    if not source.exists():
        raise SourceError(f"{source} does not exist; name a video file or a folder of photos")
    settings = find_config(config)
    paths = settings.paths
    with (
        tempfile.TemporaryDirectory(prefix="visaged-replay-") as folder,
        open_lines(as_json) as json_lines,
    ):
        copy_gallery(paths.state, Path(folder))
        with assemble(settings.stages, state=Path(folder), cache=paths.cache, wheels=paths.wheels) as stages:
            replayed = replay_source(
                stages, source, json_lines=json_lines, annotated=annotate, show_progress=sys.stderr.isatty()
            )
    lines = summary_lines(replayed)
    typer.echo("\n".join(lines), err=as_json == STANDARD_OUTPUT)
    if replayed.broken:
        raise SourceError(
            f"{len(replayed.broken)} frames of {source} could not be read, the first because: "
            f"{replayed.broken[0]}"
        )


@contextlib.contextmanager
def open_lines(path: Path | None) -> Iterator[IO[bytes] | None]:
    """Give the file at `path`, standard output for `-`, or None.

    Raises:
        SourceError: the file cannot be written.
    """
    if path is None:
        yield None
    elif path == STANDARD_OUTPUT:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    else:
        try:
            file = path.open("wb")
        except OSError as error:
            raise SourceError(f"{path} cannot be written ({error.strerror}); choose another place") from error
        with file:
            yield file


def copy_gallery(state: Path, folder: Path) -> None:
    """Copy gallery and key from `state` to `folder`, so that strangers met in a replay are not kept."""
    database, key = state / "gallery.db", state / "gallery.key"
    if not database.exists() or not key.exists():
        return
    shutil.copy(key, folder / key.name)
    with (
        contextlib.closing(sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True)) as there,
        contextlib.closing(sqlite3.connect(folder / database.name)) as here,
    ):
        there.backup(here)  # whole, even while the daemon writes


@dataclass(slots=True)
class Replayer:
    """Answers the frames of one source. Owned by one thread; use it for one source only.

    `broken` holds a sentence for every frame that could not be decoded.
    """

    stages: Stages
    source: str
    camera: str = "replay"
    broken: list[str] = field(default_factory=list)
    fps: float = FALLBACK_FPS

    def results(self) -> Iterator[tuple[FaceFrame, U8]]:
        """Yield every frame's result with the frame itself, `(H, W, 3)`.

        Raises:
            SourceError: the source is missing, empty or unreadable.
        """
        config = CameraConfig(name=self.camera, source=self.source, policy="replay")
        pipeline = self.stages.pipeline()
        pipeline.add_camera(self.camera)
        release = pipeline.serving.name
        camera = open_camera(config)
        self.fps = camera.fps or FALLBACK_FPS
        seq, told = 0, 0
        try:
            while (rgb := camera.read()) is not None:
                seq += 1
                if isinstance(rgb, Broken):
                    self.broken.append(rgb.why)
                    continue
                start_ns = time.perf_counter_ns()
                frame = Frame(self.camera, seq, round(seq * 1e9 / self.fps), rgb)
                scan = None
                if pipeline.is_scan_due(frame):
                    pipeline.begin_scan(frame)
                    scan = pipeline.scan(frame)
                answer = pipeline.run([(frame, scan)])[0]
                spent_ns = time.perf_counter_ns() - start_ns
                dropped, told = len(self.broken) - told, len(self.broken)
                yield self._result(answer, release, seq - len(self.broken), dropped, spent_ns), rgb
        finally:
            camera.close()

    def _result(self, answer: Answer, release: str, seq: int, n_dropped: int, spent_ns: int) -> FaceFrame:
        frame, ensemble = answer.frame, self.stages.ensemble
        return FaceFrame(
            camera=self.camera,
            run="replay",
            seq=seq,
            frame_seq=frame.seq,
            captured_ns=frame.captured_ns,
            captured_at=frame.captured_ns / 1e9,
            published_ns=frame.captured_ns + spent_ns,
            width=frame.rgb.shape[1],
            height=frame.rgb.shape[0],
            release=release,
            embedding_space=ensemble.embedding_space,
            embedding_dim=ensemble.embedding_dim,
            faces=answer.faces,
            drops={"decode_error": n_dropped} if n_dropped else {},
            stages_ms=answer.stages_ms,
        )


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay came to."""

    tally: Tally
    seconds: float  # of wall time, including reading, drawing and writing
    broken: list[str]


def replay_source(
    stages: Stages,
    source: Path,
    *,
    json_lines: IO[bytes] | None = None,
    annotated: Path | None = None,
    show_progress: bool = False,
) -> Replayed:
    """Replay `source` and return what it came to; write results and an annotated video where asked.

    Raises:
        SourceError: the source is missing, empty or unreadable, or the video cannot be written. A video
            that was begun is removed, results already written stay.
    """
    replayer = Replayer(stages, str(source))
    tally = Tally(replayer.camera)
    recorder = Recorder(annotated, [replayer.camera], span_s=10) if annotated else None
    start = time.perf_counter()
    try:
        console = Console(stderr=True)  # standard output may carry the results
        steps = track(
            replayer.results(), f"replaying {source.name}", console=console, disable=not show_progress
        )
        for result, rgb in steps:
            tally.add(result)
            if json_lines is not None:
                json_lines.write(msgspec.json.encode(result) + b"\n")
            if recorder is not None:
                recorder.add(result, rgb)
    except BaseException:
        if recorder is not None:
            recorder.abandon()
        raise
    if recorder is not None:
        recorder.close()
    trailing = len(replayer.broken) - tally.dropped["decode_error"]
    tally.captured += trailing  # frames after the last good one have no result that could tell of them
    tally.dropped["decode_error"] += trailing
    return Replayed(tally, time.perf_counter() - start, replayer.broken)


def summary_lines(replayed: Replayed) -> list[str]:
    """Return what the operator reads at the end."""
    tally = replayed.tally
    fps = tally.published / replayed.seconds if replayed.seconds else 0.0
    people = (
        ", ".join(f"{person} in {n} frames" for person, n in tally.people.most_common()) or "nobody known"
    )
    lines = [
        f"frames   {tally.ledger_sentence()}",
        f"faces    {tally.faces} in {tally.published} frames, {len(tally.tracks)} tracks",
        f"people   {people}",
        f"emotions {tally.mood_sentence() or 'none'}",
        f"speed    {fps:.1f} frames per second, {replayed.seconds:.1f} s",
    ]
    return lines + [f"skipped  {why}" for why in replayed.broken[:5]]
