from pathlib import Path

import numpy as np
import pytest
from visaged.pipelines.errors import ModelError
from visaged.pipelines.importers.emotion_head import EmotionHead, Tap, read_head, write_head
from visaged.pipelines.model_store import HEAD_PATH
from visaged.pipelines.registry import FERPLUS_CLASSES


def make_head() -> EmotionHead:
    random = np.random.default_rng(0)
    layers = tuple(
        (random.normal(size=shape).astype(np.float32), np.ones(shape[1], np.float32))
        for shape in ((6, 4), (4, 8))
    )
    return EmotionHead((Tap(9, 1),), layers, FERPLUS_CLASSES)


def test_a_head_survives_its_file(tmp_path: Path) -> None:
    head, features = make_head(), np.random.default_rng(1).normal(size=(3, 6)).astype(np.float32)
    write_head(head, tmp_path / "head.npz")

    read = read_head(tmp_path / "head.npz")

    assert (read.taps, read.classes) == (head.taps, head.classes)
    assert read.logits(features) == pytest.approx(head.logits(features), abs=0.02)  # half precision


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "head.npz"
    write_head(make_head(), path)
    whole = path.read_bytes()

    for data in (b"", b"PK\x03\x04", whole[:-40], whole[:200], b"\x93NUMPY" + whole, b"\x00" * 300):
        path.write_bytes(data)
        with pytest.raises(ModelError, match=r"head\.npz is no emotion head"):
            read_head(path)
    with pytest.raises(ModelError):
        read_head(tmp_path / "none.npz")


def test_layers_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    head = make_head()
    write_head(EmotionHead(head.taps, head.layers[:1], head.classes), tmp_path / "head.npz")

    with pytest.raises(ModelError, match="4 outputs for 8 classes"):
        read_head(tmp_path / "head.npz")


def test_the_shipped_head_is_small_and_whole() -> None:
    assert HEAD_PATH.stat().st_size < 2_000_000
    assert read_head(HEAD_PATH).classes == FERPLUS_CLASSES
