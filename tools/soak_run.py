"""Run the real daemon for a long time, with a life around it, and sample what it takes."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..daemon.camera import CameraConfig
from ..daemon.client import Subscriber
from ..pipelines.ensemble import EnsembleConfig
from ..pipelines.errors import VisagedError
from ..pipelines.message import FaceFrame
from ..pipelines.model_store import ModelStore
from ..pipelines.releases.release import ReleaseMember, published_release
from ..pipelines.releases.release_store import About, ReleaseStore, member_of
from .bench_live import CAMERA, wait_for_results
from .demo import enrol
from .demo_material import PORTRAIT_NAME
from .resources import load_average, process_usages
from .soak_life import Life
from .soak_verdict import Sample
from .tally import percentiles
from .temporary_daemon import TemporaryDaemon

TABLES: Mapping[str, Mapping[str, object]] = {
    "flags": {"automatic": True, "random_share": 0.05, "random_per_hour": 600},
    "promotion": {"probation_hours": 0},  # else the release before would stay in memory for a day
}


@dataclass(slots=True)
class Soaked:
    """What a long run gave: samples, deeds of its life by name, and why it ended early, if it did."""

    samples: list[Sample] = field(default_factory=list)
    deeds: dict[str, int] = field(default_factory=dict)
    refusal: str = ""
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run: a video, a photo of somebody to enrol, how long, how often to look, whether to swap."""

    video: Path
    portrait: Path
    seconds: float
    every_s: float
    swaps: bool


def soak_daemon(plan: Plan, store: ModelStore, tell: Callable[[Soaked], None]) -> Soaked:
    """Return what the daemon took while it ran as `plan` says; also when it failed or was interrupted.

    `tell` hears of every sample.

    Raises:
        VisagedError: the daemon did not start, or published nothing.
    """
    camera = CameraConfig(name=CAMERA, source=str(plan.video), policy="live", loop=True)
    soaked = Soaked()
    with (
        TemporaryDaemon([camera], cache=store.cache_dir, wheels=store.wheels_dir, tables=TABLES) as daemon,
        Subscriber(daemon.endpoint, [CAMERA]) as results,
    ):
        enrol(PORTRAIT_NAME, plan.portrait, daemon.config_file)
        release = other_release(daemon.folder / "state", store) if plan.swaps else ""
        daemon.start()
        wait_for_results(daemon, results)
        with Life(daemon, release) as life:
            try:
                _live_on(daemon, results, life, plan, soaked, tell)
            except VisagedError as error:
                soaked.failure = str(error)
            except KeyboardInterrupt:
                soaked.failure = "interrupted"
            soaked.deeds, soaked.refusal = dict(life.counts), life.last_refusal
    return soaked


def other_release(state: Path, store: ModelStore) -> str:
    """Keep a release of the factory's networks under another rule in `state`; return its id."""
    files = [store.files_of(name) for name in EnsembleConfig().members]
    members: list[ReleaseMember] = [member_of(file) for file in files]
    paths = [path for file in files for path in (file.onnx, file.ranges) if path]
    about = About(made_at=time.time(), note="for a soak")
    return ReleaseStore(state).save(published_release(members, "product"), paths, about).release.id


def _live_on(
    daemon: TemporaryDaemon,
    results: Subscriber,
    life: Life,
    plan: Plan,
    soaked: Soaked,
    tell: Callable[[Soaked], None],
) -> None:
    """Take results until the time is over, and a sample every so often."""
    begun_s, due_s = time.monotonic(), plan.every_s
    latencies_ms: list[float] = []
    n_faces = 0
    while (at_s := time.monotonic() - begun_s) < plan.seconds:
        received = results.receive(0.1)
        if received is not None and isinstance(received[0], FaceFrame):
            result = received[0]
            life.see(result)
            latencies_ms.append((result.published_ns - result.captured_ns) / 1e6)
            n_faces += len(result.faces)
        if at_s >= due_s:
            daemon.check()
            soaked.deeds = dict(life.counts)
            soaked.samples.append(take_sample(daemon, at_s, latencies_ms, n_faces))
            tell(soaked)
            due_s, n_faces = due_s + plan.every_s, 0
            latencies_ms.clear()
        life.go_on(at_s)


def take_sample(daemon: TemporaryDaemon, at_s: float, latencies_ms: list[float], n_faces: int) -> Sample:
    """Return what the daemon holds now, with the latencies since the sample before.

    Raises:
        VisagedError: it has ended.
    """
    usages, book, late = process_usages(daemon.pid), daemon.books()[CAMERA], percentiles(latencies_ms)
    return Sample(
        at_s=round(at_s, 2),
        pss_mb={name: round(usage.pss_bytes / 1e6, 2) for name, usage in usages.items()},
        fds={name: usage.n_fds for name, usage in usages.items()},
        threads={name: usage.n_threads for name, usage in usages.items()},
        p50_ms=round(late["p50"], 2),
        p99_ms=round(late["p99"], 2),
        results=len(latencies_ms),
        faces=n_faces,
        captured=book.captured,
        published=book.published,
        dropped={reason: n for reason, n in book.dropped.items() if n},
        in_flight=book.in_flight,
        load=round(load_average(), 2),
    )
