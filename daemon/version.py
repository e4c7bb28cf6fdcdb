"""Which visaged this is."""

import importlib.metadata


def version() -> str:
    """Return the version of the installed distribution."""
    try:
        return importlib.metadata.version("visaged")
    except importlib.metadata.PackageNotFoundError:
        return "0+uninstalled"
