"""What `visaged doctor` looks at in the installation: networks, plans, keys, releases, the daemon."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from ..daemon import keys
from ..daemon.channels import is_listening, socket_file
from ..daemon.config import Config
from ..daemon.control import ControlClient, Status
from ..daemon.outline import Outline
from ..pipelines.detector import site_detector
from ..pipelines.dlib_faces import HOG_FACE_PX
from ..pipelines.engines.engine_loader import EngineLoader
from ..pipelines.engines.plan_store import PlanStore
from ..pipelines.errors import ReleaseError, StoreError, VisagedError
from ..pipelines.loop.lineage import marks_of
from ..pipelines.model_store import WEIGHTS, ModelStore
from ..pipelines.privacy.seal import Sealer, credential
from ..pipelines.releases.promotion import PromotionJournal
from ..pipelines.releases.release import FACTORY
from ..pipelines.releases.release_store import ReleaseStore
from .finding import Finding, fail, ok, refused, tried, warn

STORES = ("gallery", "samples")
ASK_S = 5.0


def models(config: Config, store: ModelStore) -> Iterator[Finding]:
    """Look at dlib's weights and the networks imported from them, whole by their digests."""
    for name in WEIGHTS:
        try:
            path = store.weights_file(name)
        except VisagedError as error:
            yield refused(f"weights {name}", error)
        else:
            yield ok(f"weights {name}", f"{path} is the published file")
    for name in config.stages.networks:
        if store.cached(name) is not None:
            yield ok(f"network {name}", "imported and whole")
        elif any((store.cache_dir / "models").glob(f"{name}-*.onnx")):
            yield warn(f"network {name}", "damaged, or of another version", "the next start imports it again")
        else:
            yield warn(f"network {name}", "not imported yet", "`visaged models import`, or the first start")


def detector(config: Config) -> Iterator[Finding]:
    """Look at the detector of the site's own, where there is one: can it be read, and what does it find."""
    site = site_detector(config.detector)
    if site is not None:
        width, height = (round(side * config.detector.min_face_px / HOG_FACE_PX) for side in site.window)
        yield ok("detector", f"{config.detector.site} finds faces from {width}x{height} px on")


def plans(config: Config, store: ModelStore) -> Iterator[Finding]:
    """Look at whether every plan on disk is whole, and whether those that are wanted are there."""
    kept = PlanStore(store.cache_dir)
    roles = kept.roles()
    n_whole = 0
    for plan in kept.plans():
        fingerprint = plan.folder.name
        if plan.is_whole:
            n_whole += 1
        else:
            verdict = fail if fingerprint in roles else warn
            mend = "`visaged build --force`, or let the daemon build it"
            yield verdict(f"plan {fingerprint}", f"{plan.path} is not the file that was built", mend)
    yield ok("plans", f"{n_whole} whole")
    yield from tried("plans", lambda: _missing(config, store))


def _missing(config: Config, store: ModelStore) -> Iterator[Finding]:
    loader = EngineLoader(config.engine, store, max_batch=config.ensemble.max_batch)
    for name in config.ensemble.members:
        if store.cached(name) is not None and loader.is_plan_missing(name):
            what = "has no plan for this machine; ONNX Runtime stands in"
            yield warn(f"plan of {name}", what, "`visaged build`, or leave the daemon running")


def secrets(outline: Outline, *, in_use: bool) -> Iterator[Finding]:
    """Look at keys, their modes, and the files that they open; a running daemon's files are not read."""
    for name in STORES:
        key = credential(f"{name}.key") or outline.paths.state / f"{name}.key"
        path = outline.paths.state / f"{name}.db"
        if not key.exists() and not path.exists():
            yield ok(f"key {name}", "made at the first start")
            continue
        try:
            Sealer.from_file(key)
        except StoreError as error:
            yield refused(f"key {name}", error)
        else:
            yield ok(f"key {name}", f"{key}, readable by its owner alone")
        if not in_use and path.exists():
            yield _file(name, path)
    if outline.remote.needs_keys:
        yield from tried("key server", lambda: _server(outline))


def _file(name: str, path: Path) -> Finding:
    # immutable: reading must leave no files of ours, perhaps root's, beside the daemon's
    source = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    try:
        with contextlib.closing(sqlite3.connect(source, uri=True)) as database:
            verdict = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        verdict = str(error)
    if verdict != "ok":
        mend = "restore a backup, or move it away to start an empty one"
        return fail(f"store {name}", f"{path} is damaged ({verdict})", mend)
    return ok(f"store {name}", f"{path} is whole")


def _server(outline: Outline) -> Iterator[Finding]:
    keys.read_server(outline.keys)
    clients, problems = keys.read_clients(outline.keys)
    yield ok("key server", f"{keys.server_file(outline.keys)}, {len(clients)} clients")
    for problem in problems:
        yield warn("key client", f"lets nobody in: {problem}", "mend the file, or `visaged keys add` again")


def releases(config: Config) -> Iterator[Finding]:
    """Look at whether the release that serves, and those that may have to, are whole."""
    state = config.paths.state
    try:
        journal = PromotionJournal(state).read()
    except ReleaseError as error:
        yield refused("releases", error)
        return
    active = config.ensemble.release or journal.active
    yield ok("releases", f"active: {active}")
    for name in sorted({active, *journal.needed} - {FACTORY}):
        try:
            stored = ReleaseStore(state).get(name)
            stored.networks()
            stored.heads()
        except ReleaseError as error:
            what, _, mend = str(error).partition("; ")
            yield (fail if name == active else warn)(f"release {name}", what, mend)
        else:
            yield ok(f"release {name}", "whole")
    yield from tried("releases", lambda: _marked(state))
    if config.promotion.automatic:
        yield from _gate_data(config)


def _gate_data(config: Config) -> Iterator[Finding]:
    for path in config.promotion.gate_data:
        needed = path.expanduser() if path.suffix == ".toml" else path.expanduser() / "PublicTest.npz"
        if os.access(needed, os.R_OK):
            yield ok(f"gate data {path}", "there")
        else:
            mend = "put it there, where the daemon may read it, or name another in [promotion] gate_data"
            yield warn(f"gate data {path}", f"{needed} cannot be read: nothing is promoted by itself", mend)


def _marked(state: Path) -> Iterator[Finding]:
    for name, marks in marks_of(state).items():
        what = (
            f"learned from {sum(mark.n_samples for mark in marks)} samples of people who were forgotten since"
        )
        mend = f"`visaged release rebuild {name}`, promote what it says, then `visaged release remove {name}`"
        yield warn(f"release {name}", what, mend)


def daemon(runtime: Path, timeout_s: float = ASK_S) -> Iterator[Finding]:
    """Look at what the running daemon answers, if there is one."""
    with ControlClient(runtime) as client:
        try:
            answer = client.request(Status(), timeout_s)
        except VisagedError as error:
            yield refused("daemon", error)
            return
    yield ok("daemon", f"release {answer['release']['running']} serves")
    for name, engine in answer["engines"].items():
        if engine["is_fallback"]:
            yield warn(f"engine {name}", f"stands in: {engine['reason']}", "`visaged build`")
    for name, book in answer["cameras"].items():
        if not book["captured"]:
            mend = f"the status of visaged-capture@{name}, or the log, says why"
            yield fail(f"frames {name}", "the daemon has captured none yet", mend)
        else:
            yield ok(f"frames {name}", f"{book['captured']} captured, {book['published']} published")


def is_running(runtime: Path) -> bool:
    """Whether somebody serves the control socket in `runtime`."""
    return is_listening(socket_file(runtime, "control"))
