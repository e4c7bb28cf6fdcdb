"""Bench the real daemon while another machine floods its gateway: what does it cost the faces?"""

import contextlib
import socket
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..daemon.camera import CameraConfig
from ..daemon.client import Subscriber
from ..daemon.keys import Role, add_client, create_server, read_client
from .bench_live import CAMERA, WARM_UP_S, collect, wait_for_results
from .flood import Flood
from .resources import process_usages
from .tally import Tally, percentiles
from .temporary_daemon import TemporaryDaemon

SETTLE_S = 1.0  # after a flood begins or ends: what is still queued belongs to neither


def bench_flood(
    scene: Path, seconds: float, scene_s: float, *, cache: Path, wheels: Path | None
) -> dict[str, Any]:
    """Return latencies alone and under a flood, `seconds` of each, on the video `scene` of `scene_s` seconds.

    Alone and flooded in turn, so that other work on the machine meets both alike, each round once through
    the video: in a part of it there would be other faces for the one than for the other. The flood comes from
    this machine, at the lowest priority: what is measured is what it makes the daemon do.

    Raises:
        VisagedError: the daemon ended, or published nothing.
    """
    camera = CameraConfig(name=CAMERA, source=str(scene), policy="live", loop=True)
    results, control = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
    tables = {"remote": {"results": results, "control": control}}
    alone: list[Tally] = []
    flooded: list[Tally] = []
    acts: dict[str, int] = {}
    cores: list[float] = []
    quiet = contextlib.nullcontext()
    with TemporaryDaemon([camera], cache=cache, wheels=wheels, tables=tables) as daemon:
        keys, file = daemon.folder / "state" / "keys", daemon.folder / "rude.key"
        create_server(keys)
        add_client(keys, "rude", [Role.ADMIN], file)
        daemon.start()
        with Subscriber(daemon.endpoint, [CAMERA]) as subscriber:
            wait_for_results(daemon, subscriber)
            collect(daemon, subscriber, WARM_UP_S)
            for number in range(max(1, round(seconds / scene_s))):
                for is_flooded in (False, True) if number % 2 == 0 else (True, False):
                    with Flood(results, control, read_client(file)) if is_flooded else quiet as flood:
                        collect(daemon, subscriber, SETTLE_S)
                        begun_s, spent_s = time.monotonic(), _gateway_cpu_s(daemon)
                        tally = collect(daemon, subscriber, scene_s)[0]
                        if is_flooded:
                            cores.append((_gateway_cpu_s(daemon) - spent_s) / (time.monotonic() - begun_s))
                    (flooded if is_flooded else alone).append(tally)
                    if flood is not None:
                        acts = {name: acts.get(name, 0) + n for name, n in flood.counts().items()}
    return report(alone, flooded, acts, statistics.mean(cores))


def report(
    alone: Sequence[Tally], flooded: Sequence[Tally], acts: dict[str, int], gateway_cores: float
) -> dict[str, Any]:
    """Return the figures of all rounds; `ratios` are those of the 99th percentiles, round by round.

    `gateway_cores` is how much of a core the gateway takes while it is flooded. `ratio` is the median of the
    ratios: of all frames together, a percentile is decided by the worst second of one round.
    """
    figures = {name: _summary(tallies) for name, tallies in (("alone", alone), ("flooded", flooded))}
    pairs = [(_p99(before), _p99(under)) for before, under in zip(alone, flooded, strict=True)]
    ratios = [round(under / before, 3) for before, under in pairs if before]
    ratio = round(statistics.median(ratios), 3) if ratios else 0.0
    cores = round(gateway_cores, 2)
    return {**figures, "ratio": ratio, "ratios": ratios, "acts": acts, "gateway_cores": cores}


def free_ports(n: int) -> list[int]:
    """Return `n` TCP ports that nobody uses now."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _gateway_cpu_s(daemon: TemporaryDaemon) -> float:
    return process_usages(daemon.pid)["gateway"].cpu_s


def _p99(tally: Tally) -> float:
    return percentiles(tally.latencies_ms)["p99"]


def _summary(tallies: Sequence[Tally]) -> dict[str, Any]:
    latencies = percentiles(ms for tally in tallies for ms in tally.latencies_ms)
    return {
        "published": sum(tally.published + tally.lost for tally in tallies),
        "dropped": sum(sum(tally.dropped.values()) for tally in tallies),
        "capture_to_publish_ms": {name: round(value, 2) for name, value in latencies.items()},
    }
