"""A task of people into a network that tells people apart: the part of `visaged train` for embeddings."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..pipelines.cache_files import write_atomically
from ..pipelines.learning.verification import Pairs, accuracy_at, equal_error_rate, pairs_of, true_accepts
from ..pipelines.registry import SAME_PERSON, Output
from .train import Teaching, network_row, run_graph, run_stage, shown, size_of, write_card

if TYPE_CHECKING:
    from ..pipelines.learning.networks import Network
    from ..pipelines.learning.recipe import StageConfig
    from ..pipelines.learning.trainer import Epoch
    from .training_data import Loader, Parts


def learn_embedding(loader: "Loader", stages: "Sequence[tuple[StageConfig, Path]]", out: Path) -> None:
    """Run `stages`, each with where its people are; leave the embedder, its curves and figures in `out`."""
    from ..pipelines.learning.embedder import PairJudge, make_embedder
    from ..pipelines.learning.exporter import export_embedder, halve_weights
    from ..pipelines.learning.networks import build_network
    from ..pipelines.learning.normalisation import Normalisation, NormalisedNetwork
    from ..pipelines.learning.trainer import ask

    recipe, console, chip = loader.recipe, loader.console, loader.recipe.chip_recipe()
    network = build_network(recipe.network, 2, seed=stages[0][0].training.seed, trunk=loader.trunk())
    make_embedder(network)
    size = size_of(network, chip)
    console.print(f"{recipe.name}: {shown(size)}")
    parts = {path: loader.load_as_they_are(path) for path in dict.fromkeys(path for _, path in stages)}
    judges = {path: PairJudge.of(part.tune) for path, part in parts.items()}
    last = stages[-1][1]
    here, pairs = parts[last], pairs_of(parts[last].test.groups, "test")  # before hours are spent
    normalisation = Normalisation.fit(recipe.normalisation_config(), parts[stages[0][1]].train.pictures)
    whole: Network = NormalisedNetwork(normalisation, network)  # type: ignore[assignment]
    for stage, path in stages:
        teaching = towards_people(network, stage, parts[path], judges[path])
        run_stage(whole, stage, teaching, out / stage.name, console)
    threshold = judges[last].threshold(ask(whole, here.tune))
    graph = halve_weights(export_embedder(network, normalisation, chip, SAME_PERSON / threshold))
    write_atomically(out / f"{recipe.name}.onnx", graph)
    figures = measure_pairs(graph, loader, here, pairs)
    output = Output(name="embedding", kind="embedding", dim=network.last.in_features)
    card: dict[str, Any] = {
        "network": network_row(recipe, chip, output),
        "recipe": recipe,
        "stages": [stage.name for stage, _ in stages],
    }
    write_card(out / f"{recipe.name}.json", card | size | figures)
    console.print(
        f"{out / recipe.name}.onnx, {len(graph) / 1e6:.2f} MB: accuracy {figures['accuracy']:.3f}, "
        f"equal error rate {figures['equal_error_rate']:.3f} on {len(pairs)} pairs of "
        f"{figures['people']} people never seen",
        soft_wrap=True,
    )


def towards_people(network: "Network", stage: "StageConfig", parts: "Parts", judge: Any) -> Teaching:
    """Return how a stage learns to tell people apart; `network` gets a last layer for those of its data."""
    from ..pipelines.learning.embedder import know_people
    from ..pipelines.learning.plots import draw_verification

    losses = know_people(network, stage.loss, parts.train.targets.sum(axis=0).tolist())

    def line(epoch: "Epoch") -> str:
        return (
            f"loss {epoch.train_loss:.3f}, accuracy {epoch.train_accuracy:.3f}; "
            f"pairs {epoch.tune_accuracy:.3f}, EER {epoch.tune_loss:.3f}"
        )

    return Teaching(parts, losses, judge, line, draw_verification)


def measure_pairs(graph: bytes, loader: "Loader", parts: "Parts", pairs: Pairs) -> dict[str, float | int]:
    """Return how well the exported embedder decides `pairs` of the test part."""
    embeddings = run_graph(graph, loader.recipe.chip_recipe(), parts.test, "embedding")
    distances = pairs.distances(embeddings)
    return {
        "people": len(parts.test.classes),
        "pairs": len(pairs),
        "accuracy": accuracy_at(distances, pairs.same, SAME_PERSON),
        "equal_error_rate": equal_error_rate(distances, pairs.same),
        "true_accepts_at_1_percent": true_accepts(distances, pairs.same),
    }
