"""A daemon under load that a test breaks: two cameras with a face, an enrolled person, flags all the time.

A test breaks one thing, waits until both cameras are published again, and lets `check` look at what must hold
after every fault: the books balance, and nobody and no acknowledged flag is gone.
"""

import contextlib
import os
import random
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Self

import psutil
from prometheus_client.parser import text_string_to_metric_families
from visaged.daemon.camera import CameraConfig
from visaged.daemon.client import Subscriber
from visaged.daemon.control import ControlClient, Flag
from visaged.daemon.process_table import processes
from visaged.pipelines.errors import VisagedError
from visaged.pipelines.identity.gallery import Gallery
from visaged.pipelines.loop.sample_store import SampleStore
from visaged.pipelines.message import EMOTIONS, FaceFrame
from visaged.tools.temporary_daemon import TemporaryDaemon

PATIENCE_S = 90.0  # for the first frame; what a fault may take is said by each test
FLAG_EVERY_S = 0.2
PERSON = "Ada"
Tables = Mapping[str, Mapping[str, object]]


class Load(threading.Thread):
    """A client that receives every result and flags faces all the time; remembers what was acknowledged."""

    def __init__(self, daemon: TemporaryDaemon, flagged: Mapping[str, str] = MappingProxyType({})) -> None:
        super().__init__(name="load", daemon=True)
        self._daemon = daemon
        self._lock = threading.Lock()
        self._published: dict[str, FaceFrame] = {}  # the newest of every camera
        self._flagged: dict[str, str] = dict(flagged)  # id of every acknowledged sample -> emotion last said
        self._maybe: dict[str, set[str]] = {}  # what flags without an answer said, which may be stored or not
        self.n_refused = 0
        self.end = threading.Event()

    def run(self) -> None:
        draw, due_s = random.Random(0), 0.0
        with Subscriber(self._daemon.endpoint, self._daemon.cameras) as results:
            while not self.end.is_set():
                received = results.receive(0.2)
                if received is None or not isinstance(received[0], FaceFrame):
                    continue
                with self._lock:
                    self._published[received[0].camera] = received[0]
                if received[0].faces and time.monotonic() >= due_s:
                    due_s = time.monotonic() + FLAG_EVERY_S
                    self._flag(received[0], draw.choice(EMOTIONS))

    def newest(self) -> dict[str, FaceFrame]:
        """Return the newest result of every camera."""
        with self._lock:
            return dict(self._published)

    def flagged(self) -> dict[str, str]:
        """Return every acknowledged sample and the emotion that was last said of it."""
        with self._lock:
            return dict(self._flagged)

    def may_also_say(self, sample: str) -> set[str]:
        """Return what flags of the sample said that were not answered."""
        with self._lock:
            return set(self._maybe.get(sample, ()))

    def _flag(self, result: FaceFrame, emotion: str) -> None:
        face = result.faces[0]
        order = Flag(camera=result.camera, track=face.track, emotion=emotion, person=PERSON)
        with contextlib.closing(ControlClient(self._daemon.runtime)) as control:
            try:
                answer = control.request(order, timeout_s=2.0)
            except VisagedError:
                self.n_refused += 1
                with self._lock:  # it may be on disk all the same, of whichever look
                    for sample in self._flagged:
                        self._maybe.setdefault(sample, set()).add(emotion)
                return
        with self._lock:
            self._flagged[answer["sample"]["id"]] = emotion
            self._maybe.pop(answer["sample"]["id"], None)


class Stage:
    """One daemon and the load on it. `with` it; stopping it in order is part of every test."""

    def __init__(
        self,
        cache: Path,
        cameras: Mapping[str, str],
        port: int,
        tables: Tables | None = None,
        **settings: object,
    ) -> None:
        """Write the configuration; `settings` go to every camera, as `reconnect_max_s`."""
        values: dict[str, object] = {
            "policy": "live",
            "reconnect_min_s": 0.1,
            "reconnect_max_s": 0.5,
            **settings,
        }
        rows = [CameraConfig(name=name, source=source, **values) for name, source in cameras.items()]  # type: ignore[arg-type]
        self._port = port
        fixed: dict[str, Mapping[str, object]] = {
            "metrics": {"port": port},
            "engine": {"backend": "onnxruntime", "precision": "fp32"},
            **(tables or {}),
        }
        self.daemon = TemporaryDaemon(rows, cache=cache, wheels=None, tables=fixed)
        self.state = self.daemon.folder / "state"
        self.daemon.runtime.mkdir()
        self.load = Load(self.daemon)
        self._more = contextlib.ExitStack()

    def start(self) -> None:
        """Start the daemon; return when every camera is published and somebody is enrolled and flagged."""
        self.daemon.start()
        if not self.load.is_alive():
            self.load.start()
        self.back_within(PATIENCE_S)
        self.wait(lambda: len(self.load.flagged()) > 1, PATIENCE_S, "a flag")

    def track_of(self, camera: str) -> int:
        """Return the track of a face that the camera shows now."""
        self.wait(lambda: self.load.newest()[camera].faces, 20, "face")
        return self.load.newest()[camera].faces[0].track

    def restart(self) -> None:
        """Start the daemon again, with a load that remembers what the one before was promised."""
        flagged = self.load.flagged()
        self.load = Load(self.daemon, flagged)
        self.start()

    def back_within(self, seconds: float, cameras: tuple[str, ...] | None = None) -> float:
        """Wait until every camera has published what it captured from now on; return the seconds it took.

        Raises:
            AssertionError: it took longer.
        """
        begin_ns = time.monotonic_ns()

        def is_back() -> bool:
            newest = self.load.newest()
            return all(
                name in newest and newest[name].captured_ns > begin_ns
                for name in cameras or self.daemon.cameras
            )

        self.wait(is_back, seconds, "results of every camera")
        return (time.monotonic_ns() - begin_ns) / 1e9

    def wait(self, condition: Callable[[], object], seconds: float, what: str) -> None:
        """Wait until `condition` holds.

        Raises:
            AssertionError: it does not within `seconds`, or the daemon ended.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            self.daemon.check()
            assert time.monotonic() < deadline, (
                f"no {what} within {seconds:g} s\n{self.daemon.log_file.read_text()}"
            )
            time.sleep(0.02)

    def process(self, name: str) -> psutil.Process:
        """Return the running process called `name`."""
        family = psutil.Process(self.daemon.pid).children()
        return next(process for process in family if name in process.cmdline())

    def is_up(self, name: str) -> bool:
        """Whether a process called `name` runs."""
        family = psutil.Process(self.daemon.pid).children()
        return any(
            name in process.cmdline() for process in family if process.status() != psutil.STATUS_ZOMBIE
        )

    def kill(self, name: str) -> None:
        """Kill a process as `kill -9` does, and wait until it is gone."""
        process = self.process(name)
        process.kill()
        process.wait(10)

    def metric(self, exporter: str, name: str, **labels: str) -> float:
        """Return one sample of what the process `exporter` exports; 0 where it has none."""
        table = processes(list(self.daemon.cameras), learns=True)
        offsets = {"supervisor": 0} | {process.name: process.port_offset for process in table}
        url = f"http://127.0.0.1:{self._port + offsets[exporter]}/metrics"
        with contextlib.suppress(OSError):
            text = urllib.request.urlopen(url, timeout=2).read().decode()
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    if sample.name == name and labels.items() <= sample.labels.items():
                        return sample.value
        return 0.0

    def enter(self, disk: contextlib.AbstractContextManager[Path]) -> Path:
        """Mount a disk that is gone when the daemon is."""
        return self._more.enter_context(disk)

    def check(self) -> None:
        """Stop the daemon and look at everything that must hold after a fault."""
        self.load.end.set()
        self.load.join(10)
        assert self.daemon.stop() == 0, self.daemon.log_file.read_text()
        self.check_books()
        self.check_people()

    def check_books(self) -> None:
        """Captured = published + dropped + in flight, for every camera."""
        books = self.daemon.books()
        assert set(books) == set(self.daemon.cameras)
        for book in books.values():
            assert book.captured == book.published + sum(book.dropped.values()) + book.in_flight, str(book)
            assert book.published > 0 and book.in_flight >= 0 and book.dropped["swap"] == 0, str(book)

    def check_people(self) -> None:
        """Every acknowledged sample opens and says what was said last, and the person is enrolled."""
        with SampleStore(self.state) as store, Gallery(self.state) as gallery:
            stored = {sample.id: sample.label for sample in store.samples()}
            for sample, emotion in self.load.flagged().items():
                assert sample in stored, f"sample {sample} was acknowledged and is lost"
                said = {emotion} | self.load.may_also_say(sample)
                assert stored[sample].emotion in said, f"{stored[sample]}, not {said}"
                assert store.face(sample).chip.std() > 5
            enrolled = {p.name: p.templates > 0 for p in gallery.people() if not p.is_stranger}
        assert enrolled == {PERSON: True}, enrolled

    def close(self) -> None:
        """End the load and the daemon; a second call does nothing."""
        self.load.end.set()
        if self.load.is_alive():
            self.load.join(10)
        for process in psutil.Process().children(recursive=True):  # one that is stopped cannot end
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() == psutil.STATUS_STOPPED:
                    process.resume()
        self.daemon.stop()
        self._more.close()
        self.daemon.__exit__()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def small_disk(folder: Path, n_mb: int) -> Iterator[Path]:
    """Mount a memory disk of `n_mb` at `folder`.

    Raises:
        OSError: it may not be mounted here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    line = f"mount -t tmpfs -o size={n_mb}m,mode=0700 visaged-test '{folder}'"
    if os.geteuid() != 0 or os.system(f"{line} 2>/dev/null"):
        raise OSError(f"a memory disk cannot be mounted at {folder}; it needs root")
    try:
        yield folder
    finally:
        os.system(f"umount -l '{folder}'")


def fill(folder: Path) -> Path:
    """Take the last byte of the disk that `folder` is on; return the file to remove."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler
