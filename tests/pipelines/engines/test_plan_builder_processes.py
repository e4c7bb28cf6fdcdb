"""Building as seen from outside of the process: killed in the middle, and whom it talks to."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from visaged.pipelines.engines.plan import Backend, Precision
from visaged.pipelines.engines.plan_builder import PlanOrder, build_plan, key_of
from visaged.pipelines.engines.plan_store import UNFINISHED, PlanStore
from visaged.pipelines.model_store import ModelStore

STEPS = ("building", "comparing with fp32", "storing")
ORDER = PlanOrder(network="emotion-xception", backend=Backend.ONNXRUNTIME, precision=Precision.FP16)

BUILD_FOREVER = """
import sys
from pathlib import Path
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.engines.plan import Backend, Precision
from visaged.pipelines.engines.plan_builder import PlanOrder, build_plan
from visaged.pipelines.engines.plan_store import PlanStore
order = PlanOrder(network="emotion-xception", backend=Backend.ONNXRUNTIME, precision=Precision.FP16)
models, plans = ModelStore(Path(sys.argv[1])), PlanStore(Path(sys.argv[2]))
while True:
    build_plan(order, models, plans, lambda step: print(step, flush=True))
"""


@pytest.mark.parametrize("is_there", [False, True], ids=["the first build", "one that is there already"])
def test_a_build_killed_at_any_step_leaves_the_store_whole(
    is_there: bool, store: ModelStore, tmp_path: Path
) -> None:
    moments = random.Random(0)
    key = key_of(ORDER, store)
    plans = PlanStore(tmp_path / "cache")
    if is_there:
        build_plan(ORDER, store, plans)
    line = [sys.executable, "-c", BUILD_FOREVER, str(store.cache_dir), str(tmp_path / "cache")]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    for step in STEPS:
        with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=environment) as builder:
            assert builder.stdout is not None
            assert any(said.strip() == step for said in builder.stdout)  # reads on until it says so
            try:
                builder.wait(moments.uniform(0, 0.02))  # it never ends: so long it may go on
            except subprocess.TimeoutExpired:
                builder.kill()
            assert builder.wait(60) == -signal.SIGKILL

        assert all(plan.is_whole and plan.record.key == key for plan in plans.plans())
        if is_there:  # or just put aside, between two renames
            assert plans.find(key) or list(plans.folder.rglob("*-old")), "what was there is gone"

    built = build_plan(ORDER, store, plans)
    assert plans.find(key) == built and built.record.parity.is_within
    assert not list(plans.folder.rglob(f"{UNFINISHED}*"))


LISTEN = """
import os, sys
TALK = "socket.", "urllib.", "http.", "smtplib.", "subprocess.", "os.posix_spawn", "os.exec", "os.fork"
def report(event, arguments):
    if event.startswith(TALK) and arguments[:1] != ("uname",):  # how Python finds the name of an ARM
        with open(sys.argv[1], "a") as file:  # a child that was forked off reports here too
            file.write(f"{event} {arguments}\\n")
        raise PermissionError(event)
sys.addaudithook(report)
"""

BUILD_AND_RUN = """
import sys
from pathlib import Path
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.registry import row_of
from visaged.pipelines.engines.parity_inputs import parity_inputs
from visaged.pipelines.engines.plan import Backend, Precision
from visaged.pipelines.engines.plan_builder import PlanOrder, build_plan, open_engine
from visaged.pipelines.engines.plan_store import PlanStore
order = PlanOrder(network="emotion-xception", backend=Backend(sys.argv[4]), precision=Precision.FP16)
plan = build_plan(order, ModelStore(Path(sys.argv[2])), PlanStore(Path(sys.argv[3])))
if not order.backend.needs_gpu:
    engine = open_engine(plan.path, order.backend)
    assert len(engine.infer(parity_inputs(row_of(order.network))[0])["logits"]) == 8
    engine.close()
print("built and run")
"""


@pytest.mark.parametrize("backend", [Backend.ONNXRUNTIME, Backend.OPENVINO, Backend.TENSORRT_RTX])
def test_building_and_running_talks_to_nobody(backend: Backend, store: ModelStore, tmp_path: Path) -> None:
    store.ensure("emotion-xception")
    home, report = tmp_path / "home", tmp_path / "report"
    home.mkdir()
    silenced = ("CI", "TF_BUILD", "JENKINS_URL", "ORT_DISABLE_TELEMETRY")  # some libraries are quiet in CI
    environment = {name: value for name, value in os.environ.items() if name not in silenced}
    folders = {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "TMPDIR": str(tmp_path)}
    words = [str(report), str(store.cache_dir), str(tmp_path / "plans"), backend.value]

    done = subprocess.run(
        [sys.executable, "-c", LISTEN + BUILD_AND_RUN, *words],
        capture_output=True,
        text=True,
        env=environment | folders,
        timeout=60,
    )

    assert not report.exists(), f"it tried to talk: {report.read_text()}"
    assert done.returncode == 0 and done.stdout == "built and run\n", done.stderr
    assert list(home.iterdir()) == [], "something keeps an identity or statistics in the home folder"


def test_a_program_that_talks_would_be_noticed(tmp_path: Path) -> None:
    """The ear itself is tried: a forked child that looks a name up, as openvino's telemetry does."""
    report = tmp_path / "report"
    program = (
        "import multiprocessing, socket\n"
        "def call(): socket.getaddrinfo('localhost', 1)\n"
        "child = multiprocessing.get_context('fork').Process(target=call)\n"
        "child.start(); child.join()\n"
    )

    for part in (program, "import socket\nsocket.socket()\n"):
        subprocess.run([sys.executable, "-c", LISTEN + part, str(report)], capture_output=True, timeout=60)
        assert report.exists()
        report.unlink()
