"""`visaged evaluate-identity`: how well people are told apart on LFW's pairs, in every precision."""

from collections.abc import Iterator
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
from ..pipelines.errors import SourceError
from ..pipelines.model_store import ModelStore
from ..pipelines.registry import FACE_RESNET
from .bench import machine, write_json
from .lfw import Pair, fold_accuracy, photo_path, read_pairs
from .photo_faces import faces_of

F32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
I64 = npt.NDArray[np.int64]

BATCH = 16
AUTHOR_THRESHOLD = np.float32(0.6)
MAX_LOSS_POINTS = 0.2  # of accuracy, for a precision to be a default


@dataclass(frozen=True, slots=True)
class Trial:
    """The pairs of which both faces were found: rows `first` and `second` of the chips, `(P,)` each."""

    first: I64
    second: I64
    same: Bool
    folds: I64
    n_pairs: int


def evaluate_identity(
    lfw: Annotated[Path, typer.Argument(help="Folder with LFW: images/ and a file pairs*.txt.")],
    as_json: Annotated[Path | None, typer.Option("--json", help="Write the figures as JSON here.")] = None,
    config: Annotated[Path | None, typer.Option(help="The TOML file; only its folders count.")] = None,
) -> None:
    """Measure on LFW how often the embedding says rightly whether two photos show one person.

    Every precision of every CPU backend that is installed is compared with fp32, alone and against a gallery
    in fp32. A precision becomes a default only if it loses no more than 0.2 points.

    Example:
      visaged evaluate-identity ~/data/lfw
    """
    paths = find_config(config).paths
    models, plans = ModelStore(paths.cache, paths.wheels), PlanStore(paths.cache)
    console = Console(stderr=True)
    pairs = read_pairs(_pairs_file(lfw))
    chips, trial = gather(lfw / "images", pairs, models, console)
    rows = list(measure(chips, trial, models, plans, console))
    if as_json is not None:
        write_json(
            {"machine": machine(), "pairs": trial.n_pairs, "compared": len(trial.same), "rows": rows}, as_json
        )
    Console().print(table_of(rows, trial))


def gather(images: Path, pairs: list[Pair], models: ModelStore, console: Console) -> tuple[F32, Trial]:
    """Return the chips `(N, 3, S, S)` of every photo in `pairs` in which a face is found, and the trial.

    Raises:
        SourceError: no photo, or no face in any pair.
    """
    photos = sorted({photo for pair in pairs for photo in (pair.first, pair.second)})
    files = [photo_path(images, photo) for photo in photos]
    if not any(file.exists() for file in files):
        raise SourceError(f"{files[0]} and all others of the pairs are missing; name LFW's folder of people")
    chips: list[F32] = []
    row_of: dict[tuple[str, int], int] = {}
    with Progress(console=console) as progress:
        task = progress.add_task("looking for faces", total=len(files))
        for photo, face in zip(photos, faces_of(files, models), strict=True):
            if face is not None:
                row_of[photo] = len(chips)
                chips.append(face.chip(FACE_RESNET.recipe))
            progress.advance(task)
    found = [pair for pair in pairs if pair.first in row_of and pair.second in row_of]
    if not found:
        raise SourceError(f"no pair of {images} has a face in both photos; are these LFW's photos?")
    trial = Trial(
        np.array([row_of[pair.first] for pair in found]),
        np.array([row_of[pair.second] for pair in found]),
        np.array([pair.is_same for pair in found]),
        np.array([pair.fold for pair in found]),
        len(pairs),
    )
    return np.concatenate(chips), trial


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
    """Return accuracy in per cent: at thresholds from the other folds, its deviation over them, and at 0.6.

    Args:
        first: `(N, D)` embeddings for the first photo of each pair.
        second: `(N, D)` for the second; another engine's where galleries were made with one.
        trial: the pairs.
    """
    distances: F32 = np.linalg.norm(first[trial.first] - second[trial.second], axis=1)
    by_fold = 100 * fold_accuracy(distances, trial.same, trial.folds)
    fixed = 100 * float(((distances < AUTHOR_THRESHOLD) == trial.same).mean())
    return {"accuracy": float(by_fold.mean()), "deviation": float(by_fold.std()), "at_0.6": fixed}


def table_of(rows: list[dict[str, Any]], trial: Trial) -> Table:
    """Return the figures, for people."""
    title = f"LFW: {len(trial.same)} of {trial.n_pairs} pairs, the others have a photo without a found face"
    names = "engine", "accuracy %", "lost", "at 0.6 %", "embedding moved by: mean / max"
    table = Table(*names, title=title, title_justify="left")
    for row in rows:
        lost = row.get("loss_points")
        verdict = "" if lost is None else f"{lost:+.2f}{'' if lost <= MAX_LOSS_POINTS else ' too much'}"
        moved = f"{row['moved_mean']:.3f} / {row['moved_max']:.3f}" if lost is not None else ""
        accuracy = f"{row['accuracy']:.2f} ± {row['deviation']:.2f}"
        table.add_row(row["engine"], accuracy, verdict, f"{row['at_0.6']:.2f}", moved)
    return table


def _pairs_file(folder: Path) -> Path:
    found = sorted(folder.glob("pairs*.txt"))
    if not found:
        raise SourceError(f"{folder} has no file pairs*.txt; name the folder of LFW")
    return found[0]
