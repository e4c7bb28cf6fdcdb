"""Memory that was freed is the kernel's again: measured on this process, with 200 MB in small pieces."""

import ctypes
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
from visaged.daemon.background_load import BackgroundLoad, retire
from visaged.daemon.freed_memory import _trim_of, give_back
from visaged.pipelines.releases.release import LoadedRelease

PIECE_BYTES, N_PIECES = 100_000, 2000  # below the size from which malloc asks the kernel for each
MOST_MB = 150


def anonymous_mb() -> float:
    """Memory of this process that is no file's."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024


class Hoard:
    """Stands for a release: much memory, and something that was allocated after it and stays."""

    def __init__(self) -> None:
        self._pieces = [b"\1" * PIECE_BYTES for _ in range(N_PIECES)]

    def close(self) -> None:
        """Free all but the last: the heap cannot shrink by itself."""
        del self._pieces[:-1]


@pytest.fixture
def hoard() -> Iterator[Hoard]:
    give_back()
    before = anonymous_mb()
    made = Hoard()
    assert anonymous_mb() - before > MOST_MB
    yield made


def wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_what_malloc_keeps_goes_back(hoard: Hoard) -> None:
    full = anonymous_mb()
    hoard.close()
    kept = full - anonymous_mb()

    give_back()

    assert kept < 50  # else there was nothing to give back
    assert full - anonymous_mb() > MOST_MB


def test_a_release_that_retires_leaves_nothing(hoard: Hoard) -> None:
    full = anonymous_mb()

    retire(cast(LoadedRelease, hoard))

    assert wait_until(lambda: full - anonymous_mb() > MOST_MB)


def test_what_loading_took_for_a_moment_goes_back(hoard: Hoard) -> None:
    full, loaded = anonymous_mb(), cast(LoadedRelease, hoard)

    def read_and_close() -> LoadedRelease:
        hoard.close()
        return loaded

    load = BackgroundLoad(read_and_close, lambda: ())

    assert wait_until(lambda: full - anonymous_mb() > MOST_MB)
    load.close()


def test_a_c_library_without_it_keeps_what_it_keeps() -> None:
    assert _trim_of(cast(ctypes.CDLL, object()))(0) == 0
