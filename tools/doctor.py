"""`visaged doctor`: is everything there and whole that the daemon needs, and how to mend what is not."""

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape

from ..daemon import toml_file
from ..daemon.config import load_config
from ..pipelines.model_store import ModelStore
from . import doctor_machine, doctor_state
from .finding import Finding, ok, tried

COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(
    config: Annotated[
        Path | None, typer.Option(help="The TOML file; else the one `visaged run` would take.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Look at configuration, cameras, folders, disk, memory, clock, networks, plans, keys, releases, daemon.

    Prints a line for each: ok, warn or fail, and how to mend it. Changes nothing. Run it as the user who
    runs the daemon, or as root.

    Exit code 0: nothing fails. 1: something does.

    Examples:
      visaged doctor
      sudo visaged doctor --config /etc/visaged/visaged.toml --json
    """
    console, found = Console(highlight=False, soft_wrap=True), []
    for finding in examine(config):
        found.append(finding)
        if not as_json:
            console.print(line_of(finding))
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(found)).decode() + "\n")
    if any(finding.verdict == "fail" for finding in found):
        raise typer.Exit(1)


def examine(given: Path | None) -> Iterator[Finding]:
    """Yield what is found, in the order in which the daemon would meet it."""
    yield from tried("configuration", lambda: _examine(given))


def _examine(given: Path | None) -> Iterator[Finding]:
    path = toml_file.find_file(given)
    config = load_config(path)
    yield ok("configuration", str(path or "no file, the defaults"))
    runtime, store = config.paths.runtime, ModelStore(config.paths.cache, config.paths.wheels)
    is_running = doctor_state.is_running(runtime)
    steps: dict[str, Callable[[], Iterable[Finding]]] = {
        "folders": lambda: doctor_machine.folders(config.paths),
        "disk": lambda: doctor_machine.disk(config.paths),
        "shm": lambda: doctor_machine.shared_memory(config),
        "clock": lambda: doctor_machine.clock(config.paths.state),
        "backend": lambda: doctor_machine.backend(config.engine),
        "networks": lambda: doctor_state.models(config, store),
        "detector": lambda: doctor_state.detector(config),
        "plans": lambda: doctor_state.plans(config, store),
        "keys": lambda: doctor_state.secrets(config, in_use=is_running),
        "releases": lambda: doctor_state.releases(config),
        "cameras": lambda: doctor_machine.cameras(config.camera, in_use=is_running),
        "daemon": lambda: doctor_state.daemon(runtime) if is_running else [ok("daemon", "none runs here")],
    }
    for name, step in steps.items():
        yield from tried(name, step)


def line_of(finding: Finding) -> str:
    """Return the line for a terminal, with rich's markup."""
    colour = COLOURS[finding.verdict]
    line = f"[{colour}]{finding.verdict:4}[/{colour}] {escape(finding.check)}: {escape(finding.what)}"
    return f"{line}\n     mend: {escape(finding.mend)}" if finding.mend else line
