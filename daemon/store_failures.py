"""What is said and counted when the gallery or the sample store fails in the running daemon."""

import logging

from ..pipelines.errors import VisagedError
from .metrics import InferMetrics

log = logging.getLogger(__name__)


class StoreFailures:
    """Counts every failure; the first since a store worked is worth a sentence. Owned by one thread."""

    def __init__(self, metrics: InferMetrics) -> None:
        self._metrics = metrics
        self._failing: set[str] = set()

    def note(self, store: str, error: VisagedError, consequence: str) -> None:
        """Count that `store` ("gallery", "samples") failed; say once what follows until it is mended."""
        self._metrics.store_failures.labels(store).inc()
        if store not in self._failing:
            log.error("%s until this is mended: %s", consequence, error)
        self._failing.add(store)

    def ends(self, store: str) -> bool:
        """Note that `store` works; return whether it did not before."""
        was_failing = store in self._failing
        self._failing.discard(store)
        return was_failing
