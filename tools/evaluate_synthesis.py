"""`visaged evaluate-synthesis`: what becomes of faces in photos when they are turned, aged or drawn."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..daemon.config import find_config
from ..pipelines.assembly import load_named
from ..pipelines.errors import PhotoError, SourceError
from ..pipelines.model_store import ModelStore
from ..pipelines.photo import photos_below
from ..pipelines.registry import SAME_PERSON
from ..pipelines.releases.release import FACTORY
from ..pipelines.synthesis.admission import Admission, KnownFace, Verdict, build_admission
from ..pipelines.synthesis.ageing import aged
from ..pipelines.synthesis.expressions import EXPRESSIONS, bend
from ..pipelines.synthesis.generator import Generator
from ..pipelines.synthesis.pose import fit_pose
from ..pipelines.synthesis.renderer import Rendering, Source, View, frontalised, render
from .evaluate_generator import PHOTO, reader, try_generator
from .evaluate_generator import table_of as drawn_table
from .synthesise import face_in

ANGLES = (15, 30, 45)


@dataclass(slots=True)
class Trial:
    """One kind of synthesis and what became of it.

    `yaws` are pairs, of the photo and measured in what was made of it, of those that were found again.
    """

    make: Callable[[Source], Rendering | None]
    verdicts: list[Verdict] = field(default_factory=list)
    yaws: list[tuple[float, float]] = field(default_factory=list)
    holes: list[float] = field(default_factory=list)

    def run(self, known: KnownFace, admission: Admission) -> None:
        """Try it on one face; what cannot be tried on it does not count."""
        rendering = self.make(known.source)
        if rendering is None:
            return
        self.holes.append(rendering.hole_share)
        self.verdicts.append(admission.judge(known, rendering))
        again = admission.find(rendering)
        if again is not None:
            self.yaws.append((known.source.pose.yaw, fit_pose(again.landmarks).yaw))


def evaluate_synthesis(
    folder: Annotated[Path, typer.Argument(help="A folder of photos with faces, also in folders below.")],
    most: Annotated[int, typer.Option(min=1, help="So many photos at most, drawn by chance.")] = 100,
    seed: Annotated[int, typer.Option(help="Of that draw.")] = 0,
    generator: Annotated[
        Path | None, typer.Option(help="Measure this generator instead, an ONNX file.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="The TOML file.")] = None,
) -> None:
    """Measure how many turned, lit and aged faces are found again, are the same person and would be admitted.

    Columns: found again by the detector; distance from the photo, as dlib's network sees it, median and
    largest, of those found; share of these below 0.6, dlib's threshold; admitted for training; degrees of
    yaw by which the head is turned, the median, measured in what was made; mean size of yaw before and after.

    With --generator: what that network draws, as each of its classes, beside the photo and the chip it is
    given. L1 is the distance from that chip, as a share of the range; the last columns are how often the
    factory's ensemble reads each class. Take photos of people it was not trained on.

    Examples:
      visaged evaluate-synthesis ~/data/lfw --most 100
      visaged evaluate-synthesis others/ --generator generator/generator.onnx
    """
    console = Console()
    settings = find_config(config)
    paths = settings.paths
    chosen = drawn_photos(folder, most, seed)
    drawer = Generator.load(generator) if generator else None
    models = ModelStore(paths.cache, paths.wheels)
    admission = build_admission(models)
    faces = known_faces(chosen, admission, console)
    if drawer:
        asked = load_named(settings.stages, FACTORY, paths.state, models)
        rows = try_generator(drawer, faces, admission, reader(asked))
        asked.close()
        n_faces = len(rows[PHOTO].verdicts)
        check_some(n_faces, chosen, folder)
        console.print(drawn_table(rows, drawer, f"{n_faces} faces in {len(chosen)} photos"))
        return
    trials, n_faces = trials_of(), 0
    for known in faces:
        n_faces += 1
        for trial in trials.values():
            trial.run(known, admission)
    check_some(n_faces, chosen, folder)
    console.print(table_of(trials, f"{n_faces} faces in {len(chosen)} photos"))
    worst = max(max(trial.holes, default=0.0) for trial in trials.values())
    console.print(f"at most {worst:.2%} of the square around a face had no surface and was filled in")
    for reason, count in refusals(trials).most_common(4):
        console.print(f"{count} refused: {reason}")


def drawn_photos(folder: Path, most: int, seed: int) -> list[Path]:
    """Return at most `most` of the photos in `folder` and below.

    Raises:
        SourceError: there are none.
    """
    photos = photos_below(folder)
    if not photos:
        raise SourceError(f"{folder} has no photos; name a folder of JPEG or PNG files")
    drawn = np.random.default_rng(seed).permutation(len(photos))[:most]
    return [photos[index] for index in sorted(drawn)]


def known_faces(chosen: list[Path], admission: Admission, console: Console) -> Iterator[KnownFace]:
    """Yield the largest face of every photo that shows one, with a progress bar."""
    for path in track(chosen, description="synthesising", console=console, transient=True):
        try:
            known = face_in(path, admission)
        except PhotoError:
            continue
        yield known


def check_some(n_faces: int, chosen: list[Path], folder: Path) -> None:
    """Refuse photos without a face.

    Raises:
        SourceError: there is none.
    """
    if not n_faces:
        raise SourceError(f"no face was found in {len(chosen)} photos of {folder}; name another folder")


def trials_of() -> dict[str, Trial]:
    """Return what is tried, by name."""
    views = {
        "as it is": View(),
        **{f"yaw {sign * angle:+d}": View(yaw=sign * angle) for sign in (-1, 1) for angle in ANGLES},
        **{f"pitch {angle:+d}": View(pitch=angle) for angle in (-20, 20)},
        "side light": View(light=(-1.0, -0.2, 0.4)),
        **{name: View(bend=bend(pulls)) for name, pulls in EXPRESSIONS.items()},
    }
    trials = {name: Trial(partial(render, view=view)) for name, view in views.items()}
    ages = {f"age {amount:+.1f}": Trial(partial(aged, amount=amount)) for amount in (-0.7, 0.6, 1.2)}
    return {**trials, **ages, "frontalised": Trial(frontalised)}


def table_of(trials: dict[str, Trial], title: str) -> Table:
    """Return the figures, for people; shares are per cent."""
    table = Table(title=title, title_justify="left")
    table.add_column("made", no_wrap=True)
    for heading in ("tried", "found", "distance", "same", "admitted", "turned by", "yaw"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, trial in trials.items():
        if not trial.verdicts:
            continue
        n = len(trial.verdicts)
        distances = np.array([v.distance for v in trial.verdicts if v.is_found])
        row = [name, str(n), f"{100 * len(distances) / n:.0f}"]
        if len(distances):
            before, after = np.array(trial.yaws).T
            row += [
                f"{np.median(distances):.2f} ≤ {distances.max():.2f}",
                f"{100 * (distances < SAME_PERSON).mean():.0f}",
                f"{100 * sum(v.is_admitted for v in trial.verdicts) / n:.0f}",
                f"{np.median(after - before):+.0f}",
                f"{np.abs(before).mean():.0f} → {np.abs(after).mean():.0f}",
            ]
        table.add_row(*row)
    return table


def refusals(trials: dict[str, Trial]) -> Counter[str]:
    """Return how often each reason was given."""
    return Counter(verdict.kind for trial in trials.values() for verdict in trial.verdicts if verdict.reason)
