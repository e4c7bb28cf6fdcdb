"""Let whatever serves come first: for processes that build and learn beside it."""

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

NICENESS = 19  # of at most 19
OOM_SCORE_ADJ = 500  # -1000 to 1000; if memory runs out, whatever serves goes last


def step_back(*, is_batch: bool = False) -> None:
    """Take the lowest priority, for the processor and when memory runs out.

    With `is_batch` the kernel also knows that nobody waits for this process (SCHED_BATCH): it is woken later
    and interrupted less, which leaves caches to others.
    """
    os.nice(NICENESS)
    Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJ))
    if is_batch:
        try:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        except OSError as error:  # a container may forbid it; nice is what counts
            log.warning("the kernel does not let this process be SCHED_BATCH: %s", error)
