"""`visaged build`: networks into plans, offline, each tried on real faces before it is kept."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from ..daemon.config import find_config
from ..pipelines.engines.plan import Backend, Precision
from ..pipelines.engines.plan_builder import PlanOrder, build_plan, find_plan
from ..pipelines.engines.plan_store import PlanStore, StoredPlan
from ..pipelines.engines.precision import ranges_path
from ..pipelines.errors import ModelError
from ..pipelines.model_store import ModelStore
from ..pipelines.registry import DETECTORS, NETWORKS


def build(
    network: Annotated[
        list[str] | None, typer.Argument(help="Networks to build; all that are configured when left out.")
    ] = None,
    backend: Annotated[
        list[Backend] | None, typer.Option(help="What will run them; may be given several times.")
    ] = None,
    precision: Annotated[
        list[Precision] | None, typer.Option(help="Numbers they compute with; may be given several times.")
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, max=256, help="Most faces a run takes (GPU).")] = 16,
    opt_batch: Annotated[int, typer.Option(min=1, max=256, help="Faces it is fastest for (GPU).")] = 8,
    compute_capability: Annotated[
        list[str] | None, typer.Option(help="GPUs that a tensorrt_rtx plan is for, as SM89; may be repeated.")
    ] = None,
    ranges: Annotated[
        Path | None, typer.Option(help="INT8 ranges from `visaged calibrate`; else those that are shipped.")
    ] = None,
    device: Annotated[str, typer.Option(help="GPU that a tensorrt plan is built on.")] = "cuda:0",
    force: Annotated[bool, typer.Option("--force", help="Build also what is there already.")] = False,
    config: Annotated[Path | None, typer.Option(help="The TOML file; its folders and members count.")] = None,
) -> None:
    """Build networks into plans for this machine, or for GPUs elsewhere.

    Every plan is compared with the fp32 network on real faces; one that is too far from it is not kept, and
    what was there stays. Plans are kept in the cache folder; `visaged plans list` shows them. INT8 is built
    of the networks whose ranges are known.

    Examples:
      visaged build
      visaged build --backend tensorrt_rtx --precision fp16 --compute-capability SM89
      visaged build face-resnet --backend openvino --precision int8
    """
    settings = find_config(config)
    models = ModelStore(settings.paths.cache, settings.paths.wheels)
    plans = PlanStore(settings.paths.cache)
    orders = [
        PlanOrder(
            network=name,
            backend=runner,
            precision=numbers,
            max_batch=max_batch,
            opt_batch=min(opt_batch, max_batch),
            compute_capabilities=tuple(compute_capability or ()),
            ranges=ranges,
            device=device,
        )
        for name in network or (*settings.ensemble.members, *DETECTORS)
        for runner in backend or [Backend.ONNXRUNTIME]
        for numbers in precision or _precisions(name)
    ]
    console = Console()
    built = build_all(orders, models, plans, force=force, console=console)
    print_built(built, console)


def build_all(
    orders: list[PlanOrder], models: ModelStore, plans: PlanStore, *, force: bool, console: Console
) -> list[tuple[StoredPlan, bool]]:
    """Return the plans of `orders`, and whether each was built now; on a terminal with a line each.

    Raises:
        ModelError: one cannot be built; those before it are kept.
    """
    done: list[tuple[StoredPlan, bool]] = []
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        for index, order in enumerate(orders, 1):
            what = f"{index}/{len(orders)} {order.network} {order.precision.value} on {order.backend.value}"
            task = progress.add_task(what)
            plan = None if force else find_plan(order, models, plans)
            if plan is not None:
                done.append((plan, False))
            else:
                done.append((_build(order, models, plans, progress, task, what), True))
            progress.remove_task(task)
    return done


def _build(
    order: PlanOrder, models: ModelStore, plans: PlanStore, progress: Progress, task: TaskID, what: str
) -> StoredPlan:
    try:
        return build_plan(
            order, models, plans, lambda step: progress.update(task, description=f"{what}: {step}")
        )
    except ModelError as error:
        raise ModelError(f"{order.network} {order.precision.value}: {error}") from error


def print_built(built: list[tuple[StoredPlan, bool]], console: Console) -> None:
    """Print what was built, a plan in two lines."""
    for plan, is_new in built:
        record = plan.record
        when = f"built in {record.seconds:.2f} s" if is_new else "there already"
        console.print(f"{record.key}: {when}, {record.n_bytes / 1e6:.1f} MB", highlight=False, soft_wrap=True)
        console.print(f"  [dim]{record.parity} ({record.parity.ran})[/dim]", highlight=False, soft_wrap=True)


def _precisions(network: str) -> list[Precision]:
    """Return what is built of a network unless told otherwise: int8 too where its ranges are shipped."""
    has_ranges = network in NETWORKS and ranges_path(network).exists()
    return [Precision.FP32, *([Precision.INT8] if has_ranges else [])]
