"""What `visaged doctor` looks at in the machine: folders, room, clock, cameras, what runs networks."""

import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..daemon.camera import Broken, CameraConfig, SourceKind, open_camera, shown_source
from ..daemon.outline import Outline, PathsConfig
from ..daemon.ring import HEADER_BYTES, rings_of
from ..pipelines.engines.engine import EngineConfig
from ..pipelines.engines.engine_loader import choose
from ..pipelines.engines.hardware import version_of
from ..pipelines.errors import VisagedError
from ..pipelines.privacy.wall_clock import WallClock
from .finding import Finding, fail, ok, refused, warn

FULL_BYTES, LOW_BYTES = 200 << 20, 1 << 30  # networks, plans and a day of samples fit below the second
USUAL_FRAME_BYTES = 1920 * 1080 * 3  # of a camera whose size nobody set
DRIFT_S, WATCHED_S = 0.02, 0.2
IN_MEMORY = ("tmpfs", "ramfs")


def folders(paths: PathsConfig) -> Iterator[Finding]:
    """Look at whether we may write the folders, and nobody may who should not."""
    for key, path, forbidden in (
        ("state", paths.state, 0o077),
        ("cache", paths.cache, 0o022),
        ("runtime", paths.runtime, 0o027),
    ):
        check = f"folder {key}"
        there = _nearest(path)
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            yield fail(check, f"{there} cannot be written by this user", f"chown it, or set [paths] {key}")
        elif there != path:
            yield ok(check, f"{path} will be made")
        elif (mode := stat.S_IMODE(path.stat().st_mode)) & forbidden:
            what = f"{path} is open to others (mode {mode:04o})"
            yield fail(check, what, f"chmod {mode & ~forbidden:04o} {path}")
        else:
            yield ok(check, f"{path}, mode {mode:04o}")


def disk(paths: PathsConfig, full_bytes: int = FULL_BYTES, low_bytes: int = LOW_BYTES) -> Iterator[Finding]:
    """Look at the room for state and cache: a failure below `full_bytes`, a warning below `low_bytes`."""
    for key, path in (("state", paths.state), ("cache", paths.cache)):
        free = shutil.disk_usage(_nearest(path)).free
        what = f"{free / 1e9:.1f} GB free for {path}"
        mend = f"free space, `visaged plans prune`, or set [paths] {key} to another disk"
        if free < low_bytes:
            yield (fail if free < full_bytes else warn)(f"disk {key}", what, mend)
        else:
            yield ok(f"disk {key}", what)


def shared_memory(outline: Outline) -> Iterator[Finding]:
    """Look at whether the rings of all cameras fit in memory; those that are there already count as room."""
    shm = outline.paths.shm
    if not shm.is_dir():
        yield fail("shm", f"{shm} is no folder", "set [paths] shm to one in memory, as /dev/shm")
        return
    if (kind := filesystem_of(shm)) not in IN_MEMORY:
        yield warn("shm", f"{shm} is on {kind}, not in memory: every frame goes to a disk", "set [paths] shm")
    need = sum(_ring_bytes(camera) for camera in outline.camera)
    present = sum(path.stat().st_size for path in rings_of(shm, outline.instance))
    room = shutil.disk_usage(shm).free + present
    what = f"{need / 1e6:.0f} MB of rings for {len(outline.camera)} cameras, {room / 1e6:.0f} MB of room"
    if need > room:
        mend = f"mount -o remount,size={need * 5 // 4 >> 20}M {shm}, or lower ring_slots or the cameras' size"
        yield fail("shm", what, mend)
    else:
        yield ok("shm", what)


def clock(
    state: Path, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
) -> Iterator[Finding]:
    """Look at whether the wall clock is believed, and runs as fast as the monotonic one."""
    if step_s := WallClock(state, wall).step_s():
        what = (
            f"the wall clock says {_utc(wall())}, {step_s:+.0f} s off, and is not believed: what is too old"
        )
        what += " goes late, by the time that this machine is on"
        mend = "set the clock, `timedatectl set-ntp true`; where it is right, `visaged clock --believe`"
        yield warn("clock", what, mend)
        return
    began, deadline = wall() - monotonic(), monotonic() + WATCHED_S
    while monotonic() < deadline:
        time.sleep(WATCHED_S / 10)
    drift_s = wall() - monotonic() - began
    if abs(drift_s) > DRIFT_S:
        what = f"the wall clock moved by {1e3 * drift_s:.0f} ms against the monotonic one in {WATCHED_S} s"
        yield warn("clock", what, "something sets it all the time: let only one service keep the time")
    else:
        yield ok("clock", _utc(wall()))


def backend(config: EngineConfig, devices: Path = Path("/dev")) -> Iterator[Finding]:
    """Look at what the networks would run on, and whether a GPU is left out."""
    try:
        choice = choose(config)
    except VisagedError as error:
        yield refused("backend", error)
        return
    library = f"{choice.backend.value} {version_of(choice.backend)}"
    what = f"{choice.precision.value} with {library} on {choice.device}"
    if choice.device == "cpu" and config.device == "auto" and any(devices.glob("nvidia[0-9]*")):
        what = f"an NVIDIA GPU is here and does nothing: {what}"
        yield warn("backend", what, "pip install 'visaged[tensorrt-rtx]'; `nvidia-smi` must list the GPU")
    else:
        yield ok("backend", what)


def cameras(configs: tuple[CameraConfig, ...], *, in_use: bool) -> Iterator[Finding]:
    """Take a frame of each camera; those that a running daemon may hold (`in_use`) are left alone."""
    if not configs:
        yield fail("camera", "there is no [[camera]]", "add one with a name and a source")
    for config in configs:
        check = f"camera {config.name}"
        if in_use and config.kind in (SourceKind.DEVICE, SourceKind.STREAM):
            yield ok(check, f"{shown_source(config.source)} is the running daemon's, not opened")
            continue
        try:
            yield _look(check, config)
        except VisagedError as error:
            yield refused(check, error)


def _look(check: str, config: CameraConfig) -> Finding:
    camera = open_camera(config)
    try:
        frame = camera.read()
    finally:
        camera.close()
    shown = shown_source(config.source)
    if frame is None:
        return fail(check, f"{shown} has no frames", "name another source")
    if isinstance(frame, Broken):
        return warn(
            check, f"the first frame cannot be used: {frame.why}", "look at the picture of the camera"
        )
    height, width, _ = frame.shape
    if width * height > config.max_pixels:
        mend = "raise max_pixels, or let the camera send smaller ones"
        return fail(check, f"frames of {width}x{height} px are over max_pixels, none is used", mend)
    if not frame.any():
        return warn(check, f"{shown} is black", "take off the cap, or switch on the light")
    return ok(check, f"{shown}, {width}x{height}, {camera.fps:g} frames/s")


def filesystem_of(path: Path) -> str:
    """Return the kind of file system that `path` is on, as `ext4`; "?" where nobody knows."""
    best, kind = Path(), "?"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, mounted, *_ = line.split(" ")
        if path.resolve().is_relative_to(point) and len(point) >= len(str(best)):
            best, kind = Path(point), mounted
    return kind


def _ring_bytes(camera: CameraConfig) -> int:
    frame_bytes = camera.width * camera.height * 3 or USUAL_FRAME_BYTES
    return HEADER_BYTES + camera.ring_slots * frame_bytes


def _utc(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))


def _nearest(path: Path) -> Path:
    """Return `path`, or what of it exists."""
    return next((each for each in (path, *path.parents) if each.exists()), path)
