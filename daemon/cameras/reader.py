"""A thread around one camera, so that a read that never returns is noticed and left behind."""

import queue
import threading
import time
from dataclasses import dataclass

from ...pipelines.errors import VisagedError
from ..camera import U8, Broken, Camera, CameraConfig, open_camera

HANDOVER_DEPTH = 1  # frames waiting between the thread and its owner; the thread then waits, nothing is lost
STEP_S = 0.1  # how long the thread waits before it looks whether it has been left
MAX_LAG_S = 0.5  # a paced source that is later than this gives up catching up


@dataclass(frozen=True, slots=True)
class Shot:
    """A frame and when it was complete: monotonic ns, and wall-clock s for humans."""

    captured_ns: int
    captured_at: float
    rgb: U8


@dataclass(frozen=True, slots=True)
class Opened:
    """The source is open; frames come next."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The source has been read to its end."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The source cannot be opened, or is lost."""

    error: Exception


Event = Opened | Shot | Broken | Ended | Failed


class CameraReader:
    """Reads one camera in a thread of its own, from opening to closing.

    The camera belongs to the thread. The owner takes events; when it leaves, the thread closes the camera
    as soon as the read in progress returns, if it ever does.
    """

    def __init__(self, config: CameraConfig) -> None:
        self._config = config
        self._events: queue.Queue[Event] = queue.Queue(HANDOVER_DEPTH)
        self._is_left = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"camera-{config.name}", daemon=True)
        self._thread.start()

    def next(self, timeout_s: float) -> Event | None:
        """Return the next event, or None when there is none within `timeout_s`."""
        try:
            return self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def leave(self, timeout_s: float = 1.0) -> bool:
        """Ask the thread to end and return whether it did; a stuck one is left behind."""
        self._is_left.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def is_alive(self) -> bool:
        """Whether the thread still runs."""
        return self._thread.is_alive()

    def _work(self) -> None:
        try:
            camera = open_camera(self._config)
        except Exception as error:  # handed to the owner, who decides
            self._hand_over(Failed(error))
            return
        try:
            self._hand_over(Opened())
            self._read_all(camera)
        except VisagedError as error:
            self._hand_over(Failed(error))
        except Exception as error:
            self._hand_over(Failed(error))
        finally:
            camera.close()

    def _read_all(self, camera: Camera) -> None:
        pace = Pace(camera.fps) if self._config.is_paced and camera.fps else None
        while not self._is_left.is_set():
            item = camera.read()
            if pace is not None and pace.wait(self._is_left):
                return
            if item is None:
                self._hand_over(Ended())
                return
            if isinstance(item, Broken):
                self._hand_over(item)
            else:
                self._hand_over(Shot(time.monotonic_ns(), time.time(), item))

    def _hand_over(self, event: Event) -> None:
        while not self._is_left.is_set():
            try:
                self._events.put(event, timeout=STEP_S)
            except queue.Full:
                continue
            return


class Pace:
    """A clock with one tick per frame. Owned by the reading thread."""

    def __init__(self, fps: float) -> None:
        self._period_s = 1 / fps
        self._due_s = time.monotonic()

    def wait(self, stop: threading.Event) -> bool:
        """Wait for the next tick; return whether `stop` was set meanwhile."""
        now = time.monotonic()
        if now - self._due_s > MAX_LAG_S:
            self._due_s = now
        is_stopped = stop.wait(max(0.0, self._due_s - now))
        self._due_s += self._period_s
        return is_stopped
