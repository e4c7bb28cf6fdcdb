"""`visaged release rebuild`: a release again, without the samples of people who were forgotten since."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..daemon.config import Config, find_config
from ..daemon.step_back import step_back
from ..pipelines.loop.rebuild import Left, Remains, relearn, remains_of
from ..pipelines.loop.report import Report
from ..pipelines.loop.sample_store import SampleStore
from ..pipelines.model_store import ModelStore
from ..pipelines.privacy.audit import note
from .counted import counted
from .learn import show_report, teller


def rebuild(
    release: Annotated[str, typer.Argument(help="First digits of its id.")],
    config: Annotated[Path | None, typer.Option(help="The TOML file.")] = None,
) -> None:
    """Learn a release again without the samples of people who were forgotten since.

    It begins with the nearest release before it that never saw them (`factory` if there is none), and learns
    from the samples that are left of those that it learned from. What comes out is a candidate like any
    other. Where too little is left, the release before is the answer, and it says so.

    Example:
      visaged release rebuild 3fa2c1
    """
    settings, console = find_config(config), Console(highlight=False, soft_wrap=True)
    state = settings.paths.state
    with SampleStore(state, settings.samples) as store:
        remains = remains_of(release, state, store)
    console.print(str(remains))
    report = _learn(remains, settings) if remains.left else None
    if report is not None:
        show_report(report, console)
    if report is None or not report.release:
        why = "too little is left to learn from" if report is not None else "nothing is left to learn from"
        console.print(f"{why}: {remains.parent} is the answer; {_next(remains, remains.parent)}")
        return
    note(state, "release rebuilt", detail=f"{remains.release} as {report.release}")
    console.print(f"rebuilt {remains.release} as {report.release}; {_next(remains, report.release)}")


def _learn(remains: Remains, settings: Config) -> Report | None:
    from ..pipelines.loop.learner import champion_of, learn  # torch, an extra

    step_back(is_batch=True)
    state = settings.paths.state
    models = ModelStore(settings.paths.cache, settings.paths.wheels)
    champion = champion_of(remains.configs(settings.stages), state, models)
    with counted() as progress:
        tell = teller(progress)

        def round_of(left: Left) -> Report | None:
            return learn(champion, left, state, settings.learning, tell)

        return relearn(remains, state, settings.samples, round_of)


def _next(remains: Remains, release: str) -> str:
    """Return what is to be done with the answer."""
    old = remains.release
    return f"`visaged release promote {release}` if {old} serves, then `visaged release remove {old}`"
