"""`visaged run`: check everything that can be checked, then become the supervisor."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..daemon import toml_file
from ..daemon.config import load_config
from ..daemon.outline import prepare_folder
from ..daemon.process_table import command
from ..pipelines.errors import ConfigError


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
    if not settings.camera:
        raise ConfigError(f"{file} has no [[camera]]; add one with a name and a source")
    prepare_folder(settings.paths.runtime, "runtime")
    line = command("supervisor", file)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(line[0], line)  # the supervisor stays small: nothing imported here is carried along
