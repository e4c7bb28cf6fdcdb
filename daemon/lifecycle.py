"""The life of every process: `python -m visaged.daemon.lifecycle NAME --config FILE`.

NAME is `infer`, `capture@CAMERA`, `gateway`, `learn`, `supervisor` or `build`. systemd and supervisor start
the same command. What is the same for all is here: logging, signals, metrics, exit codes and the only
`except Exception`. The work is in functions that are imported late, so that each process loads only what
it needs:

    capture.run_capture(outline: Outline, camera: CameraConfig, metrics: CaptureMetrics, stop: Event,
                        notifier: Notifier) -> int
    infer.run_infer(config: Config, metrics: InferMetrics, stop: Event, build: Sequence[str],
                    notifier: Notifier) -> int
    gateway.run_gateway(outline: Outline, metrics: GatewayMetrics, stop: Event, notifier: Notifier) -> int
    learn.run_learn(config: Config, metrics: LearnMetrics, stop: Event, notifier: Notifier) -> int
    builder.run_build(config: Config, stop: Event, release: str) -> int
    supervisor.run_supervisor(outline: Outline, file: Path, metrics: SupervisorMetrics, stop: Event) -> int

They return the exit code, soon (within process_table.STOP_S) after `stop` is set, or by themselves when
there is nothing more to do: a capture at the end of its file, infer when every camera said that it ended,
learn where it is off.

Exit codes: 0 finished or asked to stop; 1 failed, a restart may help; 78 the configuration is wrong, it
will not. SIGHUP reads `[logging]` again. Where systemd asks, it hears of all this (`notify.py`). Threads: one
does nothing but wait for signals, so that a main thread inside a long C call cannot miss one.
"""

import argparse
import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from ..pipelines.errors import ConfigError, VisagedError
from . import logs
from .metrics import CaptureMetrics, GatewayMetrics, InferMetrics, LearnMetrics, SupervisorMetrics
from .notify import Notifier
from .outline import Outline, load_outline, prepare_folder, require_cameras
from .process_table import Process, command, processes

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
ALARM_S = 30  # from the request to stop to the end by force; the supervisor is faster


def main(arguments: list[str] | None = None) -> int:
    """Run the process that the command line names; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="visaged.daemon.lifecycle", description="Run one process of visaged."
    )
    parser.add_argument("name", help="infer, capture@CAMERA, gateway, learn, supervisor or build")
    parser.add_argument("--config", type=Path, required=True, help="the TOML file")
    parser.add_argument("--parent", type=int, default=0, help="end when this process does")
    parser.add_argument("--release", default="", help="for build: a release that does not serve yet")
    options = parser.parse_args(arguments)

    notifier = Notifier.from_environment()
    name_process(f"visaged-{options.name}")
    logs.configure(options.name, logs.LoggingConfig())
    if options.parent:
        follow_parent(options.parent)
    try:
        outline = load_outline(options.config)
        logs.configure(options.name, outline.logging)
        # a terminal that closes must still end the supervisor; what is built is of no use to a reload
        can_reload = options.name not in ("supervisor", "build")
        reload = partial(reload_logging, options.name, options.config, notifier) if can_reload else None
        with stop_event(notifier, reload) as stop:
            if options.name == "build":
                return build(outline, options.config, stop, options.release)
            return run(options.name, outline, options.config, stop, notifier)
    except VisagedError as error:
        log.error("%s", error)
        notifier.status(str(error))
        log.debug("where it came from", exc_info=True)
        return error.exit_code
    except Exception as error:  # the one place: log and end, whoever started us starts us again
        log.error("failed: %s: %s", type(error).__name__, error)
        notifier.status(f"failed: {type(error).__name__}: {error}")
        log.debug("where it came from", exc_info=True)
        return 1


def build(outline: Outline, file: Path, stop: threading.Event, release: str) -> int:
    """Build the plans that are missing, of `release` where one is named; return the exit code."""
    from .builder import run_build
    from .config import load_config

    prepare_folder(outline.paths.runtime, "runtime")
    return run_build(load_config(file), stop, release)


def run(name: str, outline: Outline, file: Path, stop: threading.Event, notifier: Notifier) -> int:
    """Run process `name` until it is done or `stop` is set; return its exit code."""
    prepare_folder(outline.paths.runtime, "runtime")
    if name == "supervisor":
        from .supervisor import run_supervisor

        with SupervisorMetrics() as metrics:
            metrics.serve(outline.metrics, 0)
            return run_supervisor(outline, file, metrics, stop)

    process = find_process(name, outline, file)
    os.nice(process.row.nice)
    if process.row.kind == "gateway":
        from .gateway import run_gateway

        with GatewayMetrics(name) as gateway_metrics:
            gateway_metrics.serve(outline.metrics, process.port_offset)
            return run_gateway(outline, gateway_metrics, stop, notifier)

    limit_opencv_threads()
    if process.row.kind == "capture":
        from .capture import run_capture

        camera = next(c for c in outline.camera if f"capture@{c.name}" == name)
        with CaptureMetrics(name) as capture_metrics:
            capture_metrics.serve(outline.metrics, process.port_offset)
            return run_capture(outline, camera, capture_metrics, stop, notifier)

    from .config import load_config

    if process.row.kind == "learn":
        from .learn import run_learn

        with LearnMetrics(name) as learn_metrics:
            learn_metrics.serve(outline.metrics, process.port_offset)
            return run_learn(load_config(file), learn_metrics, stop, notifier)

    from .infer import run_infer

    require_cameras(outline, file)
    notifier.status("loading the networks")
    config = load_config(file)
    build = [*command("build", file), "--parent", str(os.getpid())]
    with InferMetrics(name) as infer_metrics:
        infer_metrics.serve(outline.metrics, process.port_offset)
        return run_infer(config, infer_metrics, stop, build, notifier)


def find_process(name: str, outline: Outline, file: Path) -> Process:
    """Return the row of the process table called `name`.

    Raises:
        ConfigError: there is none; a camera may be missing in the configuration.
    """
    names = [camera.name for camera in outline.camera]
    table = processes(names, is_remote=outline.remote.is_enabled, learns=True)
    for process in table:
        if process.name == name:
            return process
    known = ", ".join(process.name for process in table)
    raise ConfigError(f"{file} has no process {name!r}; it has {known}")


@contextlib.contextmanager
def stop_event(notifier: Notifier, reload: Callable[[], None] | None = None) -> Iterator[threading.Event]:
    """Give an event that SIGTERM or SIGINT sets; a process that then does not end is ended.

    SIGHUP calls `reload` on the thread that waits for signals; without one it ends the process.

    The handlers only make the interpreter write to the pipe; it does so in whichever thread the kernel
    interrupts, also while the main thread is inside C code.
    """
    stop = threading.Event()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def wait() -> None:
        while (got := os.read(reader, 1)) not in (b"", b"\0"):
            if got[0] == signal.SIGHUP and reload is not None:
                reload()
                continue
            log.info("stopping on %s", signal.Signals(got[0]).name)
            notifier.stopping()
            stop.set()
            signal.alarm(ALARM_S)  # the kernel's own clock: it ends us even when the interpreter is stuck
            return

    thread = threading.Thread(target=wait, name="signals", daemon=True)
    heard = (*STOP_SIGNALS, signal.SIGHUP) if reload is not None else STOP_SIGNALS
    old_handlers = {number: signal.signal(number, lambda *_: None) for number in heard}
    old_wakeup = signal.set_wakeup_fd(writer)
    thread.start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(old_wakeup)
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
        os.write(writer, b"\0")
        thread.join()
        signal.alarm(0)
        os.close(reader)
        os.close(writer)


def reload_logging(name: str, file: Path, notifier: Notifier) -> None:
    """Read `[logging]` again, the one table that may change under way; a wrong file changes nothing."""
    with notifier.reloading():
        try:
            config = load_outline(file).logging
        except VisagedError as error:
            log.error("the configuration stays as it was: %s", error)
            return
        logs.configure(name, config)
        log.info("read [logging] of %s again; whatever else changed there waits for a restart", file)


def limit_opencv_threads() -> None:
    """Keep OpenCV to one thread: its pool costs more than it gives at our sizes."""
    import cv2  # here: the supervisor has no use for it

    cv2.setNumThreads(1)


def follow_parent(parent: int) -> None:
    """Ask the kernel for SIGTERM when `parent` dies, so that none of its processes is left over."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before we asked
        raise SystemExit(1)


def name_process(name: str) -> None:
    """Set the name that ps, top and the kernel's log show; its first 15 bytes count."""
    buffer = ctypes.create_string_buffer(name.replace("visaged-capture@", "vis-cam@").encode()[:15])
    _prctl(PR_SET_NAME, ctypes.addressof(buffer))


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.exit(code)
