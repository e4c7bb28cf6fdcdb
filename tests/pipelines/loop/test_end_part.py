"""A round with end parts on real networks: head first, then convolutions, and the same bits after a kill."""

import os
import shutil
import signal
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper
from visaged.daemon.outline import default_cache
from visaged.pipelines.assembly import StageConfigs
from visaged.pipelines.engines.precision import Int8Style, measure_ranges, read_ranges, to_int8
from visaged.pipelines.errors import ModelError
from visaged.pipelines.importers.onnx_end import ends_of
from visaged.pipelines.loop.progress import Progress
from visaged.pipelines.loop.replay_memory import base_path, read_base
from visaged.pipelines.loop.sample_store import SampleStore
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.releases.release_store import ReleaseStore

pytest.importorskip("torch", reason="torch is not installed (extra `learn`)")
pytestmark = pytest.mark.torch

from visaged.pipelines.loop.learner import Champion, champion_of, learn  # noqa: E402

from tests.pipelines.loop.test_learner import (  # noqa: E402
    CONFIG,
    Whole,
    champion,  # noqa: F401
    go_on,
    learned,
    remember,
    state,  # noqa: F401
)

F32 = npt.NDArray[np.float32]

DEEP = msgspec.structs.replace(CONFIG, end_part=True, max_steps=60)


@pytest.fixture(scope="module")
def deep_state(
    state: Path,  # noqa: F811
    champion: Champion,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The same samples, and a memory of maps."""
    folder = tmp_path_factory.mktemp("deep") / "state"
    shutil.copytree(state, folder)
    remember(champion, DEEP, folder)
    return folder


@pytest.fixture(scope="module")
def ranged(champion: Champion, tmp_path_factory: pytest.TempPathFactory) -> Champion:  # noqa: F811
    """The champion, whose emotion-vgg13 has INT8 ranges."""
    files = champion.networks["emotion-vgg13"]
    chips = np.random.default_rng(0).uniform(0, 255, (8, 1, 48, 48)).astype(np.float32)
    ranges = measure_ranges(files.row.name, files.onnx.read_bytes(), [chips], "noise")
    path = tmp_path_factory.mktemp("ranges") / "ranges.json"
    path.write_bytes(msgspec.json.encode(ranges))
    return replace(champion, networks={**champion.networks, "emotion-vgg13": replace(files, ranges=path)})


@pytest.fixture(scope="module")
def deep(deep_state: Path, ranged: Champion) -> Whole:
    return learned(ranged, deep_state, DEEP)


def weights_of(data: bytes) -> dict[str, F32]:
    graph = onnx.load_model_from_string(data).graph
    return {weight.name: numpy_helper.to_array(weight) for weight in graph.initializer}


def test_after_the_head_the_last_convolutions_learn_and_nothing_else_changes(
    deep_state: Path,
    champion: Champion,  # noqa: F811
    deep: Whole,
) -> None:
    new = ReleaseStore(deep_state).get(deep.report.release).networks()
    begun = [(p.network, p.part) for p in deep.told if p.stage == "learning" and p.step == 1]

    assert begun == [
        ("face-resnet", "head"),
        *[(name, part) for name in ("emotion-vgg13", "emotion-resnet") for part in ("head", "end part")],
    ]
    assert str(next(p for p in deep.told if p.part == "end part")).startswith(
        "learning emotion-vgg13, end part, run "
    )
    for name in ("emotion-vgg13", "emotion-resnet"):
        assert deep.report.networks[name].endswith("its end part learned")
    assert "no end part" in deep.report.networks["face-resnet"]
    for name, files in champion.networks.items():
        old, data = files.onnx.read_bytes(), new[name].onnx.read_bytes()
        before, after = weights_of(old), weights_of(data)
        changed = {key for key in before if not np.array_equal(before[key], after[key])}

        assert before.keys() == after.keys() and changed == set(ends_of(old)[-1].weights)
        graphs = [onnx.load_model_from_string(d).graph for d in (old, data)]
        assert graphs[0].node == graphs[1].node
    convolutions = [
        key for key in weights_of(champion.networks["emotion-vgg13"].onnx.read_bytes()) if "Conv" in key
    ]
    assert len(convolutions) == 20, "or the test above means nothing"


def test_int8_ranges_fit_convolutions_that_learned(deep_state: Path, ranged: Champion, deep: Whole) -> None:
    old = ranged.networks["emotion-vgg13"]
    new = ReleaseStore(deep_state).get(deep.report.release).networks()["emotion-vgg13"]
    assert old.ranges is not None and new.ranges is not None
    before, after = read_ranges(old.ranges), read_ranges(new.ranges)
    behind = {node.output for node in ends_of(old.onnx.read_bytes())[-1].nodes}

    to_int8(new.onnx.read_bytes(), after, Int8Style.ASYMMETRIC)  # refuses ranges of other weights

    with pytest.raises(ModelError, match="other weights"):
        to_int8(new.onnx.read_bytes(), before, Int8Style.ASYMMETRIC)
    assert after.tensors.keys() == before.tensors.keys()
    assert {name for name in after.tensors if after.tensors[name] != before.tensors[name]} == behind


def die(now: Progress) -> bool:
    if (now.network, now.part, now.step) == ("emotion-resnet", "end part", 30):
        os.kill(os.getpid(), signal.SIGKILL)
    return True


def learn_and_die(state: Path) -> None:  # noqa: F811
    champion = champion_of(StageConfigs(), state, ModelStore(default_cache()))  # noqa: F811
    with SampleStore(state) as samples:
        learn(champion, samples, state, DEEP, die)


def test_a_round_killed_in_an_end_part_ends_with_the_same_release(
    deep_state: Path, ranged: Champion, deep: Whole
) -> None:
    ReleaseStore(deep_state).remove(ReleaseStore(deep_state).get(deep.report.release))
    victim = get_context("spawn").Process(target=learn_and_die, args=(deep_state,))
    victim.start()
    victim.join()
    steps: list[tuple[str, str, int]] = []

    def note(now: Progress) -> bool:
        if now.stage == "learning":
            steps.append((now.network, now.part, now.step))
        return True

    with SampleStore(deep_state) as samples:
        again = learn(ranged, samples, deep_state, DEEP, note)

    assert victim.exitcode == -signal.SIGKILL
    assert steps[0] == ("emotion-resnet", "end part", 21) and len(steps) == 40
    assert again is not None and again.run == deep.report.run
    assert again.release == deep.report.release and again.evidence == deep.report.evidence


def test_a_memory_of_maps_teaches_heads_and_one_without_maps_no_end_part(
    state: Path,  # noqa: F811
    deep_state: Path,
    champion: Champion,  # noqa: F811
) -> None:
    flat, maps = read_base(state), read_base(deep_state)
    assert base_path(deep_state).stat().st_size > base_path(state).stat().st_size

    of_maps = {pupil.name: pupil for pupil in champion.pupils(maps, CONFIG)}
    without = {pupil.name: pupil for pupil in champion.pupils(flat, DEEP)}
    with SampleStore(deep_state) as samples:
        report = learn(champion, samples, deep_state, CONFIG, go_on)

    for name in ("emotion-vgg13", "emotion-resnet"):
        assert len(of_maps[name].ends) == 1 and not of_maps[name].note
        base = of_maps[name].base
        assert base is not None and base.train.features.ndim == 4
        assert len(without[name].ends) == 1 and without[name].base is not None
        assert without[name].note.startswith(
            "the base memory has no features for its end part; make it again"
        )
    assert report is not None and report.release
    assert all("its head" in said and "end part" not in said for said in report.networks.values())
