"""`visaged evaluate-emotion`: how well the default ensemble reads FER+ faces, member by member and fused."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import cv2
import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.progress import track as progress
from rich.table import Table

from ..daemon.outline import default_cache
from ..kernels.fusion import probabilities
from ..pipelines.cropper import Cropper
from ..pipelines.engines.engine import EngineConfig
from ..pipelines.engines.engine_loader import EngineLoader
from ..pipelines.ensemble import Ensemble, EnsembleConfig, Outputs, build_ensemble, output_of
from ..pipelines.fuser import RULES
from ..pipelines.learning.ferplus import Aligner, Faces, load_faces, tuning_part
from ..pipelines.learning.metrics import (
    ACCURACY,
    ECE,
    MACRO_F1,
    ClassReport,
    Truth,
    confusion_matrix,
    difference,
    log_loss,
)
from ..pipelines.learning.samples import picture_digests
from ..pipelines.message import EMOTIONS
from ..pipelines.model_store import ModelStore

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

SURE = np.float32(1e-9)  # added to probabilities before their logarithm


def evaluate_emotion(
    data: Annotated[Path, typer.Argument(help="Folder with FER+: Training.npz and PublicTest.npz.")],
    tuning: Annotated[
        bool, typer.Option("--tuning", help="Measure on the tuning part of Training, to choose by.")
    ] = False,
    precision: Annotated[
        Literal["auto", "fp32", "fp16", "int8"], typer.Option(help="As in [engine].")
    ] = "auto",
    picture: Annotated[
        Path | None, typer.Option(help="Draw the confusion matrix of the default fusion here, a PNG.")
    ] = None,
) -> None:
    """Measure every member and every fusion rule on FER+ faces, through the chips and graphs used live.

    Each is compared with the best member, with a 95 % interval by a bootstrap over faces.

    Examples:
      visaged evaluate-emotion ~/data/ferplus
      visaged evaluate-emotion ~/data/ferplus --picture confusion.png
    """
    console = Console()
    training, faces = load_faces(data)
    if tuning:
        faces = training.take(tuning_part(training))
    cv2.setNumThreads(1)
    store = ModelStore(default_cache())
    loader = EngineLoader(EngineConfig(precision=precision), store)
    loader.build_missing(EnsembleConfig().members)
    ensemble = build_ensemble(EnsembleConfig(), loader)
    aligner = Aligner(store.weights_file("shape_predictor_5_face_landmarks.dat"))
    outputs = run(ensemble, aligner, faces, console)
    p = probabilities(outputs.logits, outputs.knows)
    names = [m.network.name for m in ensemble.members if output_of(m.network, "logits")]
    said = dict(zip(names, p, strict=True))
    for rule, fuse in RULES.items():
        for weights in (outputs.weights, np.ones_like(outputs.weights)):
            shares = ", ".join(f"{w:.1f}" for w in weights)
            said[f"{rule}, weights {shares}"] = fuse(p, outputs.knows, weights)
    console.print(comparison(said, names, faces))
    default = f"{EnsembleConfig().fusion}, weights {', '.join(f'{w:.1f}' for w in outputs.weights)}"
    print_report(default, np.log(said[default] + SURE), faces, console)
    if picture is not None:
        draw(said[default], faces, picture)
        console.print(f"wrote {picture}", soft_wrap=True)


def comparison(said: Mapping[str, F32], members: Sequence[str], faces: Faces) -> Table:
    """Return a table of all predictors beside the best member, over all faces and those with a majority.

    Args:
        said: `(N, K)` probabilities by name.
        members: which of the names are single networks.
        faces: N of them; each is a group of its own.
    """
    clear, targets = faces.has_majority(), faces.targets()
    truth = Truth(targets[clear], np.array(picture_digests(faces.pictures[clear])))
    best = max(members, key=lambda name: ACCURACY(said[name][clear], truth.targets))
    headings = "", "accuracy", "macro F1", "ECE", f"more right than {best}", "all faces: accuracy", "macro F1"
    title = f"{clear.sum()} faces with a strict majority, {len(faces)} in all"
    table = Table(*headings, title=title, title_justify="left")
    for name, p in said.items():
        gain = ""
        if name != best:
            found = difference(ACCURACY, (p[clear], said[best][clear]), truth)
            gain = f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
        own = [f"{metric(p[clear], truth.targets):.3f}" for metric in (ACCURACY, MACRO_F1, ECE)]
        table.add_row(name, *own, gain, *(f"{metric(p, targets):.3f}" for metric in (ACCURACY, MACRO_F1)))
    return table


def draw(p: F32, faces: Faces, path: Path) -> None:
    """Write the confusion matrix over the faces with a strict majority as a picture."""
    from ..pipelines.learning.plots import draw_confusion

    draw_confusion(confusion_of(p, faces), EMOTIONS, path, "FER+, faces with a strict majority")


def confusion_of(answers: F32, faces: Faces) -> I64:
    """Return `(K, K)` counts of true by said over the faces that most votes agree about.

    `answers` is `(N, K)`, logits or probabilities.
    """
    clear = faces.has_majority()
    labels = faces.votes[clear].argmax(axis=1).astype(np.int64)
    return confusion_matrix(labels, answers[clear].argmax(axis=1), len(EMOTIONS))


def run(ensemble: Ensemble, aligner: Aligner, faces: Faces, console: Console) -> Outputs:
    """Return what the ensemble says about every face, aligned as live faces are."""
    parts = []
    n_batches = -(-len(faces) // ensemble.max_batch)
    for batch in progress(np.array_split(faces.pictures, n_batches), "faces", console=console):
        frames = [aligner.enlarged(picture) for picture in batch]
        chips = {
            recipe: np.concatenate([Cropper().crop(rgb, marks[None], recipe) for rgb, marks in frames])
            for recipe in ensemble.recipes
        }
        parts.append(ensemble.infer(chips))
    logits: F32 = np.concatenate([part.logits for part in parts], axis=1)
    embeddings: F32 = np.concatenate([part.embeddings for part in parts])
    return Outputs(embeddings, logits, parts[0].knows, parts[0].weights)


def print_report(title: str, logits: F32, faces: Faces, console: Console) -> None:
    """Print accuracy, macro F1 and recall of `(N, K)` logits on the faces that most votes agree about."""
    report = ClassReport(confusion_of(logits, faces))
    table = Table(title=f"{title}: {report.confusion.sum()} faces with a strict majority")
    for heading in ("class", "faces", "recall", "precision", "F1"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    columns = report.n_true, report.recall, report.precision, report.f1
    for name, n_true, *shares in zip(EMOTIONS, *columns, strict=True):
        table.add_row(name, str(n_true), *(f"{share:.3f}" for share in shares))
    console.print(table)
    console.print(
        f"accuracy {report.accuracy:.4f}, macro F1 {report.macro_f1:.4f}, "
        f"log loss against the votes {log_loss(logits, faces.targets()):.4f}"
    )
