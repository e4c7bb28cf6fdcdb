"""`visaged soak`: the real daemon for a long time. Does it grow, does it get slower, does it lose frames?"""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..daemon.config import find_config
from ..pipelines.assembly import StageConfigs
from ..pipelines.engines.engine import EngineConfig
from ..pipelines.engines.engine_loader import EngineLoader
from ..pipelines.errors import SourceError, VisagedError
from ..pipelines.model_store import ModelStore
from .bench import machine, write_json
from .demo import interruptible
from .demo_material import gather, write_visits
from .recorder import make_folder
from .soak_picture import draw_soak
from .soak_run import Plan, Soaked, soak_daemon
from .soak_verdict import Limits, Verdict, judge
from .tally import ledger_words

DEFAULTS = Limits()


def soak(
    minutes: Annotated[float, typer.Option(min=0.1, help="How long the daemon runs.")] = 30.0,
    warm_up: Annotated[
        float | None,
        typer.Option(min=0, help="Minutes that are not judged; default: 4, at most a quarter of the run."),
    ] = None,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds from sample to sample.")] = 5.0,
    swaps: Annotated[
        bool, typer.Option("--swaps", help="Exchange two releases in turn, every 97 s.")
    ] = False,
    max_memory: Annotated[
        float, typer.Option(min=0, help="Limit: MB an hour by which all processes together may grow.")
    ] = DEFAULTS.memory_mb_per_h,
    max_files: Annotated[
        float, typer.Option(min=0, help="Limit: open files, and threads, more an hour.")
    ] = DEFAULTS.fds_per_h,
    max_drift: Annotated[
        float, typer.Option(min=1, help="Limit: p50 and p99 of the last third over those of the first.")
    ] = DEFAULTS.drift,
    max_dropped: Annotated[
        float, typer.Option(min=0, max=1, help="Limit: share of the captured frames that are dropped.")
    ] = DEFAULTS.dropped_share,
    out: Annotated[Path, typer.Option(help="Folder for soak.json and soak.png.")] = Path("soak-output"),
    config: Annotated[Path | None, typer.Option(help="The TOML file; only its cache counts.")] = None,
) -> None:
    """Run the daemon for long under live load, and judge whether it grows, slows down or loses frames.

    A 720p camera at 30 frames per second shows seven people, nobody, one woman, nobody, again and again.
    Faces are flagged over the control socket every 5 s and kept by the daemon itself, clients connect and
    leave, the status is asked for. Sampled are memory (PSS), open files and threads of every process,
    latency, and the ledger.

    Growth is a Theil-Sen slope after the warm-up: by then the faces that can be flagged, those of two
    minutes, have filled their memory. Of memory the least of each minute counts, for infer gives it back so
    often. A growth that may be chance, or of less than 4 MB or of one file in the whole run, breaks no limit:
    the interval says how much a short run leaves open. Exit code 1 when a limit is broken, with a sentence
    for each.

    Examples:
      visaged soak --minutes 30 --swaps
      visaged soak --minutes 480 --max-memory 4 --out night
    """
    console, paths = Console(stderr=True), find_config(config).paths
    warm_up_s = 60 * (min(4.0, minutes / 4) if warm_up is None else warm_up)
    make_folder(out)
    store = ModelStore(paths.cache, paths.wheels)
    with interruptible(), tempfile.TemporaryDirectory(prefix="visaged-soak-") as folder:
        with console.status("making the 720p video, and plans that are missing"):
            material, video = gather(paths.cache, paths.wheels), Path(folder) / "visits.mp4"
            write_visits(material, video)
            EngineLoader(EngineConfig(), store).build_missing(StageConfigs().networks)
        host = machine()
        plan = Plan(video, material.portrait, 60 * minutes, every, swaps)
        with progress_line(console) as progress:
            task = progress.add_task("starting", total=plan.seconds)

            def tell(soaked: Soaked) -> None:
                now = soaked.samples[-1]
                progress.update(task, completed=now.at_s, description=sentence(soaked))

            soaked = soak_daemon(plan, store, tell)
    limits = Limits(max_memory, max_files, max_drift, max_dropped)
    report(soaked, host, warm_up_s, limits, out)


def report(soaked: Soaked, host: dict[str, Any], warm_up_s: float, limits: Limits, out: Path) -> None:
    """Write JSON and picture into `out`, print the verdict.

    Raises:
        VisagedError: a limit is broken, or the run failed; its sentence says which.
    """
    verdict, too_short = None, ""
    try:
        verdict = judge(soaked.samples, warm_up_s, limits)
    except ValueError as error:
        too_short = f"too short for a verdict: {error}; run it longer, or sample more often"
    figures = {
        "machine": host,
        "warm_up_s": warm_up_s,
        "limits": msgspec.to_builtins(limits),
        "deeds": soaked.deeds,
        "last_refusal": soaked.refusal,
        "failure": soaked.failure,
        "verdict": msgspec.to_builtins(verdict),
        "samples": msgspec.to_builtins(soaked.samples),
    }
    write_json(figures, out / "soak.json")
    console = Console()
    if soaked.samples:
        try:
            draw_soak(soaked.samples, warm_up_s, verdict, out / "soak.png")
        except OSError as error:
            raise SourceError(f"{out} cannot be written ({error.strerror}); choose another place") from error
    if verdict is not None:
        console.print(table_of(verdict, soaked, limits))
    console.print(f"wrote {out / 'soak.json'} and soak.png", highlight=False, soft_wrap=True)
    wrong = [soaked.failure and f"the run ended early: {soaked.failure}", too_short]
    wrong += verdict.broken if verdict is not None else ()
    if any(wrong):
        raise VisagedError("; ".join(filter(None, wrong)))


def table_of(verdict: Verdict, soaked: Soaked, limits: Limits) -> Table:
    """Return the verdict as a table with the limits beside it."""
    first, last = soaked.samples[0], soaked.samples[-1]
    table = Table("after the warm-up", "measured", "limit")
    memory = f"{verdict.memory.per_h:+.1f} MB/h [{verdict.memory.low:+.1f}, {verdict.memory.high:+.1f}]"
    table.add_row("memory (PSS), all processes", memory, f"{limits.memory_mb_per_h:g} MB/h")
    for name, grows in verdict.memory_of.items():
        table.add_row(f"  {name}, now {last.pss_mb[name]:.0f} MB", f"{grows.per_h:+.1f} MB/h", "")
    table.add_row(f"open files, now {last.n_fds}", f"{verdict.fds.per_h:+.1f} /h", f"{limits.fds_per_h:g} /h")
    table.add_row(
        f"threads, now {last.n_threads}", f"{verdict.threads.per_h:+.1f} /h", f"{limits.fds_per_h:g} /h"
    )
    table.add_row("p50, last third over first", f"{verdict.p50_drift:.2f} x", f"{limits.drift:g} x")
    table.add_row("p99, last third over first", f"{verdict.p99_drift:.2f} x", f"{limits.drift:g} x")
    table.add_row("frames dropped", f"{verdict.dropped_share:.2%}", f"{limits.dropped_share:.2%}")
    table.add_row("whole run", ledger_words(last.captured, last.published, last.dropped), "")
    table.add_row("faces published, whole run", f"{sum(sample.faces for sample in soaked.samples)}", "")
    table.add_row("load of the machine, first and last", f"{first.load} / {last.load}", "")
    for deed, n in soaked.deeds.items():
        table.add_row(deed, str(n), "")
    return table


def sentence(soaked: Soaked) -> str:
    """Return how it stands, for the progress line."""
    now = soaked.samples[-1]
    return (
        f"{now.memory_mb:.0f} MB, {now.n_fds} files, {now.n_threads} threads, p50 {now.p50_ms:.0f} "
        f"p99 {now.p99_ms:.0f} ms, {now.published} published, {now.n_dropped} dropped, "
        f"{sum(soaked.deeds.values())} deeds"
    )


def progress_line(console: Console) -> Progress:
    """Return a bar with how it stands and the time that is left."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TimeRemainingColumn())
    return Progress(*columns, console=console, refresh_per_second=2)
