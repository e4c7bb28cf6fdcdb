"""Plans that were missing at the start: built beside, loaded in a thread, taken over between two batches.

missing ─► building (a process, nice 19) ─► loading (a thread) ─► ready ─► taken over
              └─ failed: ONNX Runtime goes on standing in; said in log, status and metric
"""

import logging
import subprocess
import threading
from collections.abc import Sequence

from ..pipelines.assembly import Stages
from ..pipelines.engines.engine_loader import EngineInfo
from ..pipelines.ensemble import Ensemble, build_ensemble
from ..pipelines.errors import VisagedError
from .metrics import InferMetrics

log = logging.getLogger(__name__)

STOP_S = 2.0


class EngineUpgrade:
    """Owned by the inference thread, which calls `poll` between two batches.

    The loading thread hands over through `_ready`, which it writes once, last.
    """

    def __init__(self, stages: Stages, metrics: InferMetrics, command: Sequence[str]) -> None:
        """Watch over `stages`; `command` starts the build process, none: nothing is built."""
        self._stages, self._metrics, self._command = stages, metrics, command
        self._build: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._ready: Ensemble | None = None
        self._failure = ""
        self.state = "none needed"
        self._show(stages.ensemble)

    def start(self) -> None:
        """Begin to build, if a plan is missing."""
        loader = self._stages.loader
        missing = [n for n in self._stages.configs.networks if loader.is_plan_missing(n)]
        if not missing or not self._command:
            return
        log.warning(
            "no plan for this machine of %s: ONNX Runtime stands in while it is built", ", ".join(missing)
        )
        self.state = f"building {', '.join(missing)}"
        self._build = subprocess.Popen(self._command, stdin=subprocess.DEVNULL)

    def poll(self) -> Ensemble | None:
        """Return the ensemble to go on with from now, once, or None. Never blocks."""
        if self._build is not None and (code := self._build.poll()) is not None:
            self._build = None
            self._metrics.plan_builds.labels("failed" if code else "done").inc()
            if code:
                self._give_up(f"the build ended with exit code {code}; its messages are above")
            else:
                self._begin_to_load()
        if self._thread is None or self._thread.is_alive():
            return None
        self._thread = None
        ready, self._ready = self._ready, None
        if ready is None:
            self._give_up(self._failure)
            return None
        self.state = "done"
        self._show(ready)
        return ready

    def close(self) -> None:
        """End the build and free what was loaded and not taken over."""
        if self._build is not None:
            self._build.terminate()
            try:
                self._build.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._build.kill()
                self._build.wait()
        if self._thread is not None:
            self._thread.join()
        if self._ready is not None:
            self._ready.close()

    def engines(self) -> dict[str, EngineInfo]:
        """Return what runs each member now."""
        return self._engines

    def _begin_to_load(self) -> None:
        self.state = "loading"
        self._thread = threading.Thread(target=self._load, name="engine-upgrade", daemon=True)
        self._thread.start()

    def _load(self) -> None:
        stages = self._stages
        try:
            ensemble = build_ensemble(stages.configs.ensemble, stages.loader)
            if stages.detector.mmod is not None:
                stages.detector.mmod.swap(stages.loader.load("mmod").engine)
            self._ready = ensemble
        except VisagedError as error:
            self._failure = str(error)

    def _give_up(self, why: str) -> None:
        self.state = f"failed: {why}"
        log.error("serving on without the plans: %s", why)

    def _show(self, ensemble: Ensemble) -> None:
        self._engines = {member.network.name: member.info for member in ensemble.members}
        self._metrics.engine_info.clear()
        for name, info in self._engines.items():
            labels = name, info.backend.value, info.precision.value, info.device
            self._metrics.engine_info.labels(*labels).set(1)
            self._metrics.engine_fallback.labels(name).set(info.is_fallback)


def retire(ensemble: Ensemble) -> None:
    """Free `ensemble` beside the caller: letting go of memory can take milliseconds."""
    threading.Thread(target=ensemble.close, name="retire", daemon=True).start()
