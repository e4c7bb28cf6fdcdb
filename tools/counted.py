"""The progress bar of long work that can be counted."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def counted(console: Console | None = None, *, is_transient: bool = False) -> Progress:
    """Return a bar that shows what is done, how many of how many, and the time that is left."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=console, transient=is_transient)
