"""`visaged evaluate RELEASE DATASET`: how well a release reads faces, member by member and fused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.table import Table

from ..daemon.config import Config, find_config
from ..pipelines.assembly import load_named
from ..pipelines.cache_files import write_atomically
from ..pipelines.ensemble import Ensemble, Outputs
from ..pipelines.learning.ensembles import Members, diversity
from ..pipelines.learning.labelled_faces import LabelledFaces, Part, answer, load_labelled
from ..pipelines.learning.metrics import (
    ACCURACY,
    ECE,
    LOG_LOSS,
    MACRO_F1,
    ClassReport,
    Interval,
    Metric,
    Truth,
    confusion_matrix,
    difference,
    interval,
    reliability,
    subgroup_table,
)
from ..pipelines.message import EMOTIONS
from ..pipelines.model_store import ModelStore
from ..pipelines.releases.release import Release
from .counted import counted

F32 = npt.NDArray[np.float32]

FUSED = "fused"


def evaluate(
    release: Annotated[str, typer.Argument(help="The release: first digits of its id, or 'factory'.")],
    dataset: Annotated[Path, typer.Argument(help="A folder with FER+, or a task file (TOML).")],
    part: Annotated[
        Literal["test", "tune"], typer.Option(help="What is tested on, or what is chosen by.")
    ] = "test",
    precision: Annotated[
        Literal["auto", "fp32", "fp16", "int8"], typer.Option(help="As in [engine].")
    ] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.json, confusion.png and reliability.png.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="The TOML file.")] = None,
) -> None:
    """Measure a release on faces with labels, through the chips and engines that are used live.

    Every member and the fused answer: accuracy, macro F1, calibration, and how much more is right than
    with the best member, with a 95 % interval by a bootstrap over people (or faces, where nobody says who
    they are). Then each class, subgroups, and how alike the members' mistakes are.

    Examples:
      visaged evaluate factory ~/data/ferplus --out report
      visaged evaluate 3fa2c1 moods.toml
    """
    console = Console()
    settings = with_precision(find_config(config), precision)
    models = ModelStore(settings.paths.cache, settings.paths.wheels)
    asked = load_named(settings.stages, release, settings.paths.state, models)
    labelled = load(settings, dataset, part)
    outputs = ask(asked.ensemble, labelled, console)
    asked.close()
    answer = asked.fuser.fuse(outputs)
    fused, members = answer.probabilities, Members(outputs.names, answer.members, outputs.knows)
    said = dict(zip(members.names, members.p, strict=True)) | {FUSED: fused}
    console.print(f"release {asked.release.id}: {asked.release.fusion}", highlight=False, soft_wrap=True)
    for table in (
        comparison(said, labelled.truth),
        by_class(fused, labelled.truth),
        by_subgroup(fused, labelled),
        alikeness(members, labelled.truth),
    ):
        console.print(table)
    if labelled.n_lost:
        console.print(f"{labelled.n_lost} photos show no face and were left out")
    if out is not None:
        write_report(out, asked.release, said, labelled)
        console.print(f"wrote report.json, confusion.png and reliability.png to {out}", soft_wrap=True)


def with_precision(settings: Config, precision: str) -> Config:
    """Return `settings` with the networks in `precision`."""
    engine = msgspec.structs.replace(settings.engine, precision=precision)
    return msgspec.structs.replace(settings, engine=engine)


def load(settings: Config, dataset: Path, part: Part) -> LabelledFaces:
    """Return one part of a data set.

    Raises:
        SourceError, ConfigError: as `load_labelled`.
    """
    cv2.setNumThreads(1)
    models = ModelStore(settings.paths.cache, settings.paths.wheels)
    return load_labelled(dataset.expanduser(), part, models)


def ask(ensemble: Ensemble, labelled: LabelledFaces, console: Console) -> Outputs:
    """Return what the members say about all faces, with a progress bar."""
    with counted(console) as progress:
        task = progress.add_task("faces", total=len(labelled))
        return answer([ensemble], labelled, lambda n: progress.advance(task, n))[0]


def comparison(said: Mapping[str, F32], truth: Truth) -> Table:
    """Return a table of all predictors; each but the best member is held against that.

    Args:
        said: `(N, K)` probabilities by name, of members and `FUSED`.
        truth: of the N faces.
    """
    best = best_member(said, truth)
    title = f"{len(truth)} faces of {len(np.unique(truth.groups))} groups"
    table = Table(
        "", "accuracy", "macro F1", "ECE", "log loss", f"more right than {best}",
        title=title, title_justify="left",
    )  # fmt: skip
    for name, p in said.items():
        own = [f"{metric(p, truth.targets):.3f}" for metric in (ACCURACY, MACRO_F1, ECE, LOG_LOSS)]
        gain = "" if name == best else _shown(difference(ACCURACY, (p, said[best]), truth), "+.3f")
        table.add_row(name, *own, gain)
    return table


def best_member(said: Mapping[str, F32], truth: Truth) -> str:
    """Return the name of the member that is right most often."""
    return max((n for n in said if n != FUSED), key=lambda name: ACCURACY(said[name], truth.targets))


def by_class(p: F32, truth: Truth) -> Table:
    """Return recall, precision and F1 of every class."""
    report = class_report(p, truth)
    table = Table("class", "faces", "recall", "precision", "F1")
    columns = report.n_true, report.recall, report.precision, report.f1
    for name, n_true, *shares in zip(EMOTIONS, *columns, strict=True):
        table.add_row(name, str(n_true), *(f"{share:.3f}" for share in shares))
    return table


def class_report(p: F32, truth: Truth) -> ClassReport:
    """Return what was said about each class."""
    labels = truth.targets.argmax(axis=1).astype(np.int64)
    return ClassReport(confusion_matrix(labels, p.argmax(axis=1), len(EMOTIONS)))


def by_subgroup(p: F32, labelled: LabelledFaces) -> Table:
    """Return accuracy and macro F1 of every subgroup, with intervals."""
    table = Table("subgroup", "faces", "accuracy", "macro F1")
    for row in subgroup_table(p, labelled.truth, labelled.subgroups, (ACCURACY, MACRO_F1)):
        shown = (_shown(found, ".3f") for found in row.intervals.values())
        table.add_row(row.name, str(row.n_faces), *shown)
    return table


def alikeness(members: Members, truth: Truth) -> Table:
    """Return how alike the mistakes of every two members are."""
    table = Table("members", "disagree", "Q", "both wrong", title="diversity", title_justify="left")
    for pair in diversity(members, truth.targets):
        values = (f"{value:.3f}" for value in (pair.disagreement, pair.q, pair.double_fault))
        table.add_row(f"{pair.first}, {pair.second}", *values)
    return table


def write_report(folder: Path, release: Release, said: Mapping[str, F32], labelled: LabelledFaces) -> None:
    """Write every figure with its interval as JSON, and two pictures of the fused answer."""
    from ..pipelines.learning.plots import draw_confusion, draw_reliability

    truth, best = labelled.truth, best_member(said, labelled.truth)
    figures = {
        name: {metric.name: _plain(interval(metric, p, truth)) for metric in _METRICS}
        for name, p in said.items()
    }
    report = class_report(said[FUSED], truth)
    content = {
        "release": release.describe(),
        "faces": len(truth),
        "groups": len(np.unique(truth.groups)),
        "lost": labelled.n_lost,
        "figures": figures,
        "best_member": best,
        "gain": _plain(difference(ACCURACY, (said[FUSED], said[best]), truth)),
        "classes": list(EMOTIONS),
        "confusion": report.confusion.tolist(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "report.json", msgspec.json.format(msgspec.json.encode(content)))
    draw_confusion(report.confusion, EMOTIONS, folder / "confusion.png", f"release {release.id}")
    bins = reliability(said[FUSED], truth.targets)
    draw_reliability(bins, folder / "reliability.png", f"release {release.id}")


_METRICS: tuple[Metric, ...] = (ACCURACY, MACRO_F1, ECE, LOG_LOSS)


def _plain(found: Interval) -> list[float]:
    return [found.value, found.low, found.high]


def _shown(found: Interval, how: str) -> str:
    return f"{found.value:{how}} [{found.low:{how}}, {found.high:{how}}]"
