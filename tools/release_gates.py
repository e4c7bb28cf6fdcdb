"""`visaged release gates`: measure whether a release may take the place of the one that serves."""

import time
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..daemon.config import Config, find_config
from ..pipelines.assembly import parity_of
from ..pipelines.cropper import Cropper
from ..pipelines.engines.engine_loader import LOADING_FACTOR
from ..pipelines.engines.hardware import free_memory_bytes
from ..pipelines.learning.labelled_faces import LabelledFaces
from ..pipelines.learning.metrics import Truth
from ..pipelines.model_store import ModelStore, ModelsWith
from ..pipelines.releases.gates import Cost, Facts, GateReport, GateResult, HoldOut, judge, write_report
from ..pipelines.releases.promotion import PromotionJournal
from ..pipelines.releases.release import LoadedRelease
from ..pipelines.releases.release_store import ReleaseStore, StoredRelease
from .evaluate import ask, load, load_named

F32 = npt.NDArray[np.float32]

N_TIMED = 8  # faces in a batch that is timed


def gates(
    release: Annotated[str, typer.Argument(help="First digits of its id.")],
    dataset: Annotated[
        list[Path], typer.Argument(help="Folders with FER+, or task files: their test parts.")
    ],
    target: Annotated[
        Path | None, typer.Option(help="A task file of faces that were flagged: its test part.")
    ] = None,
    runs: Annotated[int, typer.Option(min=20, help="Batches that are timed on each release.")] = 200,
    config: Annotated[Path | None, typer.Option(help="The TOML file.")] = None,
) -> None:
    """Measure a release against the one that serves and the blessed one; keep and show every figure.

    Exit code 0: it has passed all gates and may be promoted. 1: it has not.

    Examples:
      visaged release gates 3fa2c1 ~/data/ferplus
      visaged release gates 3fa2c1 ~/data/ferplus --target flagged.toml
    """
    console, settings = Console(), find_config(config)
    stored, journal = ReleaseStore(settings.paths.state).get(release), PromotionJournal(settings.paths.state)
    name, now = stored.release.id, journal.read()
    loaded = {key: load_named(settings, key) for key in {name, now.active, now.blessed}}
    base = [load(settings, path, "test") for path in dataset]
    keys = name, now.active, now.blessed
    facts = Facts(
        candidate=stored.release,
        champion=loaded[now.active].release,
        parity=parity_of(loaded[name].ensemble, _models(settings, stored)),
        base=hold_out(base, keys, loaded, console),
        cost=cost_of(stored, (loaded[name], loaded[now.active]), base[0], runs),
        target=hold_out([load(settings, target, "test")], keys, loaded, console) if target else None,
        max_slowdown=settings.promotion.gate_slowdown,
    )
    for other in loaded.values():
        other.close()
    report = GateReport(
        release=name,
        champion=now.active,
        anchor=now.blessed,
        at=time.time(),
        data=tuple(str(path) for path in (*dataset, *([target] if target else []))),
        results=judge(facts),
    )
    write_report(stored, report)
    console.print(gate_table(report.results), highlight=False)
    failed = ", ".join(result.name for result in report.results if not result.passed)
    if now.state_of(name) in ("candidate", "refused", "passed"):
        journal.write(name, "pass" if report.passed else "refuse", report.at, failed)
    if not report.passed:
        console.print(f"release {name} is refused: {failed}", soft_wrap=True)
        raise typer.Exit(1)
    console.print(f"release {name} has passed: bring it into service with  visaged release promote {name}")


def hold_out(
    labelled: list[LabelledFaces],
    keys: tuple[str, str, str],
    loaded: dict[str, LoadedRelease],
    console: Console,
) -> HoldOut:
    """Return what candidate, champion and anchor (`keys`) say about the same faces."""
    said: dict[str, list[F32]] = {}
    for key in dict.fromkeys(keys):
        for faces in labelled:
            fused = loaded[key].fuser.fuse(ask(loaded[key].ensemble, faces, console)).probabilities
            said.setdefault(key, []).append(fused)
    truth = Truth(
        np.concatenate([faces.truth.targets for faces in labelled]),
        np.concatenate([faces.truth.groups for faces in labelled]),
    )
    candidate, champion, anchor = (np.concatenate(said[key]) for key in keys)
    return HoldOut(truth, candidate, champion, anchor)


def cost_of(
    stored: StoredRelease, pair: tuple[LoadedRelease, LoadedRelease], faces: LabelledFaces, runs: int
) -> Cost:
    """Time both releases in turns on the same batch of faces; say what the first takes of memory."""
    seen = [(rgb, landmarks[None]) for rgb, landmarks in islice(iter(faces.faces), N_TIMED)]
    took_s = np.zeros((2, runs))
    for run in track(range(runs), "timing", transient=True):
        for which in (0, 1) if run % 2 else (1, 0):  # nobody is always the first
            start_s = time.perf_counter()
            ensemble = pair[which].ensemble
            pair[which].fuser.fuse(ensemble.infer(Cropper().crop_all(seen, ensemble.recipes)))
            took_s[which, run] = time.perf_counter() - start_s
    n_bytes = sum(files.onnx.stat().st_size for files in stored.networks().values())
    return Cost(took_s[0], took_s[1], LOADING_FACTOR * n_bytes, free_memory_bytes())


def gate_table(results: tuple[GateResult, ...]) -> Table:
    """Return the results, a line each."""
    table = Table("", "gate", "value", "bound", "n", "", box=None)
    for result in results:
        mark = "[green]passed[/green]" if result.passed else "[bold red]FAILED[/bold red]"
        value, bound = ("" if v is None else f"{v:.4g}" for v in (result.value, result.bound))
        table.add_row(mark, result.name, value, bound, str(result.n), result.sentence)
    return table


def _models(settings: Config, stored: StoredRelease) -> ModelStore:
    return ModelsWith(ModelStore(settings.paths.cache, settings.paths.wheels), stored.networks())
