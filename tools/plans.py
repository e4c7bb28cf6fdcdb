"""The `plans` commands: what has been built, how good it is, and what can go."""

from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.table import Table

from ..daemon.config import find_config
from ..pipelines.engines.plan_builder import describe, verify_stored
from ..pipelines.engines.plan_store import PlanStore
from ..pipelines.errors import ModelError, PhotoError
from ..pipelines.model_store import ModelStore
from ..pipelines.registry import DETECTORS, NETWORKS
from .photo_faces import faces_of, photos_under

F32 = npt.NDArray[np.float32]

app = typer.Typer(help="List, inspect, verify and prune the plans that were built.", no_args_is_help=True)

ConfigOption = Annotated[Path | None, typer.Option("--config", help="The TOML file; only its folders count.")]
PlanArgument = Annotated[str, typer.Argument(help="Fingerprint of a plan, or how it begins.")]


@app.command("list")
def list_plans(config: ConfigOption = None) -> None:
    """Print every plan: network, backend, precision, size, and whether the daemon uses it.

    Example:
      visaged plans list
    """
    store = _store(config)
    roles, console = store.roles(), Console()
    table = Table(box=None)
    table.add_column("plan", no_wrap=True, min_width=16)  # cut off, no command would take it
    table.add_column("network", no_wrap=True, min_width=max(map(len, (*NETWORKS, *DETECTORS))))
    for name in ("backend", "precision", "MB", "role"):
        table.add_column(name)
    for plan in store.plans():
        key = plan.record.key
        table.add_row(
            plan.folder.name,
            key.network,
            f"{key.backend.value} {key.backend_version}",
            key.precision.value,
            f"{plan.record.n_bytes / 1e6:.1f}",
            roles.get(plan.folder.name, ""),
        )
    console.print(table if table.row_count else "no plans yet; `visaged build` makes some")


@app.command()
def inspect(plan: PlanArgument, config: ConfigOption = None) -> None:
    """Print everything known about one plan, with the log of its build.

    Example:
      visaged plans inspect 3f2a
    """
    found, console = _store(config).get(plan), Console()
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in describe(found).items():
        table.add_row(name, value)
    console.print(table)
    if log := found.log().strip():
        console.print(f"\n[dim]build log[/dim]\n{log}", highlight=False)


@app.command()
def verify(
    plan: PlanArgument,
    photos: Annotated[
        Path | None, typer.Option(help="Folder of photos to compare on; else the face that is shipped.")
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="Photos to take at most.")] = 200,
    config: ConfigOption = None,
) -> None:
    """Compare a plan with its fp32 network on real faces; exit code 1 when it is too far.

    Examples:
      visaged plans verify 3f2a
      visaged plans verify 3f2a --photos ~/photos
    """
    paths = find_config(config).paths
    models, store, console = ModelStore(paths.cache, paths.wheels), PlanStore(paths.cache), Console()
    found = store.get(plan)
    inputs = None
    if photos is not None:
        with console.status("looking for faces"):
            inputs = _chips(found.record.key.network, photos, most, models)
    report = verify_stored(found, models, inputs)
    console.print(f"{found.record.key}: {report} ({report.ran}, {report.n_inputs} inputs)", soft_wrap=True)
    if not report.is_within:
        raise ModelError(
            f"plan {found.folder.name} is too far from fp32; build it again with `visaged build --force`"
        )


@app.command()
def prune(
    keep: Annotated[int, typer.Option(min=0, help="Newest plans of each network to keep besides.")] = 0,
    config: ConfigOption = None,
) -> None:
    """Delete the plans that the daemon neither uses nor may go back to.

    Example:
      visaged plans prune --keep 2
    """
    deleted, console = _store(config).prune(keep), Console()
    for record in deleted:
        console.print(f"deleted {record.key}")
    console.print(f"{len(deleted)} plans deleted, {sum(r.n_bytes for r in deleted) / 1e6:.1f} MB")


def _chips(network: str, folder: Path, most: int, models: ModelStore) -> list[F32]:
    if network not in NETWORKS:
        raise ModelError(f"{network} is no network for single faces; leave --photos out")
    photos = photos_under(folder)[:most]
    recipe = NETWORKS[network].recipe
    chips = [face.chip(recipe) for face in faces_of(photos, models) if face is not None]
    if not chips:
        raise PhotoError(
            f"no face was found in the first {len(photos)} photos of {folder}; name another folder"
        )
    return chips


def _store(config: Path | None) -> PlanStore:
    return PlanStore(find_config(config).paths.cache)
