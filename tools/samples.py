"""`visaged samples`: the faces that were flagged, as they are on disk."""

import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track as progress
from rich.table import Table

from ..daemon.outline import find_outline
from ..pipelines.errors import SampleError
from ..pipelines.identity.gallery import Gallery
from ..pipelines.learning.contact_sheet import write_png
from ..pipelines.loop.sample import Sample, Source, State
from ..pipelines.loop.sample_store import SampleStore, Wanted
from ..pipelines.privacy.audit import note
from .drawing import Moment, contact_sheet
from .flag import said_of, sentence, shown

PRIVATE = 0o600  # pictures of people are for whoever asked for them

app = typer.Typer(no_args_is_help=True, help="List, show and remove the faces kept to learn from.")

ConfigOption = Annotated[Path | None, typer.Option("--config", help="The TOML file.")]
FolderOption = Annotated[
    Path | None, typer.Option("--state-folder", help="Folder of the store, if not the configured one.")
]
StateOption = Annotated[State | None, typer.Option("--state", help="Only those people said this of.")]
SourceOption = Annotated[Source | None, typer.Option("--source", help="Only those kept for this reason.")]
CameraOption = Annotated[str | None, typer.Option("--camera", help="Only those of this camera.")]
OutOption = Annotated[Path, typer.Option("--out", help="PNG file to write; it is not encrypted.")]


@app.command("list")
def list_samples(
    state: StateOption = None,
    source: SourceOption = None,
    camera: CameraOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list, for other programs.")] = False,
    config: ConfigOption = None,
    folder: FolderOption = None,
) -> None:
    """List samples, oldest first, and count them.

    Examples:
      visaged samples list
      visaged samples list --state review --source disagreement
      visaged samples list --json
    """
    with SampleStore(folder or find_outline(config).paths.state) as store:
        found = store.samples(_wanted(state, source, camera))
    if as_json:
        typer.echo(msgspec.json.encode(found).decode())
        return
    console = Console(highlight=False)
    if not found:
        console.print("There are no such samples:  visaged flag CAMERA:TRACK --emotion EMOTION  makes one")
        return
    table = Table("sample", "seen", "face", "kept for", "shown as", "said to be", "bucket", box=None)
    for sample in found:
        seen = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(sample.captured_at))
        row = [sample.id, seen, f"{sample.camera}:{sample.track}", sample.source.value, shown(sample)]
        table.add_row(*map(escape, row), escape(_verdict(sample)), str(sample.bucket))
    console.print(table)
    for title, counts in (
        ("state", Counter(s.state.value for s in found)),
        ("source", Counter(s.source.value for s in found)),
        ("said to show", Counter(s.label.emotion for s in found if s.label.emotion)),
    ):
        if counts:
            console.print(f"{title}: " + ", ".join(f"{n} {what}" for what, n in counts.most_common()))


@app.command()
def show(
    sample: Annotated[str, typer.Argument(help="Its id, or the beginning of it.")],
    out: OutOption,
    config: ConfigOption = None,
    folder: FolderOption = None,
) -> None:
    """Say all that is known of a sample, and write its picture.

    Example:
      visaged samples show 3fa0 --out face.png
    """
    where = folder or find_outline(config).paths.state
    with SampleStore(where) as store:
        found = store.sample(sample)
        face = store.face(found.id)
    note(where, "sample shown", detail=found.id)
    write_png(face.chip, out, PRIVATE)
    console = Console(highlight=False)
    for line in (
        sentence(found),
        f"kept for: {found.source.value}; bucket {found.bucket}; quality {found.quality:.2f}; "
        f"disagreement {found.disagreement:.2f}; release {found.release}",
        *(f"{name}: " + " ".join(f"{p:.2f}" for p in said) for name, said in face.members.items()),
        f"wrote {out}",
    ):
        console.print(line, markup=False, soft_wrap=True)


@app.command()
def remove(
    samples: Annotated[list[str], typer.Argument(help="Their ids, or the beginnings of them.")],
    config: ConfigOption = None,
    folder: FolderOption = None,
) -> None:
    """Delete samples, and take back what they taught the gallery.

    Example:
      visaged samples remove 3fa0 91bc
    """
    console = Console(highlight=False)
    where = folder or find_outline(config).paths.state
    with SampleStore(where) as store, Gallery(where) as gallery:
        for found in [store.sample(id) for id in samples]:
            n_templates = gallery.withdraw(found.lesson)
            store.remove(found.id)
            note(where, "sample removed", detail=found.id)
            also = f" and {n_templates} templates" if n_templates else ""
            console.print(f"removed sample {found.id}{also}", markup=False)


@app.command()
def sheet(
    out: Annotated[Path, typer.Argument(help="PNG file to write; it is not encrypted.")],
    state: StateOption = None,
    source: SourceOption = None,
    camera: CameraOption = None,
    newest: Annotated[int, typer.Option(min=1, max=500, help="At most so many, the newest.")] = 60,
    config: ConfigOption = None,
    folder: FolderOption = None,
) -> None:
    """Write a contact sheet of samples, to look at many at once.

    Example:
      visaged samples sheet review.png --state review
    """
    where = folder or find_outline(config).paths.state
    with SampleStore(where) as store:
        found = store.samples(_wanted(state, source, camera))[-newest:]
        if not found:
            raise SampleError(
                "there are no such samples to draw; `visaged samples list` shows those there are"
            )
        moments = [
            Moment(store.face(s.id).chip, f"{s.id[:6]} {shown(s)} > {_verdict(s) or '?'}")
            for s in progress(found, description="Drawing", transient=True)
        ]
    note(where, "samples shown", detail=f"{len(found)} in a sheet, newest {found[-1].id}")
    title = f"{len(found)} samples: id, shown as > said to be"
    write_png(contact_sheet(title, moments, columns=6, tile_width=260), out, PRIVATE)
    Console(highlight=False).print(f"wrote {out}", markup=False, soft_wrap=True)


def _verdict(sample: Sample) -> str:
    """What people say; empty while they have said nothing."""
    return "" if sample.state is State.REVIEW else said_of(sample)


def _wanted(state: State | None, source: Source | None, camera: str | None) -> Wanted:
    return Wanted(states=None if state is None else (state,), source=source, camera=camera)
