"""The networks of the conditional VAE-GAN.

Shape letters: N faces, S side in px, Z latent numbers, K classes.
"""

from itertools import pairwise
from typing import Annotated, Literal

import torch
from msgspec import Meta, Struct
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

SMALLEST = 4  # px: side of the maps that meet the latent numbers
SLOPE = 0.2  # of what is below 0


class GeneratorConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a generator is built and trained."""

    size: Literal[32, 64, 128] = 64
    """px: side of the chips."""
    width: Annotated[int, Meta(ge=4, le=128)] = 32
    """Filters of the largest maps; half the side, twice the filters, up to 4 times."""
    latent: Annotated[int, Meta(ge=2, le=1024)] = 128
    """Numbers a face is encoded in."""
    epochs: Annotated[int, Meta(ge=1, le=10_000)] = 60
    """Passes over the training part."""
    batch: Annotated[int, Meta(ge=2, le=1024)] = 32
    """Faces in one step."""
    rate: Annotated[float, Meta(gt=0, le=1)] = 5e-4
    """Learning rate, of Adam."""
    divergence: Annotated[float, Meta(ge=0, le=10)] = 1e-4
    """Weight, beside the L1, of the encoding's Kullback-Leibler divergence from a normal distribution."""
    similarity: Annotated[float, Meta(ge=0, le=10)] = 0.1
    """Weight of how far the discriminator's maps of a face and of its drawing are apart, as a share."""
    hiding: Annotated[float, Meta(ge=0, le=10)] = 0.05
    """Weight of hiding the class in the encoding, so that it comes from what is asked for."""
    adversarial: Annotated[float, Meta(ge=0, le=10)] = 0.02
    """Weight of the discriminator's opinion."""
    seed: int = 1
    """Of weights, order and noise."""
    threads: Annotated[int, Meta(ge=1, le=256)] = 2
    """Cores."""


class Encoder(nn.Module):
    """Pictures `(N, 3, S, S)` in -1..1 to mean and log variance `(N, Z)`."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        widths = _widths(config)
        self.maps = nn.Sequential(*(_down(a, b) for a, b in pairwise([3, *widths])))
        self.last = nn.Linear(widths[-1] * SMALLEST**2, 2 * config.latent)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance."""
        mean, log_variance = self.last(self.maps(pictures).flatten(1)).chunk(2, 1)
        return mean, log_variance.clamp(-8, 8)


class Drawer(nn.Module):
    """Latent numbers `(N, Z)` and classes `(N, K)` to pictures `(N, 3, S, S)` in -1..1."""

    def __init__(self, config: GeneratorConfig, n_classes: int) -> None:
        super().__init__()
        widths = _widths(config)[::-1]
        self.first = nn.Linear(config.latent + n_classes, widths[0] * SMALLEST**2)
        self.maps = nn.Sequential(*(_up(a, b) for a, b in pairwise(widths)))
        self.last = nn.ConvTranspose2d(widths[-1], 3, 4, 2, 1)

    def forward(self, latent: Tensor, classes: Tensor) -> Tensor:
        """Return pictures."""
        maps = self.first(torch.cat([latent, classes], 1)).unflatten(1, (-1, SMALLEST, SMALLEST))
        return torch.tanh(self.last(self.maps(maps)))


class Discriminator(nn.Module):
    """How real a picture looks as its class: a projection discriminator (Miyato and Koyama 2018).

    Its layers keep a spectral norm of 1 (Miyato et al. 2018), so that its opinion cannot outgrow the L1.
    """

    def __init__(self, config: GeneratorConfig, n_classes: int) -> None:
        super().__init__()
        widths = _widths(config)
        self.maps = nn.ModuleList(
            nn.Sequential(spectral_norm(nn.Conv2d(a, b, 4, 2, 1)), nn.LeakyReLU(SLOPE))
            for a, b in pairwise([3, *widths])
        )
        self.last = spectral_norm(nn.Linear(widths[-1], 1))
        self.as_class = spectral_norm(nn.Linear(n_classes, widths[-1], bias=False))

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Return the maps after each halving of `(N, 3, S, S)` pictures in -1..1."""
        seen = [pictures]
        for halve in self.maps:
            seen.append(halve(seen[-1]))
        return seen[1:]

    def opinion(self, maps: Tensor, classes: Tensor) -> Tensor:
        """Return `(N,)` numbers about pictures by their last maps: above 0 means real, and of `classes`."""
        pooled = maps.sum((2, 3))
        opinion: Tensor = self.last(pooled)[:, 0] + (pooled * self.as_class(classes)).sum(1)
        return opinion


class VaeGan(nn.Module):
    """The networks; `informer` guesses the class from the latent numbers, which are to hide it."""

    def __init__(self, config: GeneratorConfig, n_classes: int) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.drawer = Drawer(config, n_classes)
        self.discriminator = Discriminator(config, n_classes)
        self.informer = nn.Sequential(
            nn.Linear(config.latent, 64), nn.LeakyReLU(SLOPE), nn.Linear(64, n_classes)
        )

    def redraw(self, pictures: Tensor, classes: Tensor) -> Tensor:
        """Return `(N, 3, S, S)` pictures in 0..255 drawn again as `classes`, without noise."""
        mean, _ = self.encoder(pictures / 127.5 - 1)
        drawn: Tensor = (self.drawer(mean, classes) + 1) * 127.5
        return drawn


def _widths(config: GeneratorConfig) -> list[int]:
    """Return the filters of each halving, from the largest maps to those of `SMALLEST` px."""
    n = (config.size // SMALLEST).bit_length() - 1
    return [config.width * min(4, 2**level) for level in range(n)]


def _down(n_in: int, n_out: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(n_in, n_out, 4, 2, 1), nn.BatchNorm2d(n_out), nn.LeakyReLU(SLOPE))


def _up(n_in: int, n_out: int) -> nn.Module:
    """Return a transposed convolution: less than half the multiplications of enlarging the maps first.

    Its kernel is twice its stride, so that every pixel is made of as many: no chequerboard.
    """
    return nn.Sequential(nn.ConvTranspose2d(n_in, n_out, 4, 2, 1), nn.BatchNorm2d(n_out), nn.LeakyReLU(SLOPE))
