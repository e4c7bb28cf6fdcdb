"""`visaged demo` as a person starts it: the real daemon, real video, real networks."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
from visaged.pipelines.archives import fetch
from visaged.pipelines.errors import ModelError

DEMO = [sys.executable, "-m", "visaged.tools.cli", "demo"]


@pytest.fixture(scope="module", autouse=True)
def material(cache: Path) -> None:
    try:
        for name in ("demo/laughing.mp4", "demo/five_people.jpg", "demo/astronaut.png"):
            fetch(name, cache)
    except ModelError as error:
        pytest.skip(f"the demo's material cannot be had: {error}")


def started(folder: Path, out: Path, *words: str) -> subprocess.Popen[str]:
    """A demo whose temporary folders are made in `folder`."""
    environment = {**os.environ, "TMPDIR": str(folder), "COLUMNS": "500"}
    line = [*DEMO, "--out", str(out), *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, stdout=pipe, stderr=pipe, text=True, env=environment)


def leftovers(demo: subprocess.Popen[str], folder: Path) -> list[str]:
    """Rings and folders that the demo or its daemon left behind."""
    rings = Path("/dev/shm").glob(f"visaged-temporary-{demo.pid}-*")
    return [str(path) for path in (*rings, *folder.iterdir())]


def wait_for_first_result(demo: subprocess.Popen[str]) -> None:
    assert demo.stdout is not None
    while "stage " not in (line := demo.stdout.readline()):
        assert line, demo.stderr.read() if demo.stderr else ""


def test_the_demo_shows_two_cameras_and_accounts_for_every_frame(tmp_path: Path, runtime: Path) -> None:
    demo = started(runtime, tmp_path, "--seconds", "8")
    out, errors = demo.communicate(timeout=180)

    assert demo.returncode == 0, out + errors
    assert "enrolled Eileen Collins from astronaut.png" in out
    for camera in ("stage", "lounge"):
        ledger = re.search(rf"^{camera}: \d+ captured = (\d+) published .*ledger balanced$", out, re.M)
        assert ledger is not None, out
        assert int(ledger[1]) > 10
    assert len(re.findall(r"p50 \d+ ms, p99 \d+ ms", out)) == 2
    assert re.search(r"^  emotions  \w+ \d", out, re.M)
    capture = cv2.VideoCapture(str(tmp_path / "annotated.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) > 40
    sheet = cv2.imread(str(tmp_path / "contact-sheet.png"))
    assert sheet is not None
    assert sheet.shape[1] > 1000
    assert leftovers(demo, runtime) == []


def test_ctrl_c_ends_the_demo_in_order_with_its_summary(tmp_path: Path, runtime: Path) -> None:
    demo = started(runtime, tmp_path, "--seconds", "100")
    wait_for_first_result(demo)
    time.sleep(1)
    demo.send_signal(signal.SIGINT)
    out, errors = demo.communicate(timeout=60)

    assert demo.returncode == 0, errors
    assert out.count("ledger balanced") == 2
    assert leftovers(demo, runtime) == []


def test_a_demo_that_is_killed_takes_its_daemon_with_it(tmp_path: Path, runtime: Path) -> None:
    demo = started(runtime, tmp_path, "--seconds", "100")
    wait_for_first_result(demo)
    family = children_of(demo.pid)
    assert family
    demo.kill()
    demo.communicate()

    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in family):
        assert time.monotonic() < deadline, "the daemon outlived the demo"
        time.sleep(0.05)


def children_of(pid: int) -> list[int]:
    """Pids of every process below `pid`."""
    found, todo = [], [pid]
    while todo:
        for task in Path(f"/proc/{todo.pop()}/task").iterdir():
            below = [int(word) for word in (task / "children").read_text().split()]
            found += below
            todo += below
    return found


@pytest.mark.parametrize("source", ["/dev/video99", "no-such-video.mp4", "gopher://camera"])
def test_a_source_that_cannot_be_is_one_sentence(source: str, tmp_path: Path, runtime: Path) -> None:
    demo = started(runtime, tmp_path, "--source", source, "--seconds", "3")
    _, errors = demo.communicate(timeout=60)

    assert demo.returncode == 1
    assert errors.startswith("error: ")
    assert source.split(":")[0] in errors
    assert len(errors.splitlines()) == 1
    assert leftovers(demo, runtime) == []
