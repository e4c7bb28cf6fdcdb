"""Bench the real daemon: one 720p camera at 30 fps with six faces, under policy `live`."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..daemon.camera import CameraConfig
from ..daemon.client import Subscriber
from ..pipelines.errors import VisagedError
from ..pipelines.message import FaceFrame
from .resources import TreeUsage, tree_usage
from .tally import Tally, percentiles
from .temporary_daemon import TemporaryDaemon

CAMERA = "bench"
START_S = 120.0  # the first start may import the models
WARM_UP_S = 5.0  # until the memory has its size and every face its first answer
SAMPLE_S = 1.0


def bench_live(scene: Path, seconds: float, *, cache: Path, wheels: Path | None) -> dict[str, Any]:
    """Return frames, latency, cores and memory of the daemon over `seconds` of the video `scene`.

    Raises:
        VisagedError: the daemon ended, or published nothing.
    """
    camera = CameraConfig(name=CAMERA, source=str(scene), policy="live", loop=True)
    with (
        TemporaryDaemon([camera], cache=cache, wheels=wheels) as daemon,
        Subscriber(daemon.endpoint, [CAMERA]) as subscriber,
    ):
        daemon.start()
        wait_for_results(daemon, subscriber)
        collect(daemon, subscriber, WARM_UP_S)
        before, start = tree_usage(daemon.pid), time.perf_counter()
        tally, samples = collect(daemon, subscriber, seconds)
        after, wall_s = tree_usage(daemon.pid), time.perf_counter() - start
    return report(tally, [*samples, after], (after.cpu_s - before.cpu_s) / wall_s)


def wait_for_results(daemon: TemporaryDaemon, subscriber: Subscriber, timeout_s: float = START_S) -> None:
    """Return when the daemon has published its first frame.

    Raises:
        VisagedError: it ended, or is silent for `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        daemon.check()
        if subscriber.receive(0.2) is not None:
            return
    raise VisagedError(f"the daemon published nothing within {timeout_s:.0f} s; try `visaged run` to see why")


def collect(daemon: TemporaryDaemon, subscriber: Subscriber, seconds: float) -> tuple[Tally, list[TreeUsage]]:
    """Return what was published in the next `seconds`, and the daemon's usage about once a second."""
    tally, samples = Tally(CAMERA, is_from_start=False), []
    end = time.monotonic() + seconds
    sample_at = time.monotonic() + SAMPLE_S
    while (now := time.monotonic()) < end:
        received = subscriber.receive(0.1)
        if received is not None and isinstance(received[0], FaceFrame):
            tally.add(received[0])
        if now >= sample_at:
            daemon.check()
            samples.append(tree_usage(daemon.pid))
            sample_at += SAMPLE_S
    return tally, samples


def report(tally: Tally, samples: list[TreeUsage], cores: float) -> dict[str, Any]:
    """Return the figures of one live run as plain values."""
    stages: Mapping[str, dict[str, float]] = {
        stage: {name: round(value, 3) for name, value in percentiles(spent).items()}
        for stage, spent in tally.stages_ms.items()
    }
    return {
        "size": "1280x720",
        "seconds": round(tally.seconds, 2),
        "fps": round((tally.published - 1) / tally.seconds, 2) if tally.seconds else 0.0,
        "frames": {
            "captured": tally.captured,
            "published": tally.published + tally.lost,
            "dropped": dict(tally.dropped),
            "balanced": tally.in_flight == 0,
        },
        "faces_per_frame": round(tally.faces / max(1, tally.published), 2),
        "capture_to_publish_ms": {k: round(v, 2) for k, v in percentiles(tally.latencies_ms).items()},
        "cores": round(cores, 3),
        "memory_pss_mb": round(max(sample.pss_bytes for sample in samples) / 1e6, 1),
        "memory_rss_mb": round(max(sample.rss_bytes for sample in samples) / 1e6, 1),
        "processes": samples[-1].n_processes,
        "stages_ms": stages,
    }
