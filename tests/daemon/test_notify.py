"""What systemd hears from our processes, over the real protocol: a datagram socket that this test reads."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from visaged.daemon.channels import socket_file
from visaged.daemon.heartbeat import Heartbeat
from visaged.daemon.ledger import Ledger, ledger_path
from visaged.daemon.notify import Notifier

WATCHDOG_S = 0.8
CONFIG = """
instance = "{instance}"
[paths]
runtime = "{runtime}"
state = "{runtime}/state"
[metrics]
port = 0
[[camera]]
name = "door"
source = "{source}"
"""
PATTERN = "synthetic:pattern?width=64&height=48&fps=20"


class Manager:
    """The end of the socket that systemd holds."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0"))

    def hear(self, seconds: float = 20.0) -> str:
        """Return the next message; empty when none came in time."""
        self._socket.settimeout(seconds)
        try:
            return self._socket.recv(4096).decode()
        except TimeoutError:
            return ""

    def wait_for(self, beginning: str) -> str:
        """Return the next message that begins so."""
        while message := self.hear():
            if message.startswith(beginning):
                return message
        raise AssertionError(f"never heard {beginning}")

    def hear_all(self) -> list[str]:
        """Return what has been said already."""
        return list(iter(lambda: self.hear(0.001), ""))

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["file", "abstract"])
def any_manager(request: pytest.FixtureRequest, runtime: Path) -> Iterator[Manager]:
    address = str(runtime / "notify") if request.param == "file" else f"@{runtime.name}"
    with contextlib.closing(Manager(address)) as made:
        yield made


@pytest.fixture
def manager(runtime: Path) -> Iterator[Manager]:
    with contextlib.closing(Manager(str(runtime / "notify"))) as made:
        yield made


def test_ready_is_said_once_and_the_status_every_time(any_manager: Manager) -> None:
    notifier = Notifier(any_manager.address)

    notifier.ready("camera door\nis up")
    notifier.ready("camera door is lost")

    assert any_manager.hear_all() == ["READY=1\nSTATUS=camera door is up", "STATUS=camera door is lost"]


def test_a_reload_says_when_it_began_by_the_monotonic_clock(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    notifier.ready("up")
    before_us = time.monotonic_ns() // 1000

    with notifier.reloading():
        begin = manager.hear_all()[1].splitlines()
    after_us = time.monotonic_ns() // 1000

    assert begin[0] == "RELOADING=1"
    assert before_us <= int(begin[1].removeprefix("MONOTONIC_USEC=")) <= after_us
    assert manager.hear_all() == ["READY=1"]


def test_a_reload_during_the_start_does_not_end_the_start(manager: Manager) -> None:
    with Notifier(manager.address).reloading():
        pass

    assert manager.hear_all() == []


def test_what_systemd_asks_for_is_hidden_from_child_processes(manager: Manager) -> None:
    environment = {
        "NOTIFY_SOCKET": manager.address,
        "WATCHDOG_USEC": "60000000",
        "WATCHDOG_PID": str(os.getpid()),
        "HOME": "/",
    }
    notifier = Notifier.from_environment(environment)

    notifier.ready("up")
    notifier.alive()
    notifier.alive()

    assert environment == {"HOME": "/"}
    assert manager.hear_all()[1:] == ["WATCHDOG=1"]  # the second came too soon to be worth a message


@pytest.mark.parametrize(
    "watchdog", [{}, {"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}]
)
def test_a_watchdog_that_is_not_ours_is_not_pinged(manager: Manager, watchdog: dict[str, str]) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": manager.address, **watchdog})

    notifier.ready("up")
    notifier.alive()

    assert manager.hear_all()[1:] == []


def test_nobody_listening_does_no_harm(runtime: Path, caplog: pytest.LogCaptureFixture) -> None:
    Notifier().ready("up")
    Notifier(str(runtime / "absent")).ready("up")

    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "systemd was not told 'READY=1'"
    ]


@pytest.fixture
def ledger(runtime: Path) -> Iterator[Ledger]:
    with Ledger.open(ledger_path(runtime, "door")) as ledger:
        yield ledger


@pytest.fixture
def capture_socket(runtime: Path) -> Iterator[socket.socket]:
    """The socket that a living capture process serves."""
    with socket.socket(socket.AF_UNIX) as served:
        served.bind(str(socket_file(runtime, "frames", "door")))
        served.listen()
        yield served


def pings_after_a_beat(manager: Manager, runtime: Path, ledger: Ledger) -> list[str]:
    """Return what infer says in its first beat."""
    heartbeat = ready_heartbeat(manager, runtime, ledger)
    heartbeat.beat("r1")
    return manager.hear_all()


def ready_heartbeat(manager: Manager, runtime: Path, ledger: Ledger) -> Heartbeat:
    heartbeat = Heartbeat(Notifier(manager.address, watchdog_s=1e-6), runtime, {"door": ledger})
    heartbeat.begin("r1")
    assert manager.hear_all() == ["READY=1\nSTATUS=ready for 1 camera, release r1"]
    return heartbeat


def test_an_idle_infer_is_alive(manager: Manager, runtime: Path, ledger: Ledger) -> None:
    assert pings_after_a_beat(manager, runtime, ledger) == ["WATCHDOG=1"]


def test_an_infer_that_settles_no_waiting_frame_is_not(
    manager: Manager, runtime: Path, ledger: Ledger, capture_socket: socket.socket
) -> None:
    ledger.count_captured()

    assert pings_after_a_beat(manager, runtime, ledger) == []


def test_an_infer_that_settled_one_of_two_is_until_it_stops(
    manager: Manager, runtime: Path, ledger: Ledger, capture_socket: socket.socket
) -> None:
    heartbeat = ready_heartbeat(manager, runtime, ledger)
    ledger.count_captured()
    ledger.count_captured()

    ledger.publish()
    heartbeat.beat("r1")
    assert manager.hear_all() == ["WATCHDOG=1"]

    heartbeat.beat("r1")
    assert manager.hear_all() == []


def test_frames_that_died_with_a_capture_process_do_not_count_as_waiting(
    manager: Manager, runtime: Path, ledger: Ledger, capture_socket: socket.socket
) -> None:
    ledger.count_captured()
    capture_socket.close()  # its file stays, as after SIGKILL

    assert pings_after_a_beat(manager, runtime, ledger) == ["WATCHDOG=1"]


@contextlib.contextmanager
def capture(runtime: Path, manager: Manager, source: str) -> Iterator[subprocess.Popen[str]]:
    """Run the capture process as the unit does."""
    config = runtime / "visaged.toml"
    instance = runtime.name.removeprefix("visaged-test-").lower().replace("_", "x")
    config.write_text(CONFIG.format(runtime=runtime, instance=f"n{instance}", source=source))
    line = [sys.executable, "-m", "visaged.daemon.lifecycle", "capture@door", "--config", str(config)]
    asked = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))}
    with subprocess.Popen(line, env={**os.environ, **asked}, stderr=subprocess.PIPE, text=True) as popen:
        try:
            yield popen
        finally:
            popen.kill()


def test_a_capture_is_ready_with_its_first_frame_pings_and_says_that_it_stops(
    manager: Manager, runtime: Path
) -> None:
    with capture(runtime, manager, PATTERN) as popen:
        assert manager.hear() == "READY=1\nSTATUS=camera door is up: 64x48"
        manager.wait_for("WATCHDOG=1")

        popen.send_signal(signal.SIGSTOP)
        manager.hear_all()
        assert manager.hear(WATCHDOG_S) == ""

        popen.send_signal(signal.SIGCONT)
        manager.wait_for("WATCHDOG=1")
        popen.send_signal(signal.SIGHUP)
        assert "MONOTONIC_USEC=" in manager.wait_for("RELOADING=1")
        manager.wait_for("READY=1")
        popen.terminate()
        manager.wait_for("STOPPING=1")
        popen.communicate(timeout=10)

    assert popen.returncode == 0


def test_a_capture_whose_camera_is_down_is_ready_and_says_so(manager: Manager, runtime: Path) -> None:
    with capture(runtime, manager, "/dev/video97"):
        ready = manager.wait_for("READY=1")
        manager.wait_for("WATCHDOG=1")

    assert "camera door is lost: /dev/video97 does not exist" in ready


def test_a_wrong_configuration_is_exit_78_with_the_sentence_as_status(
    manager: Manager, runtime: Path
) -> None:
    with capture(runtime, manager, "gopher://door") as popen:
        popen.communicate(timeout=20)

    assert popen.returncode == 78
    (message,) = manager.hear_all()
    assert message.startswith("STATUS=") and "unknown scheme" in message
