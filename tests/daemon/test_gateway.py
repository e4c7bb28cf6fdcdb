"""The gateway between real sockets: who gets in, what they may do, what revoking does at once."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from visaged.daemon.client import Subscriber
from visaged.daemon.control import Control, ControlClient, EnrolTrack, Ping, Status
from visaged.daemon.curve import ClientKey, new_pair
from visaged.daemon.gateway import Gateway
from visaged.daemon.keys import (
    Role,
    add_client,
    client_key_lines,
    create_server,
    read_client,
    revoke_client,
    rotate_server,
)
from visaged.daemon.metrics import GatewayMetrics
from visaged.daemon.outline import Outline, PathsConfig
from visaged.daemon.publisher import Publisher
from visaged.daemon.remote import RemoteConfig
from visaged.daemon.sockets import ControlSocket, ResultsSubscriber
from visaged.pipelines.errors import ConfigError, VisagedError
from visaged.pipelines.message import FaceFrame


class Site:
    """infer's sockets and a gateway in a thread each, and the folder of keys."""

    def __init__(self, runtime: Path, results: str = "tcp://127.0.0.1:0", **settings: Any) -> None:
        self.runtime, self.keys = runtime, runtime / "keys"
        self.results, self.control = results, "tcp://127.0.0.1:0"  # free ports; known when it runs
        remote = RemoteConfig(results=self.results, control=self.control, keys=self.keys, **settings)
        self.outline = Outline(paths=PathsConfig(runtime=runtime, state=runtime), remote=remote)
        self.metrics = GatewayMetrics()
        self.asked: list[str] = []
        self._stop = threading.Event()

    def client(self, name: str, *roles: Role) -> Path:
        """Make a client and return its file."""
        file = self.runtime / f"{name}.key"
        add_client(self.keys, name, roles, file)
        return file

    def refused(self, reason: str) -> float:
        value = self.metrics.registry.get_sample_value("visaged_auth_refused_total", {"reason": reason})
        return value or 0.0

    def _infer(self, ready: threading.Event) -> None:
        with Publisher(self.runtime) as publisher, Control(self.runtime) as control:
            control.handle(Status, lambda _: self._note("status"))
            control.handle(EnrolTrack, lambda order: self._note(f"enrol {order.name}"))
            ready.set()
            while not self._stop.wait(0.005):
                control.poll()
                publisher.publish(draft())

    def _gateway(self, ready: threading.Event) -> None:
        with Gateway(self.outline, self.metrics) as gateway:
            self.results, self.control = (server.endpoint for server in gateway.servers)
            ready.set()
            while not self._stop.is_set():
                gateway.step(10)

    def _note(self, what: str) -> dict[str, Any]:
        self.asked.append(what)
        return {"did": what}

    @contextlib.contextmanager
    def running(self) -> Iterator["Site"]:
        """Run both until the block ends."""
        threads = []
        for work in (self._infer, self._gateway):
            ready = threading.Event()
            threads.append(threading.Thread(target=work, args=(ready,)))
            threads[-1].start()
            assert ready.wait(5)
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(10)
            assert not any(thread.is_alive() for thread in threads)


def draft() -> FaceFrame:
    return FaceFrame(
        camera="door", run="", seq=0, frame_seq=1, captured_ns=0, captured_at=0.0, published_ns=0, width=64,
        height=48, release="r", embedding_space="", embedding_dim=0,
    )  # fmt: skip


def port_of(endpoint: str) -> tuple[str, int]:
    host, _, port = endpoint.removeprefix("tcp://").partition(":")
    return host, int(port)


@pytest.fixture
def site(runtime: Path) -> Iterator[Site]:
    made = Site(runtime)
    create_server(made.keys)
    with made.running():
        yield made


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_a_known_client_receives_results_over_tcp(site: Site) -> None:
    with Subscriber(site.results, key=site.client("laptop", Role.SUBSCRIBE)) as results:
        received = results.receive(5)
        assert received is not None
        assert received[0].camera == "door"
        assert results.trouble == ""


def test_what_goes_over_the_wire_cannot_be_read(site: Site) -> None:
    key = read_client(site.client("laptop", Role.SUBSCRIBE))
    with tap(site.results) as (endpoint, bytes_seen), ResultsSubscriber(endpoint, [b""], key) as results:
        for _ in range(20):
            assert results.receive(5000) is not None

    assert len(bytes_seen) > 2000
    assert b"door" not in bytes_seen


@contextlib.contextmanager
def tap(endpoint: str) -> Iterator[tuple[str, bytearray]]:
    """Listen in on one connection to `endpoint`; give the endpoint to connect to and all bytes."""
    seen = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def copy(source: socket.socket, target: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while data := source.recv(65536):
                    seen.extend(data)
                    target.sendall(data)
            for end in (source, target):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

        def serve() -> None:
            with server.accept()[0] as client, socket.create_connection(port_of(endpoint)) as daemon:
                back = threading.Thread(target=copy, args=(daemon, client))
                back.start()
                copy(client, daemon)
                back.join()

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}", seen
        thread.join()


def test_an_unknown_key_is_refused_in_a_sentence_and_counted(site: Site) -> None:
    server = read_client(site.client("laptop", Role.SUBSCRIBE)).server
    stranger = ClientKey("stranger", new_pair(), server)

    with (
        ControlSocket(site.control, stranger) as control,
        pytest.raises(VisagedError, match="refuses the key"),
    ):
        control.ask(b"", 5.0)
    refused = r"refuses the key stranger: .*revoked or lacks the role"
    with (
        ResultsSubscriber(site.results, [b""], stranger) as results,
        pytest.raises(VisagedError, match=refused),
    ):
        results.receive(5000)

    assert site.refused("unknown_key") == 2


def test_a_wrong_server_key_is_told_apart(site: Site) -> None:
    key = read_client(site.client("laptop", Role.ADMIN))
    wrong = ClientKey(key.name, key.pair, new_pair().public)

    with ControlSocket(site.control, wrong) as control, pytest.raises(VisagedError, match="server key"):
        control.ask(b"", 1.0)
    wait_until(lambda: site.refused("handshake") > 0)


def test_a_client_without_a_key_is_told_to_use_one(site: Site) -> None:
    with ResultsSubscriber(site.results, [b""]) as results:
        assert results.receive(1500) is None
        assert "--key" in results.trouble


def test_nobody_there_is_told_apart(runtime: Path, free_port: int) -> None:
    key = ClientKey("laptop", new_pair(), new_pair().public)

    nobody = pytest.raises(VisagedError, match="nobody answers at tcp")
    with ControlSocket(f"tcp://127.0.0.1:{free_port}", key) as control, nobody:
        control.ask(b"", 0.5)


@pytest.mark.parametrize(
    ("roles", "may_status", "may_enrol", "may_subscribe"),
    [
        ((Role.SUBSCRIBE,), True, False, True),
        ((Role.ENROL,), False, True, False),
        ((Role.FLAG,), False, False, False),
        ((Role.SUBSCRIBE, Role.ENROL), True, True, True),
        ((Role.ADMIN,), True, True, True),
    ],
)
def test_a_client_may_do_what_its_roles_say(
    site: Site, roles: tuple[Role, ...], may_status: bool, may_enrol: bool, may_subscribe: bool
) -> None:
    file = site.client("desk", *roles)
    enrol = EnrolTrack(camera="door", track=1, name="Ada")

    with ControlClient(site.control, read_client(file)) as control:
        for order, role, may in ((Status(), "subscribe", may_status), (enrol, "enrol", may_enrol)):
            if may:
                assert control.request(order)["did"]
            else:
                with pytest.raises(VisagedError, match=f"desk needs the role {role}"):
                    control.request(order)
    with Subscriber(site.results, key=file) as results:
        if may_subscribe:
            assert results.receive(5) is not None
        else:
            with pytest.raises(VisagedError, match="lacks the role"):
                results.receive(5)

    assert site.asked == ["status"] * may_status + ["enrol Ada"] * may_enrol
    assert site.refused("role") == 3 - may_status - may_enrol - may_subscribe


def test_local_users_have_all_roles(site: Site) -> None:
    with ControlClient(site.runtime) as control:
        assert control.request(EnrolTrack(camera="door", track=1, name="Ada")) == {"did": "enrol Ada"}


def test_a_revoked_client_that_is_connected_can_ask_nothing_more(site: Site) -> None:
    with ControlClient(site.control, read_client(site.client("desk", Role.ADMIN))) as control:
        assert control.request(Ping()) == {}
        revoke_client(site.keys, "desk")
        with pytest.raises(VisagedError, match="desk was revoked at 20"):
            control.request(Ping())

    assert site.refused("revoked") == 1


def test_revoking_cuts_a_subscriber_off_while_others_come_back_by_themselves(site: Site) -> None:
    with (
        Subscriber(site.results, key=site.client("stolen", Role.SUBSCRIBE)) as stolen,
        Subscriber(site.results, key=site.client("wall", Role.SUBSCRIBE)) as wall,
    ):
        assert stolen.receive(5) is not None
        assert wall.receive(5) is not None

        revoke_client(site.keys, "stolen")
        with pytest.raises(VisagedError, match="refuses the key stolen"):
            drain(stolen)
        wait_until(lambda: wall.receive(5) is not None and wall.n_lost > 0)  # the gap of the cut is seen

        assert wall.n_runs == 1
    assert site.metrics.registry.get_sample_value("visaged_remote_cuts_total") == 1


def drain(results: Subscriber, seconds: float = 5.0) -> None:
    """Receive until nothing comes, or the subscriber is refused."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and results.receive(2) is not None:
        pass


def test_adding_a_client_disturbs_nobody(site: Site) -> None:
    with Subscriber(site.results, key=site.client("wall", Role.SUBSCRIBE)) as wall:
        assert wall.receive(5) is not None
        with Subscriber(site.results, key=site.client("laptop", Role.SUBSCRIBE)) as laptop:
            for _ in range(50):
                assert laptop.receive(5) is not None
                assert wall.receive(5) is not None
        assert wall.n_lost == 0


def test_a_rotated_server_key_cuts_everybody_until_told(site: Site) -> None:
    file = site.client("laptop", Role.SUBSCRIBE)
    old = read_client(file)
    with ControlClient(site.control, old) as control:
        assert control.request(Ping()) == {}
        server = rotate_server(site.keys)
        wait_until(lambda: site.metrics.registry.get_sample_value("visaged_remote_cuts_total") == 2)
        with pytest.raises(VisagedError, match="was rotated"):
            control.request(Ping(), timeout_s=1.0)

    file.write_text(client_key_lines(ClientKey(old.name, old.pair, server.public)))
    with ControlClient(site.control, read_client(file)) as control:
        assert control.request(Ping()) == {}


def test_a_broken_client_file_lets_that_client_out_and_nobody_else(site: Site) -> None:
    desk = read_client(site.client("desk", Role.ADMIN))
    wall = read_client(site.client("wall", Role.ADMIN))
    (site.keys / "clients" / "desk.toml").write_text("name = 3\n")

    with ControlClient(site.control, desk) as control, pytest.raises(VisagedError, match="refuses"):
        control.request(Ping())
    with ControlClient(site.control, wall) as control:
        assert control.request(Ping()) == {}


@pytest.mark.parametrize(
    "body", [b"", b"\xc1garbage", msgspec.msgpack.encode({"op": "reboot"}), b"x" * 70000]
)
def test_garbage_from_a_known_client_does_not_reach_infer(site: Site, body: bytes) -> None:
    with ControlSocket(site.control, read_client(site.client("desk", Role.ADMIN))) as control:
        answer = msgspec.msgpack.decode(control.ask(body, 5.0))

    assert answer["answer"] == "refused"
    assert site.asked == []


def test_a_client_that_asks_too_often_is_refused_and_others_are_served(runtime: Path) -> None:
    made = Site(runtime, requests_per_s=0.001, burst=3)
    create_server(made.keys)

    with made.running() as site:
        with ControlClient(site.control, read_client(site.client("flooder", Role.ADMIN))) as flooder:
            for _ in range(3):
                assert flooder.request(Ping()) == {}
            with pytest.raises(VisagedError, match="flooder asks too often"):
                flooder.request(Ping())
        with ControlClient(site.control, read_client(site.client("other", Role.ADMIN))) as other:
            assert other.request(Ping()) == {}

    assert site.refused("rate") == 1


def test_one_connection_too_many_cuts_all_and_who_may_comes_back(runtime: Path) -> None:
    made = Site(runtime, max_connections=10)
    create_server(made.keys)

    with made.running() as site, Subscriber(site.results, key=site.client("wall", Role.SUBSCRIBE)) as wall:
        assert wall.receive(5) is not None
        with contextlib.ExitStack() as stack:
            for _ in range(10):
                stack.enter_context(socket.create_connection(port_of(site.results)))
            wait_until(lambda: site.refused("connections") == 1)
        drain(wall, 1.0)
        assert wall.receive(5) is not None
        assert wall.n_lost > 0


def test_half_open_and_garbage_connections_end_and_are_counted(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visaged.daemon.curve.HANDSHAKE_MS", 200)
    made = Site(runtime)
    create_server(made.keys)
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00CURVE" + bytes(48)

    with made.running() as site:
        for first in (b"", b"\xff" * 100, b"GET / HTTP/1.1\r\n\r\n", greeting, greeting + b"\x04\x05HELLO"):
            with socket.create_connection(port_of(site.control), timeout=5) as peer:
                peer.sendall(first)
                with contextlib.suppress(ConnectionResetError):
                    while peer.recv(4096):
                        pass  # until the gateway hangs up; a timeout would fail the test
        with ControlClient(site.control, read_client(site.client("desk", Role.ADMIN))) as control:
            assert control.request(Ping()) == {}
        wait_until(lambda: site.refused("handshake") > 0)

    assert site.asked == []


def test_plain_results_need_no_key_where_the_configuration_says_so(runtime: Path) -> None:
    made = Site(runtime, allow_plaintext_tcp=True)
    create_server(made.keys)  # for control, which is never plain

    with made.running() as site, Subscriber(site.results) as results:
        assert results.receive(5) is not None
        with ControlSocket(site.control) as control, pytest.raises(VisagedError, match="without a key"):
            control.ask(b"", 1.0)


def test_without_a_server_key_the_gateway_does_not_start(runtime: Path) -> None:
    site = Site(runtime)

    with pytest.raises(ConfigError, match="visaged keys init") as caught:
        Gateway(site.outline, site.metrics)
    assert caught.value.exit_code == 78


def test_a_port_in_use_is_said_in_a_sentence(runtime: Path, free_port: int) -> None:
    site = Site(runtime, f"tcp://127.0.0.1:{free_port}")
    create_server(site.keys)

    in_use = pytest.raises(ConfigError, match=f"{free_port}.*in use.*another port")
    with socket.create_server(("127.0.0.1", free_port)), in_use:
        Gateway(site.outline, site.metrics)
