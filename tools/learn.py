"""`visaged learn`: learn from labelled samples, watch a round, make the base memory."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.live import Live
from rich.progress import Progress as Bar
from rich.progress import TaskID
from rich.table import Table

from ..daemon.automatic_promotion import standing
from ..daemon.config import Config, find_config
from ..daemon.step_back import step_back
from ..pipelines.errors import ReleaseError
from ..pipelines.loop.lesson import gather
from ..pipelines.loop.progress import Progress, read_progress
from ..pipelines.loop.report import Estimate, Report, last_candidate, last_report
from ..pipelines.loop.sample_store import SampleStore
from ..pipelines.model_store import PREDICTOR, ModelStore
from ..pipelines.releases.release_store import ReleaseStore
from .counted import counted
from .learn_identity import identity

WATCH_S = 0.5
TUNE_PER_CLASS, N_HOLD_OUT = 40, 1000

ConfigOption = Annotated[Path | None, typer.Option("--config", help="The TOML file.")]

app = typer.Typer(help="Learn from labelled samples; watch it; prepare it.")
app.command()(identity)


@app.callback(invoke_without_command=True)
def learn(
    context: typer.Context,
    now: Annotated[bool, typer.Option("--now", help="Begin a round here and now, and wait for it.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the round under way, until Ctrl-C.")] = False,
    config: ConfigOption = None,
) -> None:
    """Say how learning stands; with --now, learn from the labelled samples.

    A round ends with a candidate release and a report, or with the reason why there is none. A candidate
    serves nobody until it is promoted. A round that is interrupted goes on where it was.

    Examples:
      visaged learn
      visaged learn --now
      visaged learn --watch
    """
    if context.invoked_subcommand is not None:
        return
    settings, console = find_config(config), Console(highlight=False)
    if watch:
        follow(settings.paths.runtime, console)
    elif now:
        report = learn_now(settings, console)
        show_report(report, console)
    else:
        say_how_it_stands(settings, console)


@app.command()
def base(
    ferplus: Annotated[Path, typer.Argument(help="Folder with FER+: Training.npz and PublicTest.npz.")],
    per_class: Annotated[int, typer.Option(min=20, max=2000, help="Faces to remember of each class.")] = 200,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that run the trunk.")] = 1,
    config: ConfigOption = None,
) -> None:
    """Make the base memory: what the networks must not forget, as features of FER+ faces.

    Learning without it is held back by the site's own confident samples only. No picture is kept. It is of
    the networks that serve, and of their end parts where `[learning] end_part` lets these learn.

    Example:
      visaged learn base ~/data/ferplus
    """
    from ..pipelines.learning.ferplus import Trunk, load_faces, see, tuning_part
    from ..pipelines.learning.samples import picture_digests
    from ..pipelines.loop.learner import champion_of
    from ..pipelines.loop.replay_memory import Parts, Remembered, balanced, trunk_digest, write_base

    settings, console = find_config(config), Console(highlight=False)
    models = ModelStore(settings.paths.cache, settings.paths.wheels)
    champion = champion_of(settings.stages, settings.paths.state, models)
    pupils = champion.pupils(None, settings.learning)
    training, test = load_faces(ferplus)
    tuning, random = tuning_part(training), np.random.default_rng(0)
    learned, tuned, held_out = (
        faces.take(faces.has_majority()) for faces in (training.take(~tuning), training.take(tuning), test)
    )
    shares = learned.targets().mean(axis=0)
    chosen = {
        "train": learned.take(balanced(learned.targets(), per_class, random)),
        "tune": tuned.take(balanced(tuned.targets(), TUNE_PER_CLASS, random)),
        "hold_out": held_out.take(np.sort(random.permutation(len(held_out))[:N_HOLD_OUT])),
    }
    parts: dict[str, list[Remembered]] = {}  # of every pupil
    with tempfile.TemporaryDirectory(prefix="visaged-base-") as scratch:
        trunks = [
            Trunk(Path(scratch) / f"{pupil.name}.onnx", pupil.entry, pupil.files.row.recipe)
            for pupil in pupils
        ]
        for trunk, pupil in zip(trunks, pupils, strict=True):
            trunk.onnx.write_bytes(pupil.trunk)
        predictor, folder = models.weights_file(PREDICTOR), settings.paths.cache / "training"
        with counted() as progress:
            for name, faces in chosen.items():
                task = progress.add_task(f"faces to {name.replace('_', ' ')}", total=len(faces))
                advance: Callable[[int], None] = lambda n, task=task: progress.advance(task, n)  # type: ignore[misc]  # noqa: E731
                seen = see(faces.pictures, 1, predictor, trunks, folder, jobs=jobs, on_progress=advance)
                targets, groups = faces.targets(), np.array(picture_digests(faces.pictures))
                parts[name] = [Remembered(features[:, 0], targets, groups) for features in seen]
    of_trunk = {
        trunk_digest(pupil.trunk): Parts(**{name: seen[index] for name, seen in parts.items()})
        for index, pupil in enumerate(pupils)
    }
    written = write_base(of_trunk, shares, settings.paths.state)
    counts = ", ".join(f"{len(seen[0])} to {name.replace('_', ' ')}" for name, seen in parts.items())
    networks = ", ".join(pupil.name for pupil in pupils)
    size = f"{written.stat().st_size / 1e6:.0f} MB"
    console.print(f"wrote {written}, {size}: {counts}, as {networks} see them", soft_wrap=True)


def learn_now(settings: Config, console: Console) -> Report:
    """Return the report of a round in this process, with a bar for each of its stages."""
    from ..pipelines.loop.learner import champion_of, learn

    step_back(is_batch=True)
    models = ModelStore(settings.paths.cache, settings.paths.wheels)
    champion = champion_of(settings.stages, settings.paths.state, models)
    console.print(f"learning from release {champion.release.id}")
    with SampleStore(settings.paths.state, settings.samples) as store, counted() as progress:
        report = learn(champion, store, settings.paths.state, settings.learning, teller(progress))
    assert report is not None  # nobody stopped it
    return report


def teller(progress: Bar) -> Callable[[Progress], bool]:
    """Return what shows how far a round is, a bar for each of its stages, and never stops it."""
    tasks: dict[str, TaskID] = {}

    def tell(now: Progress) -> bool:
        what = " ".join(word for word in (now.stage, now.network, now.part) if word)
        if what not in tasks:
            tasks[what] = progress.add_task(what, total=now.n_steps or 1)
        said = what if now.loss is None else f"{what}, loss {now.loss:.3f}"
        progress.update(tasks[what], completed=now.step, total=now.n_steps or 1, description=said)
        return True

    return tell


def show_report(report: Report, console: Console) -> None:
    """Print what came of a round."""
    counts = ", ".join(f"{n} {what}" for what, n in report.counts.items())
    console.print(f"run {report.run} on release {report.parent}: {counts}", soft_wrap=True)
    console.print(f"{report.outcome}; {report.n_steps} steps, {report.seconds:.0f} s in all", soft_wrap=True)
    for network, what in report.networks.items():
        console.print(f"{network}: {what}", soft_wrap=True)
    if report.evidence:
        table = Table(
            "never learned from",
            "network",
            "metric",
            "faces",
            "groups",
            "before",
            "after",
            "change",
            box=None,
        )
        for row in report.evidence:
            values = (_text(e) for e in (row.before, row.after, row.change))
            table.add_row(row.part, row.network, row.metric, str(row.n_faces), str(row.n_groups), *values)
        console.print(table)
    if report.suspects:
        console.print(f"labels in doubt, not learned from: {' '.join(report.suspects)}", soft_wrap=True)
        console.print(
            "look again with  visaged samples show ID ; flag it anew if it is wrong", soft_wrap=True
        )
    if report.release:
        console.print(f"candidate release {report.release}", soft_wrap=True)


def say_how_it_stands(settings: Config, console: Console) -> None:
    """Print what the daemon's process does, the last round, and what waits for the next."""
    state = settings.paths.state
    progress = read_progress(settings.paths.runtime)
    is_on = "on" if settings.learning.enabled else "off ([learning] enabled)"
    console.print(f"learning by itself is {is_on}" + (f": {progress}" if progress else ""), soft_wrap=True)
    report = last_report(state / "learning")
    if report is not None:
        show_report(report, console)
    candidate = last_candidate(state / "learning")
    if candidate is not None:
        say_where(candidate.release, settings, console)
    with SampleStore(state, settings.samples) as store:
        labels = {s.id: s.label.emotion for s in gather(store) if s.label.emotion}
    known = report.labels.items() if report else ()
    console.print(
        f"{len(labels.items() - set(known))} labels are new since; `visaged learn --now` begins a round"
    )


def say_where(release: str, settings: Config, console: Console) -> None:
    """Print where the last candidate stands on its way into service."""
    try:
        said = standing(settings.paths.state, ReleaseStore(settings.paths.state).get(release)).sentence
    except ReleaseError as error:
        said = f"has no standing: {error}"
    is_on = "on" if settings.promotion.automatic else "off ([promotion] automatic)"
    console.print(f"promoting by itself is {is_on}; release {release} {said}", soft_wrap=True)


def follow(runtime: Path, console: Console) -> None:
    """Show the progress of the round under way until Ctrl-C."""
    with Live(console=console, refresh_per_second=4) as live:
        while True:
            progress = read_progress(runtime)
            live.update(str(progress) if progress else "no daemon has learned here since it began")
            time.sleep(WATCH_S)


def _text(estimate: Estimate) -> str:
    if estimate.value is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.low:.3f} .. {estimate.high:.3f})"
