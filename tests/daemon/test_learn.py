"""The learn process as it is started: off with a reason, due when it is, aside when frames are late."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from visaged.daemon.config import load_config
from visaged.daemon.frame_ages import MIN_FRAMES, FrameAges
from visaged.daemon.learn import Learning
from visaged.daemon.ledger import Ledger, ledger_path
from visaged.daemon.metrics import LearnMetrics
from visaged.daemon.notify import Notifier
from visaged.daemon.process_table import command, processes
from visaged.pipelines.loop.progress import Progress, read_progress, write_progress
from visaged.pipelines.loop.sample import Label, Source
from visaged.pipelines.loop.sample_store import SampleStore
from visaged.pipelines.loop.schedule import LearningConfig, is_due
from visaged.pipelines.loop.sighting import Sighting

MakeSighting = Callable[..., Sighting]

WITHOUT_TORCH = """
import sys
from importlib.machinery import PathFinder

class Blind(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == "torch" else super().find_spec(name, path, target)

sys.meta_path = [Blind if finder is PathFinder else finder for finder in sys.meta_path]
"""


@pytest.fixture
def config(runtime: Path) -> Path:
    path = runtime / "visaged.toml"
    path.write_text(
        f'[paths]\nstate = "{runtime}/state"\nruntime = "{runtime}"\n[metrics]\nport = 0\n'
        '[learning]\nenabled = true\nafter_samples = 2\n[[camera]]\nname = "door"\nsource = "synthetic"\n'
    )
    return path


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.02)


def stage(runtime: Path) -> str:
    progress = read_progress(runtime)
    return progress.stage if progress else ""


@pytest.mark.parametrize(
    ("n_new", "since_s", "due"),
    [
        (0, None, False),
        (0, 1e9, False),
        (19, 3600.0, False),
        (19, None, False),
        (20, 0.0, True),
        (1, 86_400.0, True),
    ],
)
def test_a_round_is_due_by_count_or_by_time(n_new: int, since_s: float | None, due: bool) -> None:
    assert is_due(LearningConfig(), n_new, since_s) is due


def test_the_process_is_there_only_when_it_is_enabled() -> None:
    assert [p.name for p in processes(["door"])] == ["infer", "capture@door"]
    assert [p.name for p in processes(["door"], learns=True)] == ["infer", "capture@door", "learn"]


def test_where_it_is_off_the_process_says_so_and_ends(config: Path, runtime: Path) -> None:
    config.write_text(config.read_text().replace("enabled = true", "enabled = false"))

    done = subprocess.run(command("learn", config), capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    assert "off: [learning] enabled is false" in done.stderr
    assert stage(runtime) == "off"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["visaged.daemon.lifecycle", "learn", "--config"], 0),
        (["visaged.tools.cli", "learn", "--now", "--config"], 1),
    ],
)
def test_without_torch_the_sentence_says_what_to_install(
    config: Path, runtime: Path, words: list[str], code: int
) -> None:
    (runtime / "sitecustomize.py").write_text(WITHOUT_TORCH)
    paths = os.pathsep.join([str(runtime), os.environ.get("PYTHONPATH", "")])

    done = subprocess.run(
        [sys.executable, "-m", *words, str(config)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": paths},
    )

    assert done.returncode == code, done.stderr
    assert "torch" in done.stderr and "pip install 'visaged[learn]'" in done.stderr


def test_a_process_beside_learns_steps_back_and_stops_when_told(
    config: Path, runtime: Path, make_sighting: MakeSighting
) -> None:
    pytest.importorskip("torch", reason="torch is not installed (extra `learn`)")
    with SampleStore(runtime / "state") as store:
        for n in range(3):
            store.add(make_sighting(n, track=n), Source.USER, Label(emotion="fear", is_face=True))

    process = subprocess.Popen(command("learn", config), stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: "too few" in str(read_progress(runtime)), 60)
        scheduling = os.sched_getscheduler(process.pid), os.getpriority(os.PRIO_PROCESS, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=20)[1]

    assert scheduling == (os.SCHED_BATCH, 19)
    assert process.returncode == 0, said
    assert "learned from 3 samples" in said


@pytest.fixture
def ledger(runtime: Path) -> Iterator[Ledger]:
    with Ledger.open(ledger_path(runtime, "door")) as ledger:
        yield ledger


def publish(ledger: Ledger, n: int, age_s: float) -> None:
    for _ in range(n):
        ledger.count_captured()
        ledger.publish(age_s)


def test_the_age_of_frames_is_that_of_the_99th_of_100(runtime: Path, ledger: Ledger) -> None:
    publish(ledger, 500, 3.0)  # before anybody looked
    ages = FrameAges(runtime, ["door", "yard"])

    publish(ledger, 99, 0.015)
    assert ages.p99_ms() == 0.0, "too few frames to say anything"
    publish(ledger, 1, 9.0)
    assert ages.p99_ms() == 20.0
    publish(ledger, 196, 0.04)
    publish(ledger, 4, 0.18)
    assert ages.p99_ms() == 200.0
    publish(ledger, MIN_FRAMES - 1, 0.01)
    assert ages.p99_ms() == 200.0, "still too few to say something new"
    publish(ledger, 1, 0.01)
    assert ages.p99_ms() == 10.0
    publish(ledger, 200, 60.0)
    assert ages.p99_ms() == float("inf")
    assert ages.p99_ms() == 0.0, "no frames, none late"
    assert ledger.snapshot().published == 1100


def test_learning_waits_while_frames_are_late_and_goes_on_after(
    config: Path, runtime: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visaged.daemon.learn.PAUSE_S", 0.02)
    stop, answers, metrics = threading.Event(), [], LearnMetrics()
    with SampleStore(runtime / "state") as store:
        learning = Learning(load_config(config), store, metrics, stop, Notifier())
        publish(ledger, 200, 0.5)
        thread = threading.Thread(
            target=lambda: answers.append(learning.tell(Progress(stage="learning", run="abc", step=7)))
        )
        thread.start()
        is_paused = False
        while thread.is_alive() and not is_paused:
            publish(ledger, 200, 0.5)
            is_paused = stage(runtime) == "paused"
        note = str(read_progress(runtime))
        while thread.is_alive():
            publish(ledger, 200, 0.01)
        thread.join()

    assert is_paused and "99 of 100 frames take up to 500 ms" in note
    assert answers == [True]
    assert "visaged_learning_paused_seconds_total 0.0\n" not in metrics.text()


def test_what_is_told_can_be_read_whole_by_anybody(runtime: Path) -> None:
    write_progress(runtime, Progress(stage="learning", run="abc", step=40, n_steps=200, loss=1.25, eta_s=7.6))

    assert str(read_progress(runtime)) == "learning, run abc, 40 of 200, loss 1.250, 8 s to go"
    (runtime / "learning.json").write_text('{"stage": "lea')
    assert read_progress(runtime) is None
    write_progress(runtime / "gone", Progress(stage="off"))  # nobody asks there
