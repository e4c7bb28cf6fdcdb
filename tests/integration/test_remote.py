"""Another machine and the real daemon: `visaged watch` and `status` over tcp, revoking, and a flood."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from visaged.daemon.camera import CameraConfig
from visaged.daemon.client import Subscriber
from visaged.daemon.control import ControlClient, Status
from visaged.daemon.keys import Role, add_client, create_server, read_client, revoke_client
from visaged.tools.flood import Flood
from visaged.tools.temporary_daemon import TemporaryDaemon

PATTERN = CameraConfig(name="door", source="synthetic:pattern?width=160&height=120&fps=15")
PATIENCE_S = 60.0


class Place:
    """A daemon that serves other machines, and how they reach it."""

    def __init__(self, cache: Path, port: int) -> None:
        self.results, self.control = f"tcp://127.0.0.1:{port}", f"tcp://127.0.0.1:{port + 7}"
        remote = {"results": self.results, "control": self.control}
        self.daemon = TemporaryDaemon([PATTERN], cache=cache, wheels=None, tables={"remote": remote})
        self.keys = self.daemon.folder / "state" / "keys"

    def client(self, name: str, *roles: Role) -> Path:
        file = self.daemon.folder / f"{name}.key"
        add_client(self.keys, name, roles, file)
        return file


@pytest.fixture(scope="module")
def place(cache: Path) -> Iterator[Place]:
    """One daemon for all tests: each has clients of its own."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    made = Place(cache, port)
    create_server(made.keys)
    with made.daemon as daemon:
        daemon.start()
        yield made


def visaged(*words: str) -> "subprocess.Popen[str]":
    line = [sys.executable, "-m", "visaged.tools.cli", *words]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_another_machine_watches_and_asks_until_it_is_revoked(place: Place) -> None:
    key = place.client("laptop", Role.SUBSCRIBE)
    reach = ("--key", str(key), "--endpoint")

    with visaged("watch", "--json", *reach, place.results) as watch:
        assert watch.stdout is not None
        assert watch.stderr is not None
        assert '"camera":"door"' in watch.stdout.readline()
        with visaged("status", *reach, place.control) as status:
            out, _ = status.communicate(timeout=PATIENCE_S)
        assert (status.returncode, "door" in out) == (0, True)

        revoke_client(place.keys, "laptop")
        _, err = watch.communicate(timeout=PATIENCE_S)

    assert watch.returncode == 1
    assert f"{place.results} refuses the key laptop" in err


def test_a_flood_costs_no_frame_and_local_clients_notice_nothing(place: Place) -> None:
    reader = place.client("wall", Role.SUBSCRIBE)
    flooder = read_client(place.client("flooder", Role.ADMIN))
    with Subscriber(place.daemon.endpoint, ["door"]) as local, Subscriber(place.results, key=reader) as wall:
        assert local.receive(PATIENCE_S) is not None
        assert wall.receive(PATIENCE_S) is not None
        with Flood(place.results, place.control, flooder) as flood:
            for _ in range(45):
                assert local.receive(5) is not None
            with ControlClient(place.daemon.runtime) as control:
                assert "door" in control.request(Status())["cameras"]
        assert local.n_lost == 0
        assert wall.receive(5) is not None
    assert min(flood.counts().values()) > 0, flood.counts()

    book = place.daemon.books()["door"]
    assert book.captured == book.published + sum(book.dropped.values()) + book.in_flight
    assert sum(book.dropped.values()) == book.dropped["stale"], str(book)  # this machine may be busy


def test_remote_endpoints_without_keys_end_with_78_before_anything_starts(cache: Path) -> None:
    with Place(cache, 5560).daemon as daemon:
        daemon.start()
        assert daemon._popen is not None
        assert daemon._popen.wait(30) == 78
        log = daemon.log_file.read_text()

    assert "visaged keys init" in log
    assert "started" not in log
