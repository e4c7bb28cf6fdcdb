"""`visaged learn identity`: the distance that should name a face at this site, and what speaks for it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..daemon.config import Config, find_config
from ..pipelines.identity.gallery import Gallery
from ..pipelines.identity.threshold import MIN_GENUINE, MIN_IMPOSTOR, Said, distances_of, errors_at, suggest
from ..pipelines.loop.sample import State
from ..pipelines.loop.sample_store import SampleStore, Wanted


def identity(config: Annotated[Path | None, typer.Option("--config", help="The TOML file.")] = None) -> None:
    """Suggest [identity] known_distance from the gallery and from what people said of samples.

    Faces are compared one by one; the daemon averages several of a track and is better than these figures.
    Nothing is changed: the networks never, and the configuration only by you.

    Example:
      visaged learn identity
    """
    settings, console = find_config(config), Console(highlight=False)
    with (
        Gallery(settings.paths.state) as gallery,
        SampleStore(settings.paths.state, settings.samples) as store,
    ):
        space = space_of(settings)
        distances = distances_of(gallery.templates(space), said_of(store, gallery, space))
    current = errors_at(distances, settings.identity.known_distance)
    found = suggest(distances)
    if found is None:
        console.print(
            f"{len(distances.genuine)} faces beside others of the same person and {len(distances.impostor)} "
            f"beside other people's are too few to say more ({MIN_GENUINE} and {MIN_IMPOSTOR} are needed): "
            f"keep known_distance = {settings.identity.known_distance:g}, enrol and flag more",
            soft_wrap=True,
        )
        return
    table = Table("known_distance", "", "not named", "given another's name", box=None)
    for errors, what in ((current, "configured"), (found, "suggested")):
        table.add_row(f"{errors.threshold:g}", what, str(errors.unnamed), str(errors.misnamed))
    console.print(table)
    console.print(
        "(intervals of 95 %, one face at a time; looks of one track are alike, so they are too narrow)"
    )


def said_of(store: SampleStore, gallery: Gallery, space: str) -> Iterator[Said]:
    """Yield the faces of one space of which people said who they are or are not, with listed names."""
    for sample in store.samples(Wanted(states=(State.CORRECTED, State.CONFIRMED), is_face=True)):
        label = sample.label
        if sample.space == space and (label.person or label.not_people):
            embedding = store.face(sample.id).embedding
            if embedding is not None:
                who = gallery.name_of(label.person) if label.person else ""
                yield Said(embedding, who, tuple(map(gallery.name_of, label.not_people)))


def space_of(settings: Config) -> str:
    """Return the embedding space of the release that is configured."""
    from ..pipelines.assembly import choose_release
    from ..pipelines.model_store import ModelStore

    models = ModelStore(settings.paths.cache, settings.paths.wheels)
    configs, models, _ = choose_release(settings.stages, settings.paths.state, models)
    rows = [models.row(name) for name in configs.ensemble.members]
    return next(row.name for row in rows for o in getattr(row, "outputs", ()) if o.kind == "embedding")
