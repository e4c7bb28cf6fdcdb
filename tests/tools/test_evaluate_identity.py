"""How well people are told apart: arithmetic that can be checked by hand, and real photos end to end."""

from pathlib import Path

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from rich.console import Console
from typer.testing import CliRunner
from visaged.pipelines.errors import SourceError
from visaged.tools.cli import build_app
from visaged.tools.evaluate_identity import Trial, score, table_of

U8 = npt.NDArray[np.uint8]


def trial_of(same: list[bool]) -> Trial:
    n = len(same)
    return Trial(np.arange(n), np.arange(n) + n, np.array(same), np.arange(n) % 2, n + 1)


def test_accuracy_is_measured_at_thresholds_from_the_other_folds() -> None:
    first = np.zeros((4, 2), np.float32)
    second = np.array([[0.35, 0], [0.4, 0], [0.9, 0], [0.95, 0]], np.float32)
    embeddings = np.concatenate([first, second])

    figures = score(embeddings, embeddings, trial_of([True, True, False, False]))

    assert figures == {
        "accuracy": 100.0,
        "deviation": 0.0,
        "at_0.6": 100.0,
        "equal_error_rate": 0.0,
        "true_accepts_at_1_percent": 100.0,
    }


def test_a_pair_on_the_wrong_side_counts_against() -> None:
    embeddings = np.zeros((8, 2), np.float32)
    embeddings[4:, 0] = [0.35, 0.9, 0.9, 0.4]

    figures = score(embeddings, embeddings, trial_of([True, True, False, False]))

    assert figures["at_0.6"] == 50.0


def test_a_precision_that_loses_too_much_is_marked(tmp_path: Path) -> None:
    row = {"accuracy": 98.0, "deviation": 0.1, "at_0.6": 97.0, "moved_mean": 0.1, "moved_max": 0.2}
    row |= {"equal_error_rate": 3.0, "true_accepts_at_1_percent": 90.0}
    console = Console(width=120, record=True, file=(tmp_path / "out").open("w"))

    console.print(
        table_of(
            [{"engine": "good", "loss_points": 0.1, **row}, {"engine": "bad", "loss_points": 0.3, **row}],
            trial_of([True, False]),
        )
    )

    text = console.export_text()
    console.file.close()
    assert text.count("too much") == 1
    assert "2 of 3 pairs" in text


def lfw_of(folder: Path, people: dict[str, list[U8]], lines: list[str]) -> Path:
    """Make a folder like LFW's."""
    for name, photos in people.items():
        (folder / "images" / name).mkdir(parents=True)
        for number, rgb in enumerate(photos, 1):
            path = folder / "images" / name / f"{name}_{number:04d}.jpg"
            cv2.imwrite(str(path), cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    (folder / "pairs.txt").write_text("\n".join(["2\t1", *lines]) + "\n")
    return folder


def test_real_photos_are_compared_in_every_precision(tmp_path: Path, astronaut: U8, cache: Path) -> None:
    darker = (astronaut * 0.6).astype(np.uint8)
    bent = np.ascontiguousarray(cv2.resize(astronaut, (400, 512)), dtype=np.uint8)  # passes for another
    lines = ["A\t1\t2", "A\t1\tB\t1", "A\t1\t2", "A\t2\tB\t1"]
    folder = lfw_of(tmp_path / "lfw", {"A": [astronaut, darker], "B": [bent]}, lines)
    toml = tmp_path / "v.toml"
    toml.write_text(f'[paths]\ncache = "{cache}"\n')

    done = CliRunner().invoke(
        build_app("evaluate-identity"),
        ["evaluate-identity", str(folder), "--config", str(toml), "--json", str(tmp_path / "out.json")],
        catch_exceptions=False,
    )

    assert done.exit_code == 0
    figures = msgspec.json.decode((tmp_path / "out.json").read_bytes())
    assert (figures["pairs"], figures["compared"]) == (4, 4)
    moved = {row["engine"]: row["moved_max"] for row in figures["rows"] if "moved_max" in row}
    assert moved["onnxruntime fp32"] == 0 < moved["onnxruntime fp16"] < moved["onnxruntime int8"] < 0.15


def test_a_folder_without_pairs_is_one_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(build_app("evaluate-identity"), ["evaluate-identity", str(tmp_path)])

    assert isinstance(result.exception, SourceError)
    assert "has no file pairs" in str(result.exception)


@pytest.mark.parametrize("text", ["2\t1\nA\t1\t2\n", "x\n", "2\t1\nA\n" * 2])
def test_a_broken_file_of_pairs_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "pairs.txt").write_text(text)

    result = CliRunner().invoke(build_app("evaluate-identity"), ["evaluate-identity", str(tmp_path)])

    assert isinstance(result.exception, SourceError)
    assert "pairs" in str(result.exception)
