"""Load a release beside the one that serves: plans built in a process, networks loaded and tried in a thread.

building (a process, nice 19) ─► loading (a thread, nice 10) ─► done, taken once by `poll`
    └──────────────────────────────┴─► failed: what serves goes on serving
"""

import os
import subprocess
import threading
from collections.abc import Callable, Sequence

from ..pipelines.errors import ModelError, VisagedError
from ..pipelines.releases.release import LoadedRelease
from .freed_memory import give_back

NICENESS = 10  # of the thread: capture and inference come first
STOP_S = 2.0


class BackgroundLoad:
    """Owned by the thread that made it, which calls `poll`; the loading thread writes `_ready` once, last."""

    def __init__(
        self,
        load: Callable[[], LoadedRelease],
        missing: Callable[[], Sequence[str]],
        command: Sequence[str] = (),
        on_build: Callable[[bool], None] = lambda is_built: None,
    ) -> None:
        """Begin.

        Args:
            load: gives the release, warm; a VisagedError it raises is the failure.
            missing: names the networks that have no plan.
            command: starts the process that builds them; none: nothing is built.
            on_build: told whether the build succeeded.
        """
        self.state = "loading"
        self.failure = ""
        self._load, self._missing, self._command, self._on_build = load, missing, command, on_build
        self._build: subprocess.Popen[bytes] | None = None
        self._is_closed, self._lock = False, threading.Lock()
        self._ready: LoadedRelease | None = None
        self._thread: threading.Thread | None = threading.Thread(target=self._run, name="load", daemon=True)
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """Whether `poll` may still give something."""
        return self._thread is not None

    def poll(self) -> LoadedRelease | None:
        """Return what was loaded, once, or None. Never blocks."""
        if self._thread is None or self._thread.is_alive():
            return None
        self._thread = None
        ready, self._ready = self._ready, None
        self.state = "done" if ready is not None else f"failed: {self.failure}"
        return ready

    def close(self) -> None:
        """End the build and free what was loaded and not taken."""
        with self._lock:
            self._is_closed, build = True, self._build
        if build is not None:
            build.terminate()
            try:
                build.wait(STOP_S)
            except subprocess.TimeoutExpired:
                build.kill()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._ready is not None:
            self._ready.close()
            self._ready = None

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        try:
            if self._command and (missing := self._missing()):
                self._build_plans(missing)
            self.state = "loading"
            ready = None if self._is_closed else self._load()
        except VisagedError as error:
            self.failure = str(error)
        else:
            give_back()
            self._ready = ready

    def _build_plans(self, missing: Sequence[str]) -> None:
        self.state = f"building {', '.join(missing)}"
        with self._lock:
            if self._is_closed:
                return
            self._build = subprocess.Popen(self._command, stdin=subprocess.DEVNULL)
        code = self._build.wait()
        self._on_build(code == 0)
        if code:
            raise ModelError(f"the build ended with exit code {code}; its messages are above")


def retire(loaded: LoadedRelease) -> None:
    """Free a release beside the caller: letting go of memory can take milliseconds."""

    def free() -> None:
        loaded.close()
        give_back()

    threading.Thread(target=free, name="retire", daemon=True).start()
