"""Runs the processes of the table: starts, restarts, stops. Loads no image or network code.

A process that fails is started again alone. One that fails too often ends everything, because nobody
reads the log of a daemon that seems to run; one that serves nobody (learn) just stays down. One whose
configuration is wrong (exit 78) is not started again.
"""

import fcntl
import logging
import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from ..pipelines.errors import ConfigError, VisagedError
from ..pipelines.loop.progress import progress_path
from .channels import is_listening, socket_file
from .ledger import Ledger, ledger_path
from .metrics import SupervisorMetrics
from .outline import Outline, require_cameras
from .process_table import (
    MAX_RESTARTS,
    STOP_S,
    WINDOW_S,
    Process,
    RestartHistory,
    command,
    processes,
)
from .ring import remove_stale
from .stall import STALLED_S, StallWatch

log = logging.getLogger(__name__)

TICK_S = 0.1
PATIENCE_S = 3.0  # for processes whose supervisor was killed a moment ago
DRAIN_S = 30.0  # for infer to answer what the finished cameras left
ENDING_S = 2.0  # for the cameras to end after infer, which has heard of the end of each
EXIT_CONFIG = ConfigError.exit_code


@dataclass(slots=True)
class Child:
    """One process of the table and what became of it."""

    process: Process
    history: RestartHistory = field(default_factory=RestartHistory)
    popen: subprocess.Popen[bytes] | None = None
    start_at_s: float = 0.0  # when it is due, while `popen` is None
    may_start: bool = False  # what it waited for has been there once
    ended_at_s: float | None = None  # when `popen` was first seen to have ended
    exit_code: int | None = None  # set for good: finished (0) or given up (78)

    @property
    def name(self) -> str:
        """Name in the table."""
        return self.process.name


class Surroundings(Protocol):
    """What the supervisor has to know about the daemon it runs."""

    def command_of(self, name: str) -> list[str]:
        """Return the command line of process `name`."""

    def is_served(self, channel: str) -> bool:
        """Whether `channel` is up; a first start may wait for it."""

    def is_stalled(self, name: str, now_s: float) -> bool:
        """Whether process `name` lives and has done nothing for too long."""

    def forgive(self, name: str, now_s: float) -> None:
        """Give process `name` time, for it has just been started."""


class Daemon:
    """The surroundings of the real processes. Owned by the supervisor."""

    def __init__(self, outline: Outline, file: Path) -> None:
        self._file = file
        self._runtime = outline.paths.runtime
        self._watch = StallWatch(self._runtime, [camera.name for camera in outline.camera])
        self.is_stalled, self.forgive, self.close = (
            self._watch.is_stalled,
            self._watch.forgive,
            self._watch.close,
        )

    def command_of(self, name: str) -> list[str]:
        """Return the command line of process `name`, which is to end when we do."""
        return [*command(name, self._file), "--parent", str(os.getpid())]

    def is_served(self, channel: str) -> bool:
        """Whether the socket of `channel` exists."""
        return socket_file(self._runtime, channel).exists()


class Supervisor:
    """Owns the child processes. Everything happens on the thread that calls `run`."""

    def __init__(self, table: list[Process], surroundings: Surroundings, metrics: SupervisorMetrics) -> None:
        self._surroundings = surroundings
        self._metrics = metrics
        self._children = [Child(process) for process in table]
        self._drain_until_s: float | None = None

    def run(self, stop: threading.Event) -> int:
        """Keep the processes running until `stop`, or until all is finished; return the exit code."""
        try:
            while not stop.wait(TICK_S):
                now_s = time.monotonic()
                for child in self._children:
                    self._look_after(child, now_s)
                code = self._verdict(now_s)
                if code is not None:
                    return code
            return 0
        finally:
            self._stop_all()

    def _look_after(self, child: Child, now_s: float) -> None:
        if child.exit_code is not None:
            return
        if child.popen is None:
            if now_s >= child.start_at_s and self._may_start(child):
                self._start(child)
            return
        if self._surroundings.is_stalled(child.name, now_s):
            log.error("%s lives and has done no work for %.0f s; it is killed", child.name, STALLED_S)
            child.popen.kill()
            child.popen.wait()
        code = child.popen.poll()
        if code is not None and not self._may_be_finished(child, code, now_s):
            child.popen = None
            self._metrics.process_up.labels(child.name).set(0)
            self._judge(child, code, now_s)

    def _may_be_finished(self, child: Child, code: int, now_s: float) -> bool:
        """Whether to look again soon: infer may be gone before the cameras that told it of their end."""
        if code != 0 or child.process.row.kind != "infer" or self._all_cameras_done():
            return False
        if child.ended_at_s is None:
            child.ended_at_s = now_s
        return now_s - child.ended_at_s < ENDING_S

    def _judge(self, child: Child, code: int, now_s: float) -> None:
        row = child.process.row
        if code == 0 and (row.kind == "capture" or not row.serves or self._all_cameras_done()):
            log.info("%s has finished", child.name)
            child.exit_code = 0
            return
        if code == EXIT_CONFIG:
            log.error(
                "%s stays down: starting it again would mend nothing, see its message above", child.name
            )
            child.exit_code = EXIT_CONFIG
            return
        wait_s = child.history.wait_s(now_s)
        if wait_s is None and not row.serves:
            log.error("%s ends again and again, %s, and stays down", child.name, describe_exit(code))
            child.exit_code = 1
            return
        if wait_s is None:
            raise VisagedError(
                f"gave up: {child.name} ended {MAX_RESTARTS + 1} times within {WINDOW_S:.0f} s, "
                f"the last time {describe_exit(code)}; see its messages above"
            )
        log.warning("%s ended %s, starting it again in %.1f s", child.name, describe_exit(code), wait_s)
        child.start_at_s = now_s + wait_s
        self._metrics.restarts.labels(child.name).inc()

    def _all_cameras_done(self) -> bool:
        cameras = [child for child in self._children if child.process.row.kind == "capture"]
        return all(child.exit_code is not None for child in cameras)

    def _verdict(self, now_s: float) -> int | None:
        """Return the exit code when there is nothing left to wait for."""
        serving = [child for child in self._children if child.process.row.serves]
        codes = [child.exit_code for child in serving if child.exit_code is not None]
        infer = next(child for child in self._children if child.process.row.kind == "infer")
        if infer.exit_code is not None:
            return max(codes)
        if not self._all_cameras_done():
            return None
        if self._drain_until_s is None:
            log.info("all cameras have ended")
            self._drain_until_s = now_s + DRAIN_S
        if EXIT_CONFIG in codes or now_s > self._drain_until_s:
            return max(codes)
        return None

    def _may_start(self, child: Child) -> bool:
        channel = child.process.row.waits_for
        child.may_start = child.may_start or not channel or self._surroundings.is_served(channel)
        return child.may_start

    def _start(self, child: Child) -> None:
        line = self._surroundings.command_of(child.name)
        self._surroundings.forgive(child.name, time.monotonic())
        # A group of its own: Ctrl-C on the terminal reaches only the supervisor, which stops in order. Not a
        # session: the kernel shares processors between sessions alike, whatever their niceness (autogroup).
        child.popen = subprocess.Popen(line, stdin=subprocess.DEVNULL, process_group=0)
        child.ended_at_s = None
        self._metrics.process_up.labels(child.name).set(1)
        self._metrics.restarts.labels(child.name).inc(0)
        log.info("started %s, pid %d", child.name, child.popen.pid)

    def _stop_all(self) -> None:
        for order in sorted({child.process.row.stop_order for child in self._children}):
            running = [
                child.popen
                for child in self._children
                if child.popen is not None and child.process.row.stop_order == order
            ]
            stop_processes(running, STOP_S)
        log.info("stopped")


def stop_processes(running: list[subprocess.Popen[bytes]], grace_s: float) -> None:
    """End `running`: SIGTERM, and SIGKILL for those that still run after `grace_s`."""
    for popen in running:
        popen.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    for popen in running:
        try:
            popen.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning("killed pid %d, which did not stop within %.0f s", popen.pid, grace_s)
            popen.kill()
            popen.wait()


def describe_exit(code: int) -> str:
    """Return words for the exit code of a process; negative is a signal."""
    if code >= 0:
        return f"with exit code {code}"
    try:
        return f"by {signal.Signals(-code).name}"
    except ValueError:
        return f"by signal {-code}"


def lock_runtime(runtime: Path) -> IO[str]:
    """Return the open lock file of `runtime`; the lock lasts until it is closed or this process ends.

    Raises:
        ConfigError: another supervisor holds it.
    """
    lock = (runtime / "supervisor.lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.seek(0)
        pid = lock.read().strip() or "unknown"
        lock.close()
        raise ConfigError(
            f"visaged already runs in {runtime} (pid {pid}); stop it, or set another [paths] runtime"
        ) from error
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def wait_for_others(runtime: Path) -> None:
    """Wait a moment for the processes of an earlier run to end.

    Raises:
        ConfigError: they do not, as those of a service would not.
    """
    deadline_s = time.monotonic() + PATIENCE_S
    while served := next((path for path in sorted(runtime.glob("*.ipc")) if is_listening(path)), None):
        if time.monotonic() > deadline_s:
            raise ConfigError(
                f"visaged already runs in {runtime} and serves {served.name}; if it is the service, "
                "run `systemctl stop visaged.target`, else set another [paths] runtime"
            )
        time.sleep(TICK_S)


def remove_leftovers(outline: Outline) -> None:
    """Remove the sockets and rings that killed processes left; only the holder of the lock may."""
    for path in outline.paths.runtime.glob("*.ipc"):
        path.unlink(missing_ok=True)
    remove_stale(outline.paths.shm, outline.instance)


def begin_books(outline: Outline) -> None:
    """Remove the ledgers of an earlier run and how far its learning was: this one begins at 1."""
    for path in outline.paths.runtime.glob("ledger-*"):
        path.unlink(missing_ok=True)
    progress_path(outline.paths.runtime).unlink(missing_ok=True)


def close_books(outline: Outline) -> None:
    """Settle and log the ledger of every camera, once all processes have ended."""
    for camera in outline.camera:
        path = ledger_path(outline.paths.runtime, camera.name)
        if path.exists():
            with Ledger.open(path, create=False) as ledger:
                ledger.settle_all("shutdown")
                log.info("camera %s: %s", camera.name, ledger.snapshot())


def run_supervisor(outline: Outline, file: Path, metrics: SupervisorMetrics, stop: threading.Event) -> int:
    """Run all processes of `outline`; return the exit code. See the module's first lines.

    Raises:
        ConfigError: no camera, no keys for other machines, or another supervisor in the same runtime folder.
        VisagedError: a process failed again and again.
    """
    require_cameras(outline, file)
    if outline.remote.needs_keys:
        from .keys import KeyStore  # here: it loads ZeroMQ

        KeyStore(outline.keys)  # says what is wrong before anything is started
    names = [camera.name for camera in outline.camera]
    table = processes(names, is_remote=outline.remote.is_enabled, learns=outline.learning.enabled)
    with lock_runtime(outline.paths.runtime):
        wait_for_others(outline.paths.runtime)
        remove_leftovers(outline)
        begin_books(outline)
        daemon = Daemon(outline, file)
        try:
            return Supervisor(table, daemon, metrics).run(stop)
        finally:
            daemon.close()
            remove_leftovers(outline)
            close_books(outline)
