"""The `data` commands: what the data of a task are worth, before anything is trained on them."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..daemon.config import find_config
from ..kernels.chips import cut_chip
from ..pipelines.errors import PhotoError, SourceError
from ..pipelines.learning.boxed_photos import SMALLEST_PX, FaceCounts
from ..pipelines.learning.task import Description, TaskConfig, photos_of, read_task
from ..pipelines.learning.task import describe as describe_task
from ..pipelines.model_store import ModelStore
from .photo_faces import faces_of

app = typer.Typer(help="Say what the data of a task are worth.", no_args_is_help=True)

SHOWN = 5  # of a list of mistakes
PADDING = 0.25  # around a face, as in the chips of every network here


@app.command()
def describe(
    task: Annotated[Path, typer.Argument(help="The task file, TOML.")],
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 1 where parts leak.")] = False,
) -> None:
    """Count the classes of a task, and look for duplicates and for what is in two parts at once.

    A photo that is learned from and tested on makes every figure worthless; so do two of one person's photos
    where identity counts. The last line says what depth of network the data support.

    Example:
      visaged data describe emotions.toml
    """
    wanted, console = read_task(task), Console()
    total = sum(1 for _ in photos_of(wanted))
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("reading", total=total)
        found = describe_task(wanted, lambda: progress.advance(bar))
    console.print(f"{wanted.name}: {wanted.input} in, {wanted.output} out", highlight=False)
    console.print(counts_of(found, wanted))
    for line in lines_of(found):
        console.print(line, highlight=False, soft_wrap=True)
    if strict and found.leaks:
        raise SourceError(
            f"{len(found.leaks)} pairs of photos leak between the parts of {wanted.name}; move one of each"
        )


@app.command()
def augmented(
    photos: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="Photos, one face each.")],
    preset: Annotated[str, typer.Option(help="The augmentation: none, slides, face or base.")] = "face",
    out: Annotated[Path, typer.Option(help="Where the sheet goes, a PNG.")] = Path("augmented.png"),
    size: Annotated[int, typer.Option(min=32, max=224, help="px: side of a chip.")] = 96,
) -> None:
    """Draw what a network would see: each face as it is, and six draws of an augmentation.

    Example:
      visaged data augmented ada.jpg grace.jpg --preset slides --out slides.png
    """
    from ..pipelines.learning.contact_sheet import sheet_of_preset, write_png

    paths = find_config().paths
    found = list(faces_of(photos, ModelStore(paths.cache, paths.wheels)))
    if faceless := [photo for photo, face in zip(photos, found, strict=True) if face is None]:
        raise PhotoError(f"{faceless[0]} shows no face that can be found; leave it out")
    chips = [cut_chip(face.rgb, face.landmarks, size, PADDING) for face in found if face is not None]
    write_png(sheet_of_preset(np.stack(chips), preset, labels=[photo.stem for photo in photos]), out)
    Console().print(f"wrote {out}", highlight=False, soft_wrap=True)


def counts_of(found: Description, task: TaskConfig) -> Table:
    """Return photos by class and part; of people only how many, and how many have two photos or more.

    Of boxes the faces.
    """
    table = Table("class" if task.output == "label" else "", *found.counts, box=None)
    if task.output == "embedding":
        for name, fewest in (("people", 1), ("with two photos", 2)):
            numbers = [sum(n >= fewest for n in counts.values()) for counts in found.counts.values()]
            table.add_row(name, *map(str, numbers))
    if found.faces is not None:
        for name, of_parts in (
            ("faces", found.faces.n_faces),
            ("ignored boxes", found.faces.n_ignored),
            ("photos without a face", found.faces.n_faceless),
        ):
            table.add_row(name, *map(str, of_parts.values()))
    for name in task.classes if task.output == "label" else ():
        table.add_row(name, *(str(counts[name]) for counts in found.counts.values()))
    everything = "all" if found.faces is None else "photos"
    table.add_row(everything, *(str(sum(counts.values())) for counts in found.counts.values()), style="bold")
    return table


def lines_of(found: Description) -> list[str]:
    """Return everything else, a line each."""
    smallest, median, largest = found.sides_px
    lines = [
        f"shorter side: {smallest} to {largest} px, half of them under {median} px",
        *(
            [f"imbalance: the largest class has {found.imbalance:.1f} times the photos of the smallest"]
            if found.faces is None
            else lines_of_faces(found.faces)
        ),
        f"groups: {found.n_groups}; duplicates inside a part: {found.n_duplicates}",
        f"leaks between parts: {len(found.leaks)}",
    ]
    reasons = {"same": "is also", "alike": "looks like", "group": "is of the same group as"}
    lines += [f"  {leak.first} {reasons[leak.why]} {leak.second}" for leak in found.leaks[:SHOWN]]
    if len(found.leaks) > SHOWN:
        lines.append(f"  and {len(found.leaks) - SHOWN} more")
    lines += [f"not read: {sentence}" for sentence in found.unreadable[:SHOWN]]
    lines += [f"no class: the folder {folder}" for folder in found.unknown[:SHOWN]]
    return [*lines, f"{'depth' if found.faces is None else 'quantity'}: {found.advice}"]


def lines_of_faces(faces: FaceCounts) -> list[str]:
    """Return how large the boxed faces are, and which of them no detector can learn, a line each."""
    smallest, median, largest = faces.sides_px
    return [
        f"faces: {smallest} to {largest} px, half of them under {median} px",
        f"faces too small to be looked for, under {SMALLEST_PX} px: {faces.n_small}; "
        f"too wide or too high for a window of the usual shape: {faces.n_odd}",
    ]
