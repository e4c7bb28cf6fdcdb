"""The supervisor with small real processes: restart alone, give up, stop in order, leave nobody behind."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from visaged.daemon import supervisor as module
from visaged.daemon.metrics import SupervisorMetrics
from visaged.daemon.process_table import (
    BACKOFF_S,
    MAX_RESTARTS,
    WINDOW_S,
    RestartHistory,
    command,
    processes,
)
from visaged.daemon.supervisor import Supervisor, describe_exit, lock_runtime
from visaged.pipelines.errors import ConfigError, VisagedError

SERVE = """
    import pathlib, signal, sys, time
    def stop(*_):
        pathlib.Path(sys.argv[2] + '.stopped').write_text(str(time.monotonic()))
        sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    with open(sys.argv[2] + '.starts', 'a') as starts:
        starts.write(f'{__import__("os").getpid()} {time.monotonic()}\\n')
    while True:
        time.sleep(0.02)
"""
DEAF = SERVE.replace("signal.signal(signal.SIGTERM, stop)", "signal.signal(signal.SIGTERM, signal.SIG_IGN)")


def ends_with(code: int, after_s: float = 0.0) -> str:
    """A process that ends by itself."""
    return f"""
    import os, sys, time
    with open(sys.argv[2] + '.starts', 'a') as starts:
        starts.write(f'{{os.getpid()}} {{time.monotonic()}}\\n')
    time.sleep({after_s})
    sys.exit({code})
"""


class House:
    """A supervisor running in a thread over scripts instead of the daemon's own processes."""

    def __init__(self, folder: Path, scripts: dict[str, str]) -> None:
        self.folder = folder
        self.scripts = scripts
        self.metrics = SupervisorMetrics()
        self.stop = threading.Event()
        self.code: int | None = None
        self.error: VisagedError | None = None
        self.stall_pid: int | None = None
        cameras = [name.partition("@")[2] for name in scripts if "@" in name]
        table = processes(cameras, learns="learn" in scripts)
        self._supervisor = Supervisor(table, self, self.metrics)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def is_stalled(self, name: str, now_s: float) -> bool:
        return (
            name == "infer" and self.stall_pid is not None and self.starts("infer")[-1][0] == self.stall_pid
        )

    def forgive(self, name: str, now_s: float) -> None:
        pass

    def is_served(self, channel: str) -> bool:
        return not (self.folder / "not-ready").exists()

    def command_of(self, name: str) -> list[str]:
        return [sys.executable, "-c", textwrap.dedent(self.scripts[name]), name, str(self.folder / name)]

    def _run(self) -> None:
        try:
            self.code = self._supervisor.run(self.stop)
        except VisagedError as error:
            self.error = error

    def starts(self, name: str) -> list[tuple[int, float]]:
        """Pid and time of every start of `name` so far."""
        file = self.folder / f"{name}.starts"
        lines = file.read_text().splitlines() if file.exists() else []
        return [(int(line.split()[0]), float(line.split()[1])) for line in lines if line.count(" ") == 1]

    def stopped_at(self, name: str) -> float:
        return float((self.folder / f"{name}.stopped").read_text())

    def wait(self, seconds: float = 20.0) -> None:
        """Wait until the supervisor has returned."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the supervisor did not return"

    def survivors(self) -> list[int]:
        return [pid for name in self.scripts for pid, _ in self.starts(name) if is_alive(pid)]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Callable[..., House]]:
    built: list[House] = []

    def build(**scripts: str) -> House:
        named = {name.replace("capture_", "capture@"): script for name, script in scripts.items()}
        built.append(House(tmp_path, named))
        return built[-1]

    yield build
    for each in built:
        each.stop.set()
        each.wait()
        assert each.survivors() == []


def test_a_killed_process_is_started_again_alone_within_two_seconds(house: Callable[..., House]) -> None:
    running = house(infer=SERVE, capture_a=SERVE, capture_b=SERVE)
    wait_until(lambda: all(len(running.starts(name)) == 1 for name in running.scripts))

    killed_s = time.monotonic()
    os.kill(running.starts("capture@a")[0][0], signal.SIGKILL)
    wait_until(lambda: len(running.starts("capture@a")) == 2)

    assert running.starts("capture@a")[1][1] - killed_s < 2.0
    assert len(running.starts("infer")) == len(running.starts("capture@b")) == 1
    assert 'restarts_total{process="capture@a"} 1.0' in running.metrics.text()
    assert 'restarts_total{process="infer"} 0.0' in running.metrics.text()


def test_a_crash_loop_ends_everything_with_a_sentence(
    house: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visaged.daemon.process_table.BACKOFF_S", (0.0,) * MAX_RESTARTS)
    running = house(infer=SERVE, capture_a=ends_with(1), capture_b=SERVE)

    running.wait()

    assert running.error is not None
    assert f"capture@a ended {MAX_RESTARTS + 1} times" in str(running.error)
    assert running.error.exit_code == 1
    assert len(running.starts("capture@a")) == MAX_RESTARTS + 1


def test_a_wrong_configuration_is_not_tried_again_and_others_go_on(house: Callable[..., House]) -> None:
    running = house(infer=SERVE, capture_a=ends_with(78), capture_b=SERVE)
    wait_until(lambda: len(running.starts("capture@a")) == 1 and len(running.starts("capture@b")) == 1)
    time.sleep(3 * module.TICK_S)

    assert len(running.starts("capture@a")) == 1
    assert running.code is None


def test_a_wrong_configuration_of_infer_ends_everything_with_78(house: Callable[..., House]) -> None:
    running = house(infer=ends_with(78), capture_a=SERVE)

    running.wait()

    assert running.code == 78


def test_finished_cameras_and_a_drained_infer_end_with_zero(house: Callable[..., House]) -> None:
    running = house(
        infer=ends_with(0, after_s=1.0), capture_a=ends_with(0), capture_b=ends_with(0, after_s=0.3)
    )

    running.wait()

    assert running.code == 0
    assert all(len(running.starts(name)) == 1 for name in running.scripts)


def test_an_infer_that_is_gone_before_the_last_camera_is_not_started_again(
    house: Callable[..., House],
) -> None:
    running = house(infer=ends_with(0, after_s=0.3), capture_a=ends_with(0, after_s=0.8))

    running.wait()

    assert running.code == 0
    assert len(running.starts("infer")) == 1
    assert 'restarts_total{process="infer"} 0.0' in running.metrics.text()


def test_cameras_start_when_somebody_can_look_at_their_frames(
    house: Callable[..., House], tmp_path: Path
) -> None:
    (tmp_path / "not-ready").touch()
    running = house(infer=SERVE, capture_a=SERVE)
    wait_until(lambda: len(running.starts("infer")) == 1)
    time.sleep(3 * module.TICK_S)
    early = running.starts("capture@a")

    (tmp_path / "not-ready").unlink()
    wait_until(lambda: len(running.starts("capture@a")) == 1)
    assert early == []


def test_a_camera_that_ran_is_restarted_also_while_infer_is_away(
    house: Callable[..., House], tmp_path: Path
) -> None:
    running = house(infer=SERVE, capture_a=SERVE)
    wait_until(lambda: len(running.starts("capture@a")) == 1)

    (tmp_path / "not-ready").touch()
    os.kill(running.starts("capture@a")[0][0], signal.SIGKILL)
    wait_until(lambda: len(running.starts("capture@a")) == 2)


def test_an_infer_that_settles_nothing_is_killed_and_started_again(
    house: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STOP_S", 0.3)
    running = house(infer=DEAF, capture_a=SERVE)
    wait_until(lambda: len(running.starts("infer")) == len(running.starts("capture@a")) == 1)

    running.stall_pid = running.starts("infer")[0][0]
    wait_until(lambda: len(running.starts("infer")) == 2)
    assert not is_alive(running.stall_pid)
    assert len(running.starts("capture@a")) == 1
    running.stop.set()  # here, while STOP_S is short: the second infer is as deaf as the first
    running.wait()


def test_infer_is_given_time_to_drain_and_then_stopped(
    house: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DRAIN_S", 0.5)
    running = house(infer=SERVE, capture_a=ends_with(0, after_s=0.5))

    running.wait()

    assert running.code == 0
    assert running.stopped_at("infer") > 0


def test_an_infer_that_ends_before_its_cameras_is_started_again(house: Callable[..., House]) -> None:
    running = house(infer=ends_with(0, after_s=0.2), capture_a=SERVE)

    wait_until(lambda: len(running.starts("infer")) >= 2)


def test_cameras_stop_before_infer(house: Callable[..., House]) -> None:
    running = house(infer=SERVE, capture_a=SERVE, capture_b=SERVE)
    wait_until(lambda: all(len(running.starts(name)) == 1 for name in running.scripts))

    running.stop.set()
    running.wait()

    assert running.code == 0
    last_camera_s = max(running.stopped_at("capture@a"), running.stopped_at("capture@b"))
    assert last_camera_s < running.stopped_at("infer")


def test_a_process_deaf_to_sigterm_is_killed(
    house: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STOP_S", 0.3)
    running = house(infer=SERVE, capture_a=DEAF)
    wait_until(lambda: all(len(running.starts(name)) == 1 for name in running.scripts))

    running.stop.set()
    running.wait()

    assert running.survivors() == []


def test_the_first_restart_is_at_once_and_later_ones_wait_longer() -> None:
    history = RestartHistory()

    waits = [history.wait_s(now) for now in (0.0, 1.0, 2.0, 3.0, 4.0)]

    assert waits == list(BACKOFF_S)
    assert BACKOFF_S[0] < 1.0
    assert history.wait_s(5.0) is None


def test_old_failures_are_forgotten() -> None:
    history = RestartHistory()
    for now in range(MAX_RESTARTS):
        history.wait_s(float(now))

    assert history.wait_s(WINDOW_S + MAX_RESTARTS) == BACKOFF_S[0]


def test_the_table_names_one_process_per_camera_with_a_port_each() -> None:
    table = processes(["door", "yard"])

    assert [(p.name, p.port_offset) for p in table] == [
        ("infer", 1),
        ("capture@door", 10),
        ("capture@yard", 11),
    ]


def test_the_command_is_the_one_of_the_systemd_units() -> None:
    assert command("infer", Path("/etc/v.toml"))[1:] == [
        "-m",
        "visaged.daemon.lifecycle",
        "infer",
        "--config",
        "/etc/v.toml",
    ]


def test_a_runtime_folder_is_locked_by_one_supervisor(tmp_path: Path) -> None:
    with lock_runtime(tmp_path):
        other_program = (
            "from pathlib import Path; from visaged.daemon.supervisor import lock_runtime; "
            f"lock_runtime(Path({str(tmp_path)!r}))"
        )
        other = subprocess.run([sys.executable, "-c", other_program], capture_output=True, text=True)
        with pytest.raises(ConfigError, match=f"already runs in .*pid {os.getpid()}"):
            lock_runtime(tmp_path)

    assert f"pid {os.getpid()}" in other.stderr
    lock_runtime(tmp_path).close()  # free again


def test_exits_are_described_in_words() -> None:
    assert describe_exit(1) == "with exit code 1"
    assert describe_exit(-9) == "by SIGKILL"
    assert describe_exit(-250) == "by signal 250"


def test_a_process_that_serves_nobody_may_fail_without_ending_the_daemon(
    house: Callable[..., House], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("visaged.daemon.process_table.BACKOFF_S", (0.0,) * MAX_RESTARTS)
    here = house(infer=SERVE, capture_door=SERVE, learn=ends_with(1))

    wait_until(lambda: "learn ends again and again" in caplog.text)

    assert here.error is None and here.code is None
    assert len(here.starts("learn")) == MAX_RESTARTS + 1
    assert is_alive(here.starts("infer")[-1][0]) and is_alive(here.starts("capture@door")[-1][0])
