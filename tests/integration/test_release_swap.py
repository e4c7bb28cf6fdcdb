"""Releases exchanged in the running daemon: no frame lost, no message wrong, back within one batch."""

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner
from visaged.daemon.camera import CameraConfig
from visaged.daemon.client import Subscriber
from visaged.daemon.control import ControlClient, Promote, RollBack, Status
from visaged.pipelines.errors import ReleaseError, VisagedError
from visaged.pipelines.fuser import DecisionFusion
from visaged.pipelines.message import EMOTIONS, FaceFrame
from visaged.pipelines.model_store import NetworkFiles
from visaged.pipelines.registry import FACE_RESNET
from visaged.pipelines.releases.promotion import Event, PromotionJournal
from visaged.pipelines.releases.release import Release
from visaged.pipelines.releases.release_store import About, ReleaseStore, member_of
from visaged.tools.cli import build_app
from visaged.tools.temporary_daemon import TemporaryDaemon

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

N_SWAPS = 20
BEGINNING: tuple[Event, ...] = ("waive", "promote", "commit")
PATIENCE_S = 120.0
TABLES: dict[str, dict[str, object]] = {
    "engine": {"backend": "onnxruntime", "precision": "fp32"},
    "ensemble": {"refresh_every": 1},
    "promotion": {
        "compared_share": 1.0,
        "least_tracks": 1,
        "shadow_minutes": 0,
        "canary_shares": [0.5, 1.0],
        "canary_minutes": 0,
        "max_slowdown": 4,
    },
}
SAYS_HAPPY, SAYS_SAD = EMOTIONS.index("happiness"), EMOTIONS.index("sadness")


def small_network(folder: Path, name: str, says: int, *, bias: float = 4.0, work: int = 0) -> NetworkFiles:
    """A network with the outputs of dlib's, of the mean colour, that says one emotion and works in vain."""
    random = np.random.default_rng(0)
    logits = np.zeros(8, np.float32)
    logits[says] = bias
    weights: dict[str, npt.NDArray[Any]] = {
        "to_embedding": random.normal(0, 0.3, (3, 128)).astype(np.float32),
        "bias": logits,
        "to_nothing": np.zeros((3, 8), np.float32),
        "wide": random.normal(0, 1, (3, 1024)).astype(np.float32),
        "square": random.normal(0, 0.03, (1024, 1024)).astype(np.float32),
        "narrow": np.zeros((1024, 8), np.float32),
        "over_faces": np.array([0], np.int64),
    }
    size = FACE_RESNET.recipe.size
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["colour"]),
        helper.make_node("MatMul", ["colour", "to_embedding"], ["embedding"]),
        helper.make_node("MatMul", ["colour", "to_embedding"], ["hidden"]),
        helper.make_node("ReduceMean", ["colour", "over_faces"], ["one"], keepdims=1),
        helper.make_node("MatMul", ["one", "wide"], ["work0"]),  # of one face, however many there are
        *(helper.make_node("MatMul", [f"work{i}", "square"], [f"work{i + 1}"]) for i in range(work)),
        helper.make_node("MatMul", [f"work{work}", "narrow"], ["nothing"]),
        helper.make_node("MatMul", ["colour", "to_nothing"], ["for_each"]),
        helper.make_node("Sum", ["nothing", "for_each", "bias"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, size, size])],
        [
            helper.make_tensor_value_info(output.name, TensorProto.FLOAT, ["n", output.dim])
            for output in FACE_RESNET.outputs
        ],
        [numpy_helper.from_array(value, key) for key, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.onnx"
    onnx.save(model, str(path))
    return NetworkFiles(FACE_RESNET, path)


def keep(state: Path, files: NetworkFiles, weight: float = 1.0) -> str:
    """Keep a release of one small network; return its id."""
    release = Release(
        members=(member_of(files),),
        fusion=DecisionFusion(weights={"face-resnet": weight}),
        embedding_space="face-resnet",
    )
    return ReleaseStore(state).save(release, [files.onnx], About(made_at=weight)).release.id


class Stage:
    """A daemon with a face that moves, whose active release is small from the start."""

    def __init__(self, daemon: TemporaryDaemon, first: str) -> None:
        self.daemon, self.state, self.first = daemon, daemon.folder / "state", first
        self.results: list[FaceFrame] = []
        daemon.runtime.mkdir(exist_ok=True)
        self.subscriber = Subscriber(daemon.endpoint, ["stage"], timeout_s=PATIENCE_S)
        daemon.start()
        self.listen(lambda result: bool(result.faces))
        self.control = ControlClient(daemon.runtime)

    def listen(self, is_enough: Callable[[FaceFrame], bool]) -> FaceFrame:
        """Take results until one is as wanted; return it."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            self.daemon.check()
            received = self.subscriber.receive(1.0)
            if received is not None and isinstance(received[0], FaceFrame):
                self.results.append(received[0])
                if is_enough(received[0]):
                    return received[0]
        raise AssertionError(self.daemon.log_file.read_text())

    def promote(self, release: str, *stages: str) -> None:
        """Promote through `stages` only."""
        skip = tuple(s for s in ("gates", "shadow", "canary") if s not in stages)
        self.control.request(Promote(release=release, skip=skip), timeout_s=PATIENCE_S)  # type: ignore[arg-type]

    def status(self) -> dict[str, Any]:
        return self.control.request(Status(), timeout_s=PATIENCE_S)

    def close(self) -> None:
        self.control.close()
        self.subscriber.close()


def visaged(stage: Stage, *words: str) -> str:
    """Run `visaged release`; return what it prints, in one line."""
    done = CliRunner().invoke(
        build_app("release"), ["release", *words, "--config", str(stage.daemon.config_file)]
    )
    if done.exception is not None:
        raise done.exception
    return " ".join(done.output.split())


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, cache: Path, astronaut: U8) -> Iterator[Stage]:
    photo = tmp_path_factory.mktemp("photo") / "astronaut.png"
    cv2.imwrite(str(photo), cv2.cvtColor(astronaut, cv2.COLOR_RGB2BGR))
    source = f"synthetic:pan?photo={photo}&width=512&height=400&fps=20&seconds=600"
    camera = CameraConfig(name="stage", source=source, policy="live")
    with TemporaryDaemon([camera], cache=cache, wheels=None, tables=TABLES) as daemon:
        state = daemon.folder / "state"
        first = keep(state, small_network(daemon.folder, "happy", SAYS_HAPPY))
        for event in ("waive", "promote", "commit"):
            PromotionJournal(state).write(first, event, 0.0)
        made = Stage(daemon, first)
        try:
            yield made
        finally:
            made.close()


@pytest.fixture
def stage(started: Stage) -> Stage:
    """The one daemon, which serves its first release at the begin and at the end of every test."""
    asked_ns = time.monotonic_ns()
    started.listen(lambda r: r.published_ns > asked_ns and r.release.startswith(started.first))
    started.results.clear()
    return started


def test_a_rollback_takes_effect_in_the_next_batch_and_the_release_is_in_quarantine(stage: Stage) -> None:
    calm = keep(stage.state, small_network(stage.daemon.folder, "calm", SAYS_HAPPY, bias=2.0))
    stage.promote(calm)
    stage.listen(lambda result: result.release.startswith(calm) and bool(result.faces))

    stage.control.request(RollBack(why="too calm"), timeout_s=PATIENCE_S)
    asked_ns = time.monotonic_ns()
    last = stage.listen(lambda result: result.published_ns > asked_ns and bool(result.faces))

    after = [result for result in stage.results if result.published_ns > asked_ns]
    assert {result.release.partition(".")[0] for result in after} == {stage.first}
    assert [face.release for face in last.faces] == [""]
    assert [face.emotion.probability > 0.8 for face in last.faces] == [True]
    journal = PromotionJournal(stage.state).read()
    assert (journal.active, journal.state_of(calm)) == (stage.first, "rolled back")
    assert journal.history[-1].why == "too calm"
    with pytest.raises(VisagedError, match="quarantine"):
        stage.promote(calm)


def test_the_commands_promote_go_back_bless_and_pardon(stage: Stage) -> None:
    calm = keep(stage.state, small_network(stage.daemon.folder, "calm", SAYS_HAPPY, bias=2.5))
    journal = PromotionJournal(stage.state)

    promoted = visaged(stage, "promote", calm[:8], "--skip-gates", "--skip-shadow", "--skip-canary")
    now = stage.status()
    gone_back = visaged(stage, "rollback", "--why", "too calm")
    pardoned = visaged(stage, "pardon", calm)
    visaged(stage, "bless", stage.first)

    assert f"release {calm} serves, on probation" in promoted
    assert now["promotion"]["active"] == now["promotion"]["trial"]["release"] == calm
    assert f"rolled back release {calm}; serving release {stage.first}." in gone_back
    assert "candidate again" in pardoned and journal.read().state_of(calm) == "candidate"
    assert journal.read().blessed == stage.first
    with pytest.raises(ReleaseError, match="may have to serve"):
        visaged(stage, "remove", stage.first)


def test_a_network_that_says_no_numbers_is_rolled_back_and_nobody_sees_them(stage: Stage) -> None:
    broken = keep(stage.state, small_network(stage.daemon.folder, "broken", SAYS_SAD, bias=float("nan")), 3.0)
    journal = PromotionJournal(stage.state)

    stage.promote(broken)
    stage.listen(lambda result: journal.read().state_of(broken) == "rolled back")
    last = stage.listen(lambda result: result.release.startswith(stage.first) and bool(result.faces))

    assert "no number" in journal.read().history[-1].why
    assert {face.emotion.label for result in stage.results for face in result.faces} == {"happiness"}
    assert [face.emotion.label for face in last.faces] == ["happiness"]


def test_a_good_release_goes_its_whole_way_by_itself(stage: Stage) -> None:
    better = keep(stage.state, small_network(stage.daemon.folder, "better", SAYS_HAPPY, bias=4.1))

    stage.promote(better, "shadow", "canary")
    stage.listen(lambda result: result.release.startswith(better))
    events = [e.event for e in PromotionJournal(stage.state).read().history if e.release == better]
    stage.control.request(RollBack(), timeout_s=PATIENCE_S)

    assert events == ["waive", "shadow", "canary", "promote"]


def test_a_slow_and_a_broken_canary_are_rolled_back_and_nobody_notices(stage: Stage) -> None:
    slow = small_network(stage.daemon.folder, "slow", SAYS_HAPPY, work=100)
    broken = small_network(stage.daemon.folder, "broken", SAYS_SAD, bias=float("nan"))
    journal, why = PromotionJournal(stage.state), []

    for files in (slow, broken):
        name = keep(stage.state, files, 5.0)
        stage.promote(name, "canary")
        stage.listen(lambda result, n=name: journal.read().state_of(n) == "rolled back")  # type: ignore[misc]
        why.append(journal.read().history[-1].why)

    assert "times the other's" in why[0] and "no number" in why[1]
    assert {result.release.partition(".")[0] for result in stage.results} == {stage.first}
    assert {face.emotion.label for result in stage.results for face in result.faces} == {"happiness"}


def test_twenty_swaps_under_load_lose_nothing_and_every_message_says_its_release(stage: Stage) -> None:
    """The two say the same emotion, one with 0.89 and the other with 0.74."""
    sure = stage.first
    unsure = keep(stage.state, small_network(stage.daemon.folder, "unsure", SAYS_HAPPY, bias=3.0))
    told = [sure]

    for turn in range(N_SWAPS):
        told.append((unsure, sure)[turn % 2])
        stage.promote(told[-1])
        stage.listen(lambda result, name=told[-1]: result.release.startswith(name))  # type: ignore[misc]
    journal = PromotionJournal(stage.state).read()
    assert stage.subscriber.n_lost == 0
    assert stage.daemon.stop() == 0
    book = stage.daemon.books()["stage"]

    releases = [result.release.partition(".")[0] for result in stage.results]
    changes = [b for a, b in itertools.pairwise(releases) if a != b]
    assert changes == told[1:]
    says = {sure: pytest.approx(0.886, abs=0.01), unsure: pytest.approx(0.742, abs=0.01)}
    for result in stage.results:
        for face in result.faces:
            answered = (face.release or result.release).partition(".")[0]
            assert face.emotion.probability == says[answered], "two releases are mixed"
    assert book.dropped["swap"] == 0
    assert book.captured == book.published + sum(book.dropped.values()) + book.in_flight
    assert journal.active == told[-1] and journal.previous == told[-2]
    assert [e.event for e in journal.history][-N_SWAPS:] == ["promote"] * N_SWAPS
