"""A short soak of the real daemon: every process is sampled, the life around it goes on, books balance."""

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from visaged.pipelines.model_store import ModelStore
from visaged.tools.soak_run import Plan, soak_daemon

from tests.videos import pan, write_video

U8 = npt.NDArray[np.uint8]


def test_a_few_seconds_with_flags_guests_and_samples_of_every_process(
    tmp_path: Path, cache: Path, astronaut: U8
) -> None:
    portrait = tmp_path / "astronaut.png"
    cv2.imwrite(str(portrait), np.ascontiguousarray(astronaut[..., ::-1]))
    video = write_video(tmp_path / "pan.avi", pan(astronaut[:480], 30), 15)
    heard: list[int] = []

    plan = Plan(video, portrait, seconds=8.0, every_s=1.0, swaps=False)
    soaked = soak_daemon(plan, ModelStore(cache), lambda so_far: heard.append(len(so_far.samples)))

    assert soaked.failure == ""
    assert heard == list(range(1, len(soaked.samples) + 1))
    assert len(soaked.samples) >= 5
    for sample in soaked.samples:
        assert set(sample.pss_mb) == {"supervisor", "infer", "capture@bench"}
        assert sample.pss_mb["infer"] > sample.pss_mb["supervisor"] > 5
        assert sample.fds["infer"] > 10
        assert sample.captured == sample.published + sample.n_dropped + sample.in_flight
        assert 0 < sample.p50_ms <= sample.p99_ms
    first, last = soaked.samples[0], soaked.samples[-1]
    assert last.published > first.published
    assert sum(sample.faces for sample in soaked.samples) > 20
    assert soaked.deeds["flags"] == 1
    assert soaked.deeds["clients that came"] == 1
