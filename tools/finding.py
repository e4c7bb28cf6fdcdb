"""What `visaged doctor` finds: one line ok, warn or fail, and how to mend what is not ok."""

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from msgspec import Struct

from ..pipelines.errors import VisagedError

Verdict = Literal["ok", "warn", "fail"]


class Finding(Struct, frozen=True):
    """One line. `mend` says what to do; empty where the sentence says it, or nothing is to be done."""

    check: str
    verdict: Verdict
    what: str
    mend: str = ""


def ok(check: str, what: str) -> Finding:
    """Return that all is well."""
    return Finding(check, "ok", what)


def warn(check: str, what: str, mend: str = "") -> Finding:
    """Return that something is worth a look."""
    return Finding(check, "warn", what, mend)


def fail(check: str, what: str, mend: str = "") -> Finding:
    """Return that faces are missed, or data are in danger, until somebody mends it."""
    return Finding(check, "fail", what, mend)


def refused(check: str, error: VisagedError) -> Finding:
    """Return the failure that `error` explains; what to do stands behind its semicolon."""
    what, _, mend = str(error).partition("; ")
    return fail(check, what, mend)


def tried(check: str, attempt: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield what `attempt` finds; one of our errors, or no right to look, is a failure of `check`."""
    try:
        yield from attempt()
    except VisagedError as error:
        yield refused(check, error)
    except OSError as error:
        what = f"{error.filename or check} cannot be looked at ({error.strerror or error})"
        yield fail(check, what, "run this as root, or as the user who runs the daemon")
