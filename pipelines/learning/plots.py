"""Pictures of how a network learned and how well it does."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..figure import (
    BLUE,
    GREY,
    ORANGE,
    PALE_BLUE,
    PALE_GREY,
    new_figure,
    set_title,
    show_percent,
    show_whole,
    write_figure,
)
from ..releases.gates import GateResult
from .metrics import ClassReport, Reliability

I64 = npt.NDArray[np.int64]

Curves = Mapping[str, tuple[str, Sequence[float]]]
"""Colour and values by epoch, by what they are called."""

DARK = 0.55  # share of a row from which on its number is written in white


class Epoch(Protocol):
    """What is drawn of one pass over the training samples; accuracies in 0..1."""

    @property
    def number(self) -> int:
        """From 1."""

    @property
    def train_loss(self) -> float:
        """On what was learned from."""

    @property
    def train_accuracy(self) -> float:
        """On what was learned from."""

    @property
    def tune_loss(self) -> float:
        """On the tuning part."""

    @property
    def tune_accuracy(self) -> float:
        """On the tuning part."""


def draw_confusion(confusion: I64, classes: Sequence[str], path: Path, title: str) -> Path:
    """Write a PNG of a confusion matrix: in each field the share of its row and the number of faces.

    Args:
        confusion: `(K, K)` counts, a row per true class.
        classes: K names.
        path: where to; the folder is made.
        title: accuracy, macro F1 and the number of faces are added below it.

    Returns:
        `path`.
    """
    k = len(classes)
    if confusion.shape != (k, k):
        raise ValueError(f"{confusion.shape=} for {k} classes")
    report = ClassReport(confusion)
    shares = confusion / np.maximum(report.n_true[:, None], 1)
    figure, (axes,) = new_figure(max(2.6 + 0.82 * k, 6.4), 2.1 + 0.62 * k)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(k, k):
        share, count = shares[row, column], confusion[row, column]
        colour = "white" if share > DARK else "black" if count else "#b0b0b0"
        bold = "bold" if row == column else "normal"
        axes.text(column, row - 0.13, f"{share:.0%}", ha="center", va="center", color=colour, weight=bold)
        axes.text(column, row + 0.24, f"{count:,}", ha="center", va="center", color=colour, fontsize=7)
    axes.set_xticks(range(k), classes, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(k), [f"{name}  ({n:,})" for name, n in zip(classes, report.n_true, strict=True)])
    axes.set_xticks(np.arange(k - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(k - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("said")
    axes.set_ylabel("true (faces)")
    below = f"accuracy {report.accuracy:.1%}, macro F1 {report.macro_f1:.3f}, {confusion.sum():,} faces"
    set_title(figure, title, f"{below}; shares are of the row")
    return write_figure(figure, path)


def draw_training(epochs: Sequence[Epoch], path: Path, title: str) -> Path:
    """Write a PNG of loss and accuracy by epoch; the epoch with the smallest loss in tuning is marked.

    Args:
        epochs: at least one, in order.
        path: where to; the folder is made.
        title: the best epoch is added below it.

    Returns:
        `path`.
    """
    losses = {
        "train": (ORANGE, [e.train_loss for e in epochs]),
        "tune": (BLUE, [e.tune_loss for e in epochs]),
    }
    accuracies = {
        "train": (ORANGE, [e.train_accuracy for e in epochs]),
        "tune": (BLUE, [e.tune_accuracy for e in epochs]),
    }
    figure, above, below, best = _draw_epochs(epochs, losses, accuracies)
    below.set_ylabel("accuracy")
    above.plot(best.number, best.tune_loss, "o", color=BLUE, markersize=7)
    below.plot(best.number, best.tune_accuracy, "o", color=BLUE, markersize=7)
    above.legend(frameon=False)
    line = f"best epoch {best.number} of {epochs[-1].number}: tune loss {best.tune_loss:.3f}"
    set_title(figure, title, f"{line}, tune accuracy {best.tune_accuracy:.1%}")
    return write_figure(figure, path)


def draw_verification(epochs: Sequence[Epoch], path: Path, title: str) -> Path:
    """Write a PNG of an embedder by epoch: its loss, and who is known and which pairs are decided rightly.

    Args:
        epochs: at least one, in order; `tune_loss` is the equal error rate.
        path: where to; the folder is made.
        title: the epoch with the smallest equal error rate is added below it.

    Returns:
        `path`.
    """
    losses = {"train": (ORANGE, [e.train_loss for e in epochs])}
    shares = {
        "who is learned from: right": (ORANGE, [e.train_accuracy for e in epochs]),
        "pairs of others: right": (BLUE, [e.tune_accuracy for e in epochs]),
        "pairs of others: equal error rate": (GREY, [e.tune_loss for e in epochs]),
    }
    figure, _, below, best = _draw_epochs(epochs, losses, shares)
    below.legend(frameon=False)
    line = f"best epoch {best.number} of {epochs[-1].number}: equal error rate {best.tune_loss:.1%}"
    set_title(figure, title, f"{line}, pairs right {best.tune_accuracy:.1%}")
    return write_figure(figure, path)


def _draw_epochs(epochs: Sequence[Epoch], losses: Curves, shares: Curves) -> tuple[Any, Any, Any, Epoch]:
    """Draw losses above and shares below, by epoch; return the figure, both axes, and the best epoch.

    That is the one of the smallest loss in tuning; a line marks it.
    """
    if not epochs:
        raise ValueError("no epochs to draw")
    numbers = [epoch.number for epoch in epochs]
    best = min(epochs, key=lambda epoch: epoch.tune_loss)
    marker = "o" if len(numbers) <= 40 else ""
    figure, (above, below) = new_figure(7.0, 6.2, n_rows=2)
    for axes, curves in ((above, losses), (below, shares)):
        axes.axvline(best.number, color=GREY, linewidth=1, linestyle=":")
        for name, (colour, values) in curves.items():
            axes.plot(numbers, values, color=colour, marker=marker, markersize=3, label=name)
        axes.grid(color=PALE_GREY, linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        show_whole(axes.xaxis)
    above.set_ylabel("loss")
    show_percent(below.yaxis, None)
    below.set_xlabel("epoch")
    return figure, above, below, best


def draw_reliability(bins: Reliability, path: Path, title: str) -> Path:
    """Write a PNG of how often a predictor was right where it was so sure, and how often it was so sure.

    Args:
        bins: as from `metrics.reliability`.
        path: where to; the folder is made.
        title: the expected calibration error is added below it.

    Returns:
        `path`.
    """
    if not bins.n_faces.sum():
        raise ValueError("no faces to draw a reliability diagram of")
    figure, (above, below) = new_figure(5.6, 6.6, n_rows=2, heights=(3, 1))
    centres, width = (bins.edges[:-1] + bins.edges[1:]) / 2, np.diff(bins.edges)
    full = bins.n_faces > 0
    accuracy, confidence = bins.accuracy[full], bins.confidence[full]
    above.bar(centres[full], accuracy, width[full] * 0.92, color=PALE_BLUE, label="right")
    above.bar(
        centres[full],
        np.abs(confidence - accuracy),
        width[full] * 0.92,
        bottom=np.minimum(confidence, accuracy),
        facecolor="none",
        edgecolor=ORANGE,
        hatch="////",
        linewidth=0.8,
        label="gap to confidence",
    )
    above.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="as sure as right")
    above.set_ylim(0, 1)
    above.set_ylabel("accuracy")
    above.legend(frameon=False, loc="upper left")
    below.bar(centres, bins.n_faces / bins.n_faces.sum(), width * 0.92, color=GREY)
    below.set_ylabel("faces")
    below.set_xlabel("confidence: the largest probability")
    show_percent(below.yaxis)
    for axes in (above, below):
        axes.set_xlim(0, 1)
        axes.grid(color=PALE_GREY, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    sides = [float(np.average(values, weights=bins.n_faces[full])) for values in (confidence, accuracy)]
    line = f"ECE {bins.ece:.3f}; mean confidence {sides[0]:.1%}, accuracy {sides[1]:.1%}"
    set_title(figure, title, f"{line}, {bins.n_faces.sum():,} faces")
    return write_figure(figure, path)


def draw_gates(results: Sequence[GateResult], path: Path, title: str) -> Path:
    """Write a PNG of gates: how much of what is allowed a release uses, in bars; what fails is orange.

    Args:
        results: at least one, in order.
        path: where to; the folder is made.
        title: how many gates were passed is added below it.

    Returns:
        `path`.
    """
    if not results:
        raise ValueError("no gates to draw")
    figure, (axes,) = new_figure(8.4, 1.6 + 0.34 * len(results))
    for row, result in enumerate(results):
        used = _used(result)
        colour = BLUE if result.passed else ORANGE
        if used is None:
            axes.plot(0.0, row, "o" if result.passed else "X", color=colour, markersize=8)
        else:
            axes.barh(row, float(np.clip(used, -0.6, 2.0)), color=colour, height=0.6)
        axes.annotate(f"n = {result.n:,}", (2.05, row), va="center", fontsize=8, color=GREY)
    axes.axvline(1, color=GREY, linestyle="--", linewidth=1)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(results)), [result.name for result in results])
    axes.invert_yaxis()
    axes.set_xlim(-0.65, 2.4)
    axes.set_xlabel("share of what is allowed that is used; below 0: better than before")
    show_percent(axes.xaxis)
    axes.spines[["top", "right"]].set_visible(False)
    n_passed = sum(result.passed for result in results)
    set_title(figure, title, f"{n_passed} of {len(results)} passed")
    return write_figure(figure, path)


def _used(result: GateResult) -> float | None:
    """Return value over bound where that says whether it was passed."""
    if result.value is None or not result.bound:
        return None
    used = result.value / result.bound
    return used if (used <= 1) == result.passed else None
