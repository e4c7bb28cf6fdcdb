"""kill -9 of each process in turn, under load: it comes back alone, and nothing that was said is lost."""

import json
import os
import statistics
import time
from pathlib import Path

from visaged.daemon.process_table import MAX_RESTARTS, WINDOW_S

from tests.chaos.stage import Stage

# With a restart wait of up to 4 s, the fifth within a minute; measured in docs/operations.md.
BACK_S = {"infer": 20.0, "capture@a": 10.0, "learn": 10.0}
# The supervisor gives up at the sixth end within a minute, as it should: a longer run keeps below that.
SPACING_S = WINDOW_S / MAX_RESTARTS + 1.0


def test_each_process_killed_in_turn_is_back_and_nothing_is_lost(stage: Stage, rounds: int) -> None:
    took: dict[str, list[float]] = {name: [] for name in BACK_S}
    for n in range(rounds):
        began_s = time.monotonic()
        for name, within_s in BACK_S.items():
            restarts = ("supervisor", "visaged_process_restarts_total", {"process": name})
            with stage.fault(within_s=within_s, line=f"{name} ended by SIGKILL", metric=restarts) as fault:
                stage.kill(name)
            took[name].append(fault.back_s)
            _report(stage, took)
        if n + 1 < rounds > MAX_RESTARTS:
            time.sleep(max(0.0, began_s + SPACING_S - time.monotonic()))

    if rounds > MAX_RESTARTS:
        time.sleep(WINDOW_S)  # the tests after this one kill as well
    pids = {name: stage.process(name).pid for name in took}
    assert len(set(pids.values())) == len(took)


def _report(stage: Stage, took: dict[str, list[float]]) -> None:
    """Write what was measured to the file VISAGED_CHAOS_REPORT, while a long run goes on."""
    if file := os.environ.get("VISAGED_CHAOS_REPORT"):
        summary = {
            name: {"n": len(s), "p50_s": round(statistics.median(s), 2), "max_s": round(max(s), 2)}
            for name, s in took.items()
            if s
        }
        books = {camera: str(book) for camera, book in stage.daemon.books().items()}
        n_flags, refusals = len(stage.flagger.said()), len(stage.flagger.refusals)
        report = {"took": summary, "books": books, "samples": n_flags, "refused_flags": refusals}
        Path(file).write_text(json.dumps(report, indent=1))
