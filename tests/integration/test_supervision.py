"""The whole daemon as `visaged run` starts it: killed processes, files that end, nothing left over."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from visaged.daemon.channels import endpoint_of
from visaged.daemon.client import Subscriber
from visaged.daemon.control import ControlClient, Ping, Status
from visaged.daemon.ledger import Ledger, ledger_path

pytestmark = pytest.mark.patient

PATTERN = "synthetic:pattern?width=160&height=120&fps=15"


def write_config(runtime: Path, cache: Path, cameras: dict[str, str], port: int = 0) -> Path:
    file = runtime / "visaged.toml"
    tables = "".join(
        f'[[camera]]\nname = "{name}"\nsource = "{source}"\n' for name, source in cameras.items()
    )
    file.write_text(
        f'instance = "{instance_of(runtime)}"\n'
        f'[paths]\nruntime = "{runtime}"\nstate = "{runtime}/state"\ncache = "{cache}"\n'
        f"[metrics]\nport = {port}\n{tables}"
    )
    return file


def instance_of(runtime: Path) -> str:
    return "t" + runtime.name.removeprefix("visaged-test-").replace("_", "x")


@contextlib.contextmanager
def daemon(config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `visaged run`; stop it in order at the end."""
    line = [sys.executable, "-m", "visaged.tools.cli", "run", "--config", str(config)]
    with (config.parent / "log").open("wb") as log, subprocess.Popen(line, stderr=log) as popen:
        try:
            yield popen
        finally:
            popen.terminate()
            popen.wait(30)
            print((config.parent / "log").read_text())  # pytest shows it when the test fails


def pids(config: Path) -> dict[str, int]:
    """Return name -> pid of every living process of this daemon."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            if str(config) in words and "visaged.daemon.lifecycle" in words:
                found[words[words.index("visaged.daemon.lifecycle") + 1]] = int(folder.name)
    return found


def rings(runtime: Path) -> list[Path]:
    return list(Path("/dev/shm").glob(f"visaged-{instance_of(runtime)}-*"))


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def first_results(runtime: Path, cameras: list[str]) -> Subscriber:
    """Return a subscriber that has received something of every camera."""
    subscriber = Subscriber(endpoint_of(runtime, "results"), cameras)
    waiting = set(cameras)
    while waiting:
        received = subscriber.receive(90)
        assert received is not None, "the daemon published nothing"
        waiting.discard(received[0].camera)
    return subscriber


def assert_nothing_is_left(config: Path) -> None:
    runtime = config.parent
    wait_until(lambda: pids(config) == {}, 20)
    assert rings(runtime) == []
    assert list(runtime.glob("*.ipc")) == []


@pytest.mark.realtime
def test_killed_processes_come_back_alone_and_frames_flow_again(runtime: Path, cache: Path) -> None:
    config = write_config(runtime, cache, {"a": PATTERN, "b": PATTERN})

    with daemon(config), first_results(runtime, ["a", "b"]) as results:
        before = pids(config)
        assert set(before) == {"supervisor", "infer", "capture@a", "capture@b"}
        assert len({os.getsid(pid) for pid in before.values()}) == 1  # or niceness would count for nothing
        assert len({os.getpgid(pid) for pid in before.values()}) == 4  # or Ctrl-C would reach all

        os.kill(before["capture@a"], signal.SIGKILL)
        killed_s = time.monotonic()
        wait_until(lambda: pids(config).get("capture@a", before["capture@a"]) != before["capture@a"])
        assert time.monotonic() - killed_s < 2.0
        old_seq = newest(results, "a")
        wait_until(lambda: newest(results, "a") > old_seq)  # `seq` of frames goes on, it does not start again

        os.kill(before["infer"], signal.SIGKILL)
        wait_until(lambda: results.receive(1) is not None and results.n_runs == 2)
        with ControlClient(runtime) as client:
            assert client.request(Ping()) == {}
            assert set(client.request(Status())["cameras"]) == {"a", "b"}
        after = pids(config)
        assert (after["capture@b"], after["supervisor"]) == (before["capture@b"], before["supervisor"])

    assert_nothing_is_left(config)
    for camera in ("a", "b"):
        with Ledger.open(ledger_path(runtime, camera), create=False) as ledger:
            book = ledger.snapshot()
            assert book.captured == book.published + sum(book.dropped.values()), str(book)
            assert book.in_flight == 0


def newest(results: Subscriber, camera: str) -> int:
    """Return the frame number of the next result of `camera`."""
    while True:
        received = results.receive(30)
        assert received is not None, "the daemon stopped publishing"
        if received[0].camera == camera:
            return received[0].frame_seq  # type: ignore[union-attr]


def test_a_killed_supervisor_takes_everybody_along_and_the_next_cleans_up(runtime: Path, cache: Path) -> None:
    config = write_config(runtime, cache, {"a": PATTERN})

    with daemon(config) as popen, first_results(runtime, ["a"]):
        popen.kill()
        wait_until(lambda: pids(config) == {}, 20)

    with daemon(config), first_results(runtime, ["a"]):
        pass
    assert_nothing_is_left(config)


def test_a_second_daemon_in_the_same_folder_is_refused(runtime: Path, cache: Path) -> None:
    config = write_config(runtime, cache, {"a": PATTERN})

    with daemon(config) as first:
        wait_until(lambda: (runtime / "supervisor.lock").exists() and pids(config).get("infer"))
        line = [sys.executable, "-m", "visaged.tools.cli", "run", "--config", str(config)]
        second = subprocess.run(line, capture_output=True, text=True, timeout=60)
        assert first.poll() is None

    assert second.returncode == 78
    assert "already runs" in second.stderr


def test_a_daemon_whose_cameras_have_all_ended_ends_with_zero(runtime: Path, cache: Path) -> None:
    config = write_config(runtime, cache, {"a": PATTERN + "&seconds=1", "b": PATTERN + "&seconds=2"})

    with daemon(config) as popen:
        assert popen.wait(120) == 0

    assert_nothing_is_left(config)
    assert "starting it again" not in (runtime / "log").read_text(), "a finished process was taken for lost"
    for camera, n in (("a", 15), ("b", 30)):
        with Ledger.open(ledger_path(runtime, camera), create=False) as ledger:
            assert ledger.snapshot().captured == n


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_everything_with_zero(runtime: Path, cache: Path, number: signal.Signals) -> None:
    config = write_config(runtime, cache, {"a": PATTERN})

    with daemon(config) as popen, first_results(runtime, ["a"]):
        popen.send_signal(number)
        assert popen.wait(20) == 0

    assert_nothing_is_left(config)
