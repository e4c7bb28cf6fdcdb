"""`visaged evaluate-emotion`: how well the default ensemble reads FER+ faces, member by member and fused."""

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
from ..pipelines.engine import EngineConfig
from ..pipelines.engine_loader import EngineLoader
from ..pipelines.ensemble import Ensemble, EnsembleConfig, Outputs, build_ensemble, output_of
from ..pipelines.fuser import RULES
from ..pipelines.learning.ferplus import Aligner, Faces, load_faces, tuning_part
from ..pipelines.learning.metrics import log_loss
from ..pipelines.message import EMOTIONS
from ..pipelines.model_store import ModelStore

F32 = npt.NDArray[np.float32]

SURE = np.float32(1e-9)  # added to probabilities before their logarithm


def evaluate_emotion(
    data: Annotated[Path, typer.Argument(help="Folder with FER+: Training.npz and PublicTest.npz.")],
    tuning: Annotated[
        bool, typer.Option("--tuning", help="Measure on the tuning part of Training, to choose by.")
    ] = False,
    precision: Annotated[
        Literal["auto", "fp32", "fp16", "int8"], typer.Option(help="As in [engine].")
    ] = "auto",
) -> None:
    """Measure every member and every fusion rule on FER+ faces, through the chips and graphs used live.

    Example:
      visaged evaluate-emotion ~/data/ferplus
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
    feeling = [m.network.name for m in ensemble.members if output_of(m.network, "logits")]
    for name, shares in zip(feeling, p, strict=True):
        print_report(name, np.log(shares + SURE), faces, console)
    for rule, fuse in RULES.items():
        for weights in (outputs.weights, np.ones_like(outputs.weights)):
            fused = fuse(p, outputs.knows, weights)
            title = f"fused by {rule}, weights {', '.join(f'{w:.1f}' for w in weights)}"
            print_report(title, np.log(fused + SURE), faces, console)


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
    clear = faces.has_majority()
    said, true = logits[clear].argmax(axis=1), faces.votes[clear].argmax(axis=1)
    table = Table(title=f"{title}: {clear.sum()} faces with a strict majority")
    for heading in ("class", "faces", "recall", "precision", "F1"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    scores: list[float] = []
    for index, name in enumerate(EMOTIONS):
        hits = int(((said == index) & (true == index)).sum())
        n_true, n_said = int((true == index).sum()), int((said == index).sum())
        scores.append(2 * hits / max(n_true + n_said, 1))
        recall, precision = hits / max(n_true, 1), hits / max(n_said, 1)
        table.add_row(name, str(n_true), f"{recall:.3f}", f"{precision:.3f}", f"{scores[-1]:.3f}")
    console.print(table)
    console.print(
        f"accuracy {float((said == true).mean()):.4f}, macro F1 {float(np.mean(scores)):.4f}, "
        f"log loss against the votes {log_loss(logits, faces.targets()):.4f}"
    )
