"""`visaged train-detector`: photos with boxed faces in; a detector of the site's own, and its figures out."""

import hashlib
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..pipelines.cache_files import write_atomically
from ..pipelines.dlib_faces import HOG_FACE_PX, HogDetector, SiteDetector
from ..pipelines.errors import ConfigError, SourceError
from ..pipelines.learning.boxed_photos import SMALLEST_PX
from ..pipelines.learning.contact_sheet import write_png
from ..pipelines.learning.detection import DetectionFigures, Found, match
from ..pipelines.learning.hog_trainer import HogSettings, HogTrainer
from ..pipelines.learning.hog_trainer import Progress as OnIteration
from ..pipelines.learning.samples import PARTS, TEST, TRAIN, TUNE
from ..pipelines.learning.site_detector import BoxedParts, boxed_parts, figures, fill, search, smallest_face
from ..pipelines.learning.task import Photo, photos_of, read_task
from ..pipelines.photo import read_photo
from .counted import counted
from .drawing import Moment, contact_sheet, fit

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

COSTS = (1.0, 4.0, 16.0)  # dlib's example takes 5
MAX_COST = 1e6
FIRST_GAP = 10.0  # about, where training begins
SHOWN = 12  # photos on the sheet
TILE_PX = 400
TRUE, RIGHT, WRONG = (90, 200, 110), (250, 200, 60), (225, 75, 70)


@dataclass(frozen=True, slots=True)
class Trial:
    """A detector that was trained: with which C, how it does on the tuning part, and what that took.

    `tune` is None where there was nothing to choose.
    """

    c: float
    detector: bytes
    tune: DetectionFigures | None
    n_iterations: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Studio:
    """What all trials share: the trainer with its photos, those that choose, and the smallest face."""

    trainer: HogTrainer
    tune: Sequence[Photo]
    min_face_px: int
    console: Console

    def run(self, costs: Sequence[float]) -> Trial:
        """Return the trial that finds best on the tuning part; of equals the one with the smaller C."""
        trials = [self._try(c) for c in costs]
        return max(trials, key=lambda trial: (trial.tune.average_precision if trial.tune else 0, -trial.c))

    def _try(self, c: float) -> Trial:
        start, n_iterations = time.monotonic(), 0
        with _converging(self.console, f"C {c:g}", self.trainer.settings.epsilon) as show:

            def on_iteration(iteration: int, gap: float) -> None:
                nonlocal n_iterations
                n_iterations = iteration
                show(iteration, gap)

            detector = self.trainer.fit(c, on_iteration)
        seconds = time.monotonic() - start
        tune = None
        if self.tune:
            site = HogDetector(loaded(detector), is_frontal=False)
            tune = figures(list(search(site, self.tune, self.min_face_px)), self.tune)
        chosen_by = (
            f": average precision {tune.average_precision:.3f} on {tune.n_faces} faces" if tune else ""
        )
        self.console.print(f"C {c:g}{chosen_by} ({n_iterations} iterations, {seconds:.0f} s)")
        return Trial(c, detector, tune, n_iterations, seconds)


def train_detector(
    task: Annotated[Path, typer.Argument(help='The task file, TOML, of output = "box".')],
    out: Annotated[Path, typer.Option(help="Where the detector goes; figures and a picture beside it.")],
    c: Annotated[
        list[float] | None,
        typer.Option(help="What a mistake costs, tried in turn; the tuning part chooses. Else 1, 4 and 16."),
    ] = None,
    min_face_px: Annotated[
        int | None,
        typer.Option(
            min=SMALLEST_PX, max=1000, help="The smallest face to find; else nearly all boxed ones."
        ),
    ] = None,
    mirror: Annotated[bool, typer.Option(help="Learn from mirror images, too: faces are symmetric.")] = True,
    epsilon: Annotated[float, typer.Option(min=1e-4, max=1, help="The gap at which training ends.")] = 0.01,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Cores.")] = 2,
) -> None:
    """Train a face detector on photos with boxed faces, and measure it beside dlib's on photos never seen.

    For views in which dlib's frontal detector fails: from above, masked, in infrared. A detector has one
    window: box faces of one view, and all in the same way. The key `site` of the daemon's table `detector`
    takes FILE.

    Example:
      visaged train-detector door.toml --out door.svm
    """
    wanted, console = read_task(task), Console(highlight=False, soft_wrap=True)
    costs = sorted(set(c or COSTS))
    if wanted.output != "box":
        raise ConfigError(f'{task} has output = "{wanted.output}"; a detector learns from one of "box"')
    if out.suffix in (".png", ".json") or not all(0 < cost <= MAX_COST for cost in costs):
        raise typer.BadParameter(
            f"--out must not end in .png or .json, which are written beside it, and --c be 0 to {MAX_COST:g}"
        )
    with counted(console, is_transient=True) as progress:
        bar = progress.add_task("photos", total=sum(1 for _ in photos_of(wanted)))
        parts = boxed_parts(wanted, lambda: progress.advance(bar))
    check_parts(parts, wanted.name, is_chosen=len(costs) > 1)
    check_out(out)
    smallest = min_face_px or smallest_face(parts.boxes(TRAIN))
    settings = HogSettings(epsilon, mirror, threads)
    with HogTrainer(settings) as trainer:
        n_learned = sum(fill(trainer, parts.photos[TRAIN], HOG_FACE_PX / smallest))
        console.print(opening(parts, smallest, n_learned))
        studio = Studio(trainer, parts.photos[TUNE] if len(costs) > 1 else (), smallest, console)
        best = studio.run(costs)
    site, photos = loaded(best.detector), parts.photos[TEST]
    found = {
        "the site's": list(search(HogDetector(site, is_frontal=False), photos, smallest)),
        "dlib's": list(search(HogDetector(), photos, smallest)),
        "both": list(search(HogDetector(site), photos, smallest)),
    }
    measured = {name: figures(boxes, photos) for name, boxes in found.items()}
    console.print(table_of(measured, len(photos)))
    card = {
        "task": wanted.name,
        "sha256": hashlib.sha256(best.detector).hexdigest(),
        "window": site.window,
        "min_face_px": smallest,
        "c": best.c,
        "settings": settings,
        "photos": {part: len(photos) for part, photos in parts.photos.items()},
        "faces_learned": n_learned,
        "tune": best.tune,
        "test": measured,
    }
    write(out, best.detector, card, sheet(photos, found["the site's"]))
    console.print(
        f"{out}, with C {best.c:g}; {out.with_suffix('.png')} shows what it finds. The daemon takes it by"
    )
    console.print(f'[detector]\nsite = "{out.absolute()}"\nmin_face_px = {smallest}', markup=False)


def check_parts(parts: BoxedParts, name: str, *, is_chosen: bool) -> None:
    """Refuse parts that cannot choose or measure.

    Raises:
        SourceError: no boxed face in one of them.
    """
    for part, purpose, way_out in (
        (TUNE, "to choose C by", f"name a file for {TUNE}, add photos, or say one --c"),
        (TEST, "to measure on", f"name a file for {TEST}, or add photos"),
    ):
        if (part == TEST or is_chosen) and not any(len(boxes.faces) for boxes in parts.boxes(part)):
            raise SourceError(f"the task {name} has no boxed face {purpose} in its part {part}; {way_out}")


def check_out(out: Path) -> None:
    """Make the folder of `out`, and see to it before hours of work that a file can be written there.

    Raises:
        SourceError: it cannot.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise SourceError(f"cannot write {out} ({error.strerror}); choose another folder") from error
    if out.is_dir():
        raise SourceError(f"{out} is a folder; name a file in it, as {out / 'site.svm'}")


def loaded(detector: bytes) -> SiteDetector:
    """Return a detector as the daemon loads it, from a file."""
    with tempfile.NamedTemporaryFile(prefix="visaged-", suffix=".svm") as file:
        file.write(detector)
        file.flush()
        return SiteDetector(Path(file.name))


def opening(parts: BoxedParts, smallest: int, n_learned: int) -> str:
    """Return what is learned from and what measures."""
    counts = {part: sum(len(boxes.faces) for boxes in parts.boxes(part)) for part in PARTS}
    photos = ", ".join(f"{len(parts.photos[part])} {part}" for part in PARTS)
    faces = ", ".join(f"{counts[part]} {part}" for part in PARTS)
    return (
        f"photos: {photos}; faces: {faces}; left out: {parts.n_repeated} photos seen before, "
        f"{counts[TRAIN] - n_learned} faces to learn from that are too small, where {smallest} px are found"
    )


def table_of(measured: dict[str, DetectionFigures], n_photos: int) -> Table:
    """Return the figures of each detector on the test photos."""
    n_faces = next(iter(measured.values())).n_faces
    table = Table(f"{n_faces} faces in {n_photos} photos", box=None)
    for title in ("found", "false", "precision", "recall", "average precision"):
        table.add_column(title, justify="right")
    for name, at in measured.items():
        shares = (at.precision, at.recall, at.average_precision)
        table.add_row(name, str(at.n_found), str(at.n_false), *(f"{share:.3f}" for share in shares))
    return table


def sheet(photos: Sequence[Photo], found: Sequence[Found]) -> U8:
    """Return some of the test photos, evenly chosen, with the true boxes and those that were found."""
    chosen = np.unique(np.linspace(0, len(photos) - 1, SHOWN).round().astype(int)).tolist()
    moments = [moment(photos[index], *found[index]) for index in chosen]
    return contact_sheet("boxed: green; found: yellow, where nothing is boxed red", moments)


def moment(photo: Photo, boxes: F32, scores: F32) -> Moment:
    """Return one photo with its boxes, and how many of its faces were found."""
    assert photo.boxes is not None
    boxes = boxes[scores > 0]
    is_hit, counts = match(boxes, photo.boxes)
    picture, scale = fit(read_photo(photo.path), TILE_PX)
    colours = [TRUE] * len(photo.boxes.faces) + [RIGHT if hit else WRONG for hit in is_hit]
    for box, colour in zip(np.concatenate([photo.boxes.faces, boxes]) * scale, colours, strict=True):
        left, top, right, bottom = (round(edge) for edge in box.tolist())
        cv2.rectangle(picture, (left, top), (right, bottom), colour, 2, cv2.LINE_AA)
    n_false = int((counts & ~is_hit).sum())
    return Moment(picture, f"{photo.path.name}: {is_hit.sum()} of {len(photo.boxes.faces)}, {n_false} false")


def write(out: Path, detector: bytes, card: dict[str, object], picture: U8) -> None:
    """Write picture, figures and, when these are there, the detector: each whole or not at all.

    Raises:
        SourceError: the folder cannot be written to.
    """
    try:
        write_png(picture, out.with_suffix(".png"))
        write_atomically(out.with_suffix(".json"), msgspec.json.format(msgspec.json.encode(card)))
        write_atomically(out, detector)
    except OSError as error:
        raise SourceError(f"cannot write {out} ({error.strerror}); choose another folder") from error


@contextmanager
def _converging(console: Console, name: str, epsilon: float) -> Iterator[OnIteration]:
    """Show how near training is to its end, a gap of `epsilon`: it shrinks by about the same share a step."""
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(name, total=math.log(FIRST_GAP / epsilon))

        def show(iteration: int, gap: float) -> None:
            done = math.log(FIRST_GAP / min(max(gap, epsilon), FIRST_GAP))
            progress.update(bar, completed=done, description=f"{name}: iteration {iteration}, gap {gap:.3g}")

        yield show
