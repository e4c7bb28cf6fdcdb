"""Combine what several networks say about the same face.

Decision level works on probabilities, feature level on feature vectors.
Shape letters: E ensemble members, N faces, K classes, D features.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

FLOOR = np.float32(1e-9)  # a probability below it counts as this: one veto is strong, not without end


def probabilities(logits: F32, knows: Bool) -> F32:
    """Return `(E, N, K)` probabilities of each member over the classes it knows; 0 for the others.

    Args:
        logits: `(E, N, K)`, already divided by the members' temperatures.
        knows: `(E, K)`; False where a member has no such class. Each member knows at least one.

    Raises:
        ValueError: the shapes disagree, or a member knows nothing.
    """
    if logits.ndim != 3 or knows.shape != (logits.shape[0], logits.shape[2]):
        raise ValueError(f"{logits.shape=} {knows.shape=}")
    if not knows.any(axis=1).all():
        raise ValueError("a member knows no class at all")
    masked = np.where(knows[:, None, :], logits, -np.inf)
    grown = np.exp(masked - masked.max(axis=2, keepdims=True))
    shares: F32 = (grown / grown.sum(axis=2, keepdims=True)).astype(np.float32)
    return shares


def fuse_sum(p: F32, knows: Bool, weights: F32 | None = None) -> F32:
    """Return `(N, K)`: for each class the weighted mean over the members that know it, made to sum to 1.

    Args:
        p: `(E, N, K)` probabilities of each member.
        knows: `(E, K)`.
        weights: `(E,)` non-negative; None for equal ones.
    """
    share = _shares(p, knows, weights)
    mean = np.einsum("enk,ek->nk", p, share)
    return _normalised(mean)


def fuse_max(p: F32, knows: Bool, weights: F32 | None = None) -> F32:
    """Return `(N, K)`: for each class the largest weighted probability of any member, made to sum to 1."""
    w = _weights(p, weights)
    return _normalised(np.where(knows[:, None, :], p * w[:, None, None], 0).max(axis=0))


def fuse_vote(p: F32, knows: Bool, weights: F32 | None = None) -> F32:
    """Return `(N, K)` shares of the members' (weighted) votes; equal shares are parted by the sum rule.

    The sum rule enters with a thousandth of a vote: it decides ties and nothing else.
    """
    w = _weights(p, weights)
    votes = np.zeros(p.shape[1:], np.float32)
    for member, weight in zip(p, w, strict=True):
        votes[np.arange(len(member)), member.argmax(axis=1)] += weight
    return _normalised(votes / max(float(w.sum()), 1e-12) + np.float32(1e-3) * fuse_sum(p, knows, weights))


def fuse_product(p: F32, knows: Bool, weights: F32 | None = None) -> F32:
    """Return `(N, K)`: for each class the weighted geometric mean over the members that know it, normalised.

    The largest is that of the product. A class that one member rules out hardly comes back.

    Source: Kittler et al., "On combining classifiers", PAMI 1998, eq. 7; as a logarithmic opinion pool
    Heskes, "Selecting weighting factors in logarithmic opinion pools", NIPS 1997.
    """
    share = _shares(p, knows, weights)
    known = share.sum(axis=0) > 0
    if not known.any():
        raise ValueError(f"no member that counts knows a class: {weights=}")
    logs = np.einsum("enk,ek->nk", np.log(np.maximum(p, FLOOR)), share)
    fused: F32 = probabilities(logs[None], known[None])[0]
    return fused


def disagreement(p: F32, knows: Bool) -> F32:
    """Return `(N,)` the Jensen-Shannon divergence between the members in [0, 1]; 0 when all say the same.

    Only the classes that every member knows are compared: silence is not another opinion.

    It is the entropy of the mean less the mean of the entropies, base 2, divided by log2 E so that
    members that are sure of E different classes give 1.

    Source: Lin, "Divergence measures based on the Shannon entropy", IEEE Trans. Inf. Theory 1991.
    """
    common = knows.all(axis=0)
    if len(p) < 2 or not common.any():
        return np.zeros(p.shape[1], np.float32)
    shared = p[..., common]
    shared = shared / np.maximum(shared.sum(axis=-1, keepdims=True), 1e-12)
    divergence = _entropy(shared.mean(axis=0)) - _entropy(shared).mean(axis=0)
    bounded: F32 = np.clip(divergence / np.log2(len(p)), 0, 1).astype(np.float32)
    return bounded


def cascade(features: Sequence[F32]) -> F32:
    """Return `(N, sum of D)`: the members' `(N, D)` features, each made comparable, side by side.

    Each is `sign(f) sqrt|f|`, then made unit length.

    Source: Bargal et al., "Emotion recognition in the wild from videos using images", ICMI 2016.
    """
    return np.concatenate([comparable(f) for f in features], axis=1)


def weighted_cascade(features: Sequence[F32], weights: F32) -> F32:
    """Return `cascade`, the part of each member multiplied by its weight.

    Raises:
        ValueError: not one weight per member.
    """
    if weights.shape != (len(features),):
        raise ValueError(f"{weights.shape=} for {len(features)} members")
    parts: list[F32] = [w * comparable(f) for w, f in zip(weights, features, strict=True)]
    return np.concatenate(parts, axis=1)


def accuracy_weights(accuracies: F32, q: float = 4.0) -> F32:
    """Return `(E,)` weights `E a^q / sum a^q` of members with hold-out accuracies `a` in (0, 1].

    Source: the validation-accuracy weights of Kim et al., "Hierarchical committee of deep CNNs", ICMI 2015.
    """
    powered = accuracies.astype(np.float64) ** q
    weights: F32 = (len(powered) * powered / powered.sum()).astype(np.float32)
    return weights


def comparable(features: F32) -> F32:
    """Return `(N, D)` features after signed square root and L2 normalisation; zero rows stay zero."""
    rooted = np.sign(features) * np.sqrt(np.abs(features))
    length = np.linalg.norm(rooted, axis=1, keepdims=True)
    unit: F32 = (rooted / np.maximum(length, 1e-12)).astype(np.float32)
    return unit


def _weights(p: F32, weights: F32 | None) -> F32:
    w = np.ones(len(p), np.float32) if weights is None else weights
    if w.shape != (len(p),) or (w < 0).any():
        raise ValueError(f"weights must be one non-negative number per member: {w.shape=} {p.shape=}")
    return w


def _shares(p: F32, knows: Bool, weights: F32 | None) -> F32:
    """Return `(E, K)`: each member's part in the mean of a class, among those that know it."""
    w = _weights(p, weights)[:, None] * knows
    share: F32 = (w / np.maximum(w.sum(axis=0, keepdims=True), 1e-12)).astype(np.float32)
    return share


def _normalised(values: F32) -> F32:
    total = values.sum(axis=1, keepdims=True)
    shares = np.where(total > 0, values / np.maximum(total, 1e-30), 1 / values.shape[1])
    normalised: F32 = shares.astype(np.float32)
    return normalised


def _entropy(p: F32) -> F32:
    logs = np.log2(np.where(p > 0, p, 1))
    entropy: F32 = -(p * logs).sum(axis=-1)
    return entropy
