"""How far an engine's answers are from those of the fp32 graph it was built from, and how far they may be."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from .engine import Engine

F32 = npt.NDArray[np.float32]


class Tolerance(Struct, frozen=True, kw_only=True):
    """What is still the same answer: of one output, over all inputs; `top1` counts for logits only."""

    max_abs: float
    l2: float
    top1: float = 0.0


class OutputParity(Struct, frozen=True, kw_only=True):
    """Differences of one output: largest of one number, largest and mean Euclidean of one row.

    `top1` is the share of rows whose largest entry is the same; for an embedding it means nothing and is 1.
    `tolerance` is what it was held against.
    """

    name: str
    max_abs: float
    l2_max: float
    l2_mean: float
    top1: float
    tolerance: Tolerance

    @property
    def is_within(self) -> bool:
        """Whether this output is within its tolerance."""
        allowed = self.tolerance
        return self.max_abs <= allowed.max_abs and self.l2_max <= allowed.l2 and self.top1 >= allowed.top1


class ParityReport(Struct, frozen=True, kw_only=True):
    """Every output compared. `ran` says what ran: the plan itself, or its graph on ONNX Runtime.

    The second is all that can be had of a GPU's plan on a machine without one.
    """

    ran: str
    n_inputs: int
    outputs: tuple[OutputParity, ...]

    @property
    def is_within(self) -> bool:
        """Whether every output is within its tolerance."""
        return all(output.is_within for output in self.outputs)

    def __str__(self) -> str:
        return "; ".join(
            f"{o.name}: max abs {o.max_abs:.2g}, L2 {o.l2_max:.2g}"
            + (f", same top-1 {o.top1:.0%}" if o.tolerance.top1 else "")
            + ("" if o.is_within else f" (allowed {o.tolerance.max_abs:g}, {o.tolerance.l2:g}, "
               f"{o.tolerance.top1:.0%})")
            for o in self.outputs
        )  # fmt: skip


def compare(
    engine: Engine,
    reference: Engine,
    inputs: Iterable[F32],
    tolerances: Mapping[str, Tolerance],
    *,
    ran: str = "the plan",
) -> ParityReport:
    """Return how far `engine` is from `reference` over all `inputs`, each a batch.

    Args:
        engine: what is tried.
        reference: the fp32 graph on ONNX Runtime.
        inputs: batches; their shapes may differ.
        tolerances: of every output that counts, by name.
        ran: what `engine` is.

    Raises:
        ValueError: no input at all.
    """
    ours: dict[str, list[F32]] = {name: [] for name in tolerances}
    truth: dict[str, list[F32]] = {name: [] for name in tolerances}
    n_inputs = 0
    for batch in inputs:
        n_inputs += len(batch)
        answered, expected = engine.infer(batch), reference.infer(batch)
        for name in tolerances:
            ours[name].append(rows_of(answered[name], len(batch)))
            truth[name].append(rows_of(expected[name], len(batch)))
    if not n_inputs:
        raise ValueError("there is nothing to compare on")
    outputs = tuple(
        _difference(name, ours[name], truth[name], allowed) for name, allowed in tolerances.items()
    )
    return ParityReport(ran=ran, n_inputs=n_inputs, outputs=outputs)


def rows_of(values: F32, n: int) -> F32:
    """Return `values` as `(n, everything else)`."""
    return values.reshape(n, -1).astype(np.float32, copy=False)


def _difference(name: str, ours: Sequence[F32], truth: Sequence[F32], tolerance: Tolerance) -> OutputParity:
    """Return the differences over batches of rows; numbers that are not finite differ without limit."""
    largest, lengths, same = 0.0, [0.0], [True]
    for a, b in zip(ours, truth, strict=True):
        with np.errstate(invalid="ignore"):  # two infinities
            gap = np.abs(a.astype(np.float64) - b)
        gap[~np.isfinite(gap)] = np.inf
        largest = max(largest, float(gap.max(initial=0)))
        lengths += np.linalg.norm(gap, axis=1).tolist()
        same += (a.argmax(axis=1) == b.argmax(axis=1)).tolist()
    return OutputParity(
        name=name,
        max_abs=largest,
        l2_max=max(lengths),
        l2_mean=float(np.mean(lengths[1:] or [0.0])),
        top1=float(np.mean(same[1:])) if tolerance.top1 and len(same) > 1 else 1.0,
        tolerance=tolerance,
    )
