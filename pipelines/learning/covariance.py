"""Covariance pooling: how the channels of a map vary together, instead of their means.

The square root of the covariance is taken by a fixed number of matrix products, so that it can be exported
to ONNX; an eigendecomposition cannot. The result depends on that number: with 64 channels of 7 x 7 places, 5
steps are 18 % off the true root and 12 steps 0.4 %, and the network is trained for what it gets. So the
number is part of the weights.

Shape letters: N faces, C channels, H W map, d channels after reduction.
"""

import torch
from torch import Tensor, nn

from ..errors import ModelError


class CovariancePooling(nn.Module):
    """iSQRT-COV: reduction to d channels, their covariance, its root, the upper triangle.

    Float32 inside even under autocast: the steps lose their digits in float16.

    Args:
        n_channels: C.
        n_reduced: d; not above the number of places H W where possible, 64 is much for 7 x 7.
        n_steps: Newton-Schulz steps, at least 1. More are closer to the true root and cost 3 products each.

    Source: Li et al., "Towards faster training of global covariance pooling networks by iterative matrix
    square root normalization", CVPR 2018, section 3; the reduction as in the authors' code.
    """

    triangle: Tensor

    def __init__(self, n_channels: int, n_reduced: int = 64, n_steps: int = 5) -> None:
        super().__init__()
        if n_steps < 1 or n_reduced < 1:
            raise ValueError(f"{n_reduced=} {n_steps=}")
        self.n_steps = n_steps
        self.n_features = n_reduced * (n_reduced + 1) // 2
        self.reduction = nn.Sequential(
            nn.Conv2d(n_channels, n_reduced, 1, bias=False), nn.BatchNorm2d(n_reduced), nn.ReLU()
        )
        rows, columns = torch.triu_indices(n_reduced, n_reduced)
        self.register_buffer("triangle", rows * n_reduced + columns, persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Return `(N, d (d + 1) / 2)` features of `(N, C, H, W)` maps, row by row of the triangle."""
        reduced: Tensor = self.reduction(maps)
        with torch.autocast(maps.device.type, enabled=False):
            if reduced.dtype not in (torch.float32, torch.float64):
                reduced = reduced.float()
            root = newton_schulz_root(covariance(reduced), self.n_steps)
            return root.flatten(1).index_select(1, self.triangle)

    def get_extra_state(self) -> Tensor:
        """Return what the weights were trained with: the number of steps."""
        return torch.tensor(self.n_steps)

    def set_extra_state(self, state: Tensor) -> None:
        """Refuse weights that were trained with another number of steps.

        Raises:
            ModelError: they were.
        """
        if int(state) != self.n_steps:
            raise ModelError(
                f"these weights were trained with {int(state)} Newton-Schulz steps and this network takes"
                f" {self.n_steps}; set n_steps to {int(state)}"
            )


def covariance(maps: Tensor) -> Tensor:
    """Return `(N, d, d)` covariances over the places of `(N, d, H, W)`.

    1e-4 of the trace is added to the diagonal. Without, it is singular where d reaches H W, and its root has
    no finite gradient.

    Source: Li et al., section 3.1; the addition: Acharya et al., "Covariance pooling for facial expression
    recognition", CVPR workshops 2018, section 3.2.
    """
    points = maps.flatten(2)
    points = points - points.mean(2, keepdim=True)
    matrices = points @ points.transpose(1, 2) / points.shape[2]
    return matrices + 1e-4 * _traces(matrices) * _identity_like(matrices)


def newton_schulz_root(matrices: Tensor, n_steps: int) -> Tensor:
    """Return about the square roots of symmetric positive `(N, d, d)` matrices.

    With `A = S / tr S`, `Y = A` and `Z = I`: `n_steps` times `Y <- 1/2 Y (3 I - Z Y)` and
    `Z <- 1/2 (3 I - Z Y) Z`; then `sqrt(tr S) Y`. Eigenvalues that are small against the trace arrive last,
    from below.

    Source: Li et al., section 3.2: pre-normalisation by the trace, coupled iteration, compensation.
    """
    identity = _identity_like(matrices)
    traces = _traces(matrices).clamp_min(1e-6)  # a map that is the same everywhere has none
    y = matrices / traces
    z = identity
    for step in range(n_steps):
        factor = (3 * identity - z @ y) / 2
        y = y @ factor
        if step < n_steps - 1:
            z = factor @ z
    return traces.sqrt() * y


def _traces(matrices: Tensor) -> Tensor:
    """Return `(N, 1, 1)`."""
    return (matrices * _identity_like(matrices)).sum((1, 2), keepdim=True)


def _identity_like(matrices: Tensor) -> Tensor:
    return torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
