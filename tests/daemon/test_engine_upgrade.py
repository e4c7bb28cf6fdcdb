"""Taking over plans that were missing at the start: what goes wrong leaves the daemon serving as it was."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from visaged.daemon.engine_upgrade import EngineUpgrade
from visaged.daemon.metrics import InferMetrics
from visaged.pipelines.assembly import StageConfigs, Stages, assemble
from visaged.pipelines.engines.engine import EngineConfig
from visaged.pipelines.releases.release import LoadedRelease

PATIENCE_S = 60.0
CONFIGS = StageConfigs(engine=EngineConfig(backend="onnxruntime", precision="int8"))


@pytest.fixture
def stages(tmp_path: Path, cache: Path) -> Iterator[Stages]:
    """Stages on stand-ins: the networks are imported, no plan is built."""
    shutil.copytree(cache / "models", tmp_path / "models")
    shutil.copytree(cache / "archives" / "fer", tmp_path / "archives" / "fer")
    with assemble(CONFIGS, state=tmp_path / "state", cache=tmp_path, may_wait=False) as stages:
        yield stages


def poll_until(upgrade: EngineUpgrade, states: tuple[str, ...]) -> LoadedRelease | None:
    """Poll as the inference thread does, until the state begins with one of `states`."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if (loaded := upgrade.poll()) is not None or upgrade.state.startswith(states):
            return loaded
        time.sleep(0.01)
    raise AssertionError(upgrade.state)


def build_in(stages: Stages) -> list[str]:
    """Return a command that builds into the cache of `stages`."""
    cache = stages.loader.plans.folder.parent
    program = (
        "import sys; from pathlib import Path\n"
        "from visaged.pipelines.engines.engine import EngineConfig\n"
        "from visaged.pipelines.engines.engine_loader import EngineLoader\n"
        "from visaged.pipelines.model_store import ModelStore\n"
        "config = EngineConfig(backend='onnxruntime', precision='int8')\n"
        "EngineLoader(config, ModelStore(Path(sys.argv[1]))).build_missing(['face-resnet'])\n"
    )
    return [sys.executable, "-c", program, str(cache)]


def test_built_plans_are_handed_over_once(stages: Stages) -> None:
    metrics = InferMetrics("infer")
    upgrade = EngineUpgrade(stages, metrics, build_in(stages))
    before = upgrade.engines()["face-resnet"]

    upgrade.start()
    assert poll_until(upgrade, ("building face-resnet",)) is None
    loaded = poll_until(upgrade, ("failed",))

    assert loaded is not None and upgrade.poll() is None
    assert loaded.release == stages.serving.release
    after = upgrade.engines()["face-resnet"]
    assert (before.is_fallback, after.is_fallback) == (True, False)
    assert after.precision.value == "int8"
    assert upgrade.state == "done"
    text = metrics.text()
    assert 'visaged_engine_fallback{member="face-resnet"} 0.0' in text
    assert 'visaged_plan_builds_total{result="done"} 1.0' in text
    assert 'precision="fp32"' not in text.split("visaged_engine_info{")[1]
    loaded.close()
    upgrade.close()


def test_a_build_that_fails_is_said_and_changes_nothing(
    stages: Stages, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = InferMetrics("infer")
    upgrade = EngineUpgrade(stages, metrics, [sys.executable, "-c", "raise SystemExit(3)"])

    upgrade.start()
    assert poll_until(upgrade, ("failed",)) is None

    assert "exit code 3" in upgrade.state
    assert "serving on without the plans" in caplog.text
    assert upgrade.engines()["face-resnet"].is_fallback
    text = metrics.text()
    assert 'visaged_engine_fallback{member="face-resnet"} 1.0' in text
    assert 'visaged_plan_builds_total{result="failed"} 1.0' in text
    assert upgrade.poll() is None
    upgrade.close()


def test_closing_ends_a_running_build(stages: Stages) -> None:
    upgrade = EngineUpgrade(
        stages, InferMetrics("infer"), [sys.executable, "-c", "import time; time.sleep(600)"]
    )
    upgrade.start()
    poll_until(upgrade, ("building",))
    load = upgrade._load
    assert load is not None
    while load._build is None:
        time.sleep(0.01)
    build = load._build

    start = time.monotonic()
    upgrade.close()

    assert build.poll() is not None
    assert time.monotonic() - start < 10


def test_nothing_is_built_when_nothing_is_missing(stages: Stages) -> None:
    stages.loader.build_missing(stages.configs.networks)
    upgrade = EngineUpgrade(stages, InferMetrics("infer"), ["/does/not/exist"])

    upgrade.start()

    assert upgrade.poll() is None
    assert upgrade.state == "none needed"
    upgrade.close()


def test_a_build_comes_last_for_the_processor_and_goes_first_when_memory_runs_out() -> None:
    program = (
        "import os; from visaged.daemon.step_back import step_back; before = os.nice(0); step_back(); "
        "print(os.nice(0) - before, open('/proc/self/oom_score_adj').read())"
    )

    niceness, score = subprocess.check_output([sys.executable, "-c", program], text=True).split()

    assert int(niceness) >= 10 and int(score) == 500
