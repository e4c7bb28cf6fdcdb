"""What a frozen trunk sees, computed once: an epoch then costs the head alone.

Held in memory only: nothing about the faces is stored, and an interrupted run computes it again.

Shape letters: V views, N samples, K classes, F numbers that the trunk leaves.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .networks import Network, Seen
from .samples import Samples

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]

N_VIEWS = 4  # of a sample, where there is augmentation: each epoch is shown one of them
CHUNK = 32  # samples that the trunk sees at a time

Transform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Augmentation: pictures `(N, C, S, S)` in 0..255 and targets `(N, K)` to others of the same shapes."""


@dataclass(frozen=True, slots=True)
class TrunkFeatures:
    """`maps` `(V, N, ...)` as the trunk left them, and `targets` `(V, N, K)`."""

    maps: Tensor
    targets: Tensor

    def show(self, rows: I64, views: I64) -> tuple[Tensor, Tensor]:
        """Return maps and targets of samples `rows`, each in its view."""
        return self.maps[views[rows], rows], self.targets[views[rows], rows]


def see(
    network: Network,
    samples: Samples,
    augment: Transform | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> TrunkFeatures:
    """Return what the trunk of `network` sees of `samples`.

    Args:
        network: its stages are all frozen.
        samples: N of them.
        augment: None: they are seen once, as they are; else `N_VIEWS` times, drawn anew each time.
        on_progress: called with how many pictures are done, and of how many.
    """
    network.eval()
    n_views, n = 1 if augment is None else N_VIEWS, len(samples)
    targets = torch.from_numpy(samples.targets).repeat(n_views, 1, 1)
    with torch.no_grad():
        shape = network.trunk(inputs_of(samples.pictures[:1])).shape[1:]
        maps = torch.empty(n_views, n, *shape)
        for view in range(n_views):
            for at in range(0, n, CHUNK):
                rows = slice(at, at + CHUNK)
                pictures = inputs_of(samples.pictures[rows])
                if augment is not None:
                    pictures, targets[view, rows] = augment(pictures, targets[view, rows])
                maps[view, rows] = network.trunk(pictures)
                on_progress(view * n + min(n, at + CHUNK), n_views * n)
    return TrunkFeatures(maps, targets)


def answers(network: Network, features: TrunkFeatures) -> Seen:
    """Return what the head of `network` says about the first view of every sample."""
    network.eval()
    with torch.no_grad():
        return network.head(features.maps[0])


def inputs_of(pictures: U8) -> Tensor:
    """Return `(N, C, S, S)` float32 of `(N, S, S, C)` uint8 pictures, in memory of its own.

    One channel needs the copy: transposed, its strides look like those of channels that come last, and with
    these torch 2.13's convolutions on a CPU write beyond their memory on the way back.
    """
    return torch.from_numpy(np.array(pictures.transpose(0, 3, 1, 2), np.float32, order="C"))
