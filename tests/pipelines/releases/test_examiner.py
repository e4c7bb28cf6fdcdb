"""An examination on real networks: ended it leaves nothing, finished it is kept, no faces are no gain."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from visaged.pipelines.assembly import StageConfigs
from visaged.pipelines.ensemble import EnsembleConfig
from visaged.pipelines.fuser import DecisionFusion
from visaged.pipelines.learning.labelled_faces import LabelledFaces
from visaged.pipelines.learning.metrics import Truth
from visaged.pipelines.message import EMOTIONS
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.releases.examiner import MAX_TIMINGS, Exam, Examiner
from visaged.pipelines.releases.gates import read_report
from visaged.pipelines.releases.promotion import PromotionJournal
from visaged.pipelines.releases.release import FACTORY, Release
from visaged.pipelines.releases.release_store import About, ReleaseStore, StoredRelease, member_of

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

LANDMARKS = np.array([[270, 118], [250, 117], [198, 122], [218, 120], [228, 158]], np.float32)
RUNS = 3


def faces(rgb: U8, emotions: Sequence[str]) -> LabelledFaces:
    """The one face as often as somebody says what it shows."""
    targets = np.eye(len(EMOTIONS), dtype=np.float32)[[EMOTIONS.index(name) for name in emotions]]
    groups = np.array([f"g{n}" for n in range(len(emotions))], "U8")
    return LabelledFaces([(rgb, LANDMARKS)] * len(emotions), Truth(targets, groups), groups)


class Opened:
    """Faces that are opened each time they are asked for, and how many were."""

    def __init__(self, rgb: U8, n: int) -> None:
        self._rgb, self._n, self.n_opened = rgb, n, 0

    def __iter__(self) -> Iterator[tuple[U8, F32]]:
        for _ in range(self._n):
            self.n_opened += 1
            yield self._rgb, LANDMARKS


@pytest.fixture
def candidate(tmp_path: Path, store: ModelStore) -> StoredRelease:
    """The network of the factory, alone and weighed otherwise."""
    files = store.files_of("face-resnet")
    fusion = DecisionFusion(weights={"face-resnet": 2.0})
    release = Release(members=(member_of(files),), fusion=fusion, embedding_space="face-resnet")
    paths = [path for path in (files.onnx, files.ranges) if path]
    return ReleaseStore(tmp_path).save(release, paths, About(made_at=1.0))


@pytest.fixture
def examiner(tmp_path: Path, store: ModelStore) -> Examiner:
    return Examiner(StageConfigs(ensemble=EnsembleConfig(members=("face-resnet",))), tmp_path, store)


def test_an_examination_says_how_far_it_is_and_is_kept_with_its_verdict(
    examiner: Examiner, candidate: StoredRelease, astronaut: U8, tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    exam = Exam(
        base={"one": faces(astronaut, ["happiness"] * 5), "two": faces(astronaut, ["anger"])},
        target={"flagged": faces(astronaut, [])},
        runs=RUNS,
        max_slowdown=1e9,
    )

    report = examiner.examine(
        candidate.release.id[:6],
        exam,
        lambda done, of: not told.append((done, of)),  # type: ignore[func-returns-value]
    )

    assert report is not None and report == read_report(candidate)
    assert (report.champion, report.anchor, report.data) == (FACTORY, FACTORY, ("one", "two", "flagged"))
    results = {result.name: result for result in report.results}
    assert results["forgetting"].n == 6 and results["forgetting"].passed
    assert results["latency"].n == RUNS
    assert not results["target gain"].passed and results["target gain"].n == 0
    assert "too few" in results["non-inferiority"].sentence
    assert told[-1] == (2 * 6 + RUNS, 2 * 6 + RUNS) and [done for done, _ in told] == sorted(
        done for done, _ in told
    )
    journal = PromotionJournal(tmp_path).read()
    assert journal.state_of(candidate.release.id) == "refused"
    assert journal.history[-1].why.startswith("non-inferiority, target gain")


def test_all_releases_are_asked_about_a_face_while_it_is_open(
    examiner: Examiner, candidate: StoredRelease, astronaut: U8
) -> None:
    flagged = faces(astronaut, ["happiness"] * 20)  # more than a batch
    opened = Opened(astronaut, len(flagged))
    exam = Exam(
        base={"one": faces(astronaut, ["happiness"])},
        target={"flagged": replace(flagged, faces=opened)},
        runs=RUNS,
        max_slowdown=1e9,
    )

    report = examiner.examine(candidate.release.id, exam)

    assert report is not None and opened.n_opened == len(flagged)
    assert {result.name: result.n for result in report.results}["target gain"] == len(flagged)


@pytest.mark.parametrize(("max_slowdown", "timings"), [(1e-9, MAX_TIMINGS), (1e9, 1)])
def test_a_release_that_seems_too_slow_is_timed_again_before_it_is_said(
    examiner: Examiner, candidate: StoredRelease, astronaut: U8, max_slowdown: float, timings: int
) -> None:
    told: list[tuple[int, int]] = []
    exam = Exam(base={"one": faces(astronaut, ["happiness"])}, runs=RUNS, max_slowdown=max_slowdown)

    report = examiner.examine(
        candidate.release.id,
        exam,
        lambda done, of: not told.append((done, of)),  # type: ignore[func-returns-value]
    )

    assert report is not None
    (latency,) = (result for result in report.results if result.name == "latency")
    assert (latency.n, latency.passed) == (timings * RUNS, timings == 1)
    assert told[-1] == (2 + timings * RUNS, 2 + timings * RUNS)


@pytest.mark.parametrize("ends_at", [1, 13])
def test_an_examination_that_is_ended_leaves_the_candidate_as_it_was(
    examiner: Examiner, candidate: StoredRelease, astronaut: U8, tmp_path: Path, ends_at: int
) -> None:
    exam = Exam(base={"one": faces(astronaut, ["happiness"] * 6)}, runs=RUNS)

    report = examiner.examine(candidate.release.id, exam, lambda done, of: done < ends_at)

    assert report is None and read_report(candidate) is None
    assert PromotionJournal(tmp_path).read().state_of(candidate.release.id) == "candidate"
