"""`visaged clock`: by what time things grow old, and whether the wall clock is believed."""

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from ..daemon.outline import find_outline
from ..pipelines.errors import VisagedError
from ..pipelines.privacy.audit import note
from ..pipelines.privacy.wall_clock import WallClock


def clock(
    believe: Annotated[
        bool, typer.Option("--believe", help="Say that the wall clock is right; look at it first.")
    ] = False,
    config: Annotated[Path | None, typer.Option("--config", help="The TOML file.")] = None,
    state: Annotated[
        Path | None, typer.Option("--state", help="State folder, if not the configured.")
    ] = None,
) -> None:
    """Show by what time samples, receipts, audit log and strangers grow old.

    A wall clock that jumps, or is ahead by more than four days when the machine starts, is not believed:
    ages go on by the time that the machine is on. It is believed again when the kernel says that it is
    synchronised, when it is set to what it may be, or when you say with --believe that it is right.

    Examples:
      visaged clock
      sudo -u visaged visaged clock --believe
    """
    state = state or find_outline(config).paths.state
    if state.exists() and not os.access(state, os.R_OK | os.X_OK):
        raise VisagedError(f"{state} is closed to this user; run this as root, or as the user of the daemon")
    known = WallClock(state)
    step_s = known.step_s()
    typer.echo(f"wall clock: {_shown(time.time())}, {'' if known.is_synchronised else 'not '}synchronised")
    if not step_s:
        typer.echo("it is believed: ages are counted by it")
        return
    typer.echo(
        f"it jumped by {step_s:+.0f} s and is not believed: ages are counted as at {_shown(known.now())}"
    )
    if not believe:
        typer.echo("where it is right:  visaged clock --believe")
        return
    try:
        known.give_word()
    except OSError as error:
        raise VisagedError(f"{state} cannot be written ({error.strerror}); run this as root") from error
    note(state, "clock believed", detail=f"{_shown(time.time())}, {step_s:+.0f} s")
    typer.echo("the daemon believes it from now on, or when it is started before the next boot")


def _shown(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
