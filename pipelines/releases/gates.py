"""What a release must show before it may answer: each gate is a pure function of measured facts.

A gate gives its results with value, bound and a sentence; all of them are kept with the release. Too little
evidence never passes: the release that serves stays.

Shape letters: N faces, K classes, R runs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct
from scipy.stats import binom

from ..cache_files import write_atomically
from ..engines.parity import ParityReport
from ..errors import MALFORMED, ReleaseError
from ..learning.metrics import ACCURACY, ECE, MACRO_F1, Bootstrap, Truth, difference, recall_of
from ..message import EMOTIONS
from .release import Release
from .release_store import StoredRelease

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

ONE_SIDED_95 = Bootstrap(level=0.9)  # its lower end is a one-sided bound of 95 %
TWO_SIDED_80 = Bootstrap(level=0.8)  # its upper end is a one-sided bound of 90 %
MARGINS = ((800, 0.02), (400, 0.03))
"""From so many faces on, so much less than the incumbent is still no worse. Below: nobody can say."""
ANCHOR_MARGIN = 0.03  # else a little could be lost at every promotion
LEAST_OF_CLASS = 30
MAX_RECALL_LOSS = 0.05
MAX_ECE_GAIN = 0.02
MAX_FORGOTTEN = 0.02
MAX_P = 0.10
FEW_TARGETS, LEAST_FIXES = 60, 3


class GateResult(Struct, frozen=True, kw_only=True):
    """One gate: what was measured on `n` things, what it was held against, and what that means."""

    name: str
    passed: bool
    value: float | None
    bound: float | None
    n: int
    sentence: str


class GateReport(Struct, frozen=True, kw_only=True):
    """All results for one release, as they are kept beside it; `at` is seconds since 1970."""

    release: str
    champion: str
    anchor: str
    at: float
    data: tuple[str, ...]
    results: tuple[GateResult, ...]

    @property
    def passed(self) -> bool:
        """Whether every gate was passed; none at all is no pass."""
        return bool(self.results) and not self.failed

    @property
    def failed(self) -> tuple[GateResult, ...]:
        """Return the gates that were not passed."""
        return tuple(result for result in self.results if not result.passed)


def read_report(stored: StoredRelease) -> GateReport | None:
    """Return what is kept about the gates of a release; None: they were not measured."""
    try:
        return msgspec.json.decode((stored.folder / "gates.json").read_bytes(), type=GateReport)
    except FileNotFoundError:
        return None
    except (OSError, *MALFORMED) as error:
        raise ReleaseError(
            f"{stored.folder / 'gates.json'} cannot be read ({error}); measure the gates again"
        ) from error


def write_report(stored: StoredRelease, report: GateReport) -> None:
    """Keep `report` beside its release.

    Raises:
        ReleaseError: the folder cannot be written.
    """
    path = stored.folder / "gates.json"
    try:
        write_atomically(path, msgspec.json.format(msgspec.json.encode(report)))
    except OSError as error:
        raise ReleaseError(f"{path} cannot be written ({error.strerror}); free space") from error


@dataclass(frozen=True, slots=True)
class HoldOut:
    """What three releases say about the same N faces, which none of them learned from.

    The probabilities are `(N, K)`; `truth` is of the same faces, its groups as persons or tracks.
    """

    truth: Truth
    candidate: F32
    champion: F32
    anchor: F32

    def __post_init__(self) -> None:
        for p in (self.candidate, self.champion, self.anchor):
            if p.shape != self.truth.targets.shape:
                raise ValueError(f"{p.shape=} {self.truth.targets.shape=}")

    def __len__(self) -> int:
        return len(self.truth)


@dataclass(frozen=True, slots=True)
class Cost:
    """`(R,)` seconds of the same batches on both releases, in turns, and bytes that each takes loaded."""

    candidate_s: F64
    champion_s: F64
    candidate_bytes: int
    free_bytes: int

    @property
    def p95_s(self) -> tuple[float, float]:
        """95th percentile of candidate and champion, in seconds."""
        ours, theirs = (float(np.quantile(s, 0.95)) for s in (self.candidate_s, self.champion_s))
        return ours, theirs


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that is measured about a candidate. What is None was not measured."""

    candidate: Release
    champion: Release
    parity: Mapping[str, ParityReport]
    base: HoldOut
    cost: Cost
    target: HoldOut | None = None
    max_slowdown: float = 1.05


def compatibility(facts: Facts) -> list[GateResult]:
    """Whether the candidate fits where the champion is: space, classes, chips, licences."""
    ours, theirs = facts.candidate, facts.champion
    reasons = []
    if ours.embedding_space != theirs.embedding_space:
        reasons.append(
            f"it embeds faces into {ours.embedding_space}, the gallery holds {theirs.embedding_space}, and "
            "the photos of people are not kept to embed them anew: enrol them again"
        )
    for member in ours.members:
        network, name = member.network, member.network.name
        if not network.licence.strip():
            reasons.append(f"{name} has no licence")
        if len(network.recipe.mean) not in (1, 3) or network.recipe.size < 1 or network.recipe.scale == 0:
            reasons.append(f"nobody can cut chips for {name}")
        for output in network.outputs:
            if strange := sorted(set(output.classes) - set(EMOTIONS)):
                reasons.append(f"{name} says {strange[0]}, which is no emotion here")
            if output.kind == "logits" and output.dim != len(output.classes):
                reasons.append(f"{name} gives {output.dim} logits for {len(output.classes)} classes")
    dims = [
        {o.dim for m in r.members for o in m.network.outputs if o.kind == "embedding"} for r in (ours, theirs)
    ]
    if dims[0] != dims[1] or len(dims[0]) != 1:
        reasons.append("its embeddings have another length")
    known = [{c for m in r.members for o in m.network.outputs for c in o.classes} for r in (ours, theirs)]
    if lost := sorted(known[1] - known[0]):
        reasons.append(f"it does not know {', '.join(lost)}")
    sentence = "; ".join(reasons) or "same embedding space and classes, chips can be cut, licences are there"
    return [_result("compatibility", not reasons, (None, None, len(ours.members)), sentence)]


def parity(facts: Facts) -> list[GateResult]:
    """Whether the engine of every member answers as its network does in fp32."""
    results = []
    for name, report in facts.parity.items():
        worst = max((o.max_abs / o.tolerance.max_abs for o in report.outputs), default=0.0)
        results.append(
            _result(f"parity of {name}", report.is_within, (worst, 1.0, report.n_inputs), str(report))
        )
    return results


def non_inferiority(facts: Facts) -> list[GateResult]:
    """Whether the candidate is no worse than champion and anchor: accuracy and macro F1, paired.

    Source: as for the bootstrap, `learning.metrics.difference`; the margins: docs/releases.md.
    """
    base, results = facts.base, []
    n = len(base)
    margin = next((margin for least, margin in MARGINS if n >= least), None)
    if margin is None:
        sentence = f"{n} faces are too few to tell, {MARGINS[-1][0]} are needed: the champion stays"
        return [_result("non-inferiority", False, (None, None, n), sentence)]
    against = (("champion", base.champion, margin), ("anchor", base.anchor, max(margin, ANCHOR_MARGIN)))
    for name, other, allowed in against:
        for metric in (ACCURACY, MACRO_F1):
            found = difference(metric, (base.candidate, other), base.truth, ONE_SIDED_95)
            passed = bool(found.low > -allowed)  # NaN, as of one group alone, is no pass
            sentence = f"{found.value:+.3f}, with 95 % certainty above {found.low:+.3f}"
            results.append(
                _result(f"{metric.name} against {name}", passed, (found.low, -allowed, n), sentence)
            )
    return results


def target_gain(facts: Facts) -> list[GateResult]:
    """Whether more of the flagged faces are right now: McNemar's test; of few faces, plain counts.

    Source: Fagerland et al., "The McNemar test for binary matched-pairs data: mid-p and asymptotic are
    better than exact conditional", BMC Med. Res. Methodol. 2013.
    """
    target = facts.target
    if target is None:
        return []
    right = [_right(p, target.truth) for p in (target.candidate, target.champion)]
    n_fixed, n_broken = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    n, said = len(target), f"of {len(target)} flagged faces {n_fixed} mistakes mended, {n_broken} made"
    if n < FEW_TARGETS:
        passed = n_fixed - n_broken >= LEAST_FIXES and n_fixed >= 2 * n_broken
        values = (float(n_fixed - n_broken), float(LEAST_FIXES), n)
        needed = f"{LEAST_FIXES} more mended and twice as many are needed"
        return [_result("target gain", passed, values, f"{said}; at least {needed}")]
    p = mid_p(n_fixed, n_broken)
    return [_result("target gain", p < MAX_P, (p, MAX_P, n), f"{said}; by chance with p = {p:.3f}")]


def per_class(facts: Facts) -> list[GateResult]:
    """Whether no class that is shown often enough lost much of its recall for sure."""
    base, results = facts.base, []
    counts = np.bincount(base.truth.targets.argmax(axis=1), minlength=len(EMOTIONS))
    for index, name in enumerate(EMOTIONS):
        if counts[index] < LEAST_OF_CLASS:
            continue
        pair = (base.candidate, base.champion)
        found = difference(recall_of(index, name), pair, base.truth, TWO_SIDED_80)
        passed = bool(found.high >= -MAX_RECALL_LOSS)
        sentence = f"{found.value:+.3f}, with 90 % certainty below {found.high:+.3f}"
        values = (found.high, -MAX_RECALL_LOSS, int(counts[index]))
        results.append(_result(f"recall of {name}", passed, values, sentence))
    return results


def calibration(facts: Facts) -> list[GateResult]:
    """Whether the candidate knows as well as the champion how sure it may be."""
    base = facts.base
    ours, theirs = (ECE(p, base.truth.targets) for p in (base.candidate, base.champion))
    bound = theirs + MAX_ECE_GAIN
    sentence = f"expected calibration error {ours:.3f}, the champion's is {theirs:.3f}"
    return [_result("calibration", bool(ours <= bound), (ours, bound, len(base)), sentence)]


def forgetting(facts: Facts) -> list[GateResult]:
    """Whether what was known is still known: accuracy on the base hold-out, as measured."""
    base = facts.base
    gain = ACCURACY(base.candidate, base.truth.targets) - ACCURACY(base.champion, base.truth.targets)
    passed = bool(gain >= -MAX_FORGOTTEN)
    return [
        _result("forgetting", passed, (gain, -MAX_FORGOTTEN, len(base)), f"accuracy {gain:+.3f} on the base")
    ]


def latency(facts: Facts) -> list[GateResult]:
    """Whether the candidate is as fast: 95th percentiles of the same batches, taken in turns."""
    ours, theirs = facts.cost.p95_s
    bound = facts.max_slowdown * theirs
    sentence = f"95 % of the batches take {ours * 1e3:.1f} ms, of the champion's {theirs * 1e3:.1f} ms"
    return [_result("latency", ours <= bound, (ours, bound, len(facts.cost.candidate_s)), sentence)]


def memory(facts: Facts) -> list[GateResult]:
    """Whether there is room for the candidate beside the champion."""
    need, free = facts.cost.candidate_bytes, facts.cost.free_bytes
    sentence = f"it takes {need / 1e6:.0f} MB, {free / 1e6:.0f} MB are free"
    return [_result("memory", not free or need <= free, (float(need), float(free), 1), sentence)]


GATES: tuple[Callable[[Facts], list[GateResult]], ...] = (
    compatibility, parity, non_inferiority, target_gain, per_class, calibration, forgetting, latency, memory,
)  # fmt: skip


def judge(facts: Facts) -> tuple[GateResult, ...]:
    """Return the results of all gates, in their order."""
    return tuple(result for gate in GATES for result in gate(facts))


def mid_p(n_fixed: int, n_broken: int) -> float:
    """Return the one-sided mid-p of McNemar's test that mending is no more likely than breaking."""
    n = n_fixed + n_broken
    if not n:
        return 1.0
    return float(binom.sf(n_fixed, n, 0.5) + 0.5 * binom.pmf(n_fixed, n, 0.5))


def _right(p: F32, truth: Truth) -> npt.NDArray[np.bool_]:
    right: npt.NDArray[np.bool_] = p.argmax(axis=1) == truth.targets.argmax(axis=1)
    return right


def _result(
    name: str, passed: bool, values: tuple[float | None, float | None, int], sentence: str
) -> GateResult:
    """Return a result; a number that is not known is None, which JSON can say."""
    value, bound = (None if v is None or np.isnan(v) else float(v) for v in values[:2])
    return GateResult(name=name, passed=passed, value=value, bound=bound, n=values[2], sentence=sentence)
