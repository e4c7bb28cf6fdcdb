"""What came of a round of learning, as it is kept and shown."""

import math
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from ..cache_files import write_atomically
from ..learning.metrics import ACCURACY, LOG_LOSS, Interval, Metric, Truth, difference, interval
from .replay_memory import Remembered

F32 = npt.NDArray[np.float32]

PRIVATE = 0o600
FUSED = "fused"
"""In the place of a network's name: what all say together, which is what is published."""


class Estimate(Struct, frozen=True):
    """A value, and where it lies in 95 % of the resamples of whole groups; None where that is unknown."""

    value: float | None
    low: float | None
    high: float | None


class Evidence(Struct, frozen=True, kw_only=True):
    """One metric on faces that were never learned from: of a network that learned, or of all, `fused`."""

    part: str
    network: str = ""
    metric: str
    n_faces: int
    n_groups: int
    before: Estimate
    after: Estimate
    change: Estimate


class Report(Struct, frozen=True, kw_only=True):
    """A round that ended. `release` is the candidate, "" when there is none, and `outcome` says why.

    `labels` are all that were there, emotion by id of the sample: what the next round need not count as new.
    `suspects` are ids whose labels were doubted and not learned from: for a second look. `networks` says of
    each what came of it.
    """

    run: str
    parent: str
    outcome: str
    finished_at: float
    seconds: float
    release: str = ""
    labels: dict[str, str] = {}
    suspects: tuple[str, ...] = ()
    counts: dict[str, int] = {}
    n_steps: int = 0
    networks: dict[str, str] = {}
    evidence: tuple[Evidence, ...] = ()


def compare(part: str, network: str, faces: Remembered, before: F32, after: F32) -> tuple[Evidence, ...]:
    """Return accuracy and log loss of two answers, `(N, K)` probabilities each, to the same faces."""
    if not len(faces):
        return ()
    truth = Truth(faces.targets, faces.groups)

    def evidence(metric: Metric) -> Evidence:
        return Evidence(
            part=part,
            network=network,
            metric=metric.name,
            n_faces=len(truth),
            n_groups=len(np.unique(truth.groups)),
            before=_estimate(interval(metric, before, truth)),
            after=_estimate(interval(metric, after, truth)),
            change=_estimate(difference(metric, (after, before), truth)),
        )

    return evidence(ACCURACY), evidence(LOG_LOSS)


def save_report(report: Report, folder: Path) -> None:
    """Keep the report of a run.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(
        folder / f"report-{report.run}.json", msgspec.json.format(msgspec.json.encode(report)), PRIVATE
    )


def last_report(folder: Path) -> Report | None:
    """Return the report of the round that ended last; None when there is none that can be read."""
    return max(_all(folder), key=_finished_at, default=None)


def last_candidate(folder: Path) -> Report | None:
    """Return the report of the last round that made a release; None when none did."""
    made = (report for report in _all(folder) if report.release)
    return max(made, key=_finished_at, default=None)


def _all(folder: Path) -> list[Report]:
    return [report for path in folder.glob("report-*.json") if (report := _read(path))]


def _finished_at(report: Report) -> float:
    return report.finished_at


def _read(path: Path) -> Report | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except (OSError, msgspec.DecodeError):
        return None


def _estimate(found: Interval) -> Estimate:
    known: Callable[[float], float | None] = lambda value: None if math.isnan(value) else value  # noqa: E731
    return Estimate(known(found.value), known(found.low), known(found.high))
