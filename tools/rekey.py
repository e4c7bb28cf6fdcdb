"""`visaged rekey`: seal what is stored of people with a new key, and drop the old one."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from ..daemon.control import ControlClient, Ping
from ..daemon.outline import find_outline
from ..pipelines.errors import StoreError, VisagedError
from ..pipelines.privacy.audit import note
from ..pipelines.privacy.rekey import STORES, Rekeying

ASK_S = 1.0


def rekey(
    drop_old: Annotated[
        bool, typer.Option("--drop-old", help="Then remove the old keys from the key files.")
    ] = False,
    config: Annotated[Path | None, typer.Option("--config", help="The TOML file.")] = None,
    state: Annotated[
        Path | None, typer.Option("--state", help="State folder, if not the configured.")
    ] = None,
) -> None:
    """Give gallery and samples a new key, and seal every row again with it.

    Stop the daemon first: it holds the keys it started with, under systemd as a copy. A run that was killed
    goes on when this is called again, without another key. Backups made before open with the old keys only:
    keep those with them. As a service, run it with sudo: the links in the state folder lead to the key files.

    Examples:
      visaged rekey --drop-old
      sudo systemctl stop visaged.target; sudo visaged rekey --drop-old; sudo systemctl start visaged.target
    """
    outline = find_outline(config)
    _refuse_while_served(outline.paths.runtime)
    folder, console = state or outline.paths.state, Console(highlight=False, markup=False, soft_wrap=True)
    stores = [kind for name, kind in STORES.items() if (folder / f"{name}.db").exists()]
    if not stores:
        raise StoreError(f"{folder} holds neither gallery nor samples; nothing is sealed there")
    for kind in stores:
        store = Rekeying(kind, folder)
        try:
            if not store.is_begun():
                store.begin()
            with Progress(console=console, transient=True) as bar:
                task = bar.add_task(f"sealing {kind.name}", total=None)
                n_sealed = store.seal_rows(partial(bar.advance, task))
            n_dropped = store.drop_old() if drop_old else 0
        finally:
            store.close()
        note(folder, "rekey", detail=f"{kind.name}: {n_sealed} values, {n_dropped} old keys dropped")
        console.print(f"{kind.name}: {n_sealed} values sealed with a new key, {n_dropped} old keys dropped")


def _refuse_while_served(runtime: Path) -> None:
    """Refuse while a daemon answers, which would go on sealing with the key that is to go."""
    if not (runtime / "control.ipc").exists():
        return
    with ControlClient(runtime) as control:
        try:
            control.request(Ping(), ASK_S)
        except VisagedError:  # a socket that was left behind
            return
    raise StoreError("the daemon is running and would go on with the old key; stop it, rekey, start it")
