"""The life of a real process: exit codes, signals, logs, nothing left behind."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from visaged.daemon import logs

pytestmark = pytest.mark.patient

TEMPLATE = """
instance = "{instance}"
[paths]
runtime = "{runtime}"
state = "{runtime}/state"
cache = "{runtime}/cache"
[metrics]
port = {port}
[logging]
level = "{level}"
format = "{format}"
[[camera]]
name = "door"
source = "synthetic:pattern?width=64&height=48&fps=20"
"""


@pytest.fixture
def config(runtime: Path) -> Path:
    return write_config(runtime)


def write_config(
    runtime: Path, *, port: int = 0, level: str = "info", format: str = "text", more: str = ""
) -> Path:
    file = runtime / "visaged.toml"
    instance = runtime.name.removeprefix("visaged-test-").lower().replace("_", "x")
    values = {"runtime": runtime, "instance": f"t{instance}", "port": port, "level": level, "format": format}
    file.write_text(TEMPLATE.format(**values) + more)
    return file


def rings(config: Path) -> list[Path]:
    instance = next(line for line in config.read_text().splitlines() if line.startswith("instance")).split(
        '"'
    )[1]
    return list(Path("/dev/shm").glob(f"visaged-{instance}-*"))


@contextlib.contextmanager
def started(name: str, config: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    line = [sys.executable, "-m", "visaged.daemon.lifecycle", name, "--config", str(config), *more]
    with subprocess.Popen(line, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as popen:
        try:
            yield popen
        finally:
            popen.kill()


def ended(name: str, config: Path) -> tuple[int, str]:
    """Run a process that ends by itself; return exit code and log."""
    with started(name, config) as popen:
        _, err = popen.communicate(timeout=60)
    return popen.returncode, err


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_capture_stops_on_a_signal_and_leaves_nothing(config: Path, number: signal.Signals) -> None:
    with started("capture@door", config) as popen:
        wait_until(lambda: rings(config))
        popen.send_signal(number)
        _, err = popen.communicate(timeout=10)

    assert popen.returncode == 0, err
    assert f"stopping on {number.name}" in err
    assert rings(config) == []
    assert list(config.parent.glob("*.ipc")) == []


def test_a_process_ends_when_its_parent_is_killed(config: Path) -> None:
    child_line = [sys.executable, "-m", "visaged.daemon.lifecycle", "capture@door", "--config", str(config)]
    parent_program = (
        "import os, subprocess, time\n"
        f"child = subprocess.Popen({child_line!r} + ['--parent', str(os.getpid())])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent_program], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        wait_until(lambda: rings(config))
        parent.kill()
        wait_until(lambda: not is_alive(child))

    wait_until(lambda: rings(config) == [])


def test_a_missing_camera_in_the_file_is_exit_78(config: Path) -> None:
    code, err = ended("capture@yard", config)

    assert code == 78
    assert "capture@yard" in err and "capture@door" in err


def test_a_wrong_file_is_exit_78_with_one_line(runtime: Path) -> None:
    code, err = ended("capture@door", write_config(runtime, more='nmae = "x"\n'))

    assert code == 78
    assert err.count("\n") == 1
    assert "did you mean 'name'" in err


def test_a_missing_file_is_exit_78(runtime: Path) -> None:
    code, err = ended("infer", runtime / "absent.toml")

    assert code == 78
    assert "absent.toml" in err


def test_a_metrics_port_in_use_is_exit_78(runtime: Path, free_port: int) -> None:
    config = write_config(runtime, port=free_port)
    with started("capture@door", config) as first:
        wait_until(lambda: rings(config))
        other = runtime / "other"
        other.mkdir()
        code, err = ended("capture@door", write_config(other, port=free_port))
        first.terminate()
        first.communicate(timeout=10)

    assert code == 78
    assert f"port {free_port + 10}: in use" in err


def test_metrics_of_a_capture_are_served_on_its_port(runtime: Path, free_port: int) -> None:
    config = write_config(runtime, port=free_port)
    with started("capture@door", config) as popen:
        wait_until(lambda: rings(config))
        url = f"http://127.0.0.1:{free_port + 10}/metrics"
        wait_until(lambda: 'visaged_camera_up{camera="door"} 1.0' in read(url))
        text = read(url)
        name = Path(f"/proc/{popen.pid}/comm").read_text().strip()
        popen.terminate()
        popen.communicate(timeout=10)

    assert 'visaged_frames_captured_total{camera="door"}' in text
    assert "process_resident_memory_bytes" in text
    assert name == "vis-cam@door"


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        text: str = answer.read().decode()
    return text


def test_json_logs_are_one_object_per_line(runtime: Path) -> None:
    config = write_config(runtime, format="json")
    with started("capture@door", config) as popen:
        wait_until(lambda: rings(config))
        popen.terminate()
        _, err = popen.communicate(timeout=10)

    events = [json.loads(line) for line in err.splitlines()]
    assert events
    assert {event["process"] for event in events} == {"capture@door"}
    assert all(set(event) >= {"time", "level", "logger", "message"} for event in events)


def test_a_message_with_a_line_break_stays_one_line() -> None:
    record = logging.LogRecord(
        "visaged.x", logging.INFO, "f", 1, "from outside: %s", ("a\nb ERROR fake",), None
    )

    line = logs.TextLines("infer").format(record)

    assert "\n" not in line
    assert "infer: from outside: a\\nb ERROR fake" in line


def test_a_traceback_is_kept_in_json() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        record = logging.LogRecord("visaged.x", logging.ERROR, "f", 1, "failed", (), sys.exc_info())

    event = json.loads(logs.JsonLines("infer").format(record))

    assert "ValueError: broken" in event["traceback"]
    assert (event["level"], event["process"], event["message"]) == ("error", "infer", "failed")


def test_the_supervisor_stays_small(config: Path) -> None:
    program = (
        "import sys, visaged.daemon.lifecycle, visaged.daemon.supervisor\n"
        "heavy = {'cv2', 'onnxruntime', 'dlib', 'scipy', 'onnx', 'h5py', 'zmq', 'torch'} & set(sys.modules)\n"
        "print(sorted(heavy))"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_a_supervisor_does_not_take_the_folder_of_a_running_service(config: Path) -> None:
    with started("capture@door", config) as service:
        wait_until(lambda: rings(config))
        code, err = ended("supervisor", config)
        assert service.poll() is None
        left = sorted(path.name for path in config.parent.iterdir())
        service.terminate()
        service.communicate(timeout=10)

    assert code == 78
    assert "serves frames-door.ipc" in err and "systemctl stop visaged.target" in err
    assert {"frames-door.ipc", "ledger-door"} <= set(left)


def test_two_supervisors_in_one_folder_are_refused(config: Path) -> None:
    import fcntl

    with (config.parent / "supervisor.lock").open("w") as lock:
        lock.write(str(os.getpid()))
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, err = ended("supervisor", config)

    assert code == 78
    assert f"already runs in {config.parent} (pid {os.getpid()})" in err
