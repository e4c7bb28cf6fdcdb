"""`visaged run`: check everything that can be checked, then become the supervisor."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from ..daemon import toml_file
from ..daemon.config import Config, load_config
from ..daemon.outline import prepare_folder, require_cameras
from ..daemon.process_table import command
from ..pipelines.errors import ConfigError
from ..pipelines.model_store import ModelStore


def run(
    config: Annotated[
        Path | None,
        typer.Option(help="The TOML file. Else VISAGED_CONFIG, ./visaged.toml, /etc/visaged/visaged.toml."),
    ] = None,
) -> None:
    """Run the daemon: one process per camera and one that looks at the faces.

    Runs until Ctrl-C or SIGTERM, or until every camera that is a file has ended. A process that dies is
    started again alone; one that dies again and again ends everything with exit code 1. A wrong
    configuration is exit code 78: correct the file that the message names, restarting does not help.

    Examples:
      visaged run
      visaged run --config /etc/visaged/visaged.toml
    """
    file = toml_file.find_file(config)
    if file is None:
        searched = ", ".join(str(path) for path in toml_file.SEARCHED)
        raise ConfigError(
            f"no configuration file: looked for {searched}; name one with --config, "
            f"docs/configuration.md shows the smallest one"
        )
    settings = load_config(file)
    require_cameras(settings, file)
    prepare_folder(settings.paths.runtime, "runtime")
    import_networks(settings)
    line = command("supervisor", file)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(line[0], line)  # the supervisor stays small: nothing imported here is carried along


def import_networks(config: Config) -> None:
    """Import the networks that `config` needs and the cache lacks; on a terminal with a bar.

    Raises:
        ModelError: weights are missing or corrupt, or there is no room.
    """
    store = ModelStore(config.paths.cache, config.paths.wheels)
    names = [*config.ensemble.members, *(["mmod"] if config.detector.kind == "mmod" else [])]
    missing = [name for name in names if store.cached(name) is None]
    if not missing:
        return
    console = Console(stderr=True)
    console.print(f"importing {len(missing)} networks into {config.paths.cache}, once", soft_wrap=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        tasks = {name: progress.add_task(name, total=1.0) for name in missing}
        for name in missing:
            store.ensure(name, lambda name, fraction: progress.update(tasks[name], completed=fraction))
