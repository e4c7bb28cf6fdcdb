"""How a command reaches the daemon: here through its runtime folder, or on another machine with a key."""

from pathlib import Path
from typing import Annotated

import typer

from ..daemon.control import ControlClient
from ..daemon.keys import read_client

EndpointOption = Annotated[
    str, typer.Option(help="A daemon on another machine, as tcp://HOST:PORT; needs --key.")
]
KeyOption = Annotated[
    Path | None, typer.Option(help="The file that `visaged keys add` made there for this client.")
]


def connect(runtime: Path, endpoint: str, key: Path | None) -> ControlClient:
    """Return a client of the daemon at `endpoint`, or of that in `runtime` when there is none given.

    Raises:
        ConfigError: the key cannot be read, or others can read it.
    """
    if not endpoint:
        return ControlClient(runtime)
    if key is None:
        raise typer.BadParameter("--endpoint needs --key FILE; `visaged keys add` on that machine makes one")
    return ControlClient(endpoint, read_client(key))
