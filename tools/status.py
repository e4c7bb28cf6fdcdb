"""`visaged status`: how the running daemon is: release, engines, cameras."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..daemon.control import Status
from ..daemon.outline import find_outline
from ..pipelines.loop.progress import read_progress
from .connection import EndpointOption, KeyOption, connect


def status(
    config: Annotated[
        Path | None, typer.Option(help="The TOML file; only its runtime folder counts.")
    ] = None,
    endpoint: EndpointOption = "",
    key: KeyOption = None,
) -> None:
    """Ask the running daemon how it is: which engines run, what every camera captured and published.

    Exit code 1 when no daemon answers.

    Examples:
      visaged status
      visaged status --endpoint tcp://10.0.0.5:5561 --key laptop.key
    """
    outline = find_outline(config)
    with connect(outline.paths.runtime, endpoint, key) as control:
        answer = control.request(Status())
    console = Console()
    for line in lines_of(answer):
        console.print(line, highlight=False, soft_wrap=True)
    if (progress := read_progress(outline.paths.runtime)) is not None:
        console.print(f"learning: {progress}", highlight=False, markup=False, soft_wrap=True)
    console.print(cameras_of(answer["cameras"]))


def lines_of(answer: dict[str, Any]) -> list[str]:
    """Return release and engines, a line each."""
    lines = [f"release {answer['release']['running']}"]
    for name, engine in answer["engines"].items():
        line = f"  {name}: {engine['precision']} on {engine['backend']}, {engine['device']}"
        if engine["plan"]:
            line += f", plan {engine['plan']}"
        if engine["is_fallback"]:
            line += f"  [yellow]stands in: {engine['reason']}[/yellow]"
        lines.append(line)
    if answer.get("erased"):
        lines.append(f"  [yellow]{answer['erased']}; see `visaged release show`[/yellow]")
    lines += promotion_lines(answer.get("promotion", {}))
    if answer["upgrade"] not in ("none needed", "done"):
        lines.append(f"  plans: {answer['upgrade']}")
    if step_s := answer.get("clock_step_s"):
        lines.append(
            f"  [yellow]the clock jumped by {step_s:+.0f} s and is not believed; see `visaged clock`[/yellow]"
        )
    stored = ", ".join(f"{n} {state}" for state, n in answer["samples"].items())
    lines.append(f"samples: {stored}; automatic flags {'on' if answer['automatic_flags'] else 'off'}")
    return lines


def promotion_lines(promotion: dict[str, Any]) -> list[str]:
    """Return what is going on with releases, a line each; none when nothing is."""
    lines = []
    if trial := promotion.get("trial"):
        line = f"  {trial['release']} is in {trial['stage']}"
        line += f", answers for {trial['share']:.0%} of the tracks" if trial["stage"] == "canary" else ""
        line += f"; {trial['faces']} faces of {trial['tracks']} tracks compared"
        if trial["faces"]:
            line += f", {trial['agreement']:.0%} agree, PSI {trial['psi']:.2f}"
        lines.append(line)
    if promotion.get("loading"):
        lines.append(f"  loading {promotion['loading']}")
    if promotion.get("failure"):
        lines.append(f"  [yellow]releases: {promotion['failure']}[/yellow]")
    return lines


def cameras_of(cameras: dict[str, Any]) -> Table:
    """Return the books of all cameras."""
    table = Table("camera", "captured", "published", "in flight", "dropped", box=None)
    for name, book in cameras.items():
        dropped = ", ".join(f"{n} {reason}" for reason, n in book["dropped"].items() if n) or "none"
        counts = (str(book[what]) for what in ("captured", "published", "in_flight"))
        table.add_row(name, *counts, dropped)
    return table
