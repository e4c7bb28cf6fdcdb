"""Where plans are kept: one folder a plan, named by its fingerprint, whole or absent.

    <cache>/plans/<network>/<fingerprint>/plan         the plan
                                          plan.json    its PlanRecord
                                          build.log    what the library said
    <cache>/plans/<network>/current, previous, candidate   links to those that are kept

Safe to use from several processes: a folder appears by one rename, a link changes by one rename.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from ..cache_files import locked, sha256_of, sync_folder, unwritable
from ..errors import MALFORMED, ModelError
from .plan import PlanKey, PlanRecord

Role = Literal["current", "previous", "candidate"]
ROLES: tuple[Role, ...] = ("current", "previous", "candidate")
UNFINISHED = ".unfinished-"  # folders that are no plan yet, or no longer


@dataclass(frozen=True, slots=True)
class StoredPlan:
    """A plan on disk and what is known about it."""

    folder: Path
    record: PlanRecord

    @property
    def path(self) -> Path:
        """The plan file, for an engine to load."""
        return self.folder / "plan"

    @property
    def is_whole(self) -> bool:
        """Whether the file is the one that was built."""
        return sha256_of(self.path) == self.record.sha256

    def log(self) -> str:
        """Return what the library said while it built."""
        with contextlib.suppress(OSError):
            return (self.folder / "build.log").read_text(errors="replace")
        return ""


class PlanStore:
    """The plans under one cache folder. Keeps nothing in memory."""

    def __init__(self, cache_dir: Path) -> None:
        self.folder = cache_dir / "plans"

    def find(self, key: PlanKey) -> StoredPlan | None:
        """Return the whole plan for `key`, or None: never built, damaged, or of another machine."""
        plan = self._of(key)
        return plan if plan is not None and plan.is_whole else None

    def is_damaged(self, key: PlanKey) -> bool:
        """Whether there is a plan for `key` whose file is not the one that was built."""
        plan = self._of(key)
        return plan is not None and not plan.is_whole

    def _of(self, key: PlanKey) -> StoredPlan | None:
        """Return the plan of `key`, also one that is damaged."""
        plan = self._read(self.folder / key.network / key.fingerprint)
        return plan if plan is not None and plan.record.key == key else None

    def publish(self, record: PlanRecord, data: bytes, log: str) -> StoredPlan:
        """Keep a plan; one of the same key is replaced, and for a moment neither is there.

        Raises:
            ModelError: no room or no permission; nothing is left behind, and what was there stays.
        """
        parent = self.folder / record.key.network
        target = parent / record.key.fingerprint
        with locked(parent):
            _remove_leftovers(parent)
            try:
                scratch = Path(tempfile.mkdtemp(dir=parent, prefix=UNFINISHED))
                _write(scratch / "plan", data)
                _write(scratch / "plan.json", msgspec.json.encode(record))
                _write(scratch / "build.log", log.encode())
                scratch.chmod(0o755)
                _replace(scratch, target)
            except OSError as error:
                raise unwritable(parent, error) from error
            finally:
                _remove_leftovers(parent)
        return StoredPlan(target, record)

    def plans(self) -> Iterator[StoredPlan]:
        """Yield every plan that can be read, by network and time of its build."""
        for network in sorted(self.folder.glob("*/")):
            found = [plan for child in network.iterdir() if (plan := self._read(child)) is not None]
            yield from sorted(found, key=lambda plan: plan.record.built_at)

    def get(self, fingerprint: str) -> StoredPlan:
        """Return the one plan whose fingerprint begins with `fingerprint`.

        Raises:
            ModelError: none or several do.
        """
        found = [plan for plan in self.plans() if plan.folder.name.startswith(fingerprint)]
        if len(found) != 1:
            raise ModelError(
                f"{len(found) or 'no'} plans begin with {fingerprint!r}; `visaged plans list` shows them"
            )
        return found[0]

    def pins(self, network: str) -> dict[Role, str]:
        """Return the fingerprints that are kept, by role."""
        pins: dict[Role, str] = {}
        for role in ROLES:
            with contextlib.suppress(OSError):
                pins[role] = (self.folder / network / role).readlink().name
        return pins

    def pin(self, plan: StoredPlan, role: Role) -> None:
        """Keep `plan` as `role`, until another takes it."""
        network = plan.folder.parent
        with locked(network):
            _link(network / role, plan.folder.name)

    def promote(self, plan: StoredPlan) -> None:
        """Make `plan` current and the current one previous; it is no candidate any more."""
        network = plan.folder.parent
        with locked(network):
            before = self.pins(network.name)
            if before.get("current") != plan.folder.name:
                if "current" in before:
                    _link(network / "previous", before["current"])
                _link(network / "current", plan.folder.name)
            if before.get("candidate") == plan.folder.name:
                (network / "candidate").unlink(missing_ok=True)

    def prune(self, keep: int = 0) -> list[PlanRecord]:
        """Delete plans without a role but the `keep` newest of each network; return what was deleted."""
        deleted: list[PlanRecord] = []
        by_network: dict[str, list[StoredPlan]] = {}
        for plan in self.plans():
            by_network.setdefault(plan.folder.parent.name, []).append(plan)
        for network, found in by_network.items():
            with locked(self.folder / network):
                pinned = set(self.pins(network).values())
                loose = [plan for plan in found if plan.folder.name not in pinned]
                for plan in loose[: max(0, len(loose) - keep)]:
                    try:  # absent at once, also when deleting is cut short
                        plan.folder.rename(plan.folder.with_name(f"{UNFINISHED}{plan.folder.name}"))
                    except FileNotFoundError:
                        continue  # another process was faster
                    except OSError as error:
                        raise unwritable(self.folder / network, error) from error
                    deleted.append(plan.record)
                _remove_leftovers(self.folder / network)
        return deleted

    def roles(self) -> Mapping[str, str]:
        """Return the roles of every plan that has one, as `fingerprint -> "current, previous"`."""
        roles: dict[str, list[str]] = {}
        for network in self.folder.glob("*/"):
            for role, fingerprint in self.pins(network.name).items():
                roles.setdefault(fingerprint, []).append(role)
        return {fingerprint: ", ".join(names) for fingerprint, names in roles.items()}

    def _read(self, folder: Path) -> StoredPlan | None:
        """Return the plan in `folder`, its file not yet checked; None when there is none."""
        if folder.is_symlink() or folder.name.startswith("."):
            return None
        try:
            record = msgspec.json.decode((folder / "plan.json").read_bytes(), type=PlanRecord)
        except (OSError, *MALFORMED, ModelError):
            return None
        return StoredPlan(folder, record)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _replace(new: Path, target: Path) -> None:
    """Make `new` the folder `target`; what was there goes when that is done, and comes back when it fails."""
    aside = new.with_name(f"{new.name}-old")
    if target.exists():  # damaged, or built again on purpose
        target.rename(aside)
    try:
        new.rename(target)
        sync_folder(target.parent)
    except BaseException:
        if target.exists():
            target.rename(new)
        if aside.exists():
            aside.rename(target)
        raise


def _link(link: Path, target: str) -> None:
    """Point `link` at `target` beside it, in one step.

    Raises:
        ModelError: no room or no permission; the link is as before.
    """
    new = link.with_name(f".new-{link.name}")
    try:
        new.unlink(missing_ok=True)
        new.symlink_to(target)
        new.replace(link)
    except OSError as error:
        raise unwritable(link.parent, error) from error


def _remove_leftovers(folder: Path) -> None:
    for leftover in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(leftover, ignore_errors=True)
