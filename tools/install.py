"""`visaged install` and `visaged uninstall`: the systemd service of this installation.

Each is a list of actions that are found one after another: what is already so is no action, so a second
run has none, and `--dry-run` shows what the next run does.
"""

import difflib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from ..daemon.outline import Outline, load_outline
from ..pipelines.errors import VisagedError

SOURCE = Path(__file__).resolve().parents[1] / "systemd"
SHIPPED_PYTHON = "/opt/visaged/.venv/bin/python"  # in the units as they are shipped
UNITS = (
    "visaged.target",
    "visaged.slice",
    "visaged-infer.service",
    "visaged-capture@.service",
    "visaged-gateway.service",
    "visaged-learn.service",
)
FILES = {
    **{unit: f"/etc/systemd/system/{unit}" for unit in UNITS},
    "sysusers.d/visaged.conf": "/etc/sysusers.d/visaged.conf",
    "tmpfiles.d/visaged.conf": "/etc/tmpfiles.d/visaged.conf",
}
CONFIG = "/etc/visaged/visaged.toml"
STORES = "gallery", "samples"  # each with a key of its own
STATE, CACHE = "/var/lib/visaged", "/var/cache/visaged"
KEPT = {
    "/etc/visaged": "configuration and keys",
    STATE: "the gallery: everybody who is enrolled; the samples: faces that were flagged",
    CACHE: "imported networks and plans",
}
HIDDEN = ("/home", "/root", "/run/user")  # ProtectHome= in the units
USER = "visaged"


@dataclass(frozen=True, slots=True)
class Action:
    """One step: the words for it, and what does it."""

    words: str
    do: Callable[[], object]
    diff: str = ""


@dataclass(frozen=True, slots=True)
class System:
    """Where to install: this system, or the root folder of another one that is being built."""

    root: Path = Path("/")
    python: Path = field(default_factory=lambda: Path(sys.executable))

    def at(self, path: str) -> Path:
        """Return where the absolute `path` of the system lies from here."""
        return self.root / path.lstrip("/")

    @property
    def is_running(self) -> bool:
        """Whether it is the one we run on."""
        return self.root == Path("/")

    def command(self, *line: str) -> Action:
        """Return the action of running a program, for the other root where there is one."""
        words = [line[0], *([] if self.is_running else [f"--root={self.root}"]), *line[1:]]
        return Action(" ".join(words), lambda: call(words))

    def numbers(self) -> tuple[int, int] | None:
        """Return the ids of the service's user and its group; None: there is no such user."""
        passwd = self.at("/etc/passwd")
        for row in passwd.read_text().splitlines() if passwd.exists() else []:
            name, _, uid, gid, *_ = row.split(":")
            if name == USER:
                return int(uid), int(gid)
        return None


def install(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print every action and do none.")] = False,
    root: Annotated[
        Path, typer.Option(help="Install into this root folder of another system, as for an image.")
    ] = Path("/"),
    python: Annotated[
        Path | None, typer.Option(help="The Python of the units; else the one that runs this.")
    ] = None,
) -> None:
    """Install visaged as a systemd service, or bring an installed one up to date.

    Makes the user `visaged`, its folders, the keys, a configuration to fill in, and the units.
    Cameras of the configuration are enabled, those that are gone are disabled. An existing configuration or
    key is left alone; units are replaced, so change those with `systemctl edit`. Nothing is started.

    Examples:
      visaged install --dry-run
      sudo visaged install
      visaged install --root build/image --python /opt/visaged/.venv/bin/python
    """
    system = System(root.absolute(), python or Path(sys.executable))
    check_place(system, dry_run)
    perform(to_install(system), dry_run)
    if not units_of(system):
        typer.echo(f"next: add a [[camera]] to {system.at(CONFIG)}, then run this again")
    elif system.is_running and not dry_run:
        typer.echo("next: systemctl restart visaged.target, then systemctl status 'visaged-*'")


def uninstall(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print every action and do none.")] = False,
    root: Annotated[Path, typer.Option(help="Remove from this root folder of another system.")] = Path("/"),
    purge: Annotated[
        bool, typer.Option("--purge", help="Remove configuration, key, gallery, networks and user as well.")
    ] = False,
) -> None:
    """Stop and remove the systemd service. Configuration, key and gallery stay, unless --purge.

    Examples:
      visaged uninstall --dry-run
      sudo visaged uninstall
    """
    system = System(root.absolute())
    check_rights(system, dry_run)
    perform(to_uninstall(system, purge), dry_run)
    for path, what in [] if purge else remaining(system):
        typer.echo(f"kept {path}: {what}")


def perform(actions: Iterator[Action], dry_run: bool) -> None:
    """Do `actions` one after another, saying each; or only say them.

    Raises:
        VisagedError: one failed; those before it are done, and a second run goes on from there.
    """
    has_acted = False
    for action in actions:
        has_acted = True
        typer.echo(f"{'would ' if dry_run else ''}{action.words}")
        if action.diff:
            typer.echo(action.diff)
        if dry_run:
            continue
        try:
            action.do()
        except OSError as error:
            raise VisagedError(f"cannot {action.words}: {error}; the next run goes on from here") from error
    if not has_acted:
        typer.echo("nothing to do")


def to_install(system: System) -> Iterator[Action]:
    """Yield what is missing, each found when those before are done."""
    is_changed = False
    for name, path in FILES.items():
        text = (SOURCE / name).read_text().replace(SHIPPED_PYTHON, str(system.python))
        old = system.at(path).read_text() if system.at(path).exists() else None
        if old != text:
            is_changed = True
            verb = "write" if old is None else "replace"
            yield Action(
                f"{verb} {system.at(path)}",
                lambda path=path, text=text: write(system.at(path), text, 0o644),  # type: ignore[misc]
                "" if old is None else diff(old, text),
            )
    if system.numbers() is None:
        yield system.command("systemd-sysusers", "visaged.conf")
    if not system.at(CONFIG).exists():
        yield Action(f"write {system.at(CONFIG)}, to be filled in", lambda: write_config(system))
    for store in STORES:
        yield from for_the_key(system, store)
    links = [system.at(f"{STATE}/{store}.key") for store in STORES]
    if not (system.at(CACHE).exists() and all(link.is_symlink() for link in links)):
        yield system.command("systemd-tmpfiles", "--create", "visaged.conf")
    if is_changed and system.is_running:
        yield system.command("systemctl", "daemon-reload")
    yield from for_the_units(system)


def for_the_key(system: System, store: str) -> Iterator[Action]:
    """Yield what puts the key of `store` where only root and, as a credential, infer can read it."""
    key = system.at(f"/etc/visaged/{store}.key")
    old, database = (system.at(f"{STATE}/{store}.{suffix}") for suffix in ("key", "db"))
    if key.exists() or key.with_name(f"{key.name}.cred").exists():  # the latter: encrypted by the operator
        return
    if old.exists() and not old.is_symlink():
        yield Action(f"move the key {old} to {key}", lambda: move_key(old, key))
    elif database.exists() and database.stat().st_size:
        raise VisagedError(f"{database} is there and its key is not; bring it back to {key}")
    else:
        from ..pipelines.privacy.seal import create_key_file  # here: cryptography is slow to load

        yield Action(f"make a new key {key}", lambda: create_key_file(key))


def for_the_units(system: System) -> Iterator[Action]:
    """Yield what makes the enabled units those that the configuration has work for."""
    wanted = units_of(system)
    folder = system.at("/etc/systemd/system/visaged.target.wants")
    enabled = {path.name for path in folder.glob("visaged-*")}
    if stale := sorted(enabled - set(wanted)) if wanted else []:
        yield system.command("systemctl", "disable", *(["--now"] if system.is_running else []), *stale)
    if missing := [name for name in wanted if name not in enabled]:
        yield system.command("systemctl", "enable", "visaged.target", *missing)


def to_uninstall(system: System, purge: bool) -> Iterator[Action]:
    """Yield what is there to remove, each found when those before are done."""
    folder = system.at("/etc/systemd/system/visaged.target.wants")
    enabled = {path.name for path in folder.glob("visaged-*")} | {"visaged.target", "visaged-infer.service"}
    if system.at(FILES["visaged.target"]).exists():
        now = ["--now"] if system.is_running else []
        yield system.command("systemctl", "disable", *now, *sorted(enabled))
    installed = [system.at(path) for path in FILES.values() if system.at(path).exists()]
    for path in installed:
        yield Action(f"remove {path}", path.unlink)
    if installed and system.is_running:
        yield system.command("systemctl", "daemon-reload")
    if not purge:
        return
    for path, what in remaining(system):
        yield Action(f"remove {path}: {what}", lambda path=path: shutil.rmtree(path))  # type: ignore[misc]
    if system.numbers() is not None:
        yield system.command("userdel", USER)


def remaining(system: System) -> list[tuple[Path, str]]:
    """Return the folders that only --purge removes, and what is in each."""
    changed = sorted(system.at("/etc/systemd/system").glob("visaged*.d"))
    folders = [(system.at(path), what) for path, what in KEPT.items()]
    return [(path, what) for path, what in folders if path.exists()] + [
        (path, "your changes of a unit") for path in changed
    ]


def check_place(system: System, dry_run: bool) -> None:
    """Refuse what could not work.

    Raises:
        VisagedError: no right to install, no systemd, or a Python that the units could not see.
    """
    check_rights(system, dry_run)
    if not system.is_running:
        return
    places = {system.python, system.python.resolve(), Path(sys.base_prefix), Path(__file__).resolve()}
    for path in sorted(places):
        if any(path.is_relative_to(hidden) for hidden in HIDDEN):
            raise VisagedError(
                f"{path} lies in a home folder, which a service cannot see; install visaged into a "
                f"virtual environment in /opt/visaged and run `visaged install` from there"
            )


def check_rights(system: System, dry_run: bool) -> None:
    """Refuse to begin without the right to finish.

    Raises:
        VisagedError: not root, or no systemd.
    """
    if shutil.which("systemctl") is None:
        raise VisagedError("this machine has no systemctl; a service needs systemd, `visaged run` does not")
    if os.geteuid() != 0 and not dry_run:
        raise VisagedError("this needs root; look with --dry-run what it does, then run it with sudo")


def units_of(system: System) -> list[str]:
    """Return the services that the system's configuration has work for; none without a camera.

    Raises:
        ConfigError: the file is wrong.
    """
    path = system.at(CONFIG)
    outline = load_outline(path) if path.exists() else Outline()
    if not outline.camera:
        return []
    gateway = ["visaged-gateway.service"] if outline.remote.is_enabled else []
    cameras = [f"visaged-capture@{camera.name}.service" for camera in outline.camera]
    learn = ["visaged-learn.service"] if outline.learning.enabled else []
    return ["visaged-infer.service", *gateway, *learn, *cameras]


def write(path: Path, text: str, mode: int) -> None:
    """Write a small file, whole or not at all, and the folders above it."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(text)
    draft.chmod(mode)
    draft.replace(path)


def write_config(system: System) -> None:
    """Write the configuration to be filled in; the address of a camera may hold a password."""
    path = system.at(CONFIG)
    write(path, (SOURCE / "visaged.toml").read_text(), 0o640)
    os.chown(path, 0, (system.numbers() or (0, 0))[1])


def move_key(old: Path, new: Path) -> None:
    """Move the key from where `visaged run` made it; root's alone from now on."""
    shutil.move(old, new)
    os.chown(new, 0, 0)
    new.chmod(0o600)


def diff(old: str, new: str) -> str:
    """Return what changes, as `diff -u` would show it."""
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), "installed", "new", n=1, lineterm="")
    return "\n".join(f"    {line}" for line in lines)


def call(line: list[str]) -> None:
    """Run a program.

    Raises:
        VisagedError: it failed; the sentence holds what it said.
    """
    try:
        done = subprocess.run(line, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise VisagedError(f"there is no {line[0]} here; install the package systemd") from error
    if done.returncode:
        raise VisagedError(f"{' '.join(line)} failed: {done.stderr.strip() or done.stdout.strip()}")
