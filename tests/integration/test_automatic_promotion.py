"""From flags to a release that answers, with nobody's help; and a bad candidate that comes nowhere.

Infer and learn are the real processes; people flag over the real control socket.
"""

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import psutil
import pytest
from typer.testing import CliRunner
from visaged.daemon.camera import CameraConfig
from visaged.daemon.client import Subscriber
from visaged.daemon.control import ControlClient, Flag
from visaged.pipelines.assembly import StageConfigs
from visaged.pipelines.engines.engine import EngineConfig
from visaged.pipelines.ensemble import EnsembleConfig
from visaged.pipelines.errors import VisagedError
from visaged.pipelines.importers.onnx_end import ends_of, with_weights
from visaged.pipelines.loop.parts import PARTS
from visaged.pipelines.loop.progress import Progress, read_progress
from visaged.pipelines.loop.report import Report, last_candidate, save_report
from visaged.pipelines.loop.sample import bucket_of
from visaged.pipelines.message import EMOTIONS, FaceFrame
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.releases.gates import read_report
from visaged.pipelines.releases.promotion import PromotionJournal
from visaged.pipelines.releases.release import FACTORY, ReleaseMember
from visaged.pipelines.releases.release_store import About, ReleaseStore
from visaged.tools.cli import build_app
from visaged.tools.temporary_daemon import TemporaryDaemon

from tests.integration.shadow_site import LIGHTS, TRACKER, ShadowSite, build_ferplus, build_site

pytest.importorskip("torch", reason="torch is not installed (extra `learn`)")
pytestmark = pytest.mark.torch

from visaged.pipelines.loop.learner import champion_of  # noqa: E402

U8 = npt.NDArray[np.uint8]

PATIENCE_S = 400.0
N_SLOTS = 32
N_GATE_FACES, N_GATE_RUNS = 400, 40
QUOTAS = {
    "blue": {"train": 14, "tune": 2, "hold-out": 5},
    "amber": {"train": 6, "tune": 1, "hold-out": 1},
}
N_FLAGS = sum(sum(quota.values()) for quota in QUOTAS.values())
CONFIGS = StageConfigs(
    engine=EngineConfig(backend="onnxruntime", precision="fp32"),
    ensemble=EnsembleConfig(members=("face-resnet",)),
)
TABLES: dict[str, dict[str, object]] = {
    "engine": {"backend": "onnxruntime", "precision": "fp32"},
    "ensemble": {"members": ["face-resnet"], "refresh_every": 5},
    "tracker": TRACKER,
    # nothing is moved to the site: of its expressions the drawn memory knows one
    "learning": {
        "enabled": True, "after_samples": N_FLAGS, "min_samples": 8, "max_steps": 300, "restyled": 0.0,
        "pause_above_ms": 60_000,
    },
    # few faces and no time; in blue light other answers than before are what is wanted
    "promotion": {
        "automatic": True, "gate_slowdown": 4.0, "gate_runs": N_GATE_RUNS, "compared_share": 1.0,
        "least_tracks": 8, "shadow_minutes": 0, "canary_shares": [0.5, 1.0], "canary_minutes": 0,
        "least_agreement": 0.0, "max_psi": 100.0, "max_confidence_shift": 1.0, "max_slowdown": 10.0,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A site, a data set to remember, and another that the gates are measured on."""

    site: ShadowSite
    base: Path
    gate_data: Path


@pytest.fixture(scope="module")
def place(astronaut: U8, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("place")
    return Place(
        build_site(astronaut, folder / "site.avi", N_SLOTS),
        build_ferplus(astronaut, folder / "base", {"Training": 130, "PublicTest": 20}, seed=1),
        build_ferplus(astronaut, folder / "gates", {"Training": 1, "PublicTest": N_GATE_FACES}, seed=2),
    )


@pytest.fixture
def daemon(place: Place, cache: Path) -> Iterator[TemporaryDaemon]:
    """A daemon that is not started, in front of the site."""
    camera = CameraConfig(
        name="stage", source=str(place.site.video), policy="live", loop=True, identity=False
    )
    tables = TABLES | {"promotion": TABLES["promotion"] | {"gate_data": [str(place.gate_data)]}}
    with TemporaryDaemon([camera], cache=cache, wheels=None, tables=tables) as made:
        made.runtime.mkdir()
        yield made


class Hall:
    """What a client of the running daemon sees."""

    def __init__(self, daemon: TemporaryDaemon, subscriber: Subscriber) -> None:
        self.daemon, self.subscriber, self.state = daemon, subscriber, daemon.folder / "state"

    def until(self, is_enough: Callable[[FaceFrame], bool]) -> FaceFrame:
        """Take results until one is as wanted; return it."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            self.daemon.check()
            received = self.subscriber.receive(1.0)
            if received is not None and isinstance(received[0], FaceFrame) and is_enough(received[0]):
                return received[0]
        raise AssertionError(f"{self.progress()}\n{self.daemon.log_file.read_text()}")

    def progress(self) -> Progress:
        return read_progress(self.daemon.runtime) or Progress(stage="off")

    def until_learner(self, is_so: Callable[[Progress], bool]) -> Progress:
        """Take results until the learner says what is wanted; return it."""
        self.until(lambda _: is_so(self.progress()))
        return self.progress()


def visaged(daemon: TemporaryDaemon, *words: str) -> str:
    """Run a command; return what it prints, in one line."""
    done = CliRunner().invoke(build_app(words[0]), [*words, "--config", str(daemon.config_file)])
    if done.exception is not None:
        raise done.exception
    return " ".join(done.output.split())


def flag_faces(hall: Hall, site: ShadowSite, control: ControlClient) -> None:
    """Flag as many faces of each light, and of each part of learning, as are wanted; each look once."""
    left, done = {light: dict(quota) for light, quota in QUOTAS.items()}, set[int]()

    def flag_some(result: FaceFrame) -> bool:
        for face in result.faces:
            if not face.emotion.label:
                continue
            look = site.look_at(face.analysed_seq, face.box)  # what is stored, of whichever frame
            light, bucket = LIGHTS[look % len(LIGHTS)], bucket_of("stage", face.track, result.captured_at)
            part = next(part for part, buckets in PARTS.items() if bucket in buckets)
            said: dict[str, Any] = {"emotion": "anger"} if light == "blue" else {"confirm": True}
            is_right = face.emotion.label == "anger" if light == "blue" else False
            if look in done or not left[light][part] or is_right:
                continue
            try:
                control.request(Flag(camera="stage", track=face.track, seq=result.frame_seq, **said))
            except VisagedError:  # it is gone; the next one will do
                continue
            done.add(look)
            left[light][part] -= 1
        return not any(n for quota in left.values() for n in quota.values())

    hall.until(flag_some)


def test_flags_become_a_release_that_answers_without_anybody_s_help(
    daemon: TemporaryDaemon, place: Place
) -> None:
    visaged(daemon, "learn", "base", str(place.base))
    daemon.start()
    with Subscriber(daemon.endpoint, ["stage"]) as subscriber, ControlClient(daemon.runtime) as control:
        hall = Hall(daemon, subscriber)
        flag_faces(hall, place.site, control)
        hall.until(lambda _: last_candidate(hall.state / "learning") is not None)
        report = last_candidate(hall.state / "learning")
        assert report is not None
        new = report.release
        hall.until(lambda result: result.release.startswith(new))
        angry = hall.until(
            lambda result: any(face.emotion.label == "anger" and not face.release for face in result.faces)
        )
        hall.until_learner(lambda now: now.note == f"release {new} serves, on probation")
        said = visaged(daemon, "learn"), visaged(daemon, "status")
    assert daemon.stop() == 0
    book, journal = daemon.books()["stage"], PromotionJournal(hall.state).read()
    gates = read_report(ReleaseStore(hall.state).get(new))

    assert [e.event for e in journal.history if e.release == new] == ["pass", "shadow", "canary", "promote"]
    assert gates is not None and gates.passed and gates.champion == FACTORY
    results = {result.name: result for result in gates.results}
    assert results["target gain"].n >= 3 and results["accuracy against champion"].n == N_GATE_FACES
    assert results["latency"].n % N_GATE_RUNS == 0
    assert angry.release.startswith(new)
    assert f"promoting by itself is on; release {new} serves, on probation" in said[0]
    assert f"learning: waiting; release {new} serves, on probation" in said[1]
    assert book.dropped["swap"] == 0
    assert book.captured == book.published + sum(book.dropped.values()) + book.in_flight


def learner_of(daemon: TemporaryDaemon) -> psutil.Process:
    family = psutil.Process(daemon.pid).children(recursive=True)
    return next(process for process in family if "learn" in process.cmdline())


def test_a_bad_candidate_is_stopped_also_by_a_learner_that_is_killed_and_the_incumbent_still_serves(
    daemon: TemporaryDaemon, store: ModelStore
) -> None:
    """It says anger, whatever it sees."""
    state = daemon.folder / "state"
    champion = champion_of(CONFIGS, state, store)
    (network,) = champion.networks.values()
    data = network.onnx.read_bytes()
    head = ends_of(data)[0]
    bias = next(node.inputs[2] for node in reversed(head.nodes) if node.operator == "Gemm")
    angry = head.weights[bias] + 25 * np.eye(len(EMOTIONS), dtype=np.float32)[EMOTIONS.index("anger")]
    bad = with_weights(data, {bias: angry})
    member = ReleaseMember(network=network.row, onnx=hashlib.sha256(bad).hexdigest())
    release = msgspec.structs.replace(champion.release, members=(member,))
    about = About(made_at=time.time(), parent=champion.release.id)
    name = ReleaseStore(state).save(release, [bad], about).release.id
    save_report(
        Report(
            run="bad", parent=about.parent, outcome="", finished_at=time.time(), seconds=1.0, release=name
        ),
        state / "learning",
    )
    daemon.start()
    with Subscriber(daemon.endpoint, ["stage"]) as subscriber:
        hall = Hall(daemon, subscriber)
        hall.until_learner(lambda now: now.stage == "gates" and now.step >= 64)
        os.kill(learner_of(daemon).pid, signal.SIGKILL)
        again = hall.until_learner(lambda now: now.stage == "gates" and now.step < 64)
        refused = hall.until_learner(lambda now: "is refused" in now.note)
        first = PromotionJournal(state).read()
        os.kill(learner_of(daemon).pid, signal.SIGKILL)
        after = hall.until_learner(lambda now: now.written_at > refused.written_at and bool(now.note))
        last = hall.until(lambda result: bool(result.faces) and bool(result.faces[0].emotion.label))
        said = visaged(daemon, "learn"), visaged(daemon, "release", "show", name)
    assert daemon.stop() == 0
    journal, gates = PromotionJournal(state).read(), read_report(ReleaseStore(state).get(name))

    assert again.note == f"release {name}"
    assert (first.state_of(name), first.active) == ("refused", FACTORY)
    assert after.stage == "waiting" and after.note == refused.note and "factory stays" in after.note
    assert journal == first, "it was tried again"
    assert last.release.startswith(champion.release.id)
    assert gates is not None
    failed = {result.name for result in gates.failed}
    assert {"accuracy against champion", "forgetting", "target gain"} <= failed
    assert f"release {name} is refused, factory stays" in said[0] and "FAILED" in said[1]
    log = daemon.log_file.read_text()
    assert f"release {name} did not pass: forgetting" in log and f"release {name} is refused" in log
