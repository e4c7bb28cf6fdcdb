"""`visaged train` from a folder like FER+'s to a network that can be run: drawn faces, two short stages."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner
from visaged.pipelines.engines.ort_engine import OrtEngine
from visaged.pipelines.errors import ConfigError
from visaged.tools.cli import build_app

pytest.importorskip("torch", reason="torch is not installed (extra `learn`)")

pytestmark = pytest.mark.torch
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
