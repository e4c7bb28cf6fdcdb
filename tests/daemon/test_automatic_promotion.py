"""What the learn process asks of the daemon: once, not too soon again, and never for what must not be."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from visaged.daemon.automatic_promotion import AutomaticPromotion
from visaged.daemon.config import Config
from visaged.daemon.control import Control, Promote, Status
from visaged.daemon.metrics import LearnMetrics
from visaged.daemon.outline import PathsConfig
from visaged.pipelines.ensemble import EnsembleConfig
from visaged.pipelines.errors import ReleaseError
from visaged.pipelines.fuser import DecisionFusion
from visaged.pipelines.loop.lineage import Erased, note_erased
from visaged.pipelines.loop.report import Report, save_report
from visaged.pipelines.loop.sample_store import SampleStore
from visaged.pipelines.registry import FACE_RESNET
from visaged.pipelines.releases.gates import GateReport, GateResult, write_report
from visaged.pipelines.releases.promotion import PromotionJournal
from visaged.pipelines.releases.release import FACTORY, Release, ReleaseMember
from visaged.pipelines.releases.release_store import About, ReleaseStore
from visaged.pipelines.releases.trial import PromotionConfig

pytestmark = pytest.mark.patient

DIGEST = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"  # of b"x"
PASSED = GateResult(name="accuracy", passed=True, value=1.0, bound=0.0, n=800, sentence="")


class Daemon:
    """Answers at the control socket as infer would; `promotion` is what its status says."""

    def __init__(self, runtime: Path) -> None:
        self.promotion: dict[str, Any] = {"loading": "", "failure": ""}
        self.orders: list[Promote] = []
        self.refusal = ""
        self._runtime, self._stop = runtime, threading.Event()
        self._is_bound = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        assert self._is_bound.wait(10)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _serve(self) -> None:
        with Control(self._runtime) as control:
            control.handle(Status, lambda order: {"promotion": dict(self.promotion)})
            control.handle(Promote, self._promote)
            self._is_bound.set()
            while not self._stop.wait(0.005):
                control.poll()

    def _promote(self, order: Promote) -> dict[str, Any]:
        self.orders.append(order)
        if self.refusal:
            raise ReleaseError(self.refusal)
        return {}


@pytest.fixture
def daemon(runtime: Path) -> Iterator[Daemon]:
    made = Daemon(runtime)
    yield made
    made.close()


@pytest.fixture
def release(tmp_path: Path) -> str:
    """A candidate that was learned here and has passed its gates."""
    member = ReleaseMember(network=FACE_RESNET, onnx=DIGEST)
    kept = Release(members=(member,), fusion=DecisionFusion(), embedding_space="face-resnet")
    stored = ReleaseStore(tmp_path).save(kept, [b"x"], About(made_at=1.0, samples=("a1",)))
    name = stored.release.id
    write_report(
        stored,
        GateReport(release=name, champion=FACTORY, anchor=FACTORY, at=1.0, data=(), results=(PASSED,)),
    )
    PromotionJournal(tmp_path).write(name, "pass", 1.0)
    for run, made, at in (("one", name, 1.0), ("two", "", 2.0)):  # the last round made nothing
        save_report(
            Report(run=run, parent="p", outcome="", finished_at=at, seconds=1.0, release=made),
            tmp_path / "learning",
        )
    return name


Make = Callable[..., AutomaticPromotion]


@pytest.fixture
def make(tmp_path: Path, runtime: Path) -> Iterator[Make]:
    with SampleStore(tmp_path) as store:

        def make(**changes: Any) -> AutomaticPromotion:
            config = Config(
                paths=PathsConfig(state=tmp_path, runtime=runtime),
                promotion=PromotionConfig(automatic=True, gate_data=(tmp_path / "ferplus",)),
                **changes,
            )
            return AutomaticPromotion(config, store, LearnMetrics(), lambda progress: True)

        yield make


def test_what_passed_is_asked_for_once_and_waits_while_it_is_loaded(
    make: Make, daemon: Daemon, release: str
) -> None:
    promotion = make()

    first = promotion.step()
    daemon.promotion["loading"] = f"{release}: loading"
    second = promotion.step()

    (order,) = daemon.orders
    assert (order.release, order.skip, order.despite_erasure) == (release, (), False)
    assert first == f"release {release} has passed its gates, and the daemon loads it"
    assert second == f"release {release} waits: the daemon loads {release}: loading"


def test_what_cannot_be_loaded_or_is_refused_is_not_asked_for_again_at_once(
    make: Make, daemon: Daemon, release: str
) -> None:
    promotion = make()
    promotion.step()
    daemon.promotion["failure"] = "no room"

    failed = [promotion.step() for _ in range(3)]
    promotion._retry_at_s = 0.0
    daemon.refusal = "another one is on trial"
    refused = promotion.step()

    assert set(failed) == {
        f"automatic promotion failed: release {release} does not come into service: no room"
    }
    assert refused == "automatic promotion failed: another one is on trial"
    assert len(daemon.orders) == 2


def test_a_release_that_learned_from_erased_people_is_never_asked_for(
    make: Make, daemon: Daemon, release: str, tmp_path: Path
) -> None:
    note_erased(tmp_path, ["a1"], Erased("r1", 1.0))

    said = make().step()

    assert "1 samples that are erased" in said and said.endswith("is not promoted")
    assert daemon.orders == []


def test_a_pinned_release_stays(make: Make, daemon: Daemon, release: str) -> None:
    said = make(ensemble=EnsembleConfig(release=FACTORY)).step()

    assert said == "nothing is promoted while [ensemble] release asks for factory"
    assert daemon.orders == []


def test_without_a_daemon_or_gate_data_the_step_fails_with_a_sentence(
    make: Make, release: str, tmp_path: Path
) -> None:
    alone = make().step()
    (tmp_path / "releases" / "promotion.json").unlink()
    blind = make().step()

    assert alone.startswith("automatic promotion failed: ") and "daemon" in alone
    assert "PublicTest.npz cannot be read as FER+" in blind
    assert PromotionJournal(tmp_path).read().state_of(release) == "candidate"


def test_without_a_candidate_there_is_nothing_to_do(make: Make) -> None:
    assert make().step() == ""
