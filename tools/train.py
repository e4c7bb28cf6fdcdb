"""`visaged train`: a recipe and its data in; a network, its curves and how good it is out."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from ..pipelines.registry import ChipRecipe, Output
from ..pipelines.registry import Network as NetworkRow

if TYPE_CHECKING:
    from ..pipelines.learning.networks import Network
    from ..pipelines.learning.recipe import RecipeConfig, StageConfig
    from ..pipelines.learning.samples import Samples
    from ..pipelines.learning.trainer import Epoch, Watch
    from .training_data import Loader, Parts

F32 = npt.NDArray[np.float32]

LOG_EVERY_S = 60.0  # a line within an epoch, where there is no terminal for a bar


def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a TOML file.")],
    data: Annotated[
        list[str],
        typer.Option(help="Where data are: NAME=FOLDER of FER+, or NAME=TASK.toml; may be repeated."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, curves and the network.")],
    until: Annotated[str, typer.Option(help="Stop after this stage; later ones need no data.")] = "",
    most: Annotated[int, typer.Option(min=0, help="Learn from at most so many faces a stage; 0: all.")] = 0,
    synthetic: Annotated[
        float,
        typer.Option(min=0, max=1, help="Synthetic faces to try for each real one; see docs/learning.md."),
    ] = 0.0,
    config: Annotated[Path | None, typer.Option(help="The TOML file; only its folders count.")] = None,
) -> None:
    """Train a network as a recipe says, stage by stage, and measure it on faces it never saw.

    A tenth of the training faces chooses the epoch and the temperature, unless a task has a part `tune`.
    After Ctrl-C the same command goes on where the last epoch ended; a stage that is done is not repeated.
    The folder then holds NAME.onnx, with normalisation and temperature inside, NAME.json with the
    figures, and for each stage curves.json and curves.png.

    Examples (the recipes are in pipelines/learning/recipes):
      visaged train emotion-vgg13.toml --data ferplus=~/data/ferplus --out vgg13

      visaged train three-stage.toml --data ferplus=~/data/ferplus --data site=moods.toml --out site

      visaged train three-stage.toml --data ferplus=~/data/ferplus --until ferplus --most 3000 --out site
    """
    from ..pipelines.learning.recipe import read_recipe
    from .training_data import Loader

    wanted, paths, console = read_recipe(recipe), _paths(data), Console()
    stages = wanted.stages_until(until)
    for index, stage in enumerate(stages):
        if stage.data not in paths:
            before = f", or stop before it with --until {stages[index - 1].name}" if index else ""
            raise ConfigError(
                f"the stage {stage.name!r} of {recipe} needs data called {stage.data!r}; "
                f"say --data {stage.data}=FOLDER_OR_TASK{before}"
            )
    folders = find_config(config).paths
    loader = Loader(wanted, ModelStore(folders.cache, folders.wheels), console, most, synthetic)
    try:
        learn(loader, [(stage, paths[stage.data]) for stage in stages], out)
    except KeyboardInterrupt:
        console.print(
            f"interrupted: the same command goes on after the last whole epoch in {out}",
            soft_wrap=True,
            highlight=False,
        )
        raise


def learn(loader: "Loader", stages: "Sequence[tuple[StageConfig, Path]]", out: Path) -> None:
    """Run `stages`, each with where its data are; leave the network, its curves and figures in `out`."""
    from ..pipelines.learning.exporter import export, halve_weights
    from ..pipelines.learning.metrics import fit_temperature
    from ..pipelines.learning.networks import build_network, summary
    from ..pipelines.learning.normalisation import Normalisation, NormalisedNetwork
    from ..pipelines.learning.samples import check_classes
    from ..pipelines.learning.trainer import infer, score

    recipe, console = loader.recipe, loader.console
    first, first_path = stages[0]
    classes, chip = loader.classes_of(first_path), recipe.chip_recipe()
    for _, path in stages[1:]:
        check_classes(loader.classes_of(path), classes)
    network = build_network(recipe.network, len(classes), seed=first.training.seed, trunk=loader.trunk())
    layers = summary(network, (len(chip.mean), chip.size, chip.size))
    n_parameters, n_macs = (sum(getattr(row, what) for row in layers) for what in ("parameters", "macs"))
    console.print(
        f"{recipe.name}: {n_parameters / 1e6:.2f} M parameters, {n_macs / 1e6:.0f} M multiplications"
    )
    parts = {first_path: loader.load(first_path, classes)}
    normalisation = Normalisation.fit(recipe.normalisation_config(), parts[first_path].train.pictures)
    whole: Network = NormalisedNetwork(normalisation, network)  # type: ignore[assignment]
    before: dict[str, float] = {}
    for index, (stage, path) in enumerate(stages):
        if path not in parts:
            parts[path] = loader.load(path, classes)
        here = parts[path]
        if index and path != stages[index - 1][1]:
            _, before[stage.name] = score(whole, here.test)
            console.print(
                f"stage {stage.name}: accuracy before it {before[stage.name]:.3f} "
                f"on {len(here.test)} faces never seen"
            )
        run_stage(whole, stage, here, out / stage.name, console)
    temperature = fit_temperature(infer(whole, here.tune), here.tune.targets)
    graph = halve_weights(export(network, normalisation, chip, temperature))
    write_atomically(out / f"{recipe.name}.onnx", graph)
    figures = measure(graph, chip, here.test)
    card = {
        "network": network_row(recipe, chip, classes, network.last.in_features),
        "recipe": recipe,
        "stages": [stage.name for stage, _ in stages],
        "parameters": n_parameters,
        "macs": n_macs,
        "temperature": temperature,
        "accuracy_before": before,
    } | figures
    write_atomically(out / f"{recipe.name}.json", msgspec.json.format(msgspec.json.encode(card)))
    console.print(
        f"{out / recipe.name}.onnx, {len(graph) / 1e6:.2f} MB: accuracy {figures['accuracy']:.3f}, "
        f"macro F1 {figures['macro_f1']:.3f} on {figures['faces']} faces never seen",
        soft_wrap=True,
    )


def network_row(
    recipe: "RecipeConfig", chip: ChipRecipe, classes: tuple[str, ...], n_features: int
) -> NetworkRow:
    """Return what the registry would say about the network, for `visaged release make`."""
    return NetworkRow(
        name=recipe.name,
        recipe=chip,
        outputs=(
            Output(name="logits", kind="logits", dim=len(classes), classes=classes),
            Output(name="features", kind="features", dim=n_features),
        ),
        source=f"visaged train, recipe {recipe.name}",
        licence="your own",
        licence_note="Trained here; what its data allow is for you to know.",
        trained_on=", ".join(stage.data for stage in recipe.stage),
    )


def run_stage(
    network: "Network", stage: "StageConfig", parts: "Parts", folder: Path, console: Console
) -> None:
    """Train `network`, behind its normalisation, through one stage; leave its best epoch.

    Raises:
        ConfigError: too few faces for a batch.
    """
    from ..pipelines.learning.augmentation import AugmentationConfig, Augmenter
    from ..pipelines.learning.losses import WeightedLosses
    from ..pipelines.learning.plots import draw_training
    from ..pipelines.learning.trainer import Run

    train, tune = parts.train, parts.tune
    if len(train) // math.ceil(len(train) / stage.training.batch) < 2:
        raise ConfigError(
            f"the stage {stage.name!r} would learn from {len(train)} faces in batches of "
            f"{stage.training.batch}, some of one face only; add faces or change the batch"
        )
    losses = WeightedLosses(
        stage.loss,
        n_classes=len(train.classes),
        n_features=network.last.in_features,
        counts=train.targets.sum(axis=0).tolist(),
    )
    about = msgspec.json.encode(stage).decode() + f" {len(train)} samples"
    augmentation = stage.augmentation_config()
    augment = None if augmentation == AugmentationConfig() else Augmenter(augmentation).augment
    run = Run(network, losses, augment, stage.training, folder, about)
    console.print(f"stage {stage.name}: {len(train)} faces to learn from, {len(tune)} to choose by")

    def tell(epoch: "Epoch") -> None:
        console.print(
            f"  epoch {epoch.number}: loss {epoch.train_loss:.3f} → {epoch.tune_loss:.3f}, "
            f"accuracy {epoch.train_accuracy:.3f} → {epoch.tune_accuracy:.3f}, {epoch.seconds:.0f} s"
        )

    with watching(console) as watch:
        epochs = run.train(train, tune, tell, watch)
    draw_training(epochs, folder / "curves.png", stage.name)


@contextmanager
def watching(console: Console) -> "Iterator[Watch]":
    """Show how far an epoch is, and its loss so far: as a bar, or as a line a minute in a log."""
    if not console.is_terminal:
        yield _logged(console)
        return
    columns = (
        *(TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()),
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=None, loss="")
        shown = ""

        def watch(what: str, done: int, total: int, loss: float) -> None:
            nonlocal shown
            if what != shown:  # the time that is left is that of this pass
                progress.reset(bar)
                shown = what
            progress.update(bar, description=what, completed=done, total=total, loss=_loss(loss))

        yield watch


def _logged(console: Console) -> "Watch":
    last = time.monotonic()

    def watch(what: str, done: int, total: int, loss: float) -> None:
        nonlocal last
        if time.monotonic() - last > LOG_EVERY_S:
            last = time.monotonic()
            console.print(f"  {what}: {done} of {total} {_loss(loss)}", highlight=False)

    return watch


def _loss(loss: float) -> str:
    return "" if math.isnan(loss) else f"loss {loss:.3f}"


def measure(graph: bytes, recipe: ChipRecipe, test: "Samples") -> dict[str, float | int]:
    """Return how good the exported graph, which takes chips of `recipe`, is on `test`."""
    from ..kernels.fusion import probabilities
    from ..pipelines.engines.ort_engine import OrtEngine
    from ..pipelines.learning.metrics import ACCURACY, ECE, MACRO_F1
    from ..pipelines.learning.samples import require_real

    require_real(test, "hold-out")
    engine = OrtEngine(graph, threads=2)
    rows = []
    for at in range(0, len(test), 64):
        pixels = test.pictures[at : at + 64].transpose(0, 3, 1, 2).astype(np.float32)
        chips = (pixels - np.array(recipe.mean, np.float32)[:, None, None]) * np.float32(1 / recipe.scale)
        rows.append(engine.infer(chips)["logits"])
    logits: F32 = np.concatenate(rows)
    engine.close()
    p = probabilities(logits[None], np.ones((1, logits.shape[1]), bool))[0]
    return {
        "faces": len(test),
        "accuracy": ACCURACY(p, test.targets),
        "macro_f1": MACRO_F1(p, test.targets),
        "ece": ECE(p, test.targets),
    }


def _paths(data: list[str]) -> dict[str, Path]:
    paths = {}
    for given in data:
        name, equals, path = given.partition("=")
        if not equals or not name or not path:
            raise ConfigError(
                f"--data {given!r} is not NAME=FOLDER or NAME=TASK.toml, as --data ferplus=~/data/ferplus"
            )
        paths[name] = Path(path).expanduser()
    return paths
