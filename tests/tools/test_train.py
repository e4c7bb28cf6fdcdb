"""`visaged train` from a folder like FER+'s to a network that can be run: drawn faces, two short stages."""

import math
import signal
import subprocess
import sys
from io import StringIO
from pathlib import Path

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from rich.console import Console
from typer.testing import CliRunner
from visaged.pipelines.cropper import Cropper
from visaged.pipelines.engines.ort_engine import OrtEngine
from visaged.pipelines.errors import ConfigError
from visaged.pipelines.importers.dlib_dat import read_face_resnet
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.registry import FACE_RESNET, Network
from visaged.tools import train as train_module
from visaged.tools.cli import build_app
from visaged.tools.train import watching

torch = pytest.importorskip("torch", reason="torch is not installed (extra `learn`)")
from visaged.pipelines.learning.networks import DlibTrunk  # noqa: E402
from visaged.pipelines.learning.task_faces import FaceFinder  # noqa: E402

pytestmark = pytest.mark.torch
U8 = npt.NDArray[np.uint8]
RECIPE = """
name = "tiny"
[network]
kind = "small_resnet"
size = 32
width = 4
units = 0
[[stage]]
name = "first"
data = "ferplus"
[stage.training]
epochs = 2
batch = 16
threads = 1
[[stage]]
name = "end-part"
data = "ferplus"
augmentation = "none"
[stage.training]
epochs = 1
batch = 16
threads = 1
rate = 0.01
freeze_stages = 3
"""


@pytest.fixture
def ferplus(tmp_path: Path) -> Path:
    """Bright and dark squares, as happy and sad as ten people would find them."""
    random = np.random.default_rng(0)
    folder = tmp_path / "ferplus"
    folder.mkdir()
    for name, n in (("Training", 120), ("PublicTest", 24)):
        pictures = random.integers(0, 120, (n, 48, 48)).astype(np.uint8)
        votes = np.zeros((n, 10), np.uint8)
        for index in range(n):
            is_bright = index % 2
            pictures[index, 8:40, 8:40] += np.uint8(120 * is_bright)
            votes[index, 1 if is_bright else 3] = 10
        np.savez(folder / f"{name}.npz", x=pictures, votes=votes)
    return folder


def run(*words: str) -> str:
    done = CliRunner().invoke(build_app("train"), ["train", *words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def test_a_recipe_becomes_a_network_with_curves_and_figures(
    tmp_path: Path, ferplus: Path, cache: Path
) -> None:
    recipe, out = tmp_path / "tiny.toml", tmp_path / "out"
    recipe.write_text(RECIPE)
    toml = tmp_path / "v.toml"
    toml.write_text(f'[paths]\ncache = "{tmp_path / "cache"}"\n')
    words = [str(recipe), "--data", f"ferplus={ferplus}", "--out", str(out), "--config", str(toml)]

    first = run(*words)
    again = run(*words)

    assert "stage first" in first and "stage end-part" in first and "never seen" in first
    engine = OrtEngine(out / "tiny.onnx")
    assert engine.infer(np.zeros((3, 1, 32, 32), np.float32))["logits"].shape == (3, 8)
    card = msgspec.json.decode((out / "tiny.json").read_bytes())
    assert card["faces"] == 24 and 0 <= card["accuracy"] <= 1 and card["macs"] > 0
    for stage, n_epochs in (("first", 2), ("end-part", 1)):
        assert len(msgspec.json.decode((out / stage / "curves.json").read_bytes())) == n_epochs
        assert (out / stage / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert again.splitlines()[-1] == first.splitlines()[-1]  # resumed: nothing was left to do


def test_data_that_the_recipe_needs_must_be_named(tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE)

    with pytest.raises(ConfigError, match="needs data called 'ferplus'"):
        run(str(recipe), "--data", f"other={tmp_path}", "--out", str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="is not NAME=FOLDER"):
        run(str(recipe), "--data", "ferplus", "--out", str(tmp_path / "out"))


TASKS = """
name = "two-tasks"
normalisation = "dlib"
[network]
kind = "dlib_resnet"
size = 150
channels = 3
units = 8
[[stage]]
name = "large"
data = "large"
augmentation = "none"
[stage.training]
epochs = 8
batch = 4
optimiser = "adamw"
rate = 3e-3
freeze_stages = 15
threads = 1
[[stage]]
name = "site"
data = "site"
augmentation = "none"
[stage.training]
epochs = 1
batch = 8
rate = 1e-9
freeze_stages = 15
threads = 1
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "two-tasks.toml"
    path.write_text(TASKS)
    return path


def task_of(folder: Path, face: U8, classes: dict[str, float]) -> Path:
    """A task of one face, in a light of its own for each class and a tint for each photo."""
    tint = 0
    for name, light in classes.items():
        for part, n in (("train", 6), ("tune", 2), ("test", 2)):
            (folder / part / name).mkdir(parents=True)
            for _ in range(n):
                tint += 1
                photo = np.clip(face[..., ::-1] * light - tint, 0, 255).astype(np.uint8)
                cv2.imwrite(str(folder / part / name / f"{tint}.png"), photo)
    (folder / "task.toml").write_text(
        f'name = "{folder.name}"\ninput = "box"\nclasses = {list(classes)}\n'
        + '[folders]\ntrain = "train"\ntune = "tune"\ntest = "test"\n'
    )
    return folder / "task.toml"


def test_a_sites_own_stage_goes_on_from_the_stage_before_it(
    tmp_path: Path, recipe: Path, astronaut: U8, store: ModelStore
) -> None:
    face, out = astronaut[65:245, 135:315], tmp_path / "out"
    large = task_of(tmp_path / "large", face, {"dark": 0.3, "plain": 0.8, "bright": 1.4})
    site = task_of(tmp_path / "site", face, {"bright": 1.3, "dark": 0.4})
    words = [str(recipe), "--data", f"large={large}", "--out", str(out)]

    first = run(*words, "--until", "large")
    written = (out / "large" / "checkpoint.pt").stat().st_mtime_ns
    both = run(*words, "--data", f"site={site}")

    assert "stage large: 18 faces to learn from, 6 to choose by" in first and "stage site" not in first
    assert "stage site: 12 faces to learn from" in both and "accuracy before it" in both
    assert (out / "large" / "checkpoint.pt").stat().st_mtime_ns == written  # resumed, not repeated
    card = msgspec.json.decode((out / "two-tasks.json").read_bytes())
    row = msgspec.convert(card["network"], Network)
    assert card["faces"] == 4 and row.outputs[0].classes == ("dark", "plain", "bright")
    assert row.recipe == FACE_RESNET.recipe

    large_state, state = (torch.load(out / name / "best.pt", weights_only=True) for name in ("large", "site"))
    trunk = DlibTrunk(read_face_resnet(store.weights_file("dlib_face_recognition_resnet_model_v1.dat")))
    for name, values in trunk.stages.state_dict().items():
        assert torch.equal(state[f"network.stages.{name}"], values)
    learned = state["network.last.weight"]
    assert torch.allclose(learned, large_state["network.last.weight"], atol=1e-6)  # its rate is next to 0
    assert learned.shape == (3, 8)

    engine = OrtEngine(out / "two-tasks.onnx")
    said = []
    for light in (0.35, 1.35):
        found = FaceFinder("box", store).find(np.clip(face * light, 0, 255).astype(np.uint8))
        assert found is not None
        chips = Cropper().crop(found[0], found[1][None], FACE_RESNET.recipe)
        said.append(row.outputs[0].classes[int(engine.infer(chips)["logits"].argmax())])
    assert said == ["dark", "bright"]


def test_a_stage_without_data_and_a_class_without_a_place_are_refused(
    tmp_path: Path, recipe: Path, astronaut: U8
) -> None:
    face = astronaut[65:245, 135:315]
    large = task_of(tmp_path / "large", face, {"dark": 0.3, "bright": 1.4})
    site = task_of(tmp_path / "site", face, {"dark": 0.4, "odd": 0.9})
    words = [str(recipe), "--data", f"large={large}", "--out", str(tmp_path / "out")]

    with pytest.raises(ConfigError, match=r"'site' .* needs data called 'site'.* --until large"):
        run(*words)
    with pytest.raises(ConfigError, match="has no stage 'lrage'; it has large, site"):
        run(*words, "--until", "lrage")
    with pytest.raises(ConfigError, match="the class 'odd', which the network does not know"):
        run(*words, "--data", f"site={site}")
    assert not (tmp_path / "out").exists()


def test_an_epoch_shows_how_far_it_is_as_a_bar_or_now_and_then_in_a_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal, log = (Console(file=StringIO(), force_terminal=is_one, width=90) for is_one in (True, False))
    monkeypatch.setattr(train_module, "LOG_EVERY_S", -1.0)

    for console in (terminal, log):
        with watching(console) as watch:
            watch("trunk features", 5, 40, math.nan)
            watch("epoch 3", 20, 40, 0.5)

    shown, logged = (console.file.getvalue() for console in (terminal, log))  # type: ignore[attr-defined]
    assert "20/40" in shown and "loss 0.500" in shown and "nan" not in shown
    assert logged.splitlines() == ["  trunk features: 5 of 40 ", "  epoch 3: 20 of 40 loss 0.500"]


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(tmp_path: Path, recipe: Path, astronaut: U8) -> None:
    recipe.write_text(TASKS.replace("epochs = 8", "epochs = 900\npatience = 900"))
    large = task_of(tmp_path / "large", astronaut[65:245, 135:315], {"dark": 0.3, "bright": 1.4})
    words = [str(recipe), "--data", f"large={large}", "--until", "large", "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "visaged.tools.cli", "train", *words]

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        seen = next(line for line in lines if "epoch 2" in line)  # it comes while the process runs: flushed
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()

    assert seen and process.returncode == 130
    assert "the same command goes on after the last whole epoch in" in rest and "Traceback" not in rest
    assert (tmp_path / "out" / "large" / "checkpoint.pt").exists()
