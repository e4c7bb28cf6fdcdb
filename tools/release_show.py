"""`visaged release show`: everything about a release, for people, as a picture or as JSON."""

import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from ..daemon.config import find_config
from ..pipelines.errors import ReleaseError
from ..pipelines.loop.lineage import clean_ancestor, erased_of, marks_of
from ..pipelines.releases.gates import GateReport, GateResult, read_report
from ..pipelines.releases.promotion import Journal, PromotionJournal
from ..pipelines.releases.release_store import ReleaseStore, StoredRelease
from .release_gates import gate_table


def show(
    release: Annotated[str, typer.Argument(help="First digits of its id.")],
    out: Annotated[Path | None, typer.Option(help="Write the gates as a picture to this PNG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON instead.")] = False,
    config: Annotated[Path | None, typer.Option(help="The TOML file.")] = None,
) -> None:
    """Show everything about a release: members, licences, fusion, gates, and what happened to it."""
    settings, console = find_config(config), Console()
    stored = ReleaseStore(settings.paths.state).get(release)
    stored.networks()
    journal, report = PromotionJournal(settings.paths.state).read(), read_report(stored)
    name = stored.release.id
    marks = marks_of(settings.paths.state).get(name, ())
    if out is not None:
        from ..pipelines.learning.plots import draw_gates  # matplotlib is an extra

        draw_gates(_results_of(report, name), out, f"release {name}")
    if as_json:
        history = [entry for entry in journal.history if entry.release == name]
        content = {
            **stored.release.describe(),
            "about": stored.about,
            "folder": str(stored.folder),
            "state": journal.state_of(name),
            "gates": report,
            "erased": marks,
            "history": history,
        }
        console.print_json(msgspec.json.encode(content).decode())
        return
    _print(console, stored, journal, report)
    if marks:
        parent = clean_ancestor(settings.paths.state, name)
        advice = f"`visaged release rebuild {name}` learns again from {parent} without them"
        said = f"{erased_of(settings.paths.state, name)}; {advice}"
        console.print(said, style="yellow", highlight=False, soft_wrap=True)
    if out is not None:
        console.print(f"wrote {out}", soft_wrap=True)


def _print(console: Console, stored: StoredRelease, journal: Journal, report: GateReport | None) -> None:
    name, about = stored.release.id, stored.about
    blessed = ", blessed" if journal.blessed == name else ""
    console.print(f"release {name} is {journal.state_of(name)}{blessed}", highlight=False)
    console.print(f"made {_when(about.made_at)} from {about.data or 'nothing that was noted'} {about.note}")
    console.print(f"fusion: {stored.release.fusion}", highlight=False, soft_wrap=True)
    members = Table("member", "licence", "learned from", box=None)
    for member in stored.release.members:
        members.add_row(member.network.name, member.network.licence, member.network.trained_on)
    console.print(members)
    if report is None:
        console.print(f"its gates are not measured; visaged release gates {name} DATASET")
    else:
        console.print(
            f"gates, {_when(report.at)}, against {report.champion}, anchor {report.anchor}, "
            f"on {', '.join(report.data)}",
            highlight=False,
            soft_wrap=True,
        )
        console.print(gate_table(report.results), highlight=False)
    for entry in journal.history:
        if entry.release == name:
            line = f"{_when(entry.at)} {entry.event}: {entry.state}  {entry.why}"
            console.print(line, highlight=False, soft_wrap=True)


def _results_of(report: GateReport | None, name: str) -> tuple[GateResult, ...]:
    if report is None:
        raise ReleaseError(f"there is nothing to draw; visaged release gates {name} DATASET measures it")
    return report.results


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
