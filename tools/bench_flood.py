"""Bench the real daemon while another machine floods its gateway: what does it cost the faces?"""

import socket
from pathlib import Path
from typing import Any

from ..daemon.camera import CameraConfig
from ..daemon.client import Subscriber
from ..daemon.keys import Role, add_client, create_server, read_client
from .bench_live import CAMERA, WARM_UP_S, collect, wait_for_results
from .flood import Flood
from .tally import Tally, percentiles
from .temporary_daemon import TemporaryDaemon

ROUNDS = 4  # alone and flooded in turn, so that other work on the machine meets both alike


def bench_flood(scene: Path, seconds: float, *, cache: Path, wheels: Path | None) -> dict[str, Any]:
    """Return latencies alone and under a flood, `seconds` of each, on the video `scene`.

    The flood comes from this process and takes part of a core, which is another machine's in earnest.

    Raises:
        VisagedError: the daemon ended, or published nothing.
    """
    camera = CameraConfig(name=CAMERA, source=str(scene), policy="live", loop=True)
    results, control = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
    tables = {"remote": {"results": results, "control": control}}
    alone: list[Tally] = []
    flooded: list[Tally] = []
    acts: dict[str, int] = {}
    with TemporaryDaemon([camera], cache=cache, wheels=wheels, tables=tables) as daemon:
        keys, file = daemon.folder / "state" / "keys", daemon.folder / "rude.key"
        create_server(keys)
        add_client(keys, "rude", [Role.ADMIN], file)
        daemon.start()
        with Subscriber(daemon.endpoint, [CAMERA]) as subscriber:
            wait_for_results(daemon, subscriber)
            collect(daemon, subscriber, WARM_UP_S)
            for _ in range(ROUNDS):
                alone.append(collect(daemon, subscriber, seconds / ROUNDS)[0])
                with Flood(results, control, read_client(file)) as flood:
                    flooded.append(collect(daemon, subscriber, seconds / ROUNDS)[0])
                acts = {name: acts.get(name, 0) + n for name, n in flood.counts().items()}
    return report(alone, flooded, acts)


def report(alone: list[Tally], flooded: list[Tally], acts: dict[str, int]) -> dict[str, Any]:
    """Return the figures of all rounds together; `ratio` is that of the 99th percentiles."""
    figures = {name: _summary(tallies) for name, tallies in (("alone", alone), ("flooded", flooded))}
    before, under = (figures[name]["capture_to_publish_ms"]["p99"] for name in ("alone", "flooded"))
    return {**figures, "ratio": round(under / before, 3) if before else 0.0, "acts": acts}


def free_ports(n: int) -> list[int]:
    """Return `n` TCP ports that nobody uses now."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _summary(tallies: list[Tally]) -> dict[str, Any]:
    latencies = percentiles(ms for tally in tallies for ms in tally.latencies_ms)
    return {
        "published": sum(tally.published + tally.lost for tally in tallies),
        "dropped": sum(sum(tally.dropped.values()) for tally in tallies),
        "capture_to_publish_ms": {name: round(value, 2) for name, value in latencies.items()},
    }
