"""The real daemon with a configuration of its own, in a folder that is removed with it.

The demo and the bench run the daemon as an operator would: supervisor, capture processes, inference, ZeroMQ.
Only the folders are temporary: no gallery, no socket and no ring of a daemon that serves is touched.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import msgspec

from ..daemon.camera import CameraConfig
from ..daemon.channels import endpoint_of
from ..daemon.ledger import Ledger, LedgerSnapshot, ledger_path
from ..daemon.outline import PathsConfig
from ..daemon.process_table import STOP_S
from ..pipelines.errors import VisagedError

SHOWN_LINES = 6  # of the daemon's log, when it ends unexpectedly


class TemporaryDaemon:
    """Starts and stops one daemon. Owned by the thread that made it; use it in a `with` statement.

    The folder exists from the beginning, so that people can be enrolled before `start`.
    """

    def __init__(
        self,
        cameras: Sequence[CameraConfig],
        *,
        cache: Path,
        wheels: Path | None,
        tables: Mapping[str, Mapping[str, object]] | None = None,
    ) -> None:
        """Write the configuration, with more `tables` where given.

        Models come from `cache`, everything else is new and empty.
        """
        self.folder = Path(tempfile.mkdtemp(prefix="visaged-"))
        self.cameras = tuple(camera.name for camera in cameras)
        self.instance = f"temporary-{os.getpid()}"
        self.shm = PathsConfig().shm
        self.config_file = self.folder / "visaged.toml"
        self.runtime = self.folder / "run"
        self.log_file = self.folder / "daemon.log"
        self.endpoint = endpoint_of(self.runtime, "results")
        self._popen: subprocess.Popen[bytes] | None = None
        paths = {"state": self.folder / "state", "runtime": self.runtime, "cache": cache}
        if wheels is not None:
            paths["wheels"] = wheels
        all_tables: dict[str, Mapping[str, object]] = {
            "metrics": {"port": 0},
            **(tables or {}),
            "paths": {key: str(path.absolute()) for key, path in paths.items()}
            | dict((tables or {}).get("paths", {})),
        }
        text = f'instance = "{self.instance}"\n' + "".join(
            f"\n[{name}]\n{toml_lines(table)}" for name, table in all_tables.items()
        )
        self.config_file.write_text(text + "".join(f"\n[[camera]]\n{camera_lines(c)}" for c in cameras))

    @property
    def pid(self) -> int:
        """The supervisor's process id.

        Raises:
            VisagedError: not started.
        """
        if self._popen is None:
            raise VisagedError("the daemon has not been started")
        return self._popen.pid

    def start(self) -> None:
        """Start the daemon and return at once; its log goes to `log_file`."""
        line = [sys.executable, "-m", "visaged.daemon.lifecycle", "supervisor"]
        line += ["--config", str(self.config_file), "--parent", str(os.getpid())]
        with self.log_file.open("wb") as log:
            # a group of its own: Ctrl-C reaches only us, and we stop it in order
            self._popen = subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )

    def check(self) -> None:
        """Return if the daemon runs, or has finished because its cameras have ended.

        Raises:
            VisagedError: it failed; the sentence holds the end of its log.
        """
        code = self._popen.poll() if self._popen is not None else None
        if code:
            lines = self.log_file.read_text(errors="replace").splitlines()[-SHOWN_LINES:]
            raise VisagedError(f"the daemon ended with exit code {code}:\n  " + "\n  ".join(lines))

    @property
    def is_running(self) -> bool:
        """Whether the daemon has been started and has not ended."""
        return self._popen is not None and self._popen.poll() is None

    def stop(self) -> int | None:
        """Stop the daemon in order and return its exit code; None if it never ran."""
        if self._popen is None:
            return None
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGTERM)
            try:
                self._popen.wait(3 * STOP_S)
            except subprocess.TimeoutExpired:
                os.killpg(self._popen.pid, signal.SIGKILL)
        return self._popen.wait()

    def books(self) -> dict[str, LedgerSnapshot]:
        """Return the ledger of every camera that has one, from the daemon's own files."""
        paths = {camera: ledger_path(self.runtime, camera) for camera in self.cameras}
        books = {}
        for camera, path in paths.items():
            if path.exists():
                with Ledger.open(path, create=False) as ledger:
                    books[camera] = ledger.snapshot()
        return books

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


def camera_lines(camera: CameraConfig) -> str:
    """Return the lines of a `[[camera]]` table, without what has its default."""
    defaults = CameraConfig(name=camera.name, source=camera.source)
    values = msgspec.structs.asdict(camera)
    kept = {k: v for k, v in values.items() if k in ("name", "source") or v != getattr(defaults, k)}
    return toml_lines(kept)


def toml_lines(table: Mapping[str, object]) -> str:
    """Return `key = value` lines; strings, numbers and booleans have the same form in TOML as in JSON."""
    return "".join(f"{key} = {msgspec.json.encode(value).decode()}\n" for key, value in table.items())
