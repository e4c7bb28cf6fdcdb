"""A short soak of the real daemon: every process is sampled, the life around it goes on, books balance."""

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from visaged.pipelines.model_store import ModelStore
from visaged.tools.soak_run import Plan, soak_daemon

U8 = npt.NDArray[np.uint8]


def test_a_few_seconds_with_flags_guests_and_samples_of_every_process(
    tmp_path: Path, cache: Path, astronaut: U8
) -> None:
    portrait, video = tmp_path / "astronaut.png", tmp_path / "pan.avi"
    bgr = np.ascontiguousarray(astronaut[..., ::-1])
    cv2.imwrite(str(portrait), bgr)
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 15, (640, 480))
    for n in range(30):
        frame = np.zeros((480, 640, 3), np.uint8)
        frame[:, 40 + n : 40 + n + 512] = bgr[:480]
        writer.write(frame)
    writer.release()
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
