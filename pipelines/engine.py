"""What every inference backend looks like, and the slot that holds the active one."""

import threading
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]


class Engine(Protocol):
    """A plan, loaded and warm. Owned by one thread at a time."""

    @property
    def generation(self) -> int:
        """Growing number of the weights; travels with every result."""

    def infer(self, inputs: F32) -> Mapping[str, F32]:
        """Return every named output for `inputs`, the first axis being the batch."""

    def close(self) -> None:
        """Free what the engine holds; it cannot run afterwards."""


class EngineSlot:
    """Holds the active engine and the one before it.

    `infer` runs on the inference thread, `swap` and `rollback` on any other. The lock is held for a
    whole batch, so an engine is never closed under a running batch and a batch never mixes two
    generations.
    """

    def __init__(self, engine: Engine) -> None:
        self._active = engine
        self._previous: Engine | None = None
        self._lock = threading.Lock()

    def infer(self, inputs: F32) -> tuple[Mapping[str, F32], int]:
        """Return the outputs for `inputs` and the generation that computed them."""
        with self._lock:
            return self._active.infer(inputs), self._active.generation

    def swap(self, candidate: Engine) -> None:
        """Make `candidate`, which must be warm, active from the next batch; keep the old one."""
        with self._lock:
            retired, self._previous, self._active = self._previous, self._active, candidate
        if retired is not None:
            retired.close()  # outside the lock: freeing device memory can take milliseconds

    def rollback(self) -> bool:
        """Return to the engine before the last swap; False when there is none."""
        with self._lock:
            if self._previous is None:
                return False
            rejected, self._active, self._previous = self._active, self._previous, None
        rejected.close()
        return True

    def close(self) -> None:
        """Free both engines."""
        with self._lock:
            for engine in (self._active, self._previous):
                if engine is not None:
                    engine.close()
            self._previous = None
