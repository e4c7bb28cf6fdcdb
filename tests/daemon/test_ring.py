import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from visaged.daemon.ring import (
    HEADER_BYTES,
    Descriptor,
    FrameRing,
    RingReader,
    decode_descriptor,
    encode_descriptor,
    remove_stale,
    rings_of,
    start_ticks,
)
from visaged.pipelines.errors import MessageError, RingError

H, W = 48, 64


def frame(value: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.full((H, W, 3), value, np.uint8)


def descriptor_of(ring: FrameRing, slot: int, generation: int, width: int = W, height: int = H) -> Descriptor:
    return Descriptor(
        kind="frame",
        policy="live",
        seq=1,
        dropped_before=0,
        ring=ring.name,
        slot=slot,
        generation=generation,
        width=width,
        height=height,
    )


def test_a_frame_comes_out_as_it_went_in(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)
    with FrameRing(tmp_path, "t-a", 4, noise.size) as ring:
        descriptor = descriptor_of(ring, *ring.write(noise))
        reader = RingReader(tmp_path, ring.name)

        assert np.array_equal(reader.read(descriptor), noise)  # type: ignore[arg-type]
        assert oct((tmp_path / ring.name).stat().st_mode)[-3:] == "600"


def test_a_smaller_frame_fits_into_the_same_ring(tmp_path: Path) -> None:
    small = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
    with FrameRing(tmp_path, "t-a", 4, H * W * 3) as ring:
        descriptor = descriptor_of(ring, *ring.write(small), width=30, height=20)

        assert np.array_equal(RingReader(tmp_path, ring.name).read(descriptor), small)  # type: ignore[arg-type]


def test_a_frame_that_has_been_overwritten_is_not_returned(tmp_path: Path) -> None:
    with FrameRing(tmp_path, "t-a", 4, H * W * 3) as ring:
        first = descriptor_of(ring, *ring.write(frame(1)))
        reader = RingReader(tmp_path, ring.name)
        for value in range(2, 5):
            ring.write(frame(value))

        assert reader.read(first) is not None  # three more frames leave it alone
        ring.write(frame(5))
        assert reader.read(first) is None


def test_a_view_tells_that_it_was_torn_while_it_was_used(tmp_path: Path) -> None:
    with FrameRing(tmp_path, "t-a", 2, H * W * 3) as ring:
        first = descriptor_of(ring, *ring.write(frame(1)))
        reader = RingReader(tmp_path, ring.name)
        view = reader.view(first)
        assert reader.is_intact(first)
        assert not view.flags.writeable

        ring.write(frame(2))
        ring.write(frame(3))
        assert (view == 3).all()
        assert not reader.is_intact(first)


WRITER = """
import sys, numpy as np
from pathlib import Path
from visaged.daemon.ring import *
ring = FrameRing(Path(sys.argv[1]), "t-fast", 2, 480 * 640 * 3)
rgb = np.empty((480, 640, 3), np.uint8)
for seq in range(1, 100_000):
    rgb[...] = seq % 251
    slot, generation = ring.write(rgb)
    d = Descriptor(kind="frame", policy="live", seq=seq, dropped_before=0, ring=ring.name, slot=slot,
                   generation=generation, width=640, height=480)
    data = encode_descriptor(d)
    sys.stdout.buffer.write(len(data).to_bytes(4, "little") + data)
    sys.stdout.buffer.flush()
"""


def test_no_frame_is_torn_when_the_writer_is_faster_than_the_reader(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    reader: RingReader | None = None
    n_whole = n_overrun = 0
    until = time.monotonic() + 60  # on a busy machine; else well under a second
    try:
        while (n_whole + n_overrun < 300 or not n_overrun or not n_whole) and time.monotonic() < until:
            size = int.from_bytes(writer.stdout.read(4), "little")
            descriptor = decode_descriptor(writer.stdout.read(size))
            reader = reader or RingReader(tmp_path, descriptor.ring)
            rgb = reader.read(descriptor)
            if rgb is None:
                n_overrun += 1
            else:
                n_whole += 1
                assert rgb.min() == rgb.max() == descriptor.seq % 251, "a torn frame"
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()

    assert n_whole > 0
    assert n_overrun > 0  # the pipe lets the writer run ahead: else nothing was tested


def test_a_full_shm_is_one_sentence_and_leaves_nothing(small_shm: Path) -> None:
    with pytest.raises(RingError) as caught:
        FrameRing(small_shm, "t-a", 8, 1280 * 720 * 3)

    assert "22.1 MB needed, 2.1 MB free" in str(caught.value)
    assert "remount" in str(caught.value)
    assert list(small_shm.iterdir()) == []


def test_a_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RingError, match=r"cannot make a ring .*\[paths\] shm"):
        FrameRing(tmp_path / "none", "t-a", 8, 100)


def test_the_ring_of_a_killed_process_is_removed_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from visaged.daemon.ring import FrameRing;"
        "r = FrameRing(Path(sys.argv[1]), 't-dead', 2, 100); print('up', flush=True); time.sleep(60)"
    )
    dead = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert dead.stdout is not None
    dead.stdout.readline()
    with FrameRing(tmp_path, "t-alive", 2, 100) as alive:
        assert remove_stale(tmp_path, "t") == 0
        dead.kill()
        time.sleep(0.05)  # a zombie until we wait for it: dead all the same
        assert remove_stale(tmp_path, "t") == 1
        assert [path.name for path in rings_of(tmp_path, "t")] == [alive.name]
    dead.wait()
    dead.stdout.close()
    assert list(tmp_path.iterdir()) == []


def test_a_process_number_given_again_does_not_keep_a_ring_alive(tmp_path: Path) -> None:
    with FrameRing(tmp_path, "t-a", 2, 100) as ring:
        path = tmp_path / ring.name
        words = np.memmap(path, np.int64, "r+", shape=(8,))
        words[4] += 1  # another start than ours
        words.flush()

        assert remove_stale(tmp_path, "t") == 1
        assert not path.exists()


def test_files_that_are_no_rings_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "visaged-t-notes").write_text("mine")
    half_made = tmp_path / f"visaged-t-a-{'0' * 16}"
    half_made.write_bytes(b"")

    assert remove_stale(tmp_path, "t") == 0
    os.utime(half_made, (1, 1))
    assert remove_stale(tmp_path, "t") == 1
    assert (tmp_path / "visaged-t-notes").exists()


@pytest.mark.parametrize("name", ["../../etc/passwd", "visaged-t-a", "x" * 40, ""])
def test_a_name_that_is_no_ring_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RingError, match="no name of a ring"):
        RingReader(tmp_path, name)


def test_a_foreign_file_under_a_rings_name_is_refused(tmp_path: Path) -> None:
    name = f"visaged-t-a-{'0' * 16}"
    (tmp_path / name).write_bytes(bytes(HEADER_BYTES * 2))

    with pytest.raises(RingError, match="no ring of frames"):
        RingReader(tmp_path, name)


@pytest.mark.parametrize("changes", [{"slot": 4}, {"width": 65}, {"height": 0}])
def test_a_descriptor_outside_of_the_ring_is_refused(tmp_path: Path, changes: dict[str, int]) -> None:
    with FrameRing(tmp_path, "t-a", 4, H * W * 3) as ring:
        slot, generation = ring.write(frame(1))
        descriptor = descriptor_of(ring, changes.pop("slot", slot), generation, **changes)

        with pytest.raises(RingError, match="outside of ring"):
            RingReader(tmp_path, ring.name).read(descriptor)


@pytest.mark.parametrize("data", [b"", b"\x00", b"\xc1", encode_descriptor.__name__.encode(), b"\x90"])
def test_bytes_that_are_no_descriptor_are_refused(data: bytes) -> None:
    with pytest.raises(MessageError, match="no frame descriptor"):
        decode_descriptor(data)


def test_a_descriptor_survives_the_way(tmp_path: Path) -> None:
    descriptor = Descriptor(kind="end", policy="replay", seq=7, dropped_before=2, reason="end of file")

    assert decode_descriptor(encode_descriptor(descriptor)) == descriptor
    assert descriptor.end


def test_the_start_of_a_process_is_known_only_while_it_lives() -> None:
    child = subprocess.Popen(["sleep", "60"])
    started = start_ticks(child.pid)
    child.kill()
    child.wait()

    assert started is not None
    assert start_ticks(child.pid) is None
