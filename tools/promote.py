"""`visaged release promote | rollback | bless | pardon`: bring releases into service and take them back."""

import time
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from ..daemon.config import find_config
from ..daemon.control import ControlClient, Promote, RollBack, Status
from ..daemon.outline import find_outline
from ..pipelines.errors import ReleaseError
from ..pipelines.releases.promotion import PromotionJournal
from ..pipelines.releases.release import FACTORY
from ..pipelines.releases.release_store import ReleaseStore

ConfigOption = Annotated[Path | None, typer.Option(help="The TOML file.")]
WhyOption = Annotated[str, typer.Option(help="What to write into the journal.")]
Skippable = Literal["gates", "shadow", "canary"]

LOAD_S = 900.0  # plans of a GPU may have to be built first
ASK_S = 0.1


def promote(
    release: Annotated[str, typer.Argument(help="First digits of its id, or 'factory'.")],
    skip_gates: Annotated[bool, typer.Option("--skip-gates", help="Answer for it yourself.")] = False,
    skip_shadow: Annotated[bool, typer.Option("--skip-shadow", help="Let it answer at once.")] = False,
    skip_canary: Annotated[bool, typer.Option("--skip-canary", help="For all tracks at once.")] = False,
    despite_erasure: Annotated[
        bool, typer.Option("--despite-erasure", help="Although it learned from people forgotten since.")
    ] = False,
    why: WhyOption = "",
    config: ConfigOption = None,
) -> None:
    """Bring a release into service in the running daemon, stage by stage; no frame is lost.

    It has passed `visaged release gates`. Its plans are built where they are missing; then it is loaded
    beside the one that serves. In shadow it answers nobody, as a canary it answers for a growing share of
    the tracks, then for all, on probation. A failure, a slowdown or other answers roll it back by
    themselves. `visaged status` shows how far it is.

    Examples:
      visaged release promote 3fa2c1
      visaged release promote 3fa2c1 --skip-shadow --skip-canary --why "the same as on the other box"
    """
    asked: dict[Skippable, bool] = {"gates": skip_gates, "shadow": skip_shadow, "canary": skip_canary}
    console = Console()
    with ControlClient(find_outline(config).paths.runtime) as control:
        skip = tuple(stage for stage, is_skipped in asked.items() if is_skipped)
        order = Promote(release=release, skip=skip, why=why, despite_erasure=despite_erasure)
        done = control.request(order)
        _wait_until_loaded(control, console)
    stage = "serves, on probation" if done["stage"] == "promote" else f"is in {done['stage']}"
    console.print(f"release {done['release']} {stage}")


def rollback(why: WhyOption = "", config: ConfigOption = None) -> None:
    """Take back the release on trial; where none is, go back to the one that served before.

    While the one before is loaded (until probation ends) the next batch is answered by it. What is rolled
    back is in quarantine: it cannot be promoted until `visaged release pardon`.
    """
    console = Console()
    with ControlClient(find_outline(config).paths.runtime) as control:
        done = control.request(RollBack(why=why))
        _wait_until_loaded(control, console)
        serving = control.request(Status())["release"]["running"]
    console.print(f"rolled back release {done['release']}; serving release {serving}")


def bless(
    release: Annotated[str, typer.Argument(help="First digits of its id, or 'factory'.")],
    why: WhyOption = "",
    config: ConfigOption = None,
) -> None:
    """Say that a release that serves or did is good: later ones must not be worse than it.

    Without such an anchor a little could be lost with every promotion.
    """
    settings = find_config(config)
    name = full_name(ReleaseStore(settings.paths.state), release)
    PromotionJournal(settings.paths.state).write(name, "bless", time.time(), why)
    Console().print(f"blessed release {name}")


def pardon(
    release: Annotated[str, typer.Argument(help="First digits of its id.")],
    why: WhyOption = "",
    config: ConfigOption = None,
) -> None:
    """Take a release that was rolled back out of quarantine: it is a candidate again."""
    settings = find_config(config)
    name = full_name(ReleaseStore(settings.paths.state), release)
    PromotionJournal(settings.paths.state).write(name, "pardon", time.time(), why)
    Console().print(f"release {name} is a candidate again")


def full_name(store: ReleaseStore, release: str) -> str:
    """Return a release's name in the journal.

    Raises:
        ReleaseError: no release, or several, begin so.
    """
    return release if release == FACTORY else store.get(release).release.id


def _wait_until_loaded(control: ControlClient, console: Console) -> None:
    """Wait until what was asked for is loaded.

    Raises:
        ReleaseError: it cannot be loaded; the daemon serves as before.
    """
    deadline_s = time.monotonic() + LOAD_S
    with console.status("loading") as shown:
        while time.monotonic() < deadline_s:
            promotion = control.request(Status())["promotion"]
            if promotion["failure"]:
                raise ReleaseError(promotion["failure"])
            if not promotion["loading"]:
                return
            shown.update(promotion["loading"])
            time.sleep(ASK_S)
    raise ReleaseError(f"it is not loaded after {LOAD_S:.0f} s; `visaged status` says what is going on")
