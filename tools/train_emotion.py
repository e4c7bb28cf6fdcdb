"""`visaged train-emotion`: train the emotion head on dlib's face ResNet with FER+. The door to torch.

The trunk stays as it is: its pooled features are computed once per picture and kept, so the head itself
trains in minutes on one core.
"""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console

from ..daemon.outline import default_cache
from ..kernels.fusion import probabilities
from ..pipelines.importers.dlib_dat import FaceResnet, read_face_resnet
from ..pipelines.importers.dlib_onnx import face_resnet_onnx
from ..pipelines.importers.emotion_head import DEFAULT_TAPS, EmotionHead, read_head, write_head
from ..pipelines.learning.ferplus import Faces, Trunk, load_faces, see, tuning_part
from ..pipelines.learning.metrics import Truth, fit_temperature, log_loss
from ..pipelines.model_store import HEAD_PATH, PREDICTOR, ModelStore
from ..pipelines.registry import FERPLUS_CLASSES
from .counted import counted
from .evaluate import by_class

if TYPE_CHECKING:
    import torch

F32 = npt.NDArray[np.float32]
F16 = npt.NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How the head is trained."""

    epochs: int
    hidden: int  # units between features and logits; 0: one linear layer
    seed: int
    batch: int = 256
    rate: float = 1e-3
    decay: float = 0.02
    input_dropout: float = 0.2
    hidden_dropout: float = 0.5


def train_emotion(
    data: Annotated[Path, typer.Argument(help="Folder with FER+: Training.npz and PublicTest.npz.")],
    out: Annotated[Path, typer.Option(help="Where the trained head goes.")] = HEAD_PATH,
    cache: Annotated[Path | None, typer.Option(help="Folder for the trunk's features (1 GB).")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that run the trunk.")] = 1,
    views: Annotated[
        int, typer.Option(min=1, max=8, help="Views of a face: one plain, others jittered.")
    ] = 2,
    faces: Annotated[int, typer.Option(min=0, help="Learn from the first so many faces; 0: all.")] = 0,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training faces.")] = 12,
    hidden: Annotated[int, typer.Option(min=0, help="Hidden units; 0 for a linear head.")] = 128,
    seed: Annotated[int, typer.Option(help="Of weights, order and dropout.")] = 1,
) -> None:
    """Train the emotion head on FER+, and say how good it is.

    A tenth of the training faces chooses the epoch and the temperature; PublicTest gives the final
    figures, through the ONNX graph that is used live. Import again afterwards: `visaged models import`.

    Examples:
      visaged train-emotion ~/data/ferplus --jobs 2
    """
    import torch  # noqa: F401  where the extra is missing it fails here, before the work

    console = Console()
    folder = cache or default_cache() / "training"
    store = ModelStore(cache or default_cache())
    net = read_face_resnet(store.weights_file("dlib_face_recognition_resnet_model_v1.dat"))
    predictor = store.weights_file(PREDICTOR)
    training, test = load_faces(data)
    training = training.take(np.arange(len(training)) < (faces or len(training)))
    console.print(f"{len(training)} faces to learn from, {len(test)} to test with")
    features = _features(net, predictor, training, folder, views, jobs)
    tuning = tuning_part(training)
    head = fit_head(features, training.targets(), tuning, Schedule(epochs, hidden, seed), console)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_head(head, out)
    console.print(f"wrote {out}, {out.stat().st_size / 1e6:.2f} MB")
    logits = _run_graph(net, read_head(out), predictor, test, folder, jobs)
    p = probabilities(logits[None], np.ones((1, logits.shape[1]), bool))[0]
    console.print(f"PublicTest: log loss against the votes {log_loss(logits, test.targets()):.4f}")
    console.print(by_class(p, Truth(test.targets(), np.arange(len(test)).astype(str))))


def fit_head(
    features: F16, targets: F32, tuning: npt.NDArray[np.bool_], schedule: Schedule, console: Console
) -> EmotionHead:
    """Return the head of the epoch with the smallest log loss on the tuning part, calibrated there.

    Args:
        features: `(N, V, F)`.
        targets: `(N, K)` shares of votes.
        tuning: `(N,)` the faces that are not trained on.
        schedule: how to train.
        console: where progress goes.
    """
    import torch

    torch.manual_seed(schedule.seed)
    torch.set_num_threads(1)
    random = np.random.default_rng(schedule.seed)
    plain = features[~tuning, 0].astype(np.float32)
    mean, spread = plain.mean(axis=0), plain.std(axis=0) + np.float32(1e-3)
    del plain
    n_views, n_features = features.shape[1:]
    layers = _layers(n_features, targets.shape[1], schedule)
    rows = np.stack(np.meshgrid(np.flatnonzero(~tuning), np.arange(n_views), indexing="ij"), -1).reshape(
        -1, 2
    )
    n_batches = -(-len(rows) // schedule.batch)
    optimiser = torch.optim.AdamW(layers.parameters(), lr=schedule.rate, weight_decay=schedule.decay)
    slope = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, schedule.rate, total_steps=schedule.epochs * n_batches, pct_start=0.1
    )
    held = _standardise(features[tuning].reshape(-1, n_features), mean, spread)
    held_targets = np.repeat(targets[tuning], n_views, axis=0)
    best_loss, best = np.inf, EmotionHead((), (), ())
    for epoch in range(1, schedule.epochs + 1):
        layers.train()
        for batch in np.array_split(random.permutation(rows), n_batches):
            inputs = torch.from_numpy(_standardise(features[batch[:, 0], batch[:, 1]], mean, spread))
            wanted = torch.from_numpy(targets[batch[:, 0]])
            optimiser.zero_grad()
            loss = torch.nn.functional.cross_entropy(layers(inputs), wanted)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            slope.step()
        layers.eval()
        with torch.no_grad():
            logits: F32 = layers(torch.from_numpy(held)).numpy()
        temperature = fit_temperature(logits, held_targets)
        held_loss = log_loss(logits / np.float32(temperature), held_targets)
        accuracy = float((logits.argmax(axis=1) == held_targets.argmax(axis=1)).mean())
        console.print(
            f"epoch {epoch}: log loss {held_loss:.4f}, accuracy {accuracy:.3f}, T {temperature:.2f}"
        )
        if held_loss < best_loss:
            best_loss, best = held_loss, _fold(layers, mean, spread, temperature)
    return best


def _features(net: FaceResnet, predictor: Path, faces: Faces, folder: Path, views: int, jobs: int) -> F16:
    """Return `(N, V, F)` of the training faces, with a progress bar."""
    with TemporaryDirectory() as scratch:
        trunk = Path(scratch) / "trunk.onnx"
        trunk.write_bytes(face_resnet_onnx(net, with_features=True).SerializeToString())
        return _watch("trunk features", faces, predictor, Trunk(trunk), folder, views, jobs)


def _run_graph(
    net: FaceResnet, head: EmotionHead, predictor: Path, faces: Faces, folder: Path, jobs: int
) -> F32:
    """Return `(N, K)` logits of plain chips, through the graph that is used live."""
    with TemporaryDirectory() as scratch:
        graph = Path(scratch) / "graph.onnx"
        graph.write_bytes(face_resnet_onnx(net, head).SerializeToString())
        logits = _watch("test faces", faces, predictor, Trunk(graph, "logits"), folder, 1, jobs)
    return logits[:, 0].astype(np.float32)


def _watch(
    title: str, faces: Faces, predictor: Path, trunk: Trunk, folder: Path, views: int, jobs: int
) -> F16:
    with counted() as progress:
        task = progress.add_task(title, total=len(faces))
        (seen,) = see(
            faces.pictures, views, predictor, [trunk], folder,
            jobs=jobs, on_progress=lambda n: progress.advance(task, n),
        )  # fmt: skip
    return seen


def _layers(n_features: int, n_classes: int, schedule: Schedule) -> "torch.nn.Sequential":
    """Return dropout and one linear layer, or two with ReLU between."""
    from torch import nn

    if schedule.hidden == 0:
        return nn.Sequential(nn.Dropout(schedule.input_dropout), nn.Linear(n_features, n_classes))
    return nn.Sequential(
        nn.Dropout(schedule.input_dropout),
        nn.Linear(n_features, schedule.hidden),
        nn.ReLU(),
        nn.Dropout(schedule.hidden_dropout),
        nn.Linear(schedule.hidden, n_classes),
    )


def _standardise(features: F16, mean: F32, spread: F32) -> F32:
    scaled: F32 = (features.astype(np.float32) - mean) / spread
    return scaled


def _fold(layers: "torch.nn.Sequential", mean: F32, spread: F32, temperature: float) -> EmotionHead:
    """Return the head on raw features: standardisation in its first layer, temperature in its last."""
    from torch import nn

    linear = [
        (layer.weight.detach().numpy().T.copy(), layer.bias.detach().numpy().copy())
        for layer in layers
        if isinstance(layer, nn.Linear)
    ]
    weights, bias = linear[0]
    linear[0] = weights / spread[:, None], bias - (mean / spread) @ weights
    weights, bias = linear[-1]
    linear[-1] = weights / np.float32(temperature), bias / np.float32(temperature)
    return EmotionHead(DEFAULT_TAPS, tuple(linear), FERPLUS_CLASSES)
