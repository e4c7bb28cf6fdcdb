"""The loop bench: whose face a result is about, and what counts. The loop itself takes minutes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from rich.console import Console
from visaged.pipelines.loop.report import FUSED
from visaged.pipelines.message import Emotion, Face, FaceFrame
from visaged.pipelines.model_store import ModelStore
from visaged.tools.bench_loop import SEEN_FRAMES, Watch, loop_rows
from visaged.tools.bench_site import CELL_H, CELL_W, CELLS, EXPRESSIONS, GAP, SHOWN, Site, build_site

U8 = npt.NDArray[np.uint8]

PER_SLOT = SHOWN + GAP
FERPLUS = Path(__file__).parents[3] / "shared" / "data" / "ferplus"


def site(n_faces: int = 2 * CELLS, n_measured: int = CELLS) -> Site:
    truths = tuple(EXPRESSIONS[n % len(EXPRESSIONS)] for n in range(n_faces))
    return Site(Path("none.mp4"), truths, n_measured)


def box_in(cell: int) -> tuple[float, float, float, float]:
    left, top = cell % 4 * CELL_W, cell // 4 * CELL_H
    return (left + 60.0, top + 80.0, left + 260.0, top + 280.0)


def result(frame_seq: int, cell: int, emotion: str, analysed: int, *, is_visible: bool = True) -> FaceFrame:
    face = Face(
        track=7,
        box=box_in(cell),
        is_visible=is_visible,
        emotion=Emotion(label=emotion),
        analysed_seq=analysed,
    )
    return FaceFrame(
        camera="site",
        run="r",
        seq=frame_seq,
        frame_seq=frame_seq,
        captured_ns=frame_seq * 10**9,
        captured_at=0.0,
        published_ns=frame_seq * 10**9 + 20_000_000,
        width=1280,
        height=720,
        release="old.1",
        embedding_space="",
        embedding_dim=0,
        faces=[face],
    )


def test_a_box_is_the_face_of_its_cell_and_its_time_in_every_cycle() -> None:
    place = site()

    assert place.face_at(1, box_in(0)) == (0, 0)
    assert place.face_at(SHOWN, box_in(6)) == (6, SHOWN - 1)
    assert place.face_at(SHOWN + 1, box_in(6)) is None  # the gap
    assert place.face_at(PER_SLOT + 3, box_in(5)) == (CELLS + 5, 2)
    assert place.face_at(2 * PER_SLOT + 3, box_in(5)) == (5, 2)  # the video begins again
    assert site(CELLS + 3).face_at(PER_SLOT + 3, box_in(5)) is None  # a cell that stays empty


class Results:
    """A subscriber and a daemon that give what a test says."""

    def __init__(self, results: list[FaceFrame]) -> None:
        self.results = results

    def receive(self, timeout_s: float) -> tuple[FaceFrame, None] | None:
        return (self.results.pop(0), None) if self.results else None

    def check(self) -> None: ...


def test_only_an_answer_about_this_face_counts_and_the_last_one_does() -> None:
    """An answer from before the face came is about whoever was in that cell before."""
    at = SEEN_FRAMES + 1
    said = [
        result(at + 1, 0, "anger", at),  # neutral: wrong, then right
        result(at + 5, 0, "neutral", at + 4),
        result(at + 5, 1, "happiness", at),
        result(at + 5, 2, "sadness", at),  # surprise: wrong
        result(at - 3, 3, "sadness", 2),  # too early to say
        result(PER_SLOT + at, 0, "anger", at),  # analysed in the slot before
        result(at + 5, 4, "anger", at, is_visible=False),
    ]
    there = Results(said)
    watch = Watch(site(), cast(Any, there), cast(Any, there))

    watch.until(lambda: not there.results, 5)

    assert {face: emotion for face, (emotion, _, _) in watch.last.items()} == {
        0: "neutral",
        1: "happiness",
        2: "sadness",
    }
    assert watch.accuracy() == {
        "all": 0.6667,
        "faces": 3,
        "neutral": 1.0,
        "happiness": 1.0,
        "surprise": 0.0,
    }
    assert watch.release == "old.1"
    assert watch.p99_ms(0, 1e9) == pytest.approx(20)


def test_the_rows_hold_every_budget_of_the_loop() -> None:
    shares = dict.fromkeys(EXPRESSIONS, 0.5)
    figures: dict[str, Any] = {
        "site": {"before": {"all": 0.7, **shares}, "after": {"all": 0.82, **shares}},
        "gain": 0.12,
        "base": [
            {"network": network, "metric": "accuracy", "before": 0.89, "after": 0.88, "faces": 1000}
            for network in ("face-resnet", FUSED)
        ],
        "trials": {
            "shadow 0%": {"agreement": 0.59, "faces": 193, "psi": 0.85, "confidence_shift": 0.05},
            "canary 50%": {"agreement": None, "faces": 0, "psi": None, "confidence_shift": None},
        },
        "seconds": {"flag_to_live": 100.0, "learning": 20.0, "gates": 70.0, "shadow_and_canary": 10.0},
        "p99_ms": {"quiet": 20.0, "learning": 25.0},
        "swaps": {"n": 100, "p99_ratio": 1.1, "memory_ratio": 1.01},
        "frames": {"captured": 9, "published": 8, "dropped": {"stale": 1}, "balanced": True},
    }

    rows = {what: (measured, budget) for what, measured, budget in loop_rows(figures)}

    assert rows["loop, gain on the site"] == ("+12.0 points", "+10 points")
    assert rows["loop, base hold-out, face-resnet"] == ("-1.0 points", "")
    assert rows[f"loop, base hold-out, {FUSED}"] == ("-1.0 points", "-2 points")
    assert rows["loop, both say the same, shadow 0%"] == ("59% of 193", "")
    assert rows["loop, PSI / shift of confidence, shadow 0%"] == ("0.85 / +0.05", "")
    assert rows["loop, both say the same, canary 50%"] == ("nothing yet", "")
    assert rows["loop, last flag to live"] == ("100 s", "300 s")
    assert rows["loop, p99 in 100 swaps / quiet"] == ("1.1 x", "1.25 x")
    assert rows["loop, memory after the last swaps / the first"] == ("1.01 x", "1.03 x")
    assert rows["loop, frames dropped"] == ("1 stale", "0 swap")


@pytest.mark.skipif(not FERPLUS.exists(), reason="no FER+ beside the checkout")
def test_the_video_shows_each_face_in_its_cell(store: ModelStore, tmp_path: Path) -> None:
    place = build_site(FERPLUS, tmp_path / "site.mp4", (1, 1), store, Console(quiet=True))
    frames = list(frames_of(place.video))

    assert len(frames) == place.n_frames == 2 * PER_SLOT
    assert place.n_measured == 5 and len(place.truths) == 10
    assert sorted(place.truths[:5]) == sorted(place.truths[5:]) == sorted(EXPRESSIONS)
    shown, gap = frames[10].astype(int), frames[SHOWN + 5].astype(int)
    changes = [
        np.abs(shown - gap)[row * CELL_H : (row + 1) * CELL_H, column * CELL_W : (column + 1) * CELL_W].mean()
        for row in range(2)
        for column in range(4)
    ]
    assert min(changes) > 2, "a cell of the first slot shows nobody"
    assert shown[..., 0].mean() > 1.5 * shown[..., 2].mean(), "the light is not blue"  # OpenCV: blue is first


def frames_of(path: Path) -> Iterator[U8]:
    capture = cv2.VideoCapture(str(path))
    while True:
        is_good, bgr = capture.read()
        if not is_good:
            return
        yield np.asarray(bgr, np.uint8)
