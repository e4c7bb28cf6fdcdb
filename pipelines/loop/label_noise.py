"""One person's word for what a face shows is not the truth: softened, and doubted where others contradict.

Shape letters: N faces, K classes, F features.
"""

import numpy as np
import numpy.typing as npt

from ..learning.ensembles import fit_cascade

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Text = npt.NDArray[np.str_]

DOUBT = 0.15  # share of a single person's word that goes to what the committee of networks said
N_FOLDS = 5
MIN_TO_DOUBT = 5  # labels of a class below which nothing can be said about any of them
MAX_SUSPECT = 0.25


def soft_targets(labels: I64, committee: F32) -> F32:
    """Return `(N, K)` shares: 0.85 for the label, and 0.15 as the committee saw it.

    Args:
        labels: `(N,)` classes.
        committee: `(N, K)` probabilities of all networks together; a row of NaN where they were not asked.

    Source: Reed et al., "Training deep neural networks on noisy labels with bootstrapping", 2015, eq. 6
    (soft), with a committee in place of the network that learns.
    """
    n_classes = committee.shape[1]
    seen = np.where(np.isnan(committee), np.float32(1 / n_classes), committee)
    shares = (1 - DOUBT) * np.eye(n_classes, dtype=np.float32)[labels] + DOUBT * seen
    softened: F32 = shares.astype(np.float32)
    return softened


def find_suspects(features: F32, labels: I64, groups: Text, n_classes: int) -> Bool:
    """Return `(N,)`: the labels that a classifier contradicts which has not seen them.

    A logistic head is fitted on four fifths of the groups and asked about the last fifth. A class counts as
    possible where it is as likely as it is on average for faces with that label; a label is suspect when
    another possible class is likelier. At most a quarter is, the most contradicted: where more would be, it
    is the classifier that knows too little. Faces of other places are no help to it: where light or camera
    made the daemon wrong, they would contradict everybody who says so.

    Args:
        features: `(N, F)`, few: hundreds of labels cannot judge by thousands of features.
        labels: `(N,)` classes.
        groups: `(N,)` names; one group is on one side of a fold.
        n_classes: K.

    Source: Northcutt et al., "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 70, 2021,
    section 3.1, by off-diagonals of the confident joint.
    """
    if len(np.unique(groups)) < N_FOLDS:
        return np.zeros(len(labels), bool)
    p = _out_of_fold(features, labels, groups, n_classes)
    counts = np.bincount(labels, minlength=n_classes)
    usual = np.array([p[labels == k, k].mean() if counts[k] else np.inf for k in range(n_classes)])
    possible = np.where(p >= usual, p, 0)
    excess = possible.max(axis=1) - p[np.arange(len(labels)), labels]
    excess[counts[labels] < MIN_TO_DOUBT] = 0
    suspects = np.zeros(len(labels), bool)
    suspects[np.argsort(-excess, kind="stable")[: int(len(labels) * MAX_SUSPECT)]] = True
    contradicted: Bool = suspects & (excess > 0)
    return contradicted


def _out_of_fold(features: F32, labels: I64, groups: Text, n_classes: int) -> F32:
    """Return `(N, K)` probabilities for each face by a head fitted on other groups."""
    random = np.random.default_rng(0)
    random = np.random.default_rng(0)
    seen = (features - features.mean(axis=0)) / (features.std(axis=0) + np.float32(1e-3))
    targets = np.eye(n_classes, dtype=np.float32)[labels]
    names = random.permutation(np.unique(groups))
    fold_of = dict(zip(names, np.arange(len(names)) % N_FOLDS, strict=True))
    folds = np.array([fold_of[group] for group in groups])
    p = np.zeros((len(labels), n_classes), np.float32)
    for fold in range(N_FOLDS):
        held = folds == fold
        p[held] = fit_cascade([seen[~held]], targets[~held]).probabilities([seen[held]])
    return p
