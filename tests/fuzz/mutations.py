"""Spoil valid inputs: cut, flip, splice, repeat and overwrite, as bad disks, networks and attackers do.

`VISAGED_FUZZ=N` draws N inputs for each target instead of the few that every run of the tests affords.
"""

import os
import random
from collections.abc import Callable, Sequence

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from visaged.pipelines.errors import VisagedError

N_INPUTS = int(os.environ.get("VISAGED_FUZZ") or 0)
MOST_STEPS = 4
EDGES = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\x00" * 8, b"[" * 3000, b"\x91" * 3000,
         b"-1", b"1e999", b"\"\\ud800\"", b"\xc3\x28", b"nan", b"\x81\xa3\xff\xff\xff\x01")  # fmt: skip
"""Numbers at their ends, nesting without an end, text that is no text."""

Read = Callable[[bytes], object]


class Spoiled(bytes):
    """Bytes that a report of hypothesis can hold."""

    def __repr__(self) -> str:
        return bytes.__repr__(self) if len(self) < 5000 else f"<{len(self)} bytes, {bytes(self[:400])!r}…>"


def bounded(n_usual: int) -> settings:
    """Return hypothesis' settings for a target that affords `n_usual` inputs in every run of the tests."""
    return settings(
        max_examples=N_INPUTS or n_usual,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        derandomize=not N_INPUTS,
    )


def spoiled(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Return valid inputs, and such after a few mutations; now and then plain noise."""
    mutated = st.builds(_mutate, st.sampled_from(seeds), st.sampled_from(seeds), st.integers(0, 2**64 - 1))
    return st.one_of(mutated, mutated, mutated, st.binary(max_size=400))


def answers_or_explains(read: Read, data: bytes) -> bool:
    """Return whether `read` accepts `data`; whatever it raises but one of our own errors passes through."""
    try:
        read(data)
    except VisagedError as error:
        assert str(error)
        return False
    return True


def _mutate(seed: bytes, other: bytes, draw: int) -> Spoiled:
    """Return `seed` after up to `MOST_STEPS` mutations that `draw` decides."""
    dice, data = random.Random(draw), bytearray(seed)
    for _ in range(dice.randint(0, MOST_STEPS)):
        # headers and lengths stand at the beginning: half of all mutations
        at = dice.randrange(min(len(data), 400) if dice.random() < 0.5 and data else len(data) + 1)
        length = dice.choice((1, 2, 4, 16, 100))
        match dice.randrange(7):
            case 0:
                del data[at:]
            case 1:
                del data[at : at + length]
            case 2 if at < len(data):
                data[at] ^= 1 << dice.randrange(8)
            case 3 if at < len(data):
                data[at] = dice.randrange(256)
            case 4:
                data[at:at] = data[at : at + length]
            case 5:
                data[at : at + length] = dice.choice(EDGES)
            case _:
                start = dice.randrange(len(other) + 1)
                data[at : at + length] = other[start : start + length]
    return Spoiled(data)
