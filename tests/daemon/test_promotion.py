"""The promoter beside a real pipeline: what is damaged, what keeps dying, what cannot be written down."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from visaged.daemon.config import Config
from visaged.daemon.control import Promote, RollBack
from visaged.daemon.engine_upgrade import EngineUpgrade
from visaged.daemon.metrics import InferMetrics
from visaged.daemon.outline import PathsConfig
from visaged.daemon.promotion import Promoter
from visaged.pipelines.assembly import Stages, assemble
from visaged.pipelines.ensemble import EnsembleConfig
from visaged.pipelines.errors import ReleaseError
from visaged.pipelines.fuser import DecisionFusion
from visaged.pipelines.loop.lineage import Erased, note_erased
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.releases.promotion import Event, PromotionJournal
from visaged.pipelines.releases.release import FACTORY, Release
from visaged.pipelines.releases.release_store import About, ReleaseStore, StoredRelease, member_of

PATIENCE_S = 60.0
IN_SERVICE: tuple[Event, ...] = ("waive", "promote")


class Desk:
    """A promoter as infer has it, without frames."""

    def __init__(self, state: Path, cache: Path, release: str = "") -> None:
        paths = PathsConfig(state=state, cache=cache)
        self.config = Config(paths=paths, ensemble=EnsembleConfig(members=("face-resnet",), release=release))
        self.metrics = InferMetrics("infer")
        self.stages: Stages = assemble(self.config.stages, state=state, cache=cache)
        self.pipeline = self.stages.pipeline()
        upgrade = EngineUpgrade(self.stages, self.metrics, ())
        self.promoter = Promoter(self.pipeline, self.stages, upgrade, self.config, self.metrics, ())

    def poll_until(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not is_so():
            assert time.monotonic() < deadline, self.promoter.report()
            self.promoter.poll()
            time.sleep(0.01)

    def close(self) -> None:
        self.promoter.close()
        self.stages.close()


@pytest.fixture
def desk(tmp_path: Path, cache: Path) -> Iterator[Callable[[], Desk]]:
    made: list[Desk] = []

    def make(release: str = "") -> Desk:
        made.append(Desk(tmp_path, cache, release))
        return made[-1]

    yield make
    for one in made:
        one.close()


def keep(state: Path, store: ModelStore, weight: float, samples: tuple[str, ...] = ()) -> StoredRelease:
    files = store.files_of("face-resnet")
    release = Release(
        members=(member_of(files),),
        fusion=DecisionFusion(weights={"face-resnet": weight}),
        embedding_space="face-resnet",
    )
    paths = [path for path in (files.onnx, files.ranges) if path]
    return ReleaseStore(state).save(release, paths, About(made_at=weight, samples=samples))


def serve(state: Path, stored: StoredRelease) -> str:
    for event in IN_SERVICE:
        PromotionJournal(state).write(stored.release.id, event, time.time())
    return stored.release.id


def test_a_damaged_active_release_is_in_the_metrics_and_the_journal_agrees_with_what_serves(
    desk: Callable[[], Desk], tmp_path: Path, store: ModelStore
) -> None:
    serve(tmp_path, stored := keep(tmp_path, store, 1.0))
    (stored.folder / "release.json").write_text("{")

    made = desk()
    made.promoter.start()

    assert made.pipeline.serving.key == FACTORY
    assert "visaged_release_refused 1.0" in made.metrics.text()
    assert PromotionJournal(tmp_path).read().active == FACTORY


def test_a_release_on_probation_finds_its_spare_again_and_goes_back_to_it(
    desk: Callable[[], Desk], tmp_path: Path, store: ModelStore
) -> None:
    name = serve(tmp_path, keep(tmp_path, store, 1.0))
    made = desk()

    made.promoter.start()
    made.poll_until(lambda: made.pipeline.spare is not None)
    made.promoter._roll_back(RollBack(why="planted"))

    assert made.pipeline.serving.key == FACTORY and made.pipeline.spare is None
    assert made.stages.serving is made.pipeline.serving
    assert PromotionJournal(tmp_path).read().state_of(name) == "rolled back"
    assert 'visaged_rollbacks_total{reason="operator"} 1.0' in made.metrics.text()


def test_a_release_under_which_the_process_keeps_ending_is_rolled_back(
    desk: Callable[[], Desk], tmp_path: Path, store: ModelStore
) -> None:
    name = serve(tmp_path, keep(tmp_path, store, 1.0))
    journal = PromotionJournal(tmp_path)
    made = desk()
    for _ in range(2):
        journal.write(name, "restart", time.time())

    with pytest.raises(ReleaseError, match="kept ending"):
        made.promoter.start()

    assert journal.read().active == FACTORY and journal.read().state_of(name) == "rolled back"


def test_a_pinned_release_and_one_that_serves_are_not_promoted(
    desk: Callable[..., Desk], tmp_path: Path, store: ModelStore
) -> None:
    name = serve(tmp_path, keep(tmp_path, store, 1.0))

    with pytest.raises(ReleaseError, match="asks for factory"):
        desk("factory").promoter._promote(Promote(release=name))
    with pytest.raises(ReleaseError, match="serves already"):
        desk().promoter._promote(Promote(release=name))


def test_a_candidate_whose_file_is_damaged_is_refused_and_nothing_changes(
    desk: Callable[[], Desk], tmp_path: Path, store: ModelStore
) -> None:
    stored, made = keep(tmp_path, store, 1.0), desk()
    stored.file(stored.release.members[0].onnx).write_bytes(b"?")

    made.promoter._promote(Promote(release=stored.release.id, skip=("gates", "shadow", "canary")))
    made.poll_until(lambda: bool(made.promoter.report()["failure"]))

    assert "damaged" in made.promoter.report()["failure"]
    assert made.pipeline.serving.key == FACTORY
    assert PromotionJournal(tmp_path).read().active == FACTORY


def test_a_release_that_learned_from_erased_samples_is_refused_until_somebody_answers_for_it(
    desk: Callable[[], Desk], tmp_path: Path, store: ModelStore
) -> None:
    name, made = keep(tmp_path, store, 1.0, samples=("a1", "b2")).release.id, desk()
    note_erased(tmp_path, ["b2"], Erased("receipt", 1.0))
    order = Promote(release=name, skip=("gates", "shadow", "canary"))

    with pytest.raises(ReleaseError, match="learned from 1 samples that are erased"):
        made.promoter._promote(order)
    made.promoter._promote(msgspec.structs.replace(order, despite_erasure=True))
    made.poll_until(lambda: made.pipeline.serving.key == name)
