"""A daemon under load that a test breaks: two cameras with a face, an enrolled person, flags all the time.

A test breaks one thing inside `fault`, which then waits until every camera is published and the person is
recognised again, and looks at what must hold after every fault: the books balance, nobody and no acknowledged
flag is gone, the log says it in one line, and a metric has moved.
"""

import contextlib
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import msgspec
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

from tests.chaos.disks import small_disk

START_S = 90.0  # to the first results and flags; what a fault may take is said by each test
FLAG_EVERY_S = 0.5
TEACH_EVERY = 20  # of so many flags one also says who it is
MAX_IN_FLIGHT = 16  # twice the ring: what the frames of a dead process come down to once they are settled
SETTLED_S = 5.0  # after the service is back
PERSON = "Ada"
# A restarted infer remembers no faces of before, so a flag of one of them is refused, as it should be.
OF_THE_LOAD = "there is no face of track|has no face of"
Tables = Mapping[str, Mapping[str, object]]
Metric = tuple[str, str, Mapping[str, str]]  # process, name, labels


@dataclass(slots=True)
class Seen:
    """What a client has received of one camera."""

    newest: FaceFrame | None = None
    named_ns: int = 0  # capture of the newest frame in which the person was recognised
    n_received: int = 0
    n_lost: int = 0  # holes in `seq` that a slow client would see
    n_repeated: int = 0  # frames that were published twice or out of order


class Viewer(threading.Thread):
    """A client that receives every result. `seen` is written by this thread alone."""

    def __init__(self, daemon: TemporaryDaemon) -> None:
        super().__init__(name="viewer", daemon=True)
        self._daemon = daemon
        self.seen = {camera: Seen() for camera in daemon.cameras}
        self.end = threading.Event()

    def run(self) -> None:
        with Subscriber(self._daemon.endpoint, self._daemon.cameras) as results:
            while not self.end.is_set():
                received = results.receive(0.2)
                if received is not None and isinstance(received[0], FaceFrame):
                    self._note(received[0])

    def _note(self, result: FaceFrame) -> None:
        seen = self.seen[result.camera]
        seen.n_received += 1
        if seen.newest is not None and result.run == seen.newest.run:
            seen.n_lost += result.seq - seen.newest.seq - 1
        if seen.newest is not None and result.frame_seq <= seen.newest.frame_seq:
            seen.n_repeated += 1
        if any(face.identity.person == PERSON for face in result.faces):
            seen.named_ns = result.captured_ns
        seen.newest = result


class Flagger(threading.Thread):
    """A client that flags faces all the time and remembers what was acknowledged."""

    def __init__(self, daemon: TemporaryDaemon, viewer: Viewer) -> None:
        super().__init__(name="flagger", daemon=True)
        self._daemon, self._viewer = daemon, viewer
        self._lock = threading.Lock()
        self._said: dict[str, set[str]] = {}  # id of an acknowledged sample -> what may stand in the store
        self.asking = ""  # the emotion of the flag under way
        self.n_taught, self.n_stored = 0, 0
        self.is_paused = False
        self.refusals: list[str] = []
        self.end = threading.Event()

    def run(self) -> None:
        n_asked = 0
        while not self.end.wait(FLAG_EVERY_S):
            for camera, seen in self._viewer.seen.items():
                if seen.newest is not None and seen.newest.faces and not self.is_paused:
                    is_teaching = not self.n_taught or n_asked % TEACH_EVERY == 0
                    order = Flag(
                        camera=camera,
                        track=seen.newest.faces[0].track,
                        emotion=EMOTIONS[n_asked % len(EMOTIONS)],
                        person=PERSON if is_teaching else "",
                    )
                    n_asked += 1
                    self._flag(order)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Flag nothing until the block ends."""
        self.is_paused = True
        time.sleep(2 * FLAG_EVERY_S)  # what is under way is answered
        yield
        self.is_paused = False

    def said(self) -> dict[str, frozenset[str]]:
        """Return every acknowledged sample and the emotions that it may have in the store."""
        with self._lock:
            return {id: frozenset(emotions) for id, emotions in self._said.items()}

    def _flag(self, order: Flag) -> None:
        emotion = self.asking = order.emotion or ""
        with contextlib.closing(ControlClient(self._daemon.runtime)) as control:
            try:
                answer = control.request(order, timeout_s=2.0)
            except VisagedError as error:
                self.refusals.append(str(error))
                with self._lock:  # it may be on disk all the same, and of whichever look
                    for emotions in self._said.values():
                        emotions.add(emotion)
                return
        self.n_taught += bool(order.person)
        self.n_stored += 1
        with self._lock:
            self._said[answer["sample"]["id"]] = {emotion}


@dataclass(slots=True)
class Fault:
    """One fault under way, and how long after `began_ns` every camera was published again."""

    began_ns: int = field(default_factory=time.monotonic_ns)
    back_s: float = 0.0
    is_counted: Callable[[], bool] = lambda: False  # whether the metric has moved
    was_counted: bool = False  # once seen: a process that starts again counts from 0

    def is_over(self) -> None:
        """Measure the way back from now on: what broke is whole again."""
        self.began_ns = time.monotonic_ns()


class Stage:
    """One daemon and the load on it. Use it in a `with` statement."""

    def __init__(
        self,
        cache: Path,
        cameras: Mapping[str, str],
        port: int,
        tables: Tables | None = None,
        **settings: object,
    ) -> None:
        """Write the configuration; `settings` go to every camera, as `reconnect_max_s`."""
        values = {"policy": "live", "reconnect_min_s": 0.1, "reconnect_max_s": 0.5, **settings}
        rows = [
            msgspec.convert({"name": name, "source": source, **values}, CameraConfig)
            for name, source in cameras.items()
        ]
        self._port = port
        fixed: dict[str, Mapping[str, object]] = {
            "metrics": {"port": port},
            "engine": {"backend": "onnxruntime", "precision": "fp32"},
            **(tables or {}),
        }
        self.daemon = TemporaryDaemon(rows, cache=cache, wheels=None, tables=fixed)
        self.state = self.daemon.folder / "state"
        self.daemon.runtime.mkdir()
        self.viewer = Viewer(self.daemon)
        self.flagger = Flagger(self.daemon, self.viewer)
        self.disks = contextlib.ExitStack()  # what is mounted for the daemon; let go after it
        self.no_disks = ""
        self._log_seen = 0
        self.n_infer_ends = 0  # each may leave one frame published that the book calls `restart`

    def mount_small_disks(self, shm: Path) -> None:
        """Give state and rings small disks of their own; where that is not allowed, `no_disks` says why."""
        try:
            self.disks.enter_context(small_disk(self.state, 256))
            self.disks.enter_context(small_disk(shm, 16))
        except OSError as error:
            self.no_disks = str(error)

    def watch(self) -> None:
        """Return when every camera of the daemon is published and somebody is enrolled and flagged."""
        self.viewer.start()
        self.flagger.start()
        began_ns = time.monotonic_ns()
        self.wait(lambda: self._is_back(began_ns), START_S, "results of every camera")
        self.wait(lambda: self._is_named(began_ns), START_S, f"{PERSON} to be recognised")
        self.wait(lambda: len(self.flagger.said()) > 1, START_S, "two flags")
        self.new_log()

    @contextlib.contextmanager
    def fault(self, *, within_s: float, line: str, metric: Metric, allowed: str = "") -> Iterator[Fault]:
        """Break the daemon in the body; at its end wait for the service and look at everything.

        Args:
            within_s: how long it may take until every camera is published again.
            line: regular expression; the one warning or error that the log may hold afterwards matches it.
            metric: process, name and labels of a number that must be greater than before.
            allowed: regular expression of further warnings that the test expects.

        Raises:
            AssertionError: something does not hold.
        """
        self.new_log()
        before = self.metric(*metric)
        fault = Fault()

        def is_counted() -> bool:
            fault.was_counted = fault.was_counted or self.metric(*metric) > before
            return fault.was_counted

        fault.is_counted = is_counted
        yield fault
        left_s = within_s - (time.monotonic_ns() - fault.began_ns) / 1e9
        self.wait(lambda: self._is_back(fault.began_ns), left_s, "results of every camera")
        fault.back_s = (time.monotonic_ns() - fault.began_ns) / 1e9
        print(f"{line}: published again after {fault.back_s:.1f} s")  # pytest -s shows it
        self.wait(lambda: self._is_named(fault.began_ns), within_s, f"{PERSON} to be recognised")
        self.wait(is_counted, SETTLED_S, f"change of {metric}")
        self.check_books()
        self.check_people()
        complaints = [text for text in self.new_log() if re.search(r" (WARNING|ERROR|CRITICAL) ", text)]
        expected = f"{OF_THE_LOAD}|{allowed}" if allowed else OF_THE_LOAD
        complaints = [text for text in complaints if not re.search(expected, text)]
        assert len(complaints) == 1 and re.search(line, complaints[0]), "\n".join(
            [f"not the one line {line!r}:", *complaints]
        )

    def wait(self, condition: Callable[[], object], seconds: float, what: str) -> None:
        """Wait until `condition` holds.

        Raises:
            AssertionError: it does not within `seconds`, or the daemon ended.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            self.daemon.check()
            assert time.monotonic() < deadline, (
                f"waited {seconds:g} s in vain for {what}\n{self.daemon.log_file.read_text()[-6000:]}"
            )
            time.sleep(0.02)

    def publishes(self, within_s: float) -> None:
        """Wait until every camera is published that was captured from now on."""
        began_ns = time.monotonic_ns()
        self.wait(lambda: self._is_back(began_ns), within_s, "results of every camera")

    def stores_flags(self, within_s: float) -> None:
        """Wait until a flag is acknowledged that was given from now on."""
        n_stored = self.flagger.n_stored
        self.wait(lambda: self.flagger.n_stored > n_stored + 1, within_s, "an acknowledged flag")

    def process(self, name: str) -> psutil.Process:
        """Return the running process called `name`; wait for it, as it may be starting."""
        found: list[psutil.Process] = []

        def is_there() -> bool:
            for process in psutil.Process(self.daemon.pid).children():
                with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    if name in process.cmdline():
                        found.append(process)
            return bool(found)

        self.wait(is_there, 10, f"the process {name}")
        return found[-1]

    def kill(self, name: str) -> None:
        """Kill a process as `kill -9` does, and return when its successor runs."""
        self.n_infer_ends += name == "infer"
        old = self.process(name)
        old.kill()
        self.wait(lambda: not old.is_running() or old.status() == psutil.STATUS_ZOMBIE, 5, f"{name} to end")
        self.wait(lambda: self.process(name).pid != old.pid, 10, f"{name} to be started again")

    def metric(self, process: str, name: str, labels: Mapping[str, str]) -> float:
        """Return one sample of what `process` exports; 0 where it has none."""
        table = processes(list(self.daemon.cameras), learns=True)
        offsets = {"supervisor": 0, **{row.name: row.port_offset for row in table}}
        with contextlib.suppress(OSError):
            url = f"http://127.0.0.1:{self._port + offsets[process]}/metrics"
            text = urllib.request.urlopen(url, timeout=2).read().decode()
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    if sample.name == name and labels.items() <= sample.labels.items():
                        return float(sample.value)
        return 0.0

    def new_log(self) -> list[str]:
        """Return the lines that were logged since the last call."""
        text = self.daemon.log_file.read_text(errors="replace")
        new, self._log_seen = text[self._log_seen :], len(text)
        return new.splitlines()

    def check_books(self) -> None:
        """Captured = published + dropped + in flight, where what died is soon not in flight any more.

        The client is the witness: it received no frame twice, and none that the book does not know.
        """

        def is_settled() -> bool:
            return all(0 <= book.in_flight <= MAX_IN_FLIGHT for book in self.daemon.books().values())

        self.wait(is_settled, SETTLED_S, "the books to be settled")
        received = {camera: seen.n_received for camera, seen in self.viewer.seen.items()}
        books = self.daemon.books()  # after the client's numbers, so it is ahead of them
        assert set(books) == set(self.daemon.cameras)
        for camera, book in books.items():
            assert book.captured == book.published + sum(book.dropped.values()) + book.in_flight, str(book)
            assert received[camera] <= book.published + self.n_infer_ends + 1, f"{received[camera]}: {book}"
            assert self.viewer.seen[camera].n_repeated == 0
            assert book.dropped["swap"] == 0, str(book)

    def check_people(self) -> None:
        """Every acknowledged sample opens and says what was said last, and the person is enrolled."""
        said = self.flagger.said()
        assert said
        with SampleStore(self.state) as store, Gallery(self.state) as gallery:
            stored = {sample.id: sample for sample in store.samples()}
            people = {person.name: person.templates for person in gallery.people()}
            assert said.keys() <= stored.keys(), f"lost samples: {said.keys() - stored.keys()}"
            now_said = self.flagger.said()  # meanwhile something else may have been said of one
            for id, emotions in said.items():
                assert stored[id].label.emotion in emotions | now_said[id] | {self.flagger.asking}, id
            for id in list(said)[-20:]:
                assert store.face(id).chip.std() > 5
        assert people.get(PERSON, 0) > 0, people

    def finish(self) -> None:
        """Stop the daemon in order and look at what must hold at the end.

        Raises:
            AssertionError: something does not hold.
        """
        self.flagger.end.set()
        self.flagger.join(10)
        assert self.daemon.stop() == 0, self.daemon.log_file.read_text()
        self.viewer.end.set()
        self.viewer.join(10)
        self.check_books()
        self.check_people()
        assert all(book.in_flight == 0 for book in self.daemon.books().values())

    def close(self) -> None:
        """End the load and the daemon; a second call does nothing."""
        for thread in (self.flagger, self.viewer):
            thread.end.set()
            if thread.is_alive():
                thread.join(10)
        with contextlib.suppress(VisagedError, psutil.NoSuchProcess):
            for process in psutil.Process(self.daemon.pid).children():  # a stopped one cannot end
                process.resume()
        self.daemon.stop()
        self.disks.close()
        self.daemon.__exit__()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _is_back(self, since_ns: int) -> bool:
        everyone = self.viewer.seen.values()
        return all(seen.newest is not None and seen.newest.captured_ns > since_ns for seen in everyone)

    def _is_named(self, since_ns: int) -> bool:
        return all(seen.named_ns > since_ns for seen in self.viewer.seen.values())
