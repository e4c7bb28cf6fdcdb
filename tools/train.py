"""`visaged train`: a recipe and its data in; a network, its curves and how good it is out."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..daemon.config import find_config
from ..pipelines.cache_files import write_atomically
from ..pipelines.errors import ConfigError
from ..pipelines.model_store import ModelStore
from ..pipelines.registry import ChipRecipe, Colour, Output
from ..pipelines.registry import Network as NetworkRow

if TYPE_CHECKING:
    from ..pipelines.learning.ferplus import Faces
    from ..pipelines.learning.networks import Network
    from ..pipelines.learning.recipe import RecipeConfig, StageConfig
    from ..pipelines.learning.samples import Samples
    from ..pipelines.learning.trainer import Epoch, Losses

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

PREDICTOR = "shape_predictor_5_face_landmarks.dat"


def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a TOML file.")],
    data: Annotated[list[str], typer.Option(help="Where a recipe's data are: NAME=FOLDER; may be repeated.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, curves and the network.")],
    most: Annotated[int, typer.Option(min=0, help="Learn from the first so many faces; 0: all.")] = 0,
    config: Annotated[Path | None, typer.Option(help="The TOML file; only its folders count.")] = None,
) -> None:
    """Train a network as a recipe says, stage by stage, and measure it on faces it never saw.

    A tenth of the training faces chooses the epoch and the temperature. An interrupted run goes on where its
    last epoch ended. The folder then holds NAME.onnx, with normalisation and temperature inside, NAME.json
    with the figures, and for each stage curves.json and curves.png.

    Example:
      visaged train pipelines/learning/recipes/emotion-vgg13.toml --data ferplus=~/data/ferplus --out vgg13
    """
    from ..pipelines.learning.exporter import export, halve_weights
    from ..pipelines.learning.losses import WeightedLosses
    from ..pipelines.learning.metrics import fit_temperature
    from ..pipelines.learning.networks import build_network, summary
    from ..pipelines.learning.normalisation import Normalisation, NormalisedNetwork
    from ..pipelines.learning.recipe import read_recipe
    from ..pipelines.learning.trainer import infer

    wanted, folders = read_recipe(recipe), _folders(data)
    missing = sorted({stage.data for stage in wanted.stage} - set(folders))
    if missing:
        raise ConfigError(f"{recipe} needs data called {missing[0]!r}; say --data {missing[0]}=FOLDER")
    paths = find_config(config).paths
    models, console = ModelStore(paths.cache, paths.wheels), Console()
    parts = {name: load_parts(folders[name], wanted, models, most, console) for name in folders}
    learned, tune, test = parts[wanted.stage[0].data]
    network = build_network(wanted.network, len(learned.classes))
    chip = chip_recipe(wanted)
    layers = summary(network, (len(chip.mean), chip.size, chip.size))
    n_parameters, n_macs = (sum(getattr(row, what) for row in layers) for what in ("parameters", "macs"))
    console.print(
        f"{wanted.name}: {n_parameters / 1e6:.2f} M parameters, {n_macs / 1e6:.0f} M multiplications"
    )
    normalisation = Normalisation.fit(wanted.normalisation_config(), learned.pictures)
    whole: Network = NormalisedNetwork(normalisation, network)  # type: ignore[assignment]
    for stage in wanted.stage:
        learned, tune, test = parts[stage.data]
        losses = WeightedLosses(
            stage.loss,
            n_classes=len(learned.classes),
            n_features=network.last.in_features,
            counts=learned.targets.sum(axis=0).tolist(),
        )
        run_stage(whole, losses, stage, (learned, tune), out / stage.name, console)
    temperature = fit_temperature(infer(whole, tune), tune.targets)
    graph = halve_weights(export(network, normalisation, chip, temperature))
    write_atomically(out / f"{wanted.name}.onnx", graph)
    figures = measure(graph, test)
    card = {
        "network": network_row(wanted, learned.classes, network.last.in_features),
        "recipe": wanted,
        "parameters": n_parameters,
        "macs": n_macs,
        "temperature": temperature,
    } | figures
    write_atomically(out / f"{wanted.name}.json", msgspec.json.format(msgspec.json.encode(card)))
    console.print(
        f"{out / wanted.name}.onnx, {len(graph) / 1e6:.2f} MB: accuracy {figures['accuracy']:.3f}, "
        f"macro F1 {figures['macro_f1']:.3f} on {figures['faces']} faces never seen",
        soft_wrap=True,
    )


def chip_recipe(recipe: "RecipeConfig") -> ChipRecipe:
    """Return how the chips of a recipe's network are cut live: raw pixels, normalised in the graph."""
    channels = recipe.network.channels
    return ChipRecipe(
        size=recipe.network.size,
        padding=recipe.padding,
        colour=Colour.GREY if channels == 1 else Colour.RGB,
        light=recipe.normalisation_config().light,
        mean=(0.0,) * channels,
        scale=1.0,
    )


def network_row(recipe: "RecipeConfig", classes: tuple[str, ...], n_features: int) -> NetworkRow:
    """Return what the registry would say about the network, for `visaged release make`."""
    return NetworkRow(
        name=recipe.name,
        recipe=chip_recipe(recipe),
        outputs=(
            Output(name="logits", kind="logits", dim=len(classes), classes=classes),
            Output(name="features", kind="features", dim=n_features),
        ),
        source=f"visaged train, recipe {recipe.name}",
        licence="your own",
        licence_note="Trained here; what its data allow is for you to know.",
        trained_on=", ".join(stage.data for stage in recipe.stage),
    )


def load_parts(
    folder: Path, recipe: "RecipeConfig", models: ModelStore, most: int, console: Console
) -> tuple["Samples", "Samples", "Samples"]:
    """Return what is learned from, what chooses, and what is tested on, aligned as live faces are."""
    from ..pipelines.learning.ferplus import as_samples, load_faces, tuning_part

    training, test = load_faces(folder.expanduser())
    training = training.take(np.arange(len(training)) < (most or len(training)))
    kept = models.cache_dir / "training"
    learned, tested = (
        as_samples(faces, aligned(faces, recipe, models, kept, console)) for faces in (training, test)
    )
    tune = tuning_part(training)
    return learned.take(~tune), learned.take(tune), tested


def aligned(faces: "Faces", recipe: "RecipeConfig", models: ModelStore, folder: Path, console: Console) -> U8:
    """Return the chips `(N, S, S, C)` of `faces`, kept in `folder` for the next run."""
    from ..pipelines.learning.ferplus import align_all

    size = recipe.network.size
    digest = hashlib.sha256(f"{size} {recipe.padding}".encode() + faces.pictures.tobytes()).hexdigest()[:12]
    path = folder / f"chips-{digest}.npy"
    if path.exists():
        grey: U8 = np.load(path)
    else:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("aligning", total=len(faces))
            predictor = models.weights_file(PREDICTOR)
            grey = align_all(faces, predictor, size, recipe.padding, lambda n: progress.advance(task, n))
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished.npy")
        np.save(unfinished, grey)
        unfinished.replace(path)
    return np.repeat(grey, recipe.network.channels, axis=3)


def run_stage(
    network: "Network",
    losses: "Losses",
    stage: "StageConfig",
    parts: tuple["Samples", "Samples"],
    folder: Path,
    console: Console,
) -> None:
    """Train `network`, behind its normalisation, through one stage; leave its best epoch."""
    from ..pipelines.learning.augmentation import Augmenter
    from ..pipelines.learning.plots import draw_training
    from ..pipelines.learning.trainer import Run

    learned, tune = parts
    about = msgspec.json.encode(stage).decode() + f" {len(learned)} samples"
    run = Run(network, losses, Augmenter(stage.augmentation_config()).augment, stage.training, folder, about)
    console.print(f"stage {stage.name}: {len(learned)} faces to learn from, {len(tune)} to choose by")

    def tell(epoch: "Epoch") -> None:
        console.print(
            f"  epoch {epoch.number}: loss {epoch.train_loss:.3f} → {epoch.tune_loss:.3f}, "
            f"accuracy {epoch.train_accuracy:.3f} → {epoch.tune_accuracy:.3f}, {epoch.seconds:.0f} s"
        )

    epochs = run.train(learned, tune, tell)
    draw_training(epochs, folder / "curves.png", stage.name)


def measure(graph: bytes, test: "Samples") -> dict[str, float | int]:
    """Return how good the exported graph, which takes raw pixels, is on `test`."""
    from ..kernels.fusion import probabilities
    from ..pipelines.engines.ort_engine import OrtEngine
    from ..pipelines.learning.metrics import ACCURACY, ECE, MACRO_F1

    engine = OrtEngine(graph, threads=2)
    chips = test.pictures.transpose(0, 3, 1, 2).astype(np.float32)
    logits: F32 = np.concatenate(
        [engine.infer(chips[at : at + 64])["logits"] for at in range(0, len(chips), 64)]
    )
    engine.close()
    p = probabilities(logits[None], np.ones((1, logits.shape[1]), bool))[0]
    return {
        "faces": len(test),
        "accuracy": ACCURACY(p, test.targets),
        "macro_f1": MACRO_F1(p, test.targets),
        "ece": ECE(p, test.targets),
    }


def _folders(data: list[str]) -> dict[str, Path]:
    folders = {}
    for given in data:
        name, equals, folder = given.partition("=")
        if not equals or not name or not folder:
            raise ConfigError(f"--data {given!r} is not NAME=FOLDER, as --data ferplus=~/data/ferplus")
        folders[name] = Path(folder)
    return folders
