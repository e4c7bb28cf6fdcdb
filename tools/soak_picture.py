"""The picture of a long run: memory, open files and latency over time."""

from collections.abc import Sequence
from pathlib import Path

from ..pipelines.figure import BLUE, GREY, ORANGE, PALE_GREY, new_figure, set_title, show_whole, write_figure
from .soak_verdict import Sample, Verdict

COLOURS = (BLUE, ORANGE, GREY, "#009e73", "#cc79a7")  # Okabe and Ito


def draw_soak(samples: Sequence[Sample], warm_up_s: float, verdict: Verdict | None, path: Path) -> Path:
    """Write a PNG of the samples over minutes; what came before the end of the warm-up is shaded.

    Args:
        samples: at least one.
        warm_up_s: from when on they are judged.
        verdict: its slopes and drifts are said under the title.
        path: where to; the folder is made.

    Raises:
        OSError: it cannot be written there.
    """
    minutes = [sample.at_s / 60 for sample in samples]
    figure, (memory, files, latency) = new_figure(8.4, 8.2, n_rows=3, heights=(2, 1, 1.4))
    memory.plot(minutes, [sample.memory_mb for sample in samples], color="black", label="all")
    names = list(dict.fromkeys(name for sample in samples for name in sample.pss_mb))
    for name, colour in zip(names, COLOURS, strict=False):
        values = [sample.pss_mb.get(name, float("nan")) for sample in samples]
        memory.plot(minutes, values, color=colour, label=name)
    memory.set_ylabel("memory (PSS), MB")
    files.plot(minutes, [sample.n_fds for sample in samples], color=BLUE, label="open files")
    files.plot(minutes, [sample.n_threads for sample in samples], color=ORANGE, label="threads")
    files.set_ylabel("number")
    show_whole(files.yaxis)
    latency.plot(minutes, [sample.p99_ms for sample in samples], color=ORANGE, label="p99")
    latency.plot(minutes, [sample.p50_ms for sample in samples], color=BLUE, label="p50")
    latency.set_ylabel("capture to publish, ms")
    latency.set_xlabel("minutes")
    for axes in (memory, files, latency):
        axes.axvspan(0, min(warm_up_s / 60, minutes[-1]), color=PALE_GREY, linewidth=0, zorder=0)
        axes.set_ylim(bottom=0)
        axes.grid(color=PALE_GREY, linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    set_title(figure, "A long run of the daemon", _below(verdict))
    return write_figure(figure, path)


def _below(verdict: Verdict | None) -> str:
    if verdict is None:
        return "too short for a verdict"
    return (
        f"after the warm-up: memory {verdict.memory.per_h:+.1f} MB/h, open files {verdict.fds.per_h:+.1f}/h, "
        f"p50 x {verdict.p50_drift:.2f}, p99 x {verdict.p99_drift:.2f}"
    )
