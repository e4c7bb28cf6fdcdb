from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from visaged.pipelines.importers.emotion_head import read_head, write_head
from visaged.pipelines.learning.metrics import fit_temperature

torch = pytest.importorskip("torch", reason="torch is not installed (extra `learn`)")
pytestmark = pytest.mark.torch


@pytest.mark.parametrize("hidden", [0, 16])
def test_a_head_learns_what_can_be_learned_and_survives_its_file(hidden: int, tmp_path: Path) -> None:
    from visaged.tools.train_emotion import Schedule, fit_head

    random = np.random.default_rng(0)
    labels = random.integers(0, 8, 800)
    features = random.normal(0, 1, (800, 1, 40)).astype(np.float32)
    features[np.arange(800), 0, labels] += 4
    features = features * 3 + 100  # the head must undo this by itself
    targets = np.eye(8, dtype=np.float32)[labels]
    tuning = np.arange(800) % 5 == 0

    head = fit_head(
        features.astype(np.float16), targets, tuning, Schedule(6, hidden, 0, batch=32, rate=0.01), Console()
    )
    write_head(head, tmp_path / "head.npz")
    logits = read_head(tmp_path / "head.npz").logits(features[tuning, 0])

    assert (logits.argmax(axis=1) == labels[tuning]).mean() > 0.85
    assert fit_temperature(logits, targets[tuning]) == pytest.approx(1.0, abs=0.1)  # folded in
