"""`visaged train`: a recipe and its data in; a network, its curves and how good it is out."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    from ..pipelines.learning.losses import WeightedLosses
    from ..pipelines.learning.networks import Network
    from ..pipelines.learning.recipe import RecipeConfig, StageConfig
    from ..pipelines.learning.samples import Samples
    from ..pipelines.learning.trainer import Epoch, Judge, Watch
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
    seed: Annotated[int | None, typer.Option(help="In place of the recipe's, in all stages.")] = None,
    normalisation: Annotated[str, typer.Option(help="A preset in place of the recipe's.")] = "",
    config: Annotated[Path | None, typer.Option(help="The TOML file; only its folders count.")] = None,
) -> None:
    """Train a network as a recipe says, stage by stage, and measure it on faces it never saw.

    A tenth of the training faces chooses the epoch and the temperature, unless a task has a part `tune`.
    A task of people (output = "embedding") gives a network that tells people apart.
    After Ctrl-C the same command goes on where the last epoch ended; a stage that is done is not repeated.
    The folder then holds NAME.onnx, with normalisation and temperature inside, NAME.json with the
    figures, and for each stage curves.json and curves.png.

    Examples (the recipes are in pipelines/learning/recipes):
      visaged train emotion-vgg13.toml --data ferplus=~/data/ferplus --out vgg13

      visaged train three-stage.toml --data ferplus=~/data/ferplus --data site=moods.toml --out site

      visaged train three-stage.toml --data ferplus=~/data/ferplus --until ferplus --most 3000 --out site

      visaged train loss-trial.toml --data ferplus=~/data/ferplus --seed 2 --normalisation gcn --out trial
    """
    from ..pipelines.learning.recipe import read_recipe
    from .train_embedding import learn_embedding
    from .training_data import Loader

    wanted, paths, console = read_recipe(recipe).varied(seed, normalisation), _paths(data), Console()
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
    with_data = [(stage, paths[stage.data]) for stage in stages]
    teach = learn if loader.output_of([path for _, path in with_data]) == "label" else learn_embedding
    try:
        teach(loader, with_data, out)
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
    from ..pipelines.learning.networks import build_network
    from ..pipelines.learning.normalisation import Normalisation, NormalisedNetwork
    from ..pipelines.learning.samples import check_classes
    from ..pipelines.learning.trainer import infer, score

    recipe, console = loader.recipe, loader.console
    first, first_path = stages[0]
    classes, chip = loader.classes_of(first_path), recipe.chip_recipe()
    for _, path in stages[1:]:
        check_classes(loader.classes_of(path), classes)
    network = build_network(recipe.network, len(classes), seed=first.training.seed, trunk=loader.trunk())
    size = size_of(network, chip)
    console.print(f"{recipe.name}: {shown(size)}")
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
        run_stage(whole, stage, towards_labels(whole, stage, here), out / stage.name, console)
    temperature = fit_temperature(infer(whole, here.tune), here.tune.targets)
    graph = halve_weights(export(network, normalisation, chip, temperature))
    write_atomically(out / f"{recipe.name}.onnx", graph)
    figures = measure(graph, chip, here.test)
    card = {
        "network": network_row(recipe, chip, *outputs_of(classes, network.last.in_features)),
        "recipe": recipe,
        "stages": [stage.name for stage, _ in stages],
        "temperature": temperature,
        "accuracy_before": before,
    }
    write_card(out / f"{recipe.name}.json", card | size | figures)
    console.print(
        f"{out / recipe.name}.onnx, {len(graph) / 1e6:.2f} MB: accuracy {figures['accuracy']:.3f}, "
        f"macro F1 {figures['macro_f1']:.3f} on {figures['faces']} faces never seen",
        soft_wrap=True,
    )


def outputs_of(classes: tuple[str, ...], n_features: int) -> tuple[Output, Output]:
    """Return what a network of `classes` gives."""
    return (
        Output(name="logits", kind="logits", dim=len(classes), classes=classes),
        Output(name="features", kind="features", dim=n_features),
    )


def network_row(recipe: "RecipeConfig", chip: ChipRecipe, *outputs: Output) -> NetworkRow:
    """Return what the registry would say about the network, for `visaged release make`."""
    return NetworkRow(
        name=recipe.name,
        recipe=chip,
        outputs=outputs,
        source=f"visaged train, recipe {recipe.name}",
        licence="your own",
        licence_note="Trained here; what its data allow is for you to know.",
        trained_on=", ".join(stage.data for stage in recipe.stage),
    )


def size_of(network: "Network", chip: ChipRecipe) -> dict[str, int]:
    """Return how many parameters a network has, and multiplications (`macs`) a face costs."""
    from ..pipelines.learning.networks import summary

    layers = summary(network, (len(chip.mean), chip.size, chip.size))
    return {
        "parameters": sum(row.parameters for row in layers),
        "macs": sum(row.macs for row in layers),
    }


def shown(size: dict[str, int]) -> str:
    """Return the size of a network, for people."""
    return f"{size['parameters'] / 1e6:.2f} M parameters, {size['macs'] / 1e6:.0f} M multiplications"


def write_card(path: Path, card: dict[str, Any]) -> None:
    """Write what is known about a network beside it."""
    write_atomically(path, msgspec.json.format(msgspec.json.encode(card)))


@dataclass(frozen=True, slots=True)
class Teaching:
    """What a stage learns from, what it minimises, what chooses the epoch, and how these are shown."""

    parts: "Parts"
    losses: "WeightedLosses"
    judge: "Judge"
    line: Callable[["Epoch"], str]
    draw: Callable[[Sequence["Epoch"], Path, str], Path]


def towards_labels(network: "Network", stage: "StageConfig", parts: "Parts") -> Teaching:
    """Return how a stage learns classes."""
    from ..pipelines.learning.losses import WeightedLosses
    from ..pipelines.learning.plots import draw_training
    from ..pipelines.learning.trainer import judge_labels

    train = parts.train
    losses = WeightedLosses(
        stage.loss,
        n_classes=len(train.classes),
        n_features=network.last.in_features,
        counts=train.targets.sum(axis=0).tolist(),
    )

    def line(epoch: "Epoch") -> str:
        return (
            f"loss {epoch.train_loss:.3f} → {epoch.tune_loss:.3f}, "
            f"accuracy {epoch.train_accuracy:.3f} → {epoch.tune_accuracy:.3f}"
        )

    return Teaching(parts, losses, judge_labels, line, draw_training)


def run_stage(
    network: "Network", stage: "StageConfig", teaching: Teaching, folder: Path, console: Console
) -> None:
    """Train `network`, behind its normalisation, through one stage; leave its best epoch.

    Raises:
        ConfigError: too few faces for a batch.
    """
    from ..pipelines.learning.augmentation import AugmentationConfig, Augmenter
    from ..pipelines.learning.trainer import Run

    train, tune = teaching.parts.train, teaching.parts.tune
    if len(train) // math.ceil(len(train) / stage.training.batch) < 2:
        raise ConfigError(
            f"the stage {stage.name!r} would learn from {len(train)} faces in batches of "
            f"{stage.training.batch}, some of one face only; add faces or change the batch"
        )
    about = msgspec.json.encode(stage).decode() + f" {len(train)} samples"
    augmentation = stage.augmentation_config()
    augment = None if augmentation == AugmentationConfig() else Augmenter(augmentation).augment
    run = Run(network, teaching.losses, augment, stage.training, folder, about, teaching.judge)
    console.print(f"stage {stage.name}: {len(train)} faces to learn from, {len(tune)} to choose by")

    def tell(epoch: "Epoch") -> None:
        console.print(f"  epoch {epoch.number}: {teaching.line(epoch)}, {epoch.seconds:.0f} s")

    with watching(console) as watch:
        epochs = run.train(train, tune, tell, watch)
    teaching.draw(epochs, folder / "curves.png", stage.name)


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
    from ..pipelines.learning.metrics import ACCURACY, ECE, MACRO_F1

    logits = run_graph(graph, recipe, test, "logits")
    p = probabilities(logits[None], np.ones((1, logits.shape[1]), bool))[0]
    return {
        "faces": len(test),
        "accuracy": ACCURACY(p, test.targets),
        "macro_f1": MACRO_F1(p, test.targets),
        "ece": ECE(p, test.targets),
    }


def run_graph(graph: bytes, recipe: ChipRecipe, test: "Samples", output: str) -> F32:
    """Return what the exported graph, which takes chips of `recipe`, says about `test`."""
    from ..pipelines.engines.ort_engine import OrtEngine
    from ..pipelines.learning.samples import require_real

    require_real(test, "hold-out")
    engine = OrtEngine(graph, threads=2)
    rows = []
    for at in range(0, len(test), 64):
        pixels = test.pictures[at : at + 64].transpose(0, 3, 1, 2).astype(np.float32)
        chips = (pixels - np.array(recipe.mean, np.float32)[:, None, None]) * np.float32(1 / recipe.scale)
        rows.append(engine.infer(chips)[output])
    engine.close()
    said: F32 = np.concatenate(rows)
    return said


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
