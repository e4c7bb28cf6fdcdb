"""A release learned again without the samples that are erased: from its clean ancestor, with what is left.

A network cannot be made to forget, so nothing of the old one is used. The round is that of `learner`, which
sees only those samples that the old release learned from since that ancestor, and that are still stored.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ..assembly import StageConfigs
from ..errors import ReleaseError
from ..releases.release import FACTORY
from ..releases.release_store import ReleaseStore
from .lineage import clean_ancestor, erased_ids, marks_of
from .report import Report, last_report, save_report
from .sample import Sample, SamplesConfig
from .sample_store import SampleStore, Wanted


@dataclass(frozen=True, slots=True)
class Remains:
    """What there is to rebuild a release from.

    `parent` is the release to learn from again. `learned` are the samples that were learned since; of these
    `erased` are of people who were forgotten, `left` are stored, and the others went with their time.
    """

    release: str
    parent: str
    learned: frozenset[str]
    erased: frozenset[str]
    left: frozenset[str]

    def configs(self, configs: StageConfigs) -> StageConfigs:
        """Return `configs` with the parent as the release that serves."""
        ensemble = msgspec.structs.replace(configs.ensemble, release=self.parent)
        return msgspec.structs.replace(configs, ensemble=ensemble)

    def __str__(self) -> str:
        """Return in words what is left."""
        n_gone = len(self.learned) - len(self.erased) - len(self.left)
        gone = f", {n_gone} went with their time" if n_gone else ""
        return (
            f"release {self.release} learned from {len(self.learned)} samples after {self.parent}: "
            f"{len(self.erased)} are erased{gone}, {len(self.left)} are left"
        )


class Left(SampleStore):
    """A sample store in which only what is left can be seen; what is in the file stays as it is."""

    def __init__(self, state: Path, config: SamplesConfig, remains: Remains) -> None:
        """Open the store in `state`.

        Raises:
            StoreError: as `SampleStore`.
        """
        super().__init__(state, config)
        self._ids = remains.left

    def samples(self, wanted: Wanted | None = None) -> list[Sample]:
        """Return the samples that are wanted and left, oldest first."""
        return [sample for sample in super().samples(wanted) if sample.id in self._ids]


def remains_of(release: str, state: Path, store: SampleStore) -> Remains:
    """Return what is left of what `release` (the first digits of its id) learned from.

    Raises:
        ReleaseError: there is no such release, or nothing that it learned from is erased.
    """
    releases = ReleaseStore(state)
    stored = releases.get(release)
    name = stored.release.id
    if name not in marks_of(state):
        raise ReleaseError(f"release {name} learned from nothing that is erased; there is nothing to rebuild")
    parent = clean_ancestor(state, name)
    before = releases.get(parent).about.samples if parent != FACTORY else ()
    learned = frozenset(stored.about.samples) - frozenset(before)
    erased = learned & erased_ids(state)
    left = learned & {sample.id for sample in store.samples()}
    return Remains(name, parent, learned, erased, left - erased)


def relearn(
    remains: Remains, state: Path, config: SamplesConfig, learn: Callable[[Left], Report | None]
) -> Report | None:
    """Return the report of `learn` from what is left; None when it was stopped.

    What the round before knew of labels stays known: the daemon does not take the samples that sat this one
    out for news.

    Raises:
        SampleError: as `learner.learn`.
    """
    before = last_report(state / "learning")
    with Left(state, config, remains) as left:
        report = learn(left)
    if report is not None and before is not None:
        report = msgspec.structs.replace(report, labels=before.labels | report.labels)
        save_report(report, state / "learning")
    return report
