"""The capture process as it really runs, against a reader that does infer's part, with kill -9 of either."""

import contextlib
import http.server
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from visaged.daemon.camera import CameraConfig
from visaged.daemon.cameras import reader
from visaged.daemon.capture import run_capture
from visaged.daemon.ledger import Ledger, LedgerSnapshot, ledger_path
from visaged.daemon.metrics import CaptureMetrics
from visaged.daemon.outline import Outline, PathsConfig
from visaged.daemon.ring import rings_of
from visaged.daemon.sockets import FramesReader
from visaged.pipelines.errors import VisagedError

MakeVideo = Callable[..., Path]
PATIENCE_S = 40.0  # the machine may be busy
READER = Path(__file__).with_name("settling_reader.py")


class Box:
    """One camera's processes in folders of their own. Everything started here is dead at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runtime = folder / "run"
        self.shm = folder / "ring"
        self.seen = folder / "seen"
        self.runtime.mkdir()
        self.shm.mkdir()
        self.started: list[subprocess.Popen[str]] = []

    def configure(self, source: object, **fields: object) -> None:
        """Write the configuration of camera `a`."""
        lines = [
            "[paths]",
            f'runtime = "{self.runtime}"',
            f'shm = "{self.shm}"',
            "[metrics]",
            "port = 0",
            "[[camera]]",
            'name = "a"',
            f'source = "{source}"',
        ]
        lines += [
            f"{key} = {value!r}".replace("True", "true").replace("'", '"') for key, value in fields.items()
        ]
        (self.folder / "visaged.toml").write_text("\n".join(lines))

    def start_capture(self) -> subprocess.Popen[str]:
        return self._start(
            "-m", "visaged.daemon.lifecycle", "capture@a", "--config", str(self.folder / "visaged.toml")
        )

    def start_reader(self, ms: float = 0) -> subprocess.Popen[str]:
        reader = self._start(
            str(READER), str(self.runtime), str(self.shm), "a", str(self.seen), str(ms), out=subprocess.PIPE
        )
        assert reader.stdout is not None
        assert reader.stdout.readline() == "up\n"
        reader.stdout.close()
        return reader

    def _start(self, *arguments: str, out: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=out, stderr=subprocess.PIPE, text=True
        )
        self.started.append(process)
        return process

    def book(self) -> LedgerSnapshot:
        with Ledger.open(ledger_path(self.runtime, "a")) as ledger:
            return ledger.snapshot()

    def frames_seen(self) -> list[list[str]]:
        """Return the words of every line the readers wrote, without a line cut off by a kill."""
        lines = self.seen.read_text().splitlines(keepends=True) if self.seen.exists() else []
        return [line.split() for line in lines if line.endswith("\n")]

    def seqs_seen(self) -> list[int]:
        return [int(words[0]) for words in self.frames_seen() if words[0] != "end"]

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < until, f"waited in vain for {what}; {self.book()}"
            time.sleep(0.01)

    def close(self) -> None:
        for process in self.started:
            process.kill()
            process.communicate()


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path)
    yield made
    made.close()


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return exit code and stderr of a process that ends by itself."""
    _, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, err


def assert_balanced(book: LedgerSnapshot) -> None:
    assert book.in_flight == 0, book
    assert book.captured == book.published + sum(book.dropped.values())


def test_replay_loses_no_frame_of_a_file_however_slow_the_reader(box: Box, make_video: MakeVideo) -> None:
    box.configure(make_video(n_frames=60))
    taker, capture = box.start_reader(ms=5), box.start_capture()

    assert finish(capture)[0] == 0
    assert finish(taker)[0] == 0
    assert box.seqs_seen() == list(range(1, 61))
    grey = [int(words[1]) for words in box.frames_seen()[:-1]]
    assert all(abs(value - 4 * n) <= 3 for n, value in enumerate(grey))  # each frame is the right one
    assert box.frames_seen()[-1] == ["end", "end", "of", "file"]
    assert box.book().published == box.book().captured == 60
    assert list(box.shm.iterdir()) == []


def test_replay_waits_for_a_reader_that_is_not_there_yet(box: Box, make_video: MakeVideo) -> None:
    box.configure(make_video(n_frames=30))
    capture = box.start_capture()
    box.wait_for(lambda: box.book().captured > 0, "the first frame")
    taker = box.start_reader()

    assert finish(capture)[0] == finish(taker)[0] == 0
    assert box.book().published == 30


def test_replay_goes_on_after_its_reader_was_killed_with_every_slot_in_its_hands(
    box: Box, make_video: MakeVideo
) -> None:
    box.configure(make_video(n_frames=60))
    first, capture = box.start_reader(ms=60_000), box.start_capture()
    box.wait_for(lambda: box.book().in_flight >= 7, "a reader that sits on all it may have")
    first.kill()
    first.wait()
    second = box.start_reader()

    assert finish(capture)[0] == finish(second)[0] == 0
    book = box.book()
    assert_balanced(book)
    assert book.captured == 60
    assert 0 < book.dropped["restart"] <= 8  # no more than the ring holds
    assert book.published == 60 - book.dropped["restart"]


def test_a_killed_capture_is_accounted_for_and_its_ring_removed_by_the_next(box: Box) -> None:
    box.configure("synthetic:pattern?fps=200&width=160&height=120")
    taker, first = box.start_reader(ms=1), box.start_capture()
    box.wait_for(lambda: box.book().published > 20, "frames")
    first.send_signal(signal.SIGKILL)
    first.wait()
    killed_at = box.book().captured
    assert len(list(rings_of(box.shm, "visaged"))) == 1

    second = box.start_capture()
    box.wait_for(lambda: any(seq > killed_at for seq in box.seqs_seen()), "frames of the second")
    assert len(list(rings_of(box.shm, "visaged"))) == 1  # its own
    second.send_signal(signal.SIGTERM)
    code, _ = finish(second)

    seqs = box.seqs_seen()
    assert code == 0
    assert_balanced(box.book())
    assert seqs == sorted(set(seqs))
    assert box.book().dropped["restart"] <= 34  # what two queues may hold
    assert list(box.shm.iterdir()) == []
    assert taker.poll() is None  # stopping is no end of the source


def test_live_never_waits_and_counts_what_nobody_took(box: Box) -> None:
    box.configure("synthetic:pattern?fps=100&width=160&height=120&seconds=1")
    capture = box.start_capture()
    box.wait_for(lambda: box.book().captured == 100, "all frames")
    capture.send_signal(signal.SIGTERM)

    assert finish(capture)[0] == 0
    assert box.book().dropped["queue_full"] == 100
    assert_balanced(box.book())


def test_live_gives_a_slow_reader_the_newest_frames_and_counts_the_rest(box: Box) -> None:
    box.configure("synthetic:pattern?fps=100&width=160&height=120&seconds=3")
    taker, capture = box.start_reader(ms=100), box.start_capture()

    assert finish(capture)[0] == finish(taker)[0] == 0
    book = box.book()
    assert_balanced(book)
    assert book.captured == 300
    assert 5 < book.published < 100
    assert book.dropped["stale"] > 100


@pytest.mark.parametrize("policy", ["live", "replay"])
def test_sigterm_ends_a_capture_soon_with_a_balanced_book_and_no_ring(box: Box, policy: str) -> None:
    box.configure("synthetic:pattern?fps=100&width=160&height=120", policy=policy)
    box.start_reader(ms=2)
    capture = box.start_capture()
    box.wait_for(lambda: box.book().published > 10, "frames")
    began = time.monotonic()
    capture.send_signal(signal.SIGTERM)
    code, _ = finish(capture)

    assert code == 0
    assert time.monotonic() - began < 4
    assert_balanced(box.book())
    assert list(box.shm.iterdir()) == []
    assert list(box.runtime.glob("frames-*")) == []


def test_a_file_in_a_loop_starts_again(box: Box, make_video: MakeVideo) -> None:
    box.configure(make_video(n_frames=20), loop=True)
    box.start_reader()
    capture = box.start_capture()
    box.wait_for(lambda: box.book().published > 50, "the third time round")
    capture.send_signal(signal.SIGTERM)

    assert finish(capture)[0] == 0
    assert [int(words[1]) // 4 for words in box.frames_seen()[:45:20]] == [0, 0, 0]


def test_photos_of_many_sizes_all_arrive_whole(box: Box, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    sizes = [(40 + 17 * n, 300 - 11 * n) for n in range(20)]
    for n, (height, width) in enumerate(sizes):
        cv2.imwrite(str(photos / f"{n:02}.png"), np.full((height, width, 3), 10 * n, np.uint8))
    (photos / "05b.jpg").touch()
    (photos / "07b.jpg").write_bytes(b"\xff\xd8")
    box.configure(photos)
    taker, capture = box.start_reader(ms=3), box.start_capture()
    code, err = finish(capture)

    assert code == finish(taker)[0] == 0
    seen = box.frames_seen()[:-1]
    assert [(int(h), int(w)) for _, _, h, w in seen] == sizes
    assert [int(value) for _, value, _, _ in seen] == [10 * n for n in range(20)]
    assert box.book().dropped["decode_error"] == 2
    assert err.count("skipped a frame") == 1  # one sentence, the rest is counted
    assert "05b.jpg is empty" in err
    assert_balanced(box.book())


def test_a_cut_off_video_ends_cleanly_with_one_sentence(box: Box, make_video: MakeVideo) -> None:
    path = make_video(n_frames=80)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    box.configure(path)
    taker, capture = box.start_reader(), box.start_capture()
    code, err = finish(capture)

    assert code == finish(taker)[0] == 0
    assert "announces 80 frames and ends after" in err
    assert box.book().dropped["decode_error"] == 1
    assert_balanced(box.book())


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("none.mp4", None, "does not exist"),
        ("empty.mp4", b"", "is empty"),
        ("text.mp4", b"not a video" * 999, "cannot be opened"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line_and_exit_1(
    box: Box, tmp_path: Path, name: str, content: bytes | None, why: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    box.configure(path)
    code, err = finish(box.start_capture())

    assert code == 1
    (line,) = [line for line in err.splitlines() if " 0 captured = " not in line]
    assert name in line
    assert why in line


@pytest.mark.parametrize(
    ("policy", "dropped", "fate"), [("live", 10, r"are dropped \(no_room\)"), ("replay", 0, "wait")]
)
def test_a_full_shm_is_one_line_and_every_frame_is_accounted_for(
    box: Box, small_shm: Path, policy: str, dropped: int, fate: str
) -> None:
    box.shm = small_shm
    box.configure("synthetic:pattern?width=1280&height=720&seconds=1&fps=10", policy=policy)
    capture = box.start_capture()
    box.start_reader()
    if policy == "replay":  # it waits for room until it is stopped
        time.sleep(1.0)
        assert capture.poll() is None
        capture.terminate()
    code, err = finish(capture)

    assert code == 0
    assert box.book().captured == box.book().dropped["no_room"] == dropped
    assert len(re.findall("22.1 MB needed, 2.1 MB free.* until then its frames " + fate, err)) == 1
    assert "Traceback" not in err
    assert list(small_shm.iterdir()) == []


class MotionJpeg(http.server.ThreadingHTTPServer):
    """A network camera: 50 frames a second until told to stall."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), MotionJpegRequest)
        self.is_stalled = threading.Event()
        self.is_closed = threading.Event()
        self.n_requests = 0
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.is_closed.set()
        self.shutdown()
        self.server_close()


class MotionJpegRequest(http.server.BaseHTTPRequestHandler):
    server: MotionJpeg

    def do_GET(self) -> None:
        self.server.n_requests += 1
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        jpeg = cv2.imencode(".jpg", np.full((120, 160, 3), 77, np.uint8))[1].tobytes()
        head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg)
        while not self.server.is_closed.wait(0.02):
            if not self.server.is_stalled.is_set():
                try:
                    self.wfile.write(head + jpeg + b"\r\n")
                except OSError:
                    return

    def log_message(self, *_: object) -> None:
        pass


class VideoRequest(http.server.BaseHTTPRequestHandler):
    """Answers with a video, also with a part of it: MP4 keeps its index at the end."""

    def do_GET(self) -> None:
        video: bytes = self.server.video  # type: ignore[attr-defined]
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206)
        self.send_header("Content-Type", "video/mp4")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {start}-{len(video) - 1}/{len(video)}")
        self.send_header("Content-Length", str(len(video) - start))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(video[start:])

    def log_message(self, *_: object) -> None:
        pass


class LiveCapture:
    """`run_capture` in a thread of this process, so that its metrics can be read."""

    def __init__(self, folder: Path, camera: CameraConfig) -> None:
        self.outline = Outline(instance="t", paths=PathsConfig(runtime=folder, shm=folder))
        self.metrics = CaptureMetrics("capture@a")
        self.stop = threading.Event()
        self.exit_code: int | None = None
        self.ledger = Ledger.open(ledger_path(folder, "a"))
        self.thread = threading.Thread(target=self._run, args=(camera,))
        self.thread.start()

    def _run(self, camera: CameraConfig) -> None:
        self.exit_code = run_capture(self.outline, camera, self.metrics, self.stop)

    def value(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(name, {"camera": "a"}) or 0.0

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < until and self.thread.is_alive(), f"waited in vain for {what}"
            time.sleep(0.01)

    def finish(self) -> None:
        self.stop.set()
        self.thread.join(PATIENCE_S)
        self.ledger.close()


@pytest.fixture
def server() -> Iterator[MotionJpeg]:
    made = MotionJpeg()
    yield made
    if not made.is_closed.is_set():
        made.stop()


def test_a_missing_device_is_waited_for_and_one_line_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    live = LiveCapture(tmp_path, CameraConfig(name="a", source="/dev/video97", reconnect_min_s=0.02))
    try:
        live.wait_for(lambda: live.value("visaged_camera_reconnects_total") >= 4, "attempts")
        assert live.value("visaged_camera_up") == 0
    finally:
        live.finish()

    assert live.exit_code == 0
    assert caplog.text.count("is lost: /dev/video97 does not exist") == 1


def test_a_network_camera_that_goes_silent_is_opened_again(
    tmp_path: Path, server: MotionJpeg, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config = CameraConfig(
        name="a",
        source=f"http://user:secret@127.0.0.1:{server.server_port}/video",
        silent_after_s=0.5,
        reconnect_min_s=0.05,
    )
    live = LiveCapture(tmp_path, config)
    try:
        live.wait_for(lambda: live.ledger.snapshot().captured > 10, "frames")
        assert live.value("visaged_camera_up") == 1
        server.is_stalled.set()
        live.wait_for(lambda: live.value("visaged_camera_silences_total") >= 1, "the silence to be noticed")
        assert live.value("visaged_camera_up") == 0
        captured = live.ledger.snapshot().captured
        server.is_stalled.clear()
        live.wait_for(lambda: live.ledger.snapshot().captured > captured + 10, "frames again")
        assert live.value("visaged_camera_up") == 1
        assert live.value("visaged_camera_reconnects_total") >= 1
    finally:
        live.finish()

    assert live.exit_code == 0
    assert server.n_requests >= 2
    assert "silent for 0.5 s" in caplog.text
    assert "is back after" in caplog.text
    assert "secret" not in caplog.text


class HangingCamera:
    """A driver that never returns from a read, until the test ends."""

    fps = 0.0

    def __init__(self, release: threading.Event) -> None:
        self._release = release

    def read(self) -> None:
        self._release.wait()

    def close(self) -> None:
        pass


def test_a_driver_that_hangs_again_and_again_makes_the_process_start_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    monkeypatch.setattr(reader, "open_camera", lambda _: HangingCamera(release))
    outline = Outline(instance="t", paths=PathsConfig(runtime=tmp_path, shm=tmp_path))
    config = CameraConfig(name="a", source="rtsp://127.0.0.1:1/", silent_after_s=0.2, reconnect_min_s=0.01)
    metrics = CaptureMetrics("capture@a")
    try:
        with pytest.raises(VisagedError, match=r"4 reads of rtsp://127\.0\.0\.1:1/ never returned"):
            run_capture(outline, config, metrics, threading.Event())
    finally:
        release.set()

    assert metrics.registry.get_sample_value("visaged_camera_silences_total", {"camera": "a"}) == 4


def test_a_network_camera_that_was_switched_off_and_on_comes_back(tmp_path: Path, server: MotionJpeg) -> None:
    config = CameraConfig(
        name="a",
        source=f"http://127.0.0.1:{server.server_port}/video",
        reconnect_min_s=0.05,
        reconnect_max_s=0.2,
    )
    live = LiveCapture(tmp_path, config)
    again: MotionJpeg | None = None
    try:
        live.wait_for(lambda: live.ledger.snapshot().captured > 10, "frames")
        server.stop()
        live.wait_for(lambda: live.value("visaged_camera_reconnects_total") >= 3, "attempts")
        assert live.value("visaged_camera_up") == 0
        captured = live.ledger.snapshot().captured
        again = MotionJpeg(server.server_port)
        live.wait_for(lambda: live.ledger.snapshot().captured > captured + 10, "frames again")
        assert live.value("visaged_camera_up") == 1
    finally:
        live.finish()
        if again is not None:
            again.stop()

    assert live.exit_code == 0
    assert list(rings_of(tmp_path, "t")) == []


def test_a_video_on_a_web_server_ends_like_a_file(box: Box, make_video: MakeVideo) -> None:
    path = make_video("video.mp4", n_frames=30)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), VideoRequest)
    server.video = path.read_bytes()  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    box.configure(f"http://127.0.0.1:{server.server_port}/video.mp4", policy="replay")
    taker, capture = box.start_reader(), box.start_capture()
    try:
        assert finish(capture)[0] == finish(taker)[0] == 0
    finally:
        server.shutdown()
        server.server_close()

    assert box.seqs_seen() == list(range(1, 31))


def test_a_second_capture_of_the_same_camera_is_refused(box: Box) -> None:
    box.configure("synthetic:pattern")
    box.start_capture()
    box.wait_for(lambda: box.book().captured > 0, "frames")
    with FramesReader(box.runtime, ["a"]):
        code, err = finish(box.start_capture())

    assert code == 78
    assert "served by another running visaged" in err
