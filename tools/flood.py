"""A rude neighbour, for tests and the bench: all that another machine can do wrong, at once."""

import contextlib
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable
from typing import Self

from ..daemon.curve import ClientKey
from ..daemon.sockets import ControlSocket, ResultsSubscriber
from ..daemon.step_back import NICENESS
from ..pipelines.errors import VisagedError

PAUSE_S = 0.001  # between two acts of each kind: what is measured is the daemon, not who takes its cores
N_HALF_OPEN = 100
GARBAGE_BYTES = 2000


class Flood:
    """Asks without end, subscribes and never reads, sends garbage, and leaves handshakes half done.

    Everything comes from threads of this process, which run only when nobody else wants a core: their work
    is another machine's in earnest. It stops at the end of the `with` statement.
    """

    def __init__(self, results: str, control: str, key: ClientKey) -> None:
        """Flood the endpoints `results` and `control` (`tcp://HOST:PORT`); `key` may subscribe and ask."""
        self._results, self._control, self._key = results, control, key
        self._stop = threading.Event()
        self._counts: Counter[str] = Counter()
        self._failures: list[Exception] = []
        acts = (self._ask, self._subscribe, self._send_garbage, self._leave_half_open)
        self._threads = [threading.Thread(target=self._guard, args=(act,)) for act in acts]

    def counts(self) -> dict[str, int]:
        """Return how often each act was done."""
        names = ("requests", "slow_subscribers", "garbage_connections", "half_open_connections")
        return {name: self._counts[name] for name in names}

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self._failures:
            raise self._failures[0]

    def _guard(self, act: Callable[[], None]) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        try:
            act()
        except (VisagedError, OSError) as error:
            self._failures.append(error)

    def _ask(self) -> None:
        with ControlSocket(self._control, self._key) as control:
            while not self._stop.wait(PAUSE_S):
                control.ask(b"\xc1" * 200, timeout_s=5.0)  # refused at once; the next follows
                self._counts["requests"] += 1

    def _subscribe(self) -> None:
        with ResultsSubscriber(self._results, [b""], self._key):
            self._counts["slow_subscribers"] += 1
            self._stop.wait()

    def _send_garbage(self) -> None:
        while not self._stop.wait(PAUSE_S):
            with contextlib.suppress(ConnectionError), self._connect(self._control) as peer:
                peer.sendall(os.urandom(GARBAGE_BYTES))
                self._counts["garbage_connections"] += 1

    def _leave_half_open(self) -> None:
        with contextlib.ExitStack() as stack:
            while not self._stop.wait(PAUSE_S):
                if self._counts["half_open_connections"] % N_HALF_OPEN == 0:
                    stack.close()
                stack.enter_context(self._connect(self._results))
                self._counts["half_open_connections"] += 1

    def _connect(self, endpoint: str) -> socket.socket:
        host, _, port = endpoint.removeprefix("tcp://").partition(":")
        return socket.create_connection((host, int(port)), timeout=5)
