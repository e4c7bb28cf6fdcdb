"""Temperatures: how sure a network says it is, brought in line with how sure it may be.

Shape letters: N faces, K classes.
"""

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

F32 = npt.NDArray[np.float32]


def log_loss(logits: F32, targets: F32) -> float:
    """Return the mean cross entropy, in nats, of `(N, K)` logits against `(N, K)` shares of votes."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(-(targets * log_p).sum(axis=1).mean())


def fit_temperature(logits: F32, targets: F32) -> float:
    """Return the T in 0.1..10 for which `logits / T` has the smallest log loss.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    found = minimize_scalar(
        lambda log_t: log_loss(logits / np.float32(np.exp(log_t)), targets),
        bounds=(np.log(0.1), np.log(10.0)),
        method="bounded",
    )
    return float(np.exp(found.x))
