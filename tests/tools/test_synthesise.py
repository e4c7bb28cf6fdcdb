"""The commands of data synthesis on a real photo: pictures that hold what the help says, or one sentence."""

import re
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from typer.testing import CliRunner
from visaged.kernels.chips import cut_chip
from visaged.pipelines.errors import ModelError, PhotoError, SourceError
from visaged.pipelines.learning.samples import Samples
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.synthesis.admission import Verdict, build_admission
from visaged.pipelines.synthesis.generator import Generator
from visaged.pipelines.synthesis.pose import fit_pose
from visaged.pipelines.synthesis.renderer import Source, View, render
from visaged.tools.cli import build_app
from visaged.tools.synthesise import CELL_PX, caption, draw_generated, face_in

U8 = npt.NDArray[np.uint8]

FACE_LANDMARKS = np.array([[171, 111], [151, 111], [113, 109], [131, 110], [143, 135]], np.float32)


def run(command: str, *words: str) -> str:
    done = CliRunner().invoke(build_app(command), [command, *words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def write(path: Path, rgb: U8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    return path


@pytest.fixture
def rgb(astronaut: U8) -> U8:
    """Head and shoulders only: a smaller photo is searched faster."""
    return np.ascontiguousarray(astronaut[:280, 80:360])


@pytest.fixture
def photo(tmp_path: Path, rgb: U8) -> Path:
    return write(tmp_path / "astronaut.png", rgb)


def test_a_sheet_shows_five_rows_of_seven_different_faces(tmp_path: Path, photo: Path) -> None:
    said = run("synthesise", str(photo), "--out", str(tmp_path / "sheet.png"))

    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet is not None and "yaw" in said
    height, width = sheet.shape[0] // 5, CELL_PX + 4
    cells = [
        sheet[row * height + 22 : row * height + 22 + CELL_PX, 100 + column * width :][:, :CELL_PX]
        for row in range(5)
        for column in range(7)
    ]
    assert all(cell.std() > 30 for cell in cells)
    for row in range(5):
        of_row = cells[7 * row : 7 * row + 7]
        apart = [np.abs(a.astype(int) - b).mean() for a, b in pairwise(of_row)]
        assert min(apart) > 0.2, f"row {row} shows the same twice"


def test_a_turned_head_is_turned_to_the_front_and_one_that_looks_ahead_is_not(
    tmp_path: Path, photo: Path, rgb: U8
) -> None:
    side = render(Source.of(rgb, FACE_LANDMARKS), View(yaw=28)).photo
    turned = write(tmp_path / "side.png", side)

    said = run("synthesise", str(turned), "--frontal", "--out", str(tmp_path / "front.png"))

    assert "turned to the front; distance 0." in said
    front = cv2.imread(str(tmp_path / "front.png"))
    assert front is not None and front.shape == side.shape
    assert np.abs(front[..., ::-1].astype(int) - side).mean() > 0.5
    with pytest.raises(PhotoError, match="between 15 and 35"):
        run("synthesise", str(photo), "--frontal", "--out", str(tmp_path / "not.png"))
    assert not (tmp_path / "not.png").exists()
    assert abs(fit_pose(FACE_LANDMARKS).yaw) < 8


def test_what_would_be_refused_is_marked() -> None:
    assert caption("+15", Verdict("", 0.2)) == "+15: 0.20"
    assert caption("+45", Verdict("turned too far: 46 degrees", 0.4)) == "+45: 0.40 X"
    assert caption("+45", Verdict("not found", float("nan"))) == "+45: not found X"


def test_a_photo_without_a_face_and_a_broken_generator_are_one_sentence(tmp_path: Path, photo: Path) -> None:
    wall = write(tmp_path / "wall.png", np.full((200, 200, 3), 128, np.uint8))
    (tmp_path / "g.onnx").write_bytes(b"nonsense")

    with pytest.raises(PhotoError, match=r"wall\.png: no face was found"):
        run("synthesise", str(wall), "--out", str(tmp_path / "sheet.png"))
    with pytest.raises(ModelError, match="give the ONNX file of a generator"):
        run("synthesise", str(photo), "--generator", str(tmp_path / "g.onnx"))
    assert not (tmp_path / "sheet.png").exists()


def test_a_folder_is_measured_and_photos_without_a_face_do_not_count(tmp_path: Path, rgb: U8) -> None:
    folder = tmp_path / "photos"
    write(folder / "a.png", rgb)
    write(folder / "wall.png", np.full((200, 200, 3), 128, np.uint8))

    said = run("evaluate-synthesis", str(folder))

    assert "1 faces in 2 photos" in said
    rows = {
        line.split("│")[1].strip(): line.split("│")[2:] for line in said.splitlines() if line.startswith("│")
    }
    assert {"as it is", "yaw +30", "age +0.6", "smile"} <= set(rows)
    assert [cell.strip() for cell in rows["as it is"][:2]] == ["1", "100"]
    with pytest.raises(SourceError, match="no photos"):
        run("evaluate-synthesis", str(tmp_path / "nothing"))


def test_a_generator_is_measured_on_photos(tmp_path: Path, rgb: U8) -> None:
    """One that gives faces back, or almost black: in that nobody is found."""
    side = 3, 96, 96
    nodes = [
        helper.make_node(
            "Constant", [], ["dim"], value=numpy_helper.from_array(np.array([[0.02], [1]], np.float32))
        ),
        helper.make_node("MatMul", ["classes", "dim"], ["share"]),
        helper.make_node("Constant", [], ["axes"], value_ints=[2, 3]),
        helper.make_node("Unsqueeze", ["share", "axes"], ["share4"]),
        helper.make_node("Mul", ["pictures", "share4"], ["made"]),
    ]
    declared: dict[str, list[str | int | None]] = {
        "pictures": ["N", *side],
        "classes": ["N", 2],
        "made": ["N", *side],
    }
    inputs, made = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, declared[name]) for name in names]
        for names in (("pictures", "classes"), ("made",))
    )
    graph = helper.make_graph(nodes, "g", inputs, made)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"classes": "dark,happiness"})
    (tmp_path / "g.onnx").write_bytes(model.SerializeToString())
    write(tmp_path / "photos" / "a.png", rgb)
    write(tmp_path / "photos" / "wall.png", np.full((200, 200, 3), 128, np.uint8))

    said = run("evaluate-synthesis", str(tmp_path / "photos"), "--generator", str(tmp_path / "g.onnx"))

    assert "1 faces in 2 photos" in said
    lines = [re.split(r"\s{2,}", line.strip()) for line in said.splitlines()]
    rows = {name: cells for name, *cells in lines}
    assert rows["not at all"] == ["100", "0.00 ≤ 0.00", "100", "100", "0.000", "100"]  # she smiles
    assert rows["as happiness"] == rows["as it is"]  # the class that leaves it most alike
    assert rows["as happiness"][0] == rows["as happiness"][-1] == "100"
    assert rows["as happiness"][1:] == rows["its chip"][1:]
    assert rows["as dark"][0] == "0" and float(rows["as dark"][4]) > 0.2


@pytest.mark.torch
def test_photos_of_two_classes_become_a_generator_that_can_be_used(
    tmp_path: Path, photo: Path, rgb: U8, store: ModelStore
) -> None:
    pytest.importorskip("torch", reason="torch is not installed (extra `learn`)")
    folder, out = tmp_path / "faces", tmp_path / "out"
    for number in range(2):
        lighter = np.clip(rgb.astype(int) + 10 * number, 0, 255).astype(np.uint8)
        write(folder / "plain" / f"person {number}" / "a.png", lighter)
        write(folder / "mirrored" / f"person {number}" / "a.png", np.ascontiguousarray(lighter[:, ::-1]))

    said = run("train-generator", str(folder), "--out", str(out), "--epochs", "1", "--threads", "1")
    admission = build_admission(store)
    row = draw_generated(face_in(photo, admission), Generator.load(out / "generator.onnx"), admission)

    assert "epoch 1: L1" in said
    assert cv2.imread(str(out / "sheet.png")) is not None
    assert row.shape == (22 + CELL_PX + 4, 96 + 4 + 2 * (CELL_PX + 4), 3)
    with pytest.raises(SourceError, match="0 folders of classes"):
        run("train-generator", str(folder / "plain" / "person 0"), "--out", str(out))


@pytest.mark.torch
def test_training_says_how_many_synthetic_faces_were_admitted_and_why_others_were_not(
    rgb: U8, store: ModelStore
) -> None:
    pytest.importorskip("torch", reason="torch is not installed (extra `learn`)")
    from visaged.pipelines.learning.recipe import RecipeConfig, StageConfig
    from visaged.tools.training_data import Loader

    chip = cut_chip(rgb, FACE_LANDMARKS, 64, 0.25)
    wall = np.full_like(chip, 90)
    samples = Samples(
        np.stack([chip, wall, chip, wall]),
        np.eye(2, dtype=np.float32)[[1, 0, 1, 0]],
        np.array(["eileen", "wall", "eileen", "wall"]),
        ("sad", "glad"),
    )
    recipe = RecipeConfig(name="tiny", stage=(StageConfig(name="only", data="own"),))
    console = Console(record=True, width=100)

    both = Loader(recipe, store, console, synthetic=1.0).with_synthetic(samples)

    n_made = int(both.is_synthetic.sum())
    assert 1 <= n_made <= 2 and set(both.groups[both.is_synthetic]) == {"eileen"}
    said = console.export_text()
    assert f"{n_made} of 4 synthetic faces are admitted" in said
    assert "refused: the detector does not find the face again" in said
