"""`visaged release`: put networks together into a release, list, show and remove releases."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from ..daemon.config import Config, find_config
from ..pipelines.engines.engine_loader import EngineLoader
from ..pipelines.ensemble import Ensemble, EnsembleConfig, build_ensemble
from ..pipelines.errors import MALFORMED, ConfigError, ModelError, ReleaseError
from ..pipelines.fuser import Fuser, Group
from ..pipelines.importers.halved import widen_weights
from ..pipelines.learning.combiner import How, calibrate, fit_combination
from ..pipelines.loop.lineage import marks_of
from ..pipelines.model_store import ModelStore, ModelsWith, NetworkFiles
from ..pipelines.registry import Network
from ..pipelines.releases.promotion import PromotionJournal
from ..pipelines.releases.release import Release
from ..pipelines.releases.release_store import About, ReleaseStore, member_of
from .evaluate import FUSED, ask, comparison, load
from .promote import bless, pardon, promote, rollback
from .release_gates import gates
from .release_rebuild import rebuild
from .release_show import show

ConfigOption = Annotated[Path | None, typer.Option(help="The TOML file.")]

app = typer.Typer(
    no_args_is_help=True, help="Put networks together into releases; try, promote, roll back, list, remove."
)
for command in (gates, show, promote, rollback, bless, pardon, rebuild):
    app.command()(command)


class Card(Struct, frozen=True):
    """What `visaged train` writes beside a network; more than its row does not matter here."""

    network: Network


@app.command()
def make(
    dataset: Annotated[Path, typer.Argument(help="A folder with FER+, or a task file: its tuning part.")],
    member: Annotated[
        list[str], typer.Option(help="A network by name, or an ONNX file of `visaged train`; one per option.")
    ],
    fuse: Annotated[How, typer.Option(help="How the members are combined; see below.")] = "accuracy",
    group: Annotated[
        list[str] | None,
        typer.Option(help="For committee: NAME=MEMBER,MEMBER,...; a part may be an earlier group."),
    ] = None,
    note: Annotated[str, typer.Option(help="What to remember about it.")] = "",
    config: ConfigOption = None,
) -> None:
    """Fit how networks are combined on the tuning part of a data set, and keep the whole as a release.

    sum, vote, max, product: the members' probabilities, all alike. accuracy: their mean, weighted by a power
    of each one's accuracy, the best power found. select: the members, each as often as it helps. committee:
    groups of members, and groups of groups. cascade, weighted-cascade: a classifier on their features side by
    side. Temperatures are fitted first. Nothing of the test part is looked at: see `visaged evaluate`.

    Examples:
      visaged release make ~/data/ferplus --member face-resnet --member vgg13/emotion-vgg13.onnx
      visaged release make moods.toml --member face-resnet --member emotion-xception --fuse committee
        --group grey=emotion-xception --group all=grey,face-resnet
    """
    console, settings = Console(), find_config(config)
    with tempfile.TemporaryDirectory(prefix="visaged-release-") as scratch:
        models = ModelStore(settings.paths.cache, settings.paths.wheels)
        files = {f.row.name: f for f in (read_member(word, models, Path(scratch)) for word in member)}
        if len(files) < len(member):
            raise ConfigError("two members have one name; give each network once")
        groups = groups_of(group or [], tuple(files)) if fuse == "committee" else None
        labelled = load(settings, dataset, "tune")
        ensemble = _ensemble_of(settings, ModelsWith(models, files), tuple(files))
        outputs = ask(ensemble, labelled, console)
        space = ensemble.embedding_space
        ensemble.close()
        files, outputs = calibrate(files, outputs, labelled.truth)
        fit = fit_combination(fuse, outputs, labelled.truth, groups)
        fused = Fuser(fit.fusion, fit.heads).fuse(outputs)
        said = dict(zip(outputs.names, fused.members, strict=True)) | {FUSED: fused.probabilities}
        console.print("on the tuning part, which the combination was fitted on:")
        console.print(comparison(said, labelled.truth))
        release = Release(
            members=tuple(member_of(f) for f in files.values()), fusion=fit.fusion, embedding_space=space
        )
        about = About(made_at=time.time(), data=str(dataset), note=note)
        paths = [path for f in files.values() for path in (f.onnx, f.ranges) if path]
        stored = ReleaseStore(settings.paths.state).save(release, [*paths, *fit.files], about)
    name = stored.release.id
    console.print(f"release {name}: measure it with  visaged evaluate {name} {dataset}", soft_wrap=True)


@app.command("list")
def list_releases(config: ConfigOption = None) -> None:
    """List the releases that are kept, the oldest first."""
    settings, console = find_config(config), Console()
    journal = PromotionJournal(settings.paths.state).read()
    marks = marks_of(settings.paths.state)
    table = Table("release", "state", "made", "members", "fusion", "note", box=None)
    for stored in ReleaseStore(settings.paths.state).all():
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(stored.about.made_at))
        names = ", ".join(member.network.name for member in stored.release.members)
        blessed = ", blessed" if stored.release.id == journal.blessed else ""
        erased = ", learned from erased samples" if stored.release.id in marks else ""
        state = journal.state_of(stored.release.id) + blessed + erased
        table.add_row(stored.release.id, state, made, names, str(stored.release.fusion), stored.about.note)
    console.print(table if table.row_count else "no releases; `visaged release make` makes one")


@app.command()
def remove(
    release: Annotated[str, typer.Argument(help="First digits of its id.")], config: ConfigOption = None
) -> None:
    """Delete a release, and the files that no other one needs."""
    settings = find_config(config)
    store = ReleaseStore(settings.paths.state)
    stored = store.get(release)
    if settings.ensemble.release and stored.release.id.startswith(settings.ensemble.release):
        raise ConfigError(f"[ensemble] release asks for {stored.release.id}; configure another one first")
    if stored.release.id in PromotionJournal(settings.paths.state).read().needed:
        raise ReleaseError(
            f"release {stored.release.id} may have to serve; promote or bless another one first"
        )
    store.remove(stored)
    Console().print(f"removed release {stored.release.id}")


def read_member(word: str, models: ModelStore, scratch: Path) -> NetworkFiles:
    """Return the network that a name or the path of an ONNX file stands for.

    Raises:
        ModelError: no such network, or no card of `visaged train` beside the file.
    """
    path = Path(word).expanduser()
    if path.suffix != ".onnx":
        return models.files_of(word)
    card = path.with_suffix(".json")
    try:
        row = msgspec.json.decode(card.read_bytes(), type=Card).network
        data = widen_weights(path.read_bytes()).SerializeToString()
    except (OSError, *MALFORMED) as error:
        raise ModelError(
            f"{path} and {card.name} beside it, as `visaged train` writes them, cannot be read ({error})"
        ) from error
    wide = scratch / f"{row.name}.onnx"
    wide.write_bytes(data)
    return NetworkFiles(row, wide)


def groups_of(words: Sequence[str], members: Sequence[str]) -> Group:
    """Return the committee of `--group` options; the last one is its top. None given: one group of all.

    Raises:
        ConfigError: an option is not NAME=PART,PART, or a part is neither a member nor an earlier group.
    """
    known: dict[str, Group | str] = {name: name for name in members}
    top = Group(name="all", parts=tuple(members))
    for word in words:
        name, equals, parts = word.partition("=")
        strange = [part for part in parts.split(",") if part not in known]
        if not equals or strange:
            what = f"{strange[0]!r} is none of {', '.join(known)}" if equals else "there is no ="
            raise ConfigError(f"--group {word!r} is not NAME=MEMBER,MEMBER: {what}")
        top = Group(name=name, parts=tuple(known[part] for part in parts.split(",")))
        known[name] = top
    return top


def _ensemble_of(settings: Config, models: ModelStore, names: tuple[str, ...]) -> Ensemble:
    config: EnsembleConfig = msgspec.structs.replace(settings.ensemble, members=names, release="")
    loader = EngineLoader(settings.engine, models, max_batch=config.max_batch)
    loader.build_missing(names)
    return build_ensemble(config, loader)
