"""Processes that die where a test says: at an operation on a file, or inside SQLite.

A test tries every place in turn: it forks a child that does one thing and dies at its Nth step, looks at what
is left, and goes on with N + 1 until a child gets through.
"""

import multiprocessing
import os
import signal
import sqlite3
import sys
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
SPAWN = multiprocessing.get_context("spawn")
DEATHS = (-signal.SIGKILL, -signal.SIGXFSZ)  # the second: a write beyond RLIMIT_FSIZE


def outcomes_of(tries: Callable[P, Iterator[T]], *args: P.args, **kwargs: P.kwargs) -> list[T]:
    """Return what `tries` yields in a process of its own, where forking is safe: it has no other threads."""
    ours, theirs = SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=_send_all, args=(tries, args, kwargs, theirs))
    process.start()
    theirs.close()
    outcomes: list[T] = []
    while (outcome := ours.recv()) is not None:
        outcomes.append(outcome)
    process.join(60)
    assert process.exitcode == 0
    return outcomes


def _send_all(
    tries: Callable[..., Iterator[T]], args: tuple[Any, ...], kwargs: dict[str, Any], answers: Connection
) -> None:
    for outcome in tries(*args, **kwargs):
        answers.send(outcome)
    answers.send(None)


def gets_through(act: Callable[[], object]) -> bool:
    """Fork a child for `act`; return whether it came to its end, or to `os._exit(0)`, before it died."""
    child = os.fork()
    if not child:
        try:
            act()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, *DEATHS), f"the child did not die, it failed with {code}"
    return code == 0


def die_at_operation(step: int, folder: Path) -> None:
    """Let this process die by SIGKILL when the `step`th operation on a file below `folder` begins."""
    count = _countdown(step)

    def hook(_: str, arguments: tuple[Any, ...]) -> None:
        if any(isinstance(a, str | os.PathLike) and str(folder) in os.fspath(a) for a in arguments):
            count()

    sys.addaudithook(hook)


def die_inside_sqlite(step: int, database: sqlite3.Connection) -> None:
    """Let this process die by SIGKILL at the `step`th instruction of SQLite's machine."""
    database.set_progress_handler(_countdown(step), 1)


def _countdown(left: int) -> Callable[[], int]:
    def count() -> int:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    return count
