"""The arithmetic of the bench, and its material; the figures themselves are not tested."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from rich.console import Console
from visaged.pipelines.errors import SourceError
from visaged.pipelines.message import FaceFrame
from visaged.tools.bench import PARTS, machine, rows_of, table_of, write_json
from visaged.tools.bench_flood import report as flood_report
from visaged.tools.bench_live import CAMERA, report
from visaged.tools.bench_recipe import boxes_of, run_plain, score
from visaged.tools.demo_material import SCENE_FACES, VIEW_HEIGHT, VIEW_WIDTH, moving_view, view_origin
from visaged.tools.resources import TreeUsage, tree_usage
from visaged.tools.tally import Tally

from tests.videos import write_video

F32 = npt.NDArray[np.float32]
MS = 1_000_000


def boxes(*rows: tuple[float, float, float, float]) -> F32:
    return boxes_of(rows)


def test_recall_counts_true_faces_found_and_boxes_that_are_none() -> None:
    truth = [boxes((100, 100, 200, 200), (400, 100, 500, 200))]
    found = [boxes((105, 95, 205, 195), (800, 300, 900, 400))]

    assert score(truth, found) == {"recall": 0.5, "wrong_per_frame": 1.0}


def test_a_face_that_leaves_the_frame_is_neither_wanted_nor_wrong() -> None:
    leaving = (1200.0, 100.0, 1300.0, 200.0)

    assert score([boxes(leaving)], [boxes()]) == {"recall": 0.0, "wrong_per_frame": 0.0}
    assert score([boxes(leaving, (0, 0, 90, 90))], [boxes(leaving, (0, 0, 90, 90))]) == {
        "recall": 1.0,
        "wrong_per_frame": 0.0,
    }


def test_the_view_follows_its_path_exactly() -> None:
    rows = np.arange(760, dtype=np.uint8)[:, None, None] % 250
    still = np.ascontiguousarray(np.broadcast_to(rows, (760, 1357, 3)), dtype=np.uint8)

    for index, view in enumerate(moving_view(still, 40, 30.0)):
        _, y = view_origin(still, index, 30.0)
        assert view.shape == (VIEW_HEIGHT, VIEW_WIDTH, 3)
        assert view[100, 640].mean() == pytest.approx(100 + y, abs=0.6)


def test_every_true_face_of_the_bench_can_be_seen_at_some_time() -> None:
    still = np.zeros((760, 1357, 3), np.uint8)
    truth = np.array(SCENE_FACES, np.float32)
    origins = [view_origin(still, index, 30.0) for index in range(300)]

    inside = [
        ((truth[:, :2] >= (x, y)) & (truth[:, 2:] <= (x + VIEW_WIDTH, y + VIEW_HEIGHT))).all(axis=1)
        for x, y in origins
    ]
    assert np.mean(inside, axis=0).min() > 0.3


def test_a_still_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        view_origin(np.zeros((700, 1280, 3), np.uint8), 0, 30.0)


class OneFaceRecipe:
    """Stands for dlib: finds one face, always the same."""

    def run(self, rgb: npt.NDArray[np.uint8]) -> tuple[F32, F32]:
        return boxes((10, 10, 60, 60)), np.zeros((1, 128), np.float32)


def test_the_plain_recipe_runs_on_frames_spread_over_the_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", [np.zeros((120, 160, 3), np.uint8)] * 30, 30)
    truth = [
        boxes((10, 10, 60, 60)) if index in (0, 29) else boxes((90, 60, 140, 110)) for index in range(30)
    ]

    figures = run_plain(path, truth, OneFaceRecipe(), 3)  # type: ignore[arg-type]

    assert figures["frames"] == 3
    assert figures["recall"] == pytest.approx(2 / 3, abs=1e-4)


def test_a_video_that_ends_early_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="ends at frame 0"):
        run_plain(tmp_path / "none.mp4", [boxes()], OneFaceRecipe(), 1)  # type: ignore[arg-type]


def live_figures() -> dict[str, Any]:
    tally = Tally(CAMERA)
    for seq in range(1, 31):
        tally.add(
            FaceFrame(
                camera=CAMERA, run="r", seq=seq, frame_seq=seq, captured_ns=seq * 33 * MS, captured_at=0.0,
                published_ns=(seq * 33 + 20) * MS, width=1280, height=720, release="", embedding_space="",
                embedding_dim=0, stages_ms={"detect": 4.0},
            )
        )  # fmt: skip
    samples = [TreeUsage(1.0, 500_000_000, 700_000_000, 3), TreeUsage(2.0, 510_000_000, 690_000_000, 3)]
    return report(tally, samples, 0.9)


def test_the_live_report_holds_frames_latency_cores_and_memory() -> None:
    figures = live_figures()

    assert figures["frames"] == {"captured": 30, "published": 30, "dropped": {}, "balanced": True}
    assert figures["capture_to_publish_ms"]["p99"] == pytest.approx(20)
    assert (figures["cores"], figures["memory_pss_mb"]) == (0.9, 510.0)
    assert figures["fps"] == pytest.approx(1000 / 33, abs=0.01)


def test_figures_become_a_table_and_json(tmp_path: Path) -> None:
    figures = {"machine": machine(), "live": live_figures()}
    console = Console(width=120, record=True, file=(tmp_path / "out").open("w"))

    console.print(table_of(figures))
    write_json(figures, tmp_path / "bench.json")

    text = console.export_text()
    console.file.close()
    assert "capture to publish p99" in text
    assert "20.0 ms" in text
    assert msgspec.json.decode((tmp_path / "bench.json").read_bytes())["live"]["cores"] == 0.9
    assert set(figures["machine"]) >= {"cpu", "cores", "date", "packages"}
    assert PARTS == ("live", "embedding", "recipe", "engines")


def rounds_of(*p99s_ms: float) -> list[Tally]:
    """A tally for each round, nine tenths of its frames at 10 ms and the others at its 99th percentile."""
    tallies = [Tally(CAMERA) for _ in p99s_ms]
    for tally, ms in zip(tallies, p99s_ms, strict=True):
        tally.latencies_ms.extend([10.0] * 90 + [ms] * 10)
    return tallies


def test_a_flood_is_compared_by_its_99th_percentile_round_by_round() -> None:
    """In the last round something else took the machine: it decides nothing."""
    alone, flooded = rounds_of(20, 20, 20), rounds_of(30, 32, 200)

    figures = flood_report(alone, flooded, {"requests": 7}, 0.25)

    assert figures["ratio"] == 1.6
    assert figures["ratios"] == [1.5, 1.6, 10.0]
    assert figures["flooded"]["capture_to_publish_ms"]["p99"] == 200
    rows = {what: measured for what, measured, _ in rows_of({"machine": machine(), "flood": figures})}
    assert rows["flood, p99 flooded / alone, median of rounds"] == "1.6 x, rounds 1.5 to 10.0"
    assert rows["flood, requests"] == "7"
    assert rows["flood, the gateway takes"] == "0.25 cores"


def test_json_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="choose another place"):
        write_json({}, tmp_path)


def test_the_usage_of_a_process_tree_counts_this_process() -> None:
    import os

    usage = tree_usage(os.getpid())

    assert usage.n_processes >= 1
    assert 10e6 < usage.pss_bytes <= usage.rss_bytes
    assert usage.cpu_s > 0
