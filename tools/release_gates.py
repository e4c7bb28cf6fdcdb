"""`visaged release gates`: measure whether a release may take the place of the one that serves."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..daemon.config import find_config
from ..pipelines.model_store import ModelStore
from ..pipelines.releases.examiner import Exam, Examiner
from ..pipelines.releases.gates import GateResult
from .counted import counted
from .evaluate import load


def gates(
    release: Annotated[str, typer.Argument(help="First digits of its id.")],
    dataset: Annotated[
        list[Path], typer.Argument(help="Folders with FER+, or task files: their test parts.")
    ],
    target: Annotated[
        Path | None, typer.Option(help="A task file of faces that were flagged: its test part.")
    ] = None,
    runs: Annotated[
        int | None,
        typer.Option(min=20, help="Batches that are timed on each release.", show_default="gate_runs"),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="The TOML file.")] = None,
) -> None:
    """Measure a release against the one that serves and the blessed one; keep and show every figure.

    Exit code 0: it has passed all gates and may be promoted. 1: it has not.

    Examples:
      visaged release gates 3fa2c1 ~/data/ferplus
      visaged release gates 3fa2c1 ~/data/ferplus --target flagged.toml
    """
    console, settings = Console(), find_config(config)
    exam = Exam(
        base={str(path): load(settings, path, "test") for path in dataset},
        target={str(target): load(settings, target, "test")} if target else None,
        runs=runs or settings.promotion.gate_runs,
        max_slowdown=settings.promotion.gate_slowdown,
    )
    models = ModelStore(settings.paths.cache, settings.paths.wheels)
    examiner = Examiner(settings.stages, settings.paths.state, models)
    with counted(console, is_transient=True) as progress:
        task = progress.add_task("faces and batches", total=None)

        def show(done: int, of: int) -> bool:
            progress.update(task, completed=done, total=of)
            return True

        report = examiner.examine(release, exam, show)
    assert report is not None  # nobody ended it
    console.print(gate_table(report.results), highlight=False)
    if not report.passed:
        failed = ", ".join(result.name for result in report.failed)
        console.print(f"release {report.release} is refused: {failed}", soft_wrap=True)
        raise typer.Exit(1)
    console.print(
        f"release {report.release} has passed: bring it into service with  "
        f"visaged release promote {report.release}"
    )


def gate_table(results: tuple[GateResult, ...]) -> Table:
    """Return the results, a line each."""
    table = Table("", "gate", "value", "bound", "n", "", box=None)
    for result in results:
        mark = "[green]passed[/green]" if result.passed else "[bold red]FAILED[/bold red]"
        value, bound = ("" if v is None else f"{v:.4g}" for v in (result.value, result.bound))
        table.add_row(mark, result.name, value, bound, str(result.n), result.sentence)
    return table
