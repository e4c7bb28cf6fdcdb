"""Tell systemd how this process is: the protocol of sd_notify(3) over its datagram socket.

Nothing happens where no service manager listens.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Self

log = logging.getLogger(__name__)

SEND_TIMEOUT_S = 1.0  # a manager that does not read must not stop the frames
PINGS_PER_TIMEOUT = 4


class Notifier:
    """Sends one datagram per message, so every method may be called from any thread."""

    def __init__(self, address: str = "", watchdog_s: float = 0.0) -> None:
        """Speak to the socket at `address`, `@` for an abstract name; empty: to nobody.

        `watchdog_s` is how long the manager waits for a ping; 0: it does not.
        """
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._watchdog_s = watchdog_s
        self._next_ping_s = 0.0
        self._is_ready = False
        self.on_alive: Callable[[], None] = lambda: None  # hears of every ping, also where no manager does

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] = os.environ) -> Self:
        """Return the notifier that systemd asks for, and hide the request from child processes."""
        address = environment.pop("NOTIFY_SOCKET", "")
        microseconds = environment.pop("WATCHDOG_USEC", "")
        is_ours = environment.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        return cls(address, int(microseconds) / 1e6 if is_ours and microseconds.isdecimal() else 0.0)

    def ready(self, status: str) -> None:
        """Say that the start is over, the first time, and `status` every time."""
        self._send(f"STATUS={_line(status)}" if self._is_ready else f"READY=1\nSTATUS={_line(status)}")
        self._is_ready = True

    def status(self, status: str) -> None:
        """Set the line that `systemctl status` shows."""
        self._send(f"STATUS={_line(status)}")

    def alive(self) -> None:
        """Ping the watchdog, once ready. Call it where work was really done, as often as you like."""
        self.on_alive()
        now_s = time.monotonic()
        if self._watchdog_s and self._is_ready and now_s >= self._next_ping_s:
            self._next_ping_s = now_s + self._watchdog_s / PINGS_PER_TIMEOUT
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """Say that the end has begun."""
        self._send("STOPPING=1\nSTATUS=stopping")

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """Say that the configuration is read again until the block ends; during the start, say nothing."""
        is_announced = self._is_ready
        if is_announced:  # else READY=1 would end a start that is still under way
            self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        try:
            yield
        finally:
            if is_announced:
                self._send("READY=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
                datagram.settimeout(SEND_TIMEOUT_S)
                datagram.sendto(message.encode(), self._address)
        except OSError as error:
            log.warning("systemd was not told %r: %s", message.partition("\n")[0], error)


def _line(status: str) -> str:
    return " ".join(status.split())
