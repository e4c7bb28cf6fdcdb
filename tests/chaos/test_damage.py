"""A daemon that starts with a truncated plan and release, and whose camera is a bad RTSP server."""

import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from visaged.pipelines.engines.engine import EngineConfig
from visaged.pipelines.engines.engine_loader import EngineLoader
from visaged.pipelines.engines.plan_builder import key_of
from visaged.pipelines.fuser import DecisionFusion
from visaged.pipelines.model_store import ModelStore, NetworkFiles
from visaged.pipelines.registry import FACE_RESNET
from visaged.pipelines.releases.promotion import Event, PromotionJournal
from visaged.pipelines.releases.release import Release
from visaged.pipelines.releases.release_store import About, ReleaseStore, member_of

from tests.chaos.stage import Metric, Stage
from tests.conftest import find_free_port
from tests.rtsp_server import RtspServer

ACTIVE: tuple[Event, ...] = ("waive", "promote", "commit")
SILENT_AFTER_S = 3.0
BACK_S = 10.0


@pytest.fixture(scope="module")
def server(photo: Path) -> Iterator[RtspServer]:
    made = RtspServer(showing(photo, 512))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def damaged(cache: Path, tmp_path_factory: pytest.TempPathFactory, server: RtspServer) -> Iterator[Stage]:
    """A daemon that has started with a truncated plan and a truncated active release."""
    own = tmp_path_factory.mktemp("cache")
    loader = EngineLoader(EngineConfig(backend="onnxruntime", precision="int8"), ModelStore(cache))
    loader.build_missing(["face-resnet"])
    plan = loader.plans.find(key_of(loader.order("face-resnet"), loader.models))
    assert plan is not None
    for folder in (cache / "models", cache / "archives" / "fer", plan.folder):
        shutil.copytree(folder, own / folder.relative_to(cache))
    truncate(own / plan.path.relative_to(cache))
    with Stage(
        own,
        {"a": server.url},
        find_free_port(),
        {"engine": {"backend": "onnxruntime", "precision": "int8"}, "ensemble": {"members": ["face-resnet"]}},
        silent_after_s=SILENT_AFTER_S,
    ) as stage:
        truncate_release(stage.state, loader.models.ensure("face-resnet"))
        stage.daemon.start()
        stage.watch()
        yield stage
        stage.finish()


def showing(photo: Path, side: int) -> str:
    """Return GStreamer elements that show a PNG in `side` x `side` px, ten times a second."""
    return (
        f"filesrc location={photo} ! pngdec ! imagefreeze is-live=true ! videoconvert ! videoscale "
        f"! video/x-raw,format=I420,width={side},height={side},framerate=10/1"
    )


def truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def truncate_release(state: Path, network: Path) -> None:
    """Make a release of one network active, and cut the network's file in half."""
    release = Release(
        members=(member_of(NetworkFiles(FACE_RESNET, network)),),
        fusion=DecisionFusion(weights={"face-resnet": 1.0}),
        embedding_space="face-resnet",
    )
    stored = ReleaseStore(state).save(release, [network], About(made_at=1.0))
    journal = PromotionJournal(state)
    for event in ACTIVE:
        journal.write(stored.release.id, event, at=1.0)
    (kept,) = stored.networks().values()
    truncate(kept.onnx)


def test_truncated_files_are_said_once_and_others_serve(damaged: Stage) -> None:
    lines = damaged.daemon.log_file.read_text().splitlines()
    complaints = [line for line in lines if " WARNING " in line or " ERROR " in line]
    for what in ("plan of face-resnet is damaged", "release .* (is damaged|serves instead)"):
        assert sum(bool(re.search(what, line)) for line in complaints) == 1, complaints
    assert damaged.metric("infer", "visaged_release_refused", {}) == 1
    fallback: Metric = ("infer", "visaged_engine_fallback", {"member": "face-resnet"})
    damaged.wait(lambda: damaged.metric(*fallback) == 0, 30, "the plan to be built again")
    damaged.check_people()


def test_an_rtsp_server_that_stalls(damaged: Stage, server: RtspServer) -> None:
    silences: Metric = ("capture@a", "visaged_camera_silences_total", {"camera": "a"})
    with damaged.fault(within_s=BACK_S, line="camera a is lost: .* silent", metric=silences) as fault:
        server.process.send_signal(signal.SIGSTOP)
        damaged.wait(fault.is_counted, SILENT_AFTER_S + 5, "the silence to be noticed")
        server.process.send_signal(signal.SIGCONT)
        fault.is_over()


def test_an_rtsp_server_that_changes_its_size_on_the_same_connection(
    damaged: Stage, server: RtspServer
) -> None:
    changes: Metric = ("capture@a", "visaged_camera_size_changes_total", {"camera": "a"})
    line = "camera a: pictures are now 640x640, were 512x512"
    with damaged.fault(within_s=BACK_S, line=line, metric=changes) as fault:
        server.resize(640, 640)
        damaged.wait(fault.is_counted, BACK_S, "the new size to be noticed")
    newest = damaged.viewer.seen["a"].newest
    assert newest is not None and newest.width == 640


def test_an_rtsp_server_that_restarts_with_another_size(
    damaged: Stage, server: RtspServer, photo: Path
) -> None:
    reconnects: Metric = ("capture@a", "visaged_camera_reconnects_total", {"camera": "a"})
    with damaged.fault(
        within_s=BACK_S, line="camera a is lost", metric=reconnects, allowed="pictures are now 400x400"
    ) as fault:
        server.stop()
        damaged.wait(fault.is_counted, 10, "the loss to be noticed")
        fault.is_over()
        again = RtspServer(showing(photo, 400), server.port)
    server.process = again.process
    newest = damaged.viewer.seen["a"].newest
    assert newest is not None and newest.width == 400
