"""Measure a release against the one that serves and the blessed one on the same faces, and judge it.

What comes of it is kept: every figure as `gates.json` beside the release, the verdict in the journal.

Shape letters: N faces, K classes, R runs.
"""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..assembly import StageConfigs, load_named, parity_of
from ..cropper import Cropper
from ..engines.engine_loader import LOADING_FACTOR
from ..engines.hardware import free_memory_bytes
from ..learning.labelled_faces import LabelledFaces, answer
from ..learning.metrics import Truth
from ..message import EMOTIONS
from ..model_store import ModelStore, ModelsWith
from .gates import Cost, Facts, GateReport, HoldOut, judge, write_report
from .promotion import PromotionJournal
from .release import LoadedRelease
from .release_store import ReleaseStore, StoredRelease

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

N_TIMED = 8  # faces in a batch that is timed
MAX_TIMINGS = 5  # of all runs, while the candidate seems too slow: beside other work one timing in eight lies

GoOn = Callable[[int, int], bool]
"""Hears how many of how many steps are done; may wait, and ends the examination by False."""


@dataclass(frozen=True, slots=True)
class Exam:
    """What a release is asked: faces by the name of their data, none of which it learned from.

    On those of `target` it has to be better than the one that serves; None: nowhere. `runs` batches are timed
    on each of the two, more while it takes over `max_slowdown` times as long.
    """

    base: Mapping[str, LabelledFaces]
    target: Mapping[str, LabelledFaces] | None = None
    runs: int = 200
    max_slowdown: float = 1.05


class Examiner:
    """Owned by one thread."""

    def __init__(self, configs: StageConfigs, state: Path, models: ModelStore) -> None:
        self._configs, self._state, self._models = configs, state, models

    def examine(self, release: str, exam: Exam, go_on: GoOn = lambda done, of: True) -> GateReport | None:
        """Return what the gates say of `release`, which is on disk then; None when `go_on` ended it.

        Raises:
            ReleaseError: there is none, one of the three is damaged, or nothing can be written.
            ModelError, ConfigError: as `load_named`.
        """
        stored, journal = ReleaseStore(self._state).get(release), PromotionJournal(self._state)
        name, now = stored.release.id, journal.read()
        keys = name, now.active, now.blessed
        with contextlib.ExitStack() as loaded:
            of_key: dict[str, LoadedRelease] = {}
            for key in dict.fromkeys(keys):
                of_key[key] = load_named(self._configs, key, self._state, self._models)
                loaded.callback(of_key[key].close)
            try:
                facts = self._facts(stored, [of_key[key] for key in keys], exam, go_on)
            except _EndedError:
                return None
        report = GateReport(
            release=name,
            champion=now.active,
            anchor=now.blessed,
            at=time.time(),
            data=(*exam.base, *(exam.target or ())),
            results=judge(facts),
        )
        write_report(stored, report)
        if now.state_of(name) in ("candidate", "refused", "passed"):
            failed = ", ".join(result.name for result in report.failed)
            journal.write(name, "pass" if report.passed else "refuse", report.at, failed)
        return report

    def _facts(self, stored: StoredRelease, trio: Sequence[LoadedRelease], exam: Exam, go_on: GoOn) -> Facts:
        """Measure candidate, champion and anchor."""
        candidate, champion, _ = trio
        base, target = list(exam.base.values()), list((exam.target or {}).values())
        n_asked = len({loaded.key for loaded in trio}) * sum(map(len, [*base, *target]))
        steps = _Steps(n_asked + exam.runs, go_on)
        return Facts(
            candidate=stored.release,
            champion=champion.release,
            parity=parity_of(candidate.ensemble, ModelsWith(self._models, stored.networks())),
            base=_hold_out(base, trio, steps),
            target=_hold_out(target, trio, steps) if exam.target is not None else None,
            cost=_cost_of(stored, (candidate, champion), base[0], exam, steps),
            max_slowdown=exam.max_slowdown,
        )


class _EndedError(Exception):
    """Whoever asked for the examination does not want it any more."""


class _Steps:
    """Counts the steps of an examination for whoever waits."""

    def __init__(self, of: int, go_on: GoOn) -> None:
        self._done, self._of, self._go_on = 0, of, go_on

    def expect(self, n: int) -> None:
        self._of += n

    def take(self, n: int) -> None:
        self._done += n
        if not self._go_on(self._done, self._of):
            raise _EndedError


def _hold_out(sets: Sequence[LabelledFaces], trio: Sequence[LoadedRelease], steps: _Steps) -> HoldOut:
    """Return what candidate, champion and anchor say about the same faces."""
    asked = {loaded.key: loaded for loaded in trio}
    parts = [_said(list(asked.values()), faces, steps) for faces in sets]
    said = {key: np.concatenate(of_one) for key, of_one in zip(asked, zip(*parts, strict=True), strict=True)}
    truth = Truth(
        np.concatenate([faces.truth.targets for faces in sets]),
        np.concatenate([faces.truth.groups for faces in sets]),
    )
    candidate, champion, anchor = (said[loaded.key] for loaded in trio)
    return HoldOut(truth, candidate, champion, anchor)


def _said(asked: Sequence[LoadedRelease], faces: LabelledFaces, steps: _Steps) -> list[F32]:
    """Return the `(N, K)` probabilities of each release."""
    if not len(faces):
        return [np.zeros((0, len(EMOTIONS)), np.float32)] * len(asked)
    outputs = answer([loaded.ensemble for loaded in asked], faces, steps.take)
    return [loaded.fuser.fuse(said).probabilities for loaded, said in zip(asked, outputs, strict=True)]


def _cost_of(
    stored: StoredRelease,
    pair: tuple[LoadedRelease, LoadedRelease],
    faces: LabelledFaces,
    exam: Exam,
    steps: _Steps,
) -> Cost:
    """Time both releases on the same batch of faces; say what the first takes of memory."""
    seen = [(rgb, landmarks[None]) for rgb, landmarks in islice(iter(faces.faces), N_TIMED)]
    n_bytes = LOADING_FACTOR * sum(files.onnx.stat().st_size for files in stored.networks().values())
    took_s = _timed(pair, seen, exam.runs, steps)
    for _ in range(MAX_TIMINGS - 1):
        ours_s, theirs_s = Cost(took_s[0], took_s[1], n_bytes, 0).p95_s
        if ours_s <= exam.max_slowdown * theirs_s:
            break
        steps.expect(exam.runs)
        took_s = np.hstack([took_s, _timed(pair, seen, exam.runs, steps)])
    return Cost(took_s[0], took_s[1], n_bytes, free_memory_bytes())


def _timed(
    pair: tuple[LoadedRelease, LoadedRelease], seen: list[tuple[U8, F32]], runs: int, steps: _Steps
) -> F64:
    """Return `(2, R)` seconds of both releases, in turns."""
    took_s = np.zeros((2, runs))
    for run in range(runs):
        for which in (0, 1) if run % 2 else (1, 0):  # nobody is always the first
            start_s = time.perf_counter()
            ensemble = pair[which].ensemble
            pair[which].fuser.fuse(ensemble.infer(Cropper().crop_all(seen, ensemble.recipes)))
            took_s[which, run] = time.perf_counter() - start_s
        steps.take(1)
    return took_s
