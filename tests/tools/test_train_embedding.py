"""People in folders become an embedder: trained, measured on others, compared with dlib's."""

from pathlib import Path

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from typer.testing import CliRunner
from visaged.pipelines.engines.ort_engine import OrtEngine
from visaged.pipelines.errors import ConfigError, ModelError, SourceError
from visaged.pipelines.learning.samples import PARTS, split_of
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.registry import Network
from visaged.tools.cli import build_app
from visaged.tools.release import read_member

pytest.importorskip("torch", reason="torch is not installed (extra `learn`)")

pytestmark = pytest.mark.torch
U8 = npt.NDArray[np.uint8]
RECIPE = """
name = "tints"
[network]
kind = "small_resnet"
size = 32
channels = 3
width = 4
units = 16
dropout = 0.0
[[stage]]
name = "people"
data = "people"
augmentation = "none"
[stage.training]
epochs = 20
batch = 16
optimiser = "adamw"
rate = 5e-3
threads = 1
[[stage.loss]]
kind = "arcface"
margin = 0.1
scale = 16.0
"""


def run(command: str, *words: str) -> str:
    done = CliRunner().invoke(build_app(command), [command, *words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tints.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def people(tmp_path: Path, astronaut: U8) -> Path:
    """A task of 56 people: one face in a tint of its own for each, three photos in different lights."""
    face = astronaut[65:245, 135:315]
    names = [name for part, n in zip(PARTS, (40, 8, 8), strict=True) for name in names_in(part, n)]
    for index, name in enumerate(names):
        tint = np.random.default_rng(index).uniform(0.1, 1.0, 3)
        for number, light in enumerate((1.0, 0.97, 0.94)):
            path = tmp_path / "photos" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), (face * tint * light).astype(np.uint8)[..., ::-1])
    task = tmp_path / "people.toml"
    task.write_text('name = "people"\ninput = "box"\noutput = "embedding"\n[folders]\ntrain = "photos"\n')
    return task


def names_in(part: str, n: int) -> list[str]:
    return [name for name in (f"p{i}" for i in range(900)) if split_of([name])[0] == part][:n]


def test_people_become_an_embedder_that_is_compared_with_dlibs(
    tmp_path: Path, recipe: Path, people: Path, store: ModelStore
) -> None:
    out = tmp_path / "out"
    words = [str(recipe), "--data", f"people={people}", "--out", str(out)]

    said = run("train", *words)
    again = run("train", *words)
    measured = run(
        "evaluate-identity", str(people), "--network", str(out / "tints.onnx"), "--json", str(tmp_path / "j")
    )

    assert "120 faces to learn from, 24 to choose by" in said and "of 8 people never seen" in said
    assert again.splitlines()[-1] == said.splitlines()[-1]  # resumed: nothing was left to do
    card = msgspec.json.decode((out / "tints.json").read_bytes())
    row = msgspec.convert(card["network"], Network)
    assert [(o.kind, o.dim) for o in row.outputs] == [("embedding", 16)]
    assert card["pairs"] == 48 and card["accuracy"] > 0.6 > 0.4 > card["equal_error_rate"]
    assert (out / "people" / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert not any(f'"{name}"' in (out / "tints.json").read_text() for name in names_in(PARTS[0], 40))

    outputs = OrtEngine(out / "tints.onnx").infer(np.zeros((2, 3, 32, 32), np.float32))
    assert list(outputs) == ["embedding"]
    rows = {row["engine"]: row for row in msgspec.json.decode((tmp_path / "j").read_bytes())["rows"]}
    assert list(rows) == ["face-resnet", "tints"] and "48 of 48 pairs" in measured
    assert rows["tints"]["at_0.6"] == pytest.approx(100 * card["accuracy"], abs=4)
    lost = rows["face-resnet"]["accuracy"] - rows["tints"]["accuracy"]
    assert rows["face-resnet"]["loss_points"] == 0 and rows["tints"]["loss_points"] == pytest.approx(lost)
    assert rows["face-resnet"]["at_0.6"] < 60  # a face in many tints is one person
    files = read_member(str(out / "tints.onnx"), store, tmp_path)
    assert files.row == row and "embedding" in OrtEngine(files.onnx).infer(
        np.zeros((1, 3, 32, 32), np.float32)
    )


def test_data_that_teach_no_embedding_are_one_sentence(tmp_path: Path, recipe: Path, people: Path) -> None:
    out = str(tmp_path / "out")
    mixed = tmp_path / "mixed.toml"
    second = RECIPE[RECIPE.index("[[stage]]") :].replace('"people"', '"moods"')
    mixed.write_text(RECIPE + second)
    (tmp_path / "moods.toml").write_text(
        f'name = "moods"\nclasses = {names_in(PARTS[0], 2)}\n[folders]\ntrain = "photos"\n'
    )
    strange = tmp_path / "strange.toml"
    strange.write_text(RECIPE.replace('"arcface"\nmargin = 0.1\nscale = 16.0', '"tuplet_clusters"'))
    data = "--data", f"people={people}"

    with pytest.raises(ConfigError, match=r"to tell people apart, and .*moods.toml to name classes"):
        run("train", str(mixed), *data, "--data", f"moods={tmp_path / 'moods.toml'}", "--out", out)
    with pytest.raises(ConfigError, match="'tuplet_clusters' teaches no embedding"):
        run("train", str(strange), *data, "--out", out)
    with pytest.raises(ConfigError, match=r'moods.toml has output = "label"'):
        run("evaluate-identity", str(tmp_path / "moods.toml"))
    with pytest.raises(ModelError, match="emotion-xception gives no embedding"):
        run("evaluate-identity", str(people), "--network", "emotion-xception")
    for photo in (tmp_path / "photos").glob("*/[12].png"):
        photo.unlink()
    with pytest.raises(SourceError, match="0 pairs of photos of one of them"):
        run("train", str(recipe), *data, "--out", out)
    assert not (tmp_path / "out").exists()


def test_people_are_described_by_their_number(people: Path) -> None:
    said = run("data", "describe", str(people))

    rows = {line.split()[0]: line.split()[-1] for line in said.splitlines() if line.strip()}
    assert (rows["people"], rows["with"], rows["all"]) == ("56", "56", "168")
    assert "embedding out" in said and "56 people have two photos or more: too few" in said
    assert names_in(PARTS[0], 1)[0] not in said.split()
