"""Plans that were missing at the start: built beside, loaded in a thread, taken over between two batches.

missing ─► building (a process, nice 19) ─► loading (a thread) ─► ready ─► taken over
              └─ failed: ONNX Runtime goes on standing in; said in log, status and metric
"""

import dataclasses
import logging
from collections.abc import Sequence

from ..pipelines.assembly import Stages
from ..pipelines.engines.engine_loader import EngineInfo
from ..pipelines.ensemble import Ensemble, build_ensemble
from ..pipelines.releases.release import LoadedRelease
from .background_load import BackgroundLoad
from .metrics import InferMetrics

log = logging.getLogger(__name__)


class EngineUpgrade:
    """Owned by the inference thread, which calls `poll` between two batches."""

    def __init__(self, stages: Stages, metrics: InferMetrics, command: Sequence[str]) -> None:
        """Watch over `stages`; `command` starts the build process, none: nothing is built."""
        self._stages, self._metrics, self._command = stages, metrics, command
        self._load: BackgroundLoad | None = None
        self.show(stages.ensemble)

    @property
    def state(self) -> str:
        """What is going on, in words."""
        return self._load.state if self._load is not None else "none needed"

    @property
    def is_busy(self) -> bool:
        """Whether plans are being built or loaded."""
        return self._load is not None and self._load.is_busy

    def start(self) -> None:
        """Begin to build, if a plan is missing."""
        loader = self._stages.loader
        missing = [n for n in self._stages.configs.networks if loader.is_plan_missing(n)]
        if not missing or not self._command:
            return
        log.warning(
            "no plan for this machine of %s: ONNX Runtime stands in while it is built", ", ".join(missing)
        )
        self._load = BackgroundLoad(self._again, lambda: missing, self._command, self._metrics.count_build)

    def poll(self) -> LoadedRelease | None:
        """Return the release on the engines to go on with from now, once, or None. Never blocks."""
        if self._load is None or not self._load.is_busy:
            return None
        ready = self._load.poll()
        if ready is not None:
            self.show(ready.ensemble)
        elif not self._load.is_busy:
            log.error("serving on without the plans: %s", self._load.failure)
        return ready

    def close(self) -> None:
        """End the build and free what was loaded and not taken over."""
        if self._load is not None:
            self._load.close()

    def engines(self) -> dict[str, EngineInfo]:
        """Return what runs each member now."""
        return self._engines

    def show(self, ensemble: Ensemble) -> None:
        """Say in the metrics what runs each member from now."""
        self._engines = {member.network.name: member.info for member in ensemble.members}
        self._metrics.engine_info.clear()
        for name, info in self._engines.items():
            labels = name, info.backend.value, info.precision.value, info.device
            self._metrics.engine_info.labels(*labels).set(1)
            self._metrics.engine_fallback.labels(name).set(info.is_fallback)

    def _again(self) -> LoadedRelease:
        """Load the same release once more, on its plans now."""
        stages = self._stages
        ensemble = build_ensemble(stages.configs.ensemble, stages.loader)
        if stages.detector.mmod is not None:
            stages.detector.mmod.swap(stages.loader.load("mmod").engine)
        return dataclasses.replace(stages.serving, ensemble=ensemble)
