"""Where log lines go: coloured on a terminal, plain lines elsewhere, JSON lines on request."""

import datetime
import logging
import sys
from typing import Literal

import msgspec
from msgspec import Struct

QUIET = ("urllib3", "asyncio", "matplotlib")


class LoggingConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is logged, and how. Lines go to standard error; SIGHUP reads this table again."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is shown."""
    format: Literal["auto", "text", "json"] = "auto"
    """`auto` is coloured on a terminal and plain text elsewhere; `json` is one object per line."""


def configure(process: str, config: LoggingConfig) -> None:
    """Send the log lines of this process, called `process` in each of them, to standard error."""
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(_handler(process, config))
    root.setLevel(config.level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _handler(process: str, config: LoggingConfig) -> logging.Handler:
    if config.format == "auto" and sys.stderr.isatty():
        # here, because a service never needs it
        from rich.console import Console
        from rich.logging import RichHandler

        rich = RichHandler(console=Console(stderr=True), show_path=False, log_time_format="%H:%M:%S")
        rich.setFormatter(logging.Formatter(f"{process}: %(message)s"))
        return rich
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(process) if config.format == "json" else TextLines(process))
    return handler


class TextLines(logging.Formatter):
    """One line per event; a line break inside a message cannot fake a second event."""

    def __init__(self, process: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)-7s {process.replace('%', '%%')}: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the traceback below it where there is one."""
        trace, record.exc_info, record.exc_text = record.exc_info, None, None
        line = super().format(record).replace("\r", "\\r").replace("\n", "\\n")
        record.exc_info = trace
        return f"{line}\n{self.formatException(trace)}" if trace and trace[0] else line


class JsonLines(logging.Formatter):
    """One JSON object per event: time, level, process, logger, message and, where there is one, traceback."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        event = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[0]:
            event["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(event).decode()
