"""Frames in shared memory: one ring file per camera, written by capture, read by infer.

A plain mapped file, not `multiprocessing.shared_memory`: that one is destroyed by whichever process
attached to it and ends first. All room is allocated before the first frame, so a full /dev/shm is an
error with a sentence and never a SIGBUS.

Every slot has a generation, odd while it is written. A reader copies the frame and looks at the generation
again: if it moved, the copy may be torn and is thrown away. The order of the stores that this needs
is given by x86; on ARM a slot is reused only after all others, long after any store has settled.
"""

import mmap
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

from ..pipelines.errors import MALFORMED, MessageError, NoRoomError, RingError

U8 = npt.NDArray[np.uint8]

MAGIC, VERSION = b"VSGRING\0", 1
HEADER_BYTES = 4096
# int64 words of the header
VERSION_AT, RING_ID_AT, PID_AT, STARTED_AT, SLOTS_AT, SLOT_BYTES_AT = 1, 2, 3, 4, 5, 6
GENERATIONS_AT, GENERATION_STEP = 64, 8  # every generation in a cache line of its own
CAPTURED_STEP = 1  # the word after a generation: `captured_ns` of the frame in the slot
MAX_SLOTS = (HEADER_BYTES // 8 - GENERATIONS_AT) // GENERATION_STEP
NAME = re.compile(r"visaged-[a-z0-9_-]+-[0-9a-f]{16}")
YOUNG_S = 10.0  # a ring without header, younger than this, is just being made

Positive = Annotated[int, Meta(ge=1)]
Natural = Annotated[int, Meta(ge=0)]


class Descriptor(Struct, frozen=True, kw_only=True, array_like=True):
    """What travels on channel "frames": where a frame is, or that something has to be settled.

    `kind` is `frame`; or `mark`, which asks the reader to settle everything before `seq`, because a frame
    that is neither published nor dropped by then was lost with a process; or `end`, a mark after which the
    source has no more frames. Of `mark` and `end`, `seq` is the next frame's.
    `dropped_before` counts the frames that capture itself dropped before `seq`.
    """

    kind: Literal["frame", "mark", "end"]
    policy: Literal["live", "replay"]
    seq: Positive
    dropped_before: Natural
    ring: str = ""
    slot: Natural = 0
    generation: Natural = 0
    captured_ns: int = 0
    captured_at: float = 0.0
    width: Natural = 0
    height: Natural = 0
    reason: str = ""

    @property
    def end(self) -> bool:
        """Whether the source has no more frames."""
        return self.kind == "end"


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Descriptor)


def encode_descriptor(descriptor: Descriptor) -> bytes:
    """Return `descriptor` as MessagePack."""
    return _encoder.encode(descriptor)


def decode_descriptor(data: bytes) -> Descriptor:
    """Return the descriptor in `data`.

    Raises:
        MessageError: it is none.
    """
    try:
        return _decoder.decode(data)
    except MALFORMED as error:
        raise MessageError(
            f"{len(data)} bytes are no frame descriptor ({error}); is another program writing to this socket?"
        ) from error


class FrameRing:
    """The writer's end. Owned by the capture thread, which alone writes."""

    def __init__(self, shm_dir: Path, owner: str, n_slots: int, slot_bytes: int) -> None:
        """Make a ring for `owner`, `<instance>-<camera>`, and allocate all of it.

        Raises:
            NoRoomError: no room.
            RingError: no such folder, or it cannot be written.
        """
        if not 2 <= n_slots <= MAX_SLOTS:
            raise RingError(f"a ring of {n_slots} slots is impossible; set ring_slots to 3 to 32")
        ring_id = secrets.token_hex(8)
        self.name = f"visaged-{owner}-{ring_id}"
        self.n_slots, self.slot_bytes = n_slots, slot_bytes
        self._stride = -(-slot_bytes // 64) * 64
        self._path = shm_dir / self.name
        n_bytes = HEADER_BYTES + n_slots * self._stride
        memory = _allocate(self._path, n_bytes, f"{n_slots} frames of {slot_bytes / 1e6:.1f} MB for {owner}")
        self._words = np.frombuffer(memory, np.int64, HEADER_BYTES // 8)
        self._data = np.frombuffer(memory, np.uint8, offset=HEADER_BYTES)
        self._n_written = 0
        pid = os.getpid()
        self._words[VERSION_AT] = VERSION
        self._words[RING_ID_AT] = np.uint64(int(ring_id, 16)).astype(np.int64)
        self._words[PID_AT], self._words[STARTED_AT] = pid, start_ticks(pid) or 0
        self._words[SLOTS_AT], self._words[SLOT_BYTES_AT] = n_slots, slot_bytes
        memory[: len(MAGIC)] = MAGIC  # last: with it the header is complete

    def write(self, rgb: U8, captured_ns: int = 0) -> tuple[int, int]:
        """Copy `rgb`, `(H, W, 3)` and at most `slot_bytes` large, in; return its slot and generation."""
        slot = self._n_written % self.n_slots
        word = GENERATIONS_AT + slot * GENERATION_STEP
        generation = int(self._words[word]) + 2
        start = slot * self._stride
        self._words[word] = generation - 1
        self._words[word + CAPTURED_STEP] = captured_ns
        self._data[start : start + rgb.size].reshape(rgb.shape)[...] = rgb
        self._words[word] = generation
        self._n_written += 1
        return slot, generation

    def close(self) -> None:
        """Remove the ring; readers that have it keep their mapping. A second call does nothing."""
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RingReader:
    """The reader's end of one ring. Owned by one thread."""

    def __init__(self, shm_dir: Path, ring: str) -> None:
        """Map the ring called `ring` read-only.

        Raises:
            RingError: there is none, or it is not one of ours.
        """
        if not NAME.fullmatch(ring):
            raise RingError(
                f"{ring!r} is no name of a ring of frames; is another program writing descriptors?"
            )
        path = shm_dir / ring
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise RingError(f"{path} cannot be opened ({error.strerror}); its capture has ended") from error
        try:
            n_bytes = os.fstat(descriptor).st_size
            if n_bytes < HEADER_BYTES:
                raise RingError(f"{path} is no ring of frames; remove it")
            memory = mmap.mmap(descriptor, n_bytes, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
        self.id = ring
        self._words = np.frombuffer(memory, np.int64, HEADER_BYTES // 8)
        self._data = np.frombuffer(memory, np.uint8, offset=HEADER_BYTES)
        self._n_slots, self._slot_bytes = int(self._words[SLOTS_AT]), int(self._words[SLOT_BYTES_AT])
        self._stride = -(-self._slot_bytes // 64) * 64
        ring_id = f"{int(self._words[RING_ID_AT]) & (2**64 - 1):016x}"
        is_ours = memory[: len(MAGIC)] == MAGIC and self._words[VERSION_AT] == VERSION
        if not is_ours or not ring.endswith(ring_id) or self._data.size != self._n_slots * self._stride:
            raise RingError(f"{path} is no ring of frames of this version; stop its writer and remove it")

    def view(self, descriptor: Descriptor) -> U8:
        """Return the slot as `(H, W, 3)` uint8, read-only, without a copy.

        The writer may overwrite it at any time: ask `is_intact` after use.

        Raises:
            RingError: the descriptor points outside of the ring.
        """
        height, width = descriptor.height, descriptor.width
        n_bytes = height * width * 3
        if descriptor.slot >= self._n_slots or not 0 < n_bytes <= self._slot_bytes:
            raise RingError(
                f"slot {descriptor.slot}, {width}x{height} px, is outside of ring {self.id} "
                f"({self._n_slots} slots of {self._slot_bytes} bytes); the descriptor is damaged"
            )
        start = descriptor.slot * self._stride
        return self._data[start : start + n_bytes].reshape(height, width, 3)

    def is_intact(self, descriptor: Descriptor) -> bool:
        """Whether the slot still holds the frame of `descriptor`."""
        word = GENERATIONS_AT + descriptor.slot * GENERATION_STEP
        return int(self._words[word]) == descriptor.generation

    def read(self, descriptor: Descriptor) -> U8 | None:
        """Return a copy of the frame, or None when the writer was faster (`ring_overrun`).

        Raises:
            RingError: the descriptor points outside of the ring.
        """
        view = self.view(descriptor)
        if not self.is_intact(descriptor):
            return None
        rgb = view.copy()
        return rgb if self.is_intact(descriptor) else None

    def find(self, captured_ns: int) -> tuple[int, int] | None:
        """Return slot and generation of the frame captured at `captured_ns`, or None when it is gone.

        For readers that follow the results and have no descriptor.
        """
        for slot in range(self._n_slots):
            word = GENERATIONS_AT + slot * GENERATION_STEP
            if int(self._words[word + CAPTURED_STEP]) == captured_ns:
                return slot, int(self._words[word])
        return None

    def close(self) -> None:
        """Let go of the mapping once no view is left."""
        self._data = self._data[:0].copy()
        self._words = self._words[:0].copy()


def _allocate(path: Path, n_bytes: int, what: str) -> mmap.mmap:
    """Return a new mapped file of `n_bytes`, every page of it allocated.

    Raises:
        NoRoomError: no room.
        RingError: no such folder, or it cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise RingError(
            f"cannot make a ring of frames in {path.parent} ({error.strerror}); check [paths] shm"
        ) from error
    try:
        os.posix_fallocate(descriptor, 0, n_bytes)
        return mmap.mmap(descriptor, n_bytes)
    except OSError as error:
        path.unlink(missing_ok=True)
        space = os.statvfs(path.parent)
        raise NoRoomError(
            f"no room in {path.parent} for {what}: {n_bytes / 1e6:.1f} MB needed, "
            f"{space.f_bavail * space.f_frsize / 1e6:.1f} MB free ({error.strerror}); enlarge it "
            f"(mount -o remount,size=1G {path.parent}), or lower ring_slots or the camera's width and height"
        ) from error
    finally:
        os.close(descriptor)


def remove_stale(shm_dir: Path, instance: str) -> int:
    """Remove the rings of `instance` whose writer is dead; return how many."""
    n_removed = 0
    for path in shm_dir.glob(f"visaged-{instance}-*"):
        if NAME.fullmatch(path.name) and _is_stale(path):
            path.unlink(missing_ok=True)
            n_removed += 1
    return n_removed


def _is_stale(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            header = np.frombuffer(file.read(64), np.int64)
        age_s = time.time() - path.stat().st_mtime
    except OSError:  # gone meanwhile, or another user's
        return False
    if header.size < 8 or header[:1].tobytes() != MAGIC:
        return age_s > YOUNG_S
    return start_ticks(int(header[PID_AT])) != int(header[STARTED_AT])


def start_ticks(pid: int) -> int | None:
    """Return when process `pid` started, in clock ticks since boot; None when it is dead.

    Pid and start together name a process for ever: pids alone are given again.
    Source: proc(5), /proc/pid/stat, fields 3 and 22.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def rings_of(shm_dir: Path, instance: str) -> Iterator[Path]:
    """Return the ring files of `instance`, for reports and tests."""
    return (path for path in sorted(shm_dir.glob(f"visaged-{instance}-*")) if NAME.fullmatch(path.name))
