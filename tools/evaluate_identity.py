"""`visaged evaluate-identity`: how well people are told apart, in every precision or by other embedders."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..daemon.config import find_config
from ..pipelines.engines.engine import Engine
from ..pipelines.engines.hardware import version_of
from ..pipelines.engines.ort_engine import OrtEngine
from ..pipelines.engines.plan import Backend, Precision
from ..pipelines.engines.plan_builder import PlanOrder, ensure_plan, open_engine
from ..pipelines.engines.plan_store import PlanStore
from ..pipelines.ensemble import output_of
from ..pipelines.errors import ConfigError, ModelError, PhotoError, SourceError
from ..pipelines.learning.labelled_faces import photos_of_part
from ..pipelines.learning.task import read_task
from ..pipelines.learning.task_faces import FaceFinder
from ..pipelines.learning.verification import accuracy_at, equal_error_rate, pairs_of, true_accepts
from ..pipelines.model_store import ModelStore, NetworkFiles
from ..pipelines.photo import read_photo
from ..pipelines.registry import FACE_RESNET, SAME_PERSON, ChipRecipe
from .bench import machine, write_json
from .lfw import fold_accuracy, photo_path, read_pairs
from .photo_faces import PhotoFace, faces_of
from .release import read_member

F32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
I64 = npt.NDArray[np.int64]

BATCH = 16
N_FOLDS = 10  # of a task's pairs, as LFW has
MAX_LOSS_POINTS = 0.2  # of accuracy, for a precision to be a default

Chips = Mapping[ChipRecipe, F32]
"""The faces that were found, `(N, C, S, S)` as each recipe cuts them."""


@dataclass(frozen=True, slots=True)
class Trial:
    """The pairs of which both faces were found: rows `first` and `second` of the chips, `(P,)` each."""

    first: I64
    second: I64
    same: Bool
    folds: I64
    n_pairs: int


def evaluate_identity(
    data: Annotated[
        Path,
        typer.Argument(help="LFW's folder, with images/ and a file pairs*.txt, or a task of people (TOML)."),
    ],
    network: Annotated[
        list[str] | None,
        typer.Option(
            help="Compare this embedder of `visaged train` with dlib's, an ONNX file; may be repeated."
        ),
    ] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write the figures as JSON here.")] = None,
    config: Annotated[Path | None, typer.Option(help="The TOML file; only its folders count.")] = None,
) -> None:
    """Measure how often the embedding says rightly whether two photos show one person.

    On the pairs of LFW, or on pairs drawn from the part test of a task of people. Every precision of every
    CPU backend that is installed is compared with fp32, alone and against a gallery in fp32. A precision
    becomes a default only if it loses no more than 0.2 points. With --network other embedders are compared,
    in fp32: on people whom they have not learned from, or the figure is worthless.

    Examples:
      visaged evaluate-identity ~/data/lfw
      visaged evaluate-identity people.toml --network people/embedding.onnx
    """
    paths = find_config(config).paths
    models, plans = ModelStore(paths.cache, paths.wheels), PlanStore(paths.cache)
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="visaged-identity-") as scratch:
        embedders = [models.files_of(FACE_RESNET.name)]
        embedders += [read_embedder(word, models, Path(scratch)) for word in network or ()]
        recipes = list(dict.fromkeys(files.row.recipe for files in embedders))
        gather = gather_task if data.suffix == ".toml" else gather_lfw
        chips, trial = gather(data, recipes, models, console)
        rows = list(
            compare(embedders, chips, trial)
            if network
            else measure(chips[FACE_RESNET.recipe], trial, models, plans, console)
        )
    if as_json is not None:
        write_json(
            {"machine": machine(), "pairs": trial.n_pairs, "compared": len(trial.same), "rows": rows}, as_json
        )
    Console().print(table_of(rows, trial))


def read_embedder(word: str, models: ModelStore, scratch: Path) -> NetworkFiles:
    """Return the network that a name or the path of an ONNX file stands for.

    Raises:
        ModelError: no such network, or it gives no embedding.
    """
    files = read_member(word, models, scratch)
    if output_of(files.row, "embedding") is None:
        raise ModelError(f'{word} gives no embedding; train one on a task with output = "embedding"')
    return files


def gather_lfw(
    lfw: Path, recipes: Sequence[ChipRecipe], models: ModelStore, console: Console
) -> tuple[Chips, Trial]:
    """Return the chips of every photo in LFW's pairs in which a face is found, and the trial.

    Raises:
        SourceError: no pairs, no photo, or no face in any pair.
    """
    pairs, images = read_pairs(_pairs_file(lfw)), lfw / "images"
    photos = sorted({photo for pair in pairs for photo in (pair.first, pair.second)})
    files = [photo_path(images, photo) for photo in photos]
    if not any(file.exists() for file in files):
        raise SourceError(f"{files[0]} and all others of the pairs are missing; name LFW's folder of people")
    with _progress(console, len(files)) as advance:
        chips, found = cut(faces_of(files, models), recipes, advance)
    row_of = {photos[index]: row for row, index in enumerate(found)}
    compared = [pair for pair in pairs if pair.first in row_of and pair.second in row_of]
    if not compared:
        raise SourceError(f"no pair of {images} has a face in both photos; are these LFW's photos?")
    trial = Trial(
        np.array([row_of[pair.first] for pair in compared]),
        np.array([row_of[pair.second] for pair in compared]),
        np.array([pair.is_same for pair in compared]),
        np.array([pair.fold for pair in compared]),
        len(pairs),
    )
    return chips, trial


def gather_task(
    path: Path, recipes: Sequence[ChipRecipe], models: ModelStore, console: Console
) -> tuple[Chips, Trial]:
    """Return the chips of the faces in the part test of a task of people, and pairs drawn from them.

    Raises:
        ConfigError: no task, or not of people.
        SourceError: no face, or nobody with two photos.
    """
    task = read_task(path)
    if task.output != "embedding":
        raise ConfigError(f'{path} has output = "{task.output}"; people are told apart in one of "embedding"')
    photos, finder = photos_of_part(task, "test"), FaceFinder(task.input, models)
    faces = (_face_of(photo.path, finder) for photo in photos)
    with _progress(console, len(photos)) as advance:
        chips, found = cut(faces, recipes, advance)
    pairs = pairs_of(np.array([photos[index].label for index in found]), "test")
    folds = np.arange(len(pairs)) % N_FOLDS
    return chips, Trial(pairs.first, pairs.second, pairs.same, folds, len(pairs))


def cut(
    faces: Iterable[PhotoFace | None], recipes: Sequence[ChipRecipe], on_photo: Callable[[], None]
) -> tuple[Chips, list[int]]:
    """Return the chips of the faces that were found, and the index of each among `faces`."""
    chips: dict[ChipRecipe, list[F32]] = {recipe: [] for recipe in recipes}
    found: list[int] = []
    for index, face in enumerate(faces):
        if face is not None:
            found.append(index)
            for recipe, own in chips.items():
                own.append(face.chip(recipe))
        on_photo()
    return {recipe: np.concatenate(own) for recipe, own in chips.items() if own}, found


def _face_of(path: Path, finder: FaceFinder) -> PhotoFace | None:
    try:
        face = finder.find(read_photo(path))
    except PhotoError:
        return None
    return None if face is None else PhotoFace(path, *face)


@contextmanager
def _progress(console: Console, n_photos: int) -> Iterator[Callable[[], None]]:
    with Progress(console=console) as progress:
        task = progress.add_task("looking for faces", total=n_photos)
        yield lambda: progress.advance(task)


def compare(embedders: Sequence[NetworkFiles], chips: Chips, trial: Trial) -> Iterator[dict[str, Any]]:
    """Yield a row of figures for each embedder in fp32; what it loses is against the first."""
    exact: dict[str, float] = {}
    for files in embedders:
        embeddings = embed(OrtEngine(files.onnx), chips[files.row.recipe])
        own = score(embeddings, embeddings, trial)
        exact = exact or own
        yield {"engine": files.row.name, **own, "loss_points": exact["accuracy"] - own["accuracy"]}


def measure(
    chips: F32, trial: Trial, models: ModelStore, plans: PlanStore, console: Console
) -> Iterator[dict[str, Any]]:
    """Yield a row of figures for fp32 and then for every other engine of this machine's CPU."""
    reference = embed(OrtEngine(models.ensure(FACE_RESNET.name)), chips)
    exact = score(reference, reference, trial)
    yield {"engine": "onnxruntime fp32", **exact, "loss_points": 0.0, "moved_mean": 0.0, "moved_max": 0.0}
    for backend in (Backend.ONNXRUNTIME, Backend.OPENVINO):
        for precision in (Precision.FP16, Precision.INT8):
            if not version_of(backend):
                continue
            name = f"{backend.value} {precision.value}"
            with console.status(name):
                order = PlanOrder(network=FACE_RESNET.name, backend=backend, precision=precision)
                embeddings = embed(open_engine(ensure_plan(order, models, plans).path, backend), chips)
            moved = np.linalg.norm(embeddings - reference, axis=1)
            own = score(embeddings, embeddings, trial)
            yield {
                "engine": name,
                **own,
                "loss_points": exact["accuracy"] - own["accuracy"],
                "moved_mean": float(moved.mean()),
                "moved_max": float(moved.max()),
            }
            yield {"engine": f"{name}, gallery fp32", **score(reference, embeddings, trial)}


def embed(engine: Engine, chips: F32) -> F32:
    """Return the embeddings `(N, D)` of `chips`; the engine is closed."""
    rows = [engine.infer(chips[start : start + BATCH])["embedding"] for start in range(0, len(chips), BATCH)]
    engine.close()
    return np.concatenate(rows)


def score(first: F32, second: F32, trial: Trial) -> dict[str, float]:
    """Return figures in per cent.

    Accuracy at thresholds from the other folds, its deviation over them, accuracy at 0.6, the equal error
    rate, and the share of one person's pairs that are accepted where 1 % of two people's are.

    Args:
        first: `(N, D)` embeddings for the first photo of each pair.
        second: `(N, D)` for the second; another engine's where galleries were made with one.
        trial: the pairs.
    """
    distances: F32 = np.linalg.norm(first[trial.first] - second[trial.second], axis=1)
    by_fold = 100 * fold_accuracy(distances, trial.same, trial.folds)
    exact = distances.astype(np.float64)
    return {
        "accuracy": float(by_fold.mean()),
        "deviation": float(by_fold.std()),
        "at_0.6": 100 * accuracy_at(exact, trial.same, SAME_PERSON),
        "equal_error_rate": 100 * equal_error_rate(exact, trial.same),
        "true_accepts_at_1_percent": 100 * true_accepts(exact, trial.same),
    }


def table_of(rows: list[dict[str, Any]], trial: Trial) -> Table:
    """Return the figures, for people; how far embeddings moved where the rows are precisions."""
    title = f"{len(trial.same)} of {trial.n_pairs} pairs, the others have a photo without a found face"
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("engine", no_wrap=True)
    is_moved = any("moved_mean" in row for row in rows)
    table.add_column("accuracy %", no_wrap=True)
    for name in ("lost", "at 0.6 %", "EER %", "true accepts %", *(["moved: mean / max"] if is_moved else [])):
        table.add_column(name)
    for row in rows:
        cells = [row["engine"], f"{row['accuracy']:.2f} ± {row['deviation']:.2f}", _lost(row)]
        cells += [f"{row[name]:.2f}" for name in ("at_0.6", "equal_error_rate", "true_accepts_at_1_percent")]
        if "moved_mean" in row:
            cells.append(f"{row['moved_mean']:.3f} / {row['moved_max']:.3f}")
        table.add_row(*cells)
    return table


def _lost(row: dict[str, Any]) -> str:
    """Return the loss of accuracy; a precision that loses too much to be a default is marked."""
    if "loss_points" not in row:
        return ""
    is_too_much = "moved_mean" in row and row["loss_points"] > MAX_LOSS_POINTS
    return f"{row['loss_points']:+.2f}{' too much' if is_too_much else ''}"


def _pairs_file(folder: Path) -> Path:
    found = sorted(folder.glob("pairs*.txt"))
    if not found:
        raise SourceError(f"{folder} has no file pairs*.txt; name the folder of LFW")
    return found[0]
