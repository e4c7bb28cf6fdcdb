"""The inference process's loop, in this process, with real networks and no camera."""

from pathlib import Path

import numpy as np
import pytest
from visaged.daemon.camera import CameraConfig
from visaged.daemon.config import Config
from visaged.daemon.infer import Inference
from visaged.daemon.intake import Taken
from visaged.daemon.metrics import InferMetrics
from visaged.daemon.outline import PathsConfig
from visaged.pipelines.frame import Frame


def test_a_frame_that_cannot_be_worked_on_is_dropped_and_the_next_is_answered(
    runtime: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = PathsConfig(state=tmp_path, runtime=runtime, cache=cache, shm=tmp_path)
    config = Config(paths=paths, camera=(CameraConfig(name="a", source="synthetic:pattern"),))
    with InferMetrics("infer") as metrics, Inference(config, metrics) as inference:
        ledger = inference._intake.ledgers["a"]

        def answer() -> None:
            seq = ledger.count_captured()
            rgb = np.zeros((120, 160, 3), np.uint8)
            inference._answer([Taken(Frame("a", seq, seq, rgb), 0.0, "replay")])

        def refuse(work: object) -> None:
            raise ValueError("landmarks must be finite")

        with monkeypatch.context() as patched:
            patched.setattr(inference._pipeline, "run", refuse)
            answer()
        answer()
        book = ledger.snapshot()

    assert book.dropped["bad_frame"] == 1
    assert (book.captured, book.published, book.in_flight) == (2, 1, 0)
