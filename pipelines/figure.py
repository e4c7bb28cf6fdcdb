"""Sheets that pictures of numbers are drawn on: size, colours, title, and a PNG. The door to matplotlib.

Figures are made without pyplot, so nothing is kept between calls and no window system is asked for.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .cache_files import write_atomically

DPI = 150
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#767676"  # Okabe and Ito: told apart by colour-blind readers
PALE_BLUE = "#a6cee3"
PALE_GREY = "#e4e4e4"


def new_figure(
    width: float, height: float, n_rows: int = 1, heights: Sequence[float] | None = None
) -> tuple[Figure, Any]:
    """Return a figure of that size in inches, and its axes, one above the other."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(n_rows, 1, sharex=n_rows > 1, squeeze=False, height_ratios=heights)
    return figure, axes[:, 0]


def set_title(figure: Figure, title: str, below: str) -> None:
    """Write a title over the first axes, and a smaller line under it."""
    axes = figure.axes[0]
    axes.set_title(title, loc="left", fontsize=12, weight="bold", pad=24)
    line = axes.annotate(below, (0, 1), (0, 8), xycoords="axes fraction", textcoords="offset points")
    line.set(fontsize=9, color="#404040", in_layout=False)  # it may be wider than the axes


def show_percent(axis: Any, decimals: int | None = 0) -> None:
    """Label an axis whose values are shares of 1 in per cent; None: as many decimals as it takes."""
    axis.set_major_formatter(PercentFormatter(1.0, decimals=decimals))


def show_whole(axis: Any) -> None:
    """Label an axis at whole numbers only."""
    axis.set_major_locator(MaxNLocator(integer=True))


def write_figure(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG, whole or not at all, the same bytes for the same figure; return `path`.

    Raises:
        OSError: it cannot be written there.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())
    return path
