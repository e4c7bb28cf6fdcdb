"""Search whole frames for faces beside the inference thread, so that no frame waits for it.

A scan of a 720p frame takes longer than a frame lasts. dlib's detector releases the GIL, so a second
thread can do it while the inference thread follows the known faces; the result comes a few frames late
and the tracker carries it to the present.
"""

import threading
from collections import deque
from typing import Protocol

from ..pipelines.frame import Frame
from ..pipelines.inference import Scan


class Search(Protocol):
    """Finds the faces in a whole frame: an `InferencePipeline`."""

    def warm_up(self) -> None:
        """Get ready in the thread that calls."""

    def scan(self, frame: Frame) -> Scan:
        """Return the faces of `frame`."""


class Scanner:
    """One thread that scans the newest waiting frame of each camera in turn.

    `submit` and `take` are called by the inference thread; the lock guards the two small tables only and
    is never held during a scan. A scan that fails ends the process through `take`: a detector that cannot
    run is a fault of the box, not of a frame.
    """

    def __init__(self, search: Search) -> None:
        self._search = search
        self._waiting: deque[Frame] = deque()
        self._done: dict[str, Scan] = {}
        self._failure: BaseException | None = None
        self._wake = threading.Condition()
        self._is_open = True
        self._thread = threading.Thread(target=self._scan_for_ever, name="scanner", daemon=True)
        self._thread.start()

    def submit(self, frame: Frame) -> bool:
        """Ask for a scan of `frame`; False when one of this camera still waits."""
        with self._wake:
            if any(waiting.camera == frame.camera for waiting in self._waiting):
                return False
            self._waiting.append(frame)
            self._wake.notify()
        return True

    def take(self, camera: str) -> Scan | None:
        """Return the finished scan of `camera`, once, or None."""
        with self._wake:
            if self._failure is not None:
                raise self._failure
            return self._done.pop(camera, None)

    def close(self) -> None:
        """Let the running scan finish and end the thread."""
        with self._wake:
            self._is_open = False
            self._wake.notify()
        self._thread.join()

    def _scan_for_ever(self) -> None:
        try:
            self._search.warm_up()
            while (frame := self._next()) is not None:
                scan = self._search.scan(frame)
                with self._wake:
                    self._done[frame.camera] = scan
        except BaseException as error:  # carried to the inference thread, which raises it
            with self._wake:
                self._failure = error

    def _next(self) -> Frame | None:
        """Wait for a frame; None when closed."""
        with self._wake:
            self._wake.wait_for(lambda: self._waiting or not self._is_open)
            return self._waiting.popleft() if self._is_open else None
