"""Write samples beside the inference thread, so that no frame waits for a disk.

What people say is acknowledged only when it is on disk; what the daemon picks itself may be dropped.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future

from ..pipelines.errors import SampleError
from ..pipelines.loop.sample import Sample, State
from ..pipelines.loop.sample_store import SampleStore

DEPTH = 32  # jobs that may wait; each holds a chip of 120 kB
RESERVED = 16  # of these places, those that only people's flags may take

Job = Callable[[SampleStore], Sample | None]


class SampleWriter:
    """One thread that owns the store. `submit` and `counts` are called by the inference thread.

    `counts` is replaced as a whole by the writer. A job that fails in a way that visaged cannot explain ends
    the process through the future, as it would in the thread that asked.
    """

    def __init__(self, open_store: Callable[[], SampleStore]) -> None:
        """Start the thread and open the store in it.

        Raises:
            StoreError: the store cannot be opened.
        """
        self._jobs: queue.Queue[tuple[Job, Future[Sample | None]] | None] = queue.Queue()
        self.counts: dict[State, int] = {}
        opened: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._write_for_ever, args=(open_store, opened), name="sample-writer", daemon=True
        )
        self._thread.start()
        opened.result()

    def submit(self, job: Job, *, is_urgent: bool) -> Future[Sample | None]:
        """Carry out `job` in the thread of the store; the future is done when it is on disk.

        Args:
            job: gets the store.
            is_urgent: a person waits for it; others leave `RESERVED` places to these.

        Raises:
            SampleError: too many wait already.
        """
        n_waiting, limit = self._jobs.qsize(), DEPTH if is_urgent else DEPTH - RESERVED
        if n_waiting >= limit:
            raise SampleError(
                f"{n_waiting} samples wait to be written; is the disk slow? Try again in a second"
            )
        future: Future[Sample | None] = Future()
        self._jobs.put((job, future))
        return future

    def close(self) -> None:
        """Write what waits, then close the store and end the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _write_for_ever(self, open_store: Callable[[], SampleStore], opened: Future[None]) -> None:
        try:
            store = open_store()
            self.counts = store.counts()
        except BaseException as error:  # carried to the inference thread, which raises it
            opened.set_exception(error)
            return
        opened.set_result(None)
        with store:
            while (entry := self._jobs.get()) is not None:
                job, future = entry
                try:
                    outcome = job(store)
                    self.counts = store.counts()
                except BaseException as error:  # likewise
                    future.set_exception(error)
                else:
                    future.set_result(outcome)
