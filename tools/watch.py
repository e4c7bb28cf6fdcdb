"""`visaged watch`: what the running daemon publishes, live."""

import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Protocol

import msgspec
import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from ..daemon.channels import endpoint_of, socket_file
from ..daemon.client import Subscriber
from ..daemon.control import ControlClient, Status
from ..daemon.outline import find_outline
from ..pipelines.errors import VisagedError
from ..pipelines.message import CameraEnded, Result
from .connection import KeyOption
from .live_table import LiveTable

REFRESH_HZ = 8
SILENT_S = 3.0  # without a result for this long, say so and why


class Screen(Protocol):
    """Where results are shown."""

    def add(self, result: Result) -> None:
        """Take in one result."""

    def tell(self, sentence: str) -> None:
        """Say why nothing is shown; empty when something is."""


def watch(
    camera: Annotated[
        list[str] | None, typer.Option(help="Only this camera; may be given several times.")
    ] = None,
    endpoint: Annotated[
        str, typer.Option(help="Where to subscribe, as tcp://HOST:PORT; else the configured socket.")
    ] = "",
    key: KeyOption = None,
    config: Annotated[Path | None, typer.Option(help="The TOML file.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per result, for other programs.")
    ] = False,
    count: Annotated[int, typer.Option(min=0, help="Stop after so many results; 0: never.")] = 0,
    seconds: Annotated[float, typer.Option(min=0, help="Stop after so many seconds; 0: never.")] = 0.0,
    every: Annotated[
        float, typer.Option(min=0, help="Outside a terminal: seconds between two lines of a camera.")
    ] = 1.0,
) -> None:
    """Show live who is in front of the cameras, and how they feel.

    On a terminal a table that updates in place; in a pipe plain lines; with --json every result.

    Examples:
      visaged watch
      visaged watch --camera door --seconds 60
      visaged watch --endpoint tcp://10.0.0.5:5560 --key laptop.key
      visaged watch --json --count 100 > results.jsonl

    Exit code 1 means that nothing was received.
    """
    runtime = find_outline(config).paths.runtime
    where = endpoint or endpoint_of(runtime, "results")
    console = Console()
    screen: JsonScreen | LineScreen | TableScreen
    if as_json:
        screen = JsonScreen()
    elif console.is_terminal:
        screen = TableScreen(console)
    else:
        screen = LineScreen(every)
    deadline = time.monotonic() + seconds if seconds else None
    with screen, Subscriber(where, camera or None, key=key) as results:
        n_received = follow(results, screen, Limits(count, deadline), None if endpoint else runtime)
        if results.n_lost or results.n_malformed:
            typer.echo(
                f"{results.n_lost} results were lost on the way here, {results.n_malformed} were malformed",
                err=True,
            )
        why = why_silent(results, None if endpoint else runtime) if n_received == 0 else ""
    if why:
        raise VisagedError(f"nothing was received from {where}; {why}")


class Limits:
    """When to stop."""

    def __init__(self, count: int, deadline: float | None) -> None:
        self._count = count
        self._deadline = deadline

    def are_reached(self, n_received: int) -> bool:
        """Whether enough was received, or it is time."""
        is_late = self._deadline is not None and time.monotonic() >= self._deadline
        return is_late or (self._count > 0 and n_received >= self._count)


def follow(results: Subscriber, screen: Screen, limits: Limits, runtime: Path | None) -> int:
    """Show results until `limits`, or until every camera has ended; return how many there were."""
    n_received = 0
    live: set[str] = set()
    heard_s = time.monotonic()
    while not limits.are_reached(n_received):
        received = results.receive(0.25)
        now_s = time.monotonic()
        if received is None:
            if now_s - heard_s > SILENT_S:
                screen.tell(why_silent(results, runtime))
                heard_s = now_s
            continue
        heard_s = now_s
        result, _ = received
        screen.add(result)
        if isinstance(result, CameraEnded):
            live.discard(result.camera)
            if not live and n_received:
                break
        else:
            live.add(result.camera)
            n_received += 1
    return n_received


def why_silent(results: Subscriber, runtime: Path | None) -> str:
    """Return why nothing comes, as far as it can be found out; `runtime` is that of a local daemon."""
    if runtime is None:
        return results.trouble or "it is connected, but the daemon publishes nothing for these cameras"
    if not socket_file(runtime, "results").exists():
        return f"no daemon runs in {runtime}; start it with `visaged run`"
    try:
        with ControlClient(runtime) as daemon:
            status = daemon.request(Status(), timeout_s=1.0)
    except VisagedError:
        return (
            "the daemon does not answer; it may be starting (models are imported once), else look at its log"
        )
    cameras = status.get("cameras")
    if not isinstance(cameras, dict) or not cameras:
        return "the daemon runs without a camera that it could publish"
    counts = ", ".join(f"{name} {c.get('captured', 0)}" for name, c in cameras.items())
    return f"the daemon runs but publishes nothing; frames captured so far: {counts}"


class JsonScreen(AbstractContextManager["JsonScreen"]):
    """One JSON object per line on standard output."""

    def add(self, result: Result) -> None:
        """Print `result`."""
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
        sys.stdout.flush()

    def tell(self, sentence: str) -> None:
        """Say it on standard error."""
        typer.echo(sentence, err=True)

    def __exit__(self, *_: object) -> None:
        return None


class LineScreen(AbstractContextManager["LineScreen"]):
    """Plain lines, not more often than asked for."""

    def __init__(self, every_s: float) -> None:
        self._table = LiveTable()
        self._every_s = every_s
        self._due_s: dict[str, float] = {}

    def add(self, result: Result) -> None:
        """Print the lines of `result` if its camera's turn has come."""
        self._table.add(result)
        now_s = time.monotonic()
        if now_s >= self._due_s.get(result.camera, 0.0) or isinstance(result, CameraEnded):
            self._due_s[result.camera] = now_s + self._every_s
            sys.stdout.writelines(f"{line}\n" for line in self._table.lines(result.camera))
            sys.stdout.flush()

    def tell(self, sentence: str) -> None:
        """Say it on standard error."""
        typer.echo(sentence, err=True)

    def __exit__(self, *_: object) -> None:
        return None


class TableScreen(AbstractContextManager["TableScreen"]):
    """A table that updates in place."""

    def __init__(self, console: Console) -> None:
        self._table = LiveTable()
        self._sentence = "waiting for results ..."
        self._live = Live(
            console=console, refresh_per_second=REFRESH_HZ, get_renderable=self._render, transient=False
        )

    def add(self, result: Result) -> None:
        """Take in `result`; it is drawn with the next refresh."""
        self._table.add(result)
        self._sentence = ""

    def tell(self, sentence: str) -> None:
        """Show it below the table."""
        self._sentence = sentence

    def _render(self) -> RenderableType:
        note = self._sentence or "Ctrl-C ends"
        return Group(self._table.render(), Text(note, "dim"))

    def __enter__(self) -> "TableScreen":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
