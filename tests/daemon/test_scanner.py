"""The thread that searches whole frames."""

import threading
import time

import numpy as np
import pytest
from visaged.daemon.scanner import Scanner
from visaged.pipelines.frame import Frame
from visaged.pipelines.inference import Scan


class SlowSearch:
    """Stands where the pipeline stands; waits for `go` before it answers."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun = threading.Event()
        self.fault: Exception | None = None

    def warm_up(self) -> None:
        """Ready at once."""

    def scan(self, frame: Frame) -> Scan:
        self.begun.set()
        assert self.go.wait(10)
        if self.fault is not None:
            raise self.fault
        return Scan(frame.seq, ())


def frame(camera: str, seq: int) -> Frame:
    return Frame(camera, seq, seq, np.zeros((4, 4, 3), np.uint8))


def take_soon(scanner: Scanner, camera: str) -> Scan:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        scan = scanner.take(camera)
        if scan is not None:
            return scan
        time.sleep(0.001)
    raise AssertionError(f"no scan of {camera}")


def test_a_scan_arrives_later_with_the_number_of_its_frame() -> None:
    search = SlowSearch()
    scanner = Scanner(search)

    assert scanner.submit(frame("a", 7))
    assert scanner.take("a") is None
    search.go.set()

    assert take_soon(scanner, "a").seq == 7
    assert scanner.take("a") is None  # once
    scanner.close()


def test_one_frame_per_camera_waits_and_cameras_take_turns() -> None:
    search = SlowSearch()
    scanner = Scanner(search)
    scanner.submit(frame("a", 1))
    assert search.begun.wait(10)

    assert scanner.submit(frame("a", 2))
    assert not scanner.submit(frame("a", 3))
    assert scanner.submit(frame("b", 4))
    search.go.set()

    assert take_soon(scanner, "b").seq == 4
    assert take_soon(scanner, "a").seq == 2  # the newer result has replaced that of frame 1
    scanner.close()


def test_a_detector_that_fails_ends_the_inference_thread() -> None:
    search = SlowSearch()
    search.fault = RuntimeError("the detector broke")
    search.go.set()
    scanner = Scanner(search)
    scanner.submit(frame("a", 1))

    with pytest.raises(RuntimeError, match="the detector broke"):
        take_soon(scanner, "a")
    scanner.close()
