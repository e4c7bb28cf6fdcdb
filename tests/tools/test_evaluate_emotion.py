"""The comparison of predictors: who is best, by how much, and on which faces."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from rich.console import Console
from visaged.pipelines.learning.ferplus import Faces
from visaged.pipelines.message import EMOTIONS
from visaged.tools.evaluate_emotion import comparison, draw, print_report

F32 = npt.NDArray[np.float32]


def faces_of(n: int) -> Faces:
    random = np.random.default_rng(0)
    votes = np.zeros((n, 10), np.uint8)
    votes[np.arange(n), np.arange(n) % 4] = 8
    votes[np.arange(n), 4] = 2
    votes[:: n // 4, :] = 0
    votes[:: n // 4, :3] = [4, 3, 3]  # no strict majority
    return Faces(random.integers(0, 256, (n, 48, 48)).astype(np.uint8), votes)


def answers(faces: Faces, share_right: float) -> F32:
    right = faces.votes[:, :8].argmax(axis=1)
    said = np.where(np.arange(len(faces)) < share_right * len(faces), right, (right + 1) % 8)
    shares: F32 = (0.9 * np.eye(8) + 0.1 / 8)[said].astype(np.float32)
    return shares


def test_predictors_are_held_against_the_best_member(tmp_path: Path) -> None:
    faces = faces_of(400)
    said = {"weak": answers(faces, 0.5), "strong": answers(faces, 0.8), "fused": answers(faces, 0.9)}
    console = Console(width=160, record=True, file=(tmp_path / "out").open("w"))

    console.print(comparison(said, ("weak", "strong"), faces))

    text = console.export_text()
    console.file.close()
    lines = {line.split("│")[1].strip(): line for line in text.splitlines() if "│" in line}
    assert "more right than strong" in text
    assert "0.900" in lines["fused"] and "+0.10" in lines["fused"]
    assert "-0.29" in lines["weak"] or "-0.30" in lines["weak"]
    assert "[" not in lines["strong"]
    assert "396 faces with a strict majority, 400 in all" in text


def test_a_report_and_a_picture_of_one_predictor(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra `learn`)")
    faces = faces_of(400)
    p = answers(faces, 0.75)
    console = Console(width=120, record=True, file=(tmp_path / "out").open("w"))

    print_report("one", np.log(p), faces, console)
    draw(p, faces, tmp_path / "confusion.png")

    text = console.export_text()
    console.file.close()
    assert all(name in text for name in EMOTIONS)
    assert "accuracy 0.75" in text
    assert (tmp_path / "confusion.png").read_bytes()[:4] == b"\x89PNG"
