"""The (N+M)-tuplet clusters loss, and an order of samples whose batches hold many tuplets.

A tuplet is a query, other people who show the same as it (positives), and the same person who shows something
else (negatives): whoever tells them apart looks at the expression and not at the person.

Shape letters: N samples, D features. P and M are the positives, query included, and negatives of a tuplet.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

I64 = npt.NDArray[np.int64]

_FAR = 10.0  # more than any squared distance of unit vectors, 0..4


def tuplet_loss(
    features: Tensor, labels: Tensor, groups: Tensor, reference: Tensor, gap: float, sizes: tuple[int, int]
) -> Tensor:
    """Return the mean over all samples, each the query of one tuplet drawn from the batch.

    With c the mean of the positives and D the squared distance to it: `1/P* sum_i max(0, D(x_i+) - T + gap/2)
    + 1/M* sum_j max(0, T + gap/2 - D(x_j-))`, where P* and M* count the terms above 0. It is 0 where every
    positive is within `T - gap/2` of c and every negative beyond `T + gap/2`.

    Args:
        features: `(N, D)` of unit length.
        labels: `(N,)` int64.
        groups: `(N,)` int64, equal for samples of one person.
        reference: `()` T, in 0..4; has a gradient.
        gap: tau.
        sizes: most positives, query included, and most negatives of a tuplet; see `tuplets_of`.

    Source: Liu et al., "Adaptive deep metric learning for identity-aware facial expression recognition", CVPR
    workshops 2017, section 3: the (N+M)-tuplet clusters loss with a learned T. Not its generalised form,
    which also learns the metric.
    """
    (positives, is_positive), (negatives, is_negative) = tuplets_of(features.detach(), labels, groups, sizes)
    members = features[positives] * is_positive[..., None]
    centres = members.sum(1, keepdim=True) / is_positive.sum(1)[:, None, None]  # the query is always there
    too_far = (_squared(features[positives], centres) - reference + gap / 2).clamp_min(0) * is_positive
    too_near = (reference + gap / 2 - _squared(features[negatives], centres)).clamp_min(0) * is_negative
    return (_mean_of_violators(too_far) + _mean_of_violators(too_near)).mean()


def _squared(points: Tensor, centres: Tensor) -> Tensor:
    return (points - centres).square().sum(2)


def _mean_of_violators(terms: Tensor) -> Tensor:
    """Return `(N,)` the mean of the terms above 0 in every row of `(N, P or M)`; 0 where there are none."""
    return terms.sum(1) / (terms > 0).sum(1).clamp_min(1)


def tuplets_of(
    features: Tensor, labels: Tensor, groups: Tensor, sizes: tuple[int, int]
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the tuplet of every sample: indices with which of them count, for positives and negatives.

    Positives `(N, P)`: the query, then other people of its class, those nearer than the nearest negative
    first and of them the farthest first; the others, who may be mislabelled, from near to far. Negatives
    `(N, M)`: the same person in other classes from near to far; then, where the batch has too few, anyone in
    other classes, so that data without names teach something too.

    Source: Liu et al., section 3: identity-aware negatives, online choice of positives. How to rank them,
    and the last resort, are ours.
    """
    squared = (2 - 2 * features @ features.T).clamp_min(0)
    is_alike = labels[:, None] == labels
    is_same_person = groups[:, None] == groups
    nothing = torch.full_like(squared, -torch.inf)

    rank = torch.where(is_same_person, _FAR - squared, -squared)
    rank = torch.where(is_alike, nothing, rank)
    negatives = _best(rank, sizes[1])

    nearest = torch.where(negatives[1], squared.gather(1, negatives[0]), torch.inf).amin(1, keepdim=True)
    rank = torch.where(squared < nearest, _FAR + squared, -squared)
    rank = torch.where(is_alike & ~is_same_person, rank, nothing)
    rank = rank.fill_diagonal_(2 * _FAR)
    return _best(rank, sizes[0]), negatives


def _best(rank: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return the indices `(N, n)` of the highest ranks, and which of them are above minus infinity."""
    best = rank.topk(min(n, len(rank)), dim=1)
    return best.indices, best.values > -torch.inf


def tuplet_order(
    labels: npt.NDArray[np.integer],
    groups: Sequence[object] | npt.NDArray[np.generic],
    seed: int | Sequence[int],
    sizes: tuple[int, int] = (4, 5),
) -> I64:
    """Return a random order of all samples in which those of a tuplet follow one another.

    It takes the place of a plain permutation: every sample comes once, and consecutive pieces of it are
    batches. Samples without company come where chance puts them.

    Args:
        labels: `(N,)`.
        groups: `(N,)`, equal for samples of one person.
        seed: of `numpy.random.default_rng`; the same seed gives the same order.
        sizes: positives, query included, and negatives that are put together.
    """
    random = np.random.default_rng(seed)
    _, group_of = np.unique(np.asarray(groups), return_inverse=True)
    keys = list(zip(np.asarray(labels).tolist(), group_of.tolist(), strict=True))
    queries = random.permutation(len(keys)).tolist()
    cells: dict[tuple[int, int], list[int]] = defaultdict(list)  # label and group to samples not yet placed
    people: dict[int, OrderedDict[int, None]] = defaultdict(OrderedDict)  # label to groups it still has
    faces: dict[int, OrderedDict[int, None]] = defaultdict(OrderedDict)  # group to labels it still has
    for query in queries:
        label, group = keys[query]
        cells[label, group].append(query)
        people[label][group] = faces[group][label] = None
    order: list[int] = []

    def place(label: int, group: int) -> None:
        cell = cells[label, group]
        order.append(cell.pop())
        if cell:  # others come first from now on
            people[label].move_to_end(group)
            faces[group].move_to_end(label)
        else:
            del people[label][group], faces[group][label]

    for query in queries:
        label, group = keys[query]
        if not cells[label, group]:
            continue
        place(label, group)
        for other in [g for g in islice(people[label], sizes[0]) if g != group][: sizes[0] - 1]:
            place(label, other)
        for other in [k for k in islice(faces[group], sizes[1] + 1) if k != label][: sizes[1]]:
            place(other, group)
    return np.array(order, dtype=np.int64)
