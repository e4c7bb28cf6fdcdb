"""`visaged version`: what is installed."""

import platform

import typer

from ..daemon.version import version as installed_version


def version() -> None:
    """Print the version of visaged and of Python.

    Example:
      visaged version
    """
    typer.echo(f"visaged {installed_version()}, Python {platform.python_version()}")
