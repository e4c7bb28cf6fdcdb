"""`visaged audit`: who did what to people, releases and keys."""

import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from ..daemon.outline import find_outline
from ..pipelines.errors import StoreError
from ..pipelines.identity.gallery import Gallery
from ..pipelines.privacy.audit import read_chain


def audit(
    verify: Annotated[bool, typer.Option("--verify", help="Only check that no line was changed.")] = False,
    head: Annotated[
        str, typer.Option(help="Hash that an earlier --verify printed: it must still be there.")
    ] = "",
    newest: Annotated[int, typer.Option(min=1, help="Show so many lines, the newest.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list, for other programs.")] = False,
    config: Annotated[Path | None, typer.Option("--config", help="The TOML file.")] = None,
    state: Annotated[
        Path | None, typer.Option("--state", help="State folder, if not the configured.")
    ] = None,
) -> None:
    """Show who enrolled, flagged, exported, forgot, promoted or changed keys, and when.

    Names are those of the gallery now; whoever was forgotten is a number. Each line holds the hash of the one
    before. That shows changes, but not that the newest lines were cut off: keep the hash that --verify prints
    elsewhere, and give it as --head the next time.

    Examples:
      visaged audit
      visaged audit --verify --head 5d0c...
    """
    state = state or find_outline(config).paths.state
    chain = read_chain(state)
    if verify or head:
        problems = list(chain.problems)
        if head and head not in chain.hashes:
            since = f", or was cut off with those until {_when(chain.anchor.until)}" if chain.anchor else ""
            problems.append(f"the line with the hash {head} is gone{since}: what followed it may be too")
        if problems:
            raise StoreError(f"the audit log {state / 'audit.log'} is not whole: {'; '.join(problems)}")
        before = chain.anchor
        cut = f", {before.n_lines} until {_when(before.until)} were cut off before them" if before else ""
        head = chain.hashes[-1] if chain.hashes else "none"
        typer.echo(f"{len(chain.hashes) - bool(before)} lines, unbroken{cut}; head {head}")
        return
    shown = chain.deeds[-newest:]
    if as_json:
        typer.echo(msgspec.json.encode(shown).decode())
        return
    names = _names(state)
    table = Table("when", "who", "what", "person", "detail", box=None)
    for deed in shown:
        person = "" if deed.person is None else names.get(deed.person, f"number {deed.person}")
        table.add_row(_when(deed.at), deed.who, deed.what, person, deed.detail)
    console = Console(highlight=False, markup=False)
    console.print(table if shown else "nothing was done yet")
    if chain.anchor is not None:
        console.print(f"{chain.anchor.n_lines} lines until {_when(chain.anchor.until)} were cut off")


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _names(state: Path) -> dict[int, str]:
    if not (state / "gallery.db").exists():
        return {}
    with Gallery(state) as gallery:
        return gallery.names_by_number()
