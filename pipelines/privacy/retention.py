"""How long the records of what was done to people are kept: receipts of erasures, and the audit log."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from ..errors import StoreError
from .audit import cut, oldest_at
from .erasure import read_receipt

log = logging.getLogger(__name__)

DAY_S = 86_400.0


class RecordsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long receipts and audit log are kept. They name nobody; see docs/privacy.md."""

    keep_receipts_days: Annotated[float, Meta(gt=0)] = 1095.0
    """Days after which the signed receipt of an erasure is deleted; whoever was given it keeps theirs."""
    keep_audit_days: Annotated[float, Meta(gt=0)] = 365.0
    """Days after which a line of the audit log is cut off; what is left still verifies."""


def expire_records(state: Path, config: RecordsConfig, now: Callable[[], float]) -> None:
    """Delete the receipts in `state`, and cut off the lines of its audit log, that are too old.

    What cannot be deleted is an error in the log, and tried again the next time.
    """
    try:
        if n_receipts := _expire_receipts(state, now() - config.keep_receipts_days * DAY_S):
            log.info("deleted %d receipts that were too old", n_receipts)
        oldest, before = oldest_at(state), now() - config.keep_audit_days * DAY_S
        if oldest is not None and oldest < before:
            log.info("cut %d lines off the audit log that were too old", cut(state, before, now()))
    except (OSError, StoreError) as error:
        log.error("receipts or audit log that are too old could not be deleted: %s", error)


def _expire_receipts(state: Path, before: float) -> int:
    """Delete the receipts from before that time; what is no receipt is somebody else's and stays."""
    n_deleted = 0
    for path in (state / "receipts").glob("*.json"):
        try:
            is_old = read_receipt(path).at < before
        except StoreError:
            continue
        if is_old:
            path.unlink(missing_ok=True)
            n_deleted += 1
    return n_deleted
