"""Normalisation of pixels: fitted once on the training part, then a part of the exported graph.

`NormalisedNetwork` takes what the cropper delivers under a `ChipRecipe`, so that the trainer and the
engine cannot disagree. What is no graph operation is done to the chip before, by the cropper: `Light`.

Shape letters: N pictures, C channels (1 grey, 3 RGB), S side, D = C S S numbers of a picture.
"""

import io
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
import torch
from msgspec import Meta, Struct, structs
from torch import Tensor, nn
from torch.nn import functional

from ..cache_files import write_atomically
from ..cropper import relight
from ..errors import ConfigError, ModelError
from ..registry import DLIB_MEAN, DLIB_SCALE, ChipRecipe, Light
from .samples import TRAIN, Samples, split_of

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]

EPSILON = 1e-6  # added to a spread before it divides. Keras
MAX_WHITENED = 4096  # D; its matrix is 64 MiB of float32 and takes a minute to fit
CHUNK = 256  # pictures held as float32 at a time while fitting
# Tan and Triggs, table I. The floor keeps a flat picture flat, and gradients finite where a pixel is 0.
GAMMA, INNER_SIGMA, OUTER_SIGMA, ALPHA, TAU, FLOOR = 0.2, 1.0, 2.0, 0.1, 10.0, 1e-5
MARGIN = 6  # px around a pixel that the outer Gaussian reaches
GCN_LAMBDA = 10.0  # squared pixel units. Goodfellow et al., "Deep learning", section 12.2.1.1


class NormalisationConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is done to pixels, in this order. All defaults leave them as they are.

    Names and meanings of the last six are Keras'.
    """

    light: Light = Light.NONE
    """Done to the chip before all else: `clahe` equalises lightness tile by tile, `he_blend` all of it, by
    half."""
    dlib: bool = False
    """Mean and scale are dlib's, not fitted: what its face ResNet takes. Beside `light` only."""
    tan_triggs: bool = False
    """Gamma, difference of Gaussians and contrast equalisation: removes shadows and most of the light."""
    gcn: bool = False
    """Global contrast normalisation: samplewise, but a flat picture's noise is not blown up."""
    samplewise_center: bool = False
    """The mean of each picture becomes 0."""
    samplewise_std_normalization: bool = False
    """The standard deviation of each picture becomes 1; its mean 0."""
    featurewise_center: bool = False
    """The mean of each channel over the training pictures becomes 0."""
    featurewise_std_normalization: bool = False
    """The standard deviation of each channel over the training pictures becomes 1; its mean 0."""
    zca_whitening: bool = False
    """Numbers in 0..1, featurewise centred, become uncorrelated over the training pictures."""
    zca_epsilon: Annotated[float, Meta(gt=0, le=1)] = 1e-6
    """Added to the eigenvalues. With fewer pictures than numbers in one take 1e-3: 1e-6 leaves only noise."""

    def __post_init__(self) -> None:
        if self.zca_whitening and self.featurewise_std_normalization:
            raise ValueError("zca_whitening already scales; leave featurewise_std_normalization out")
        others = {f for f in self.__struct_fields__ if f not in ("light", "dlib", "zca_epsilon")}
        if self.dlib and any(getattr(self, field) for field in others):
            raise ValueError("dlib fixes mean and scale; leave all but light out")
        if self.tan_triggs and self.gcn:
            raise ValueError("tan_triggs already equalises contrast; leave gcn out")


SLIDES = NormalisationConfig(featurewise_center=True, featurewise_std_normalization=True)
"""The generator of the course; what else it draws is `augmentation.SLIDES`."""

PRESETS = {
    "none": NormalisationConfig(),
    "slides": SLIDES,
    "samplewise": NormalisationConfig(samplewise_std_normalization=True),
    "gcn": NormalisationConfig(gcn=True),
    "zca": NormalisationConfig(zca_whitening=True, zca_epsilon=1e-3),
    "tan_triggs": NormalisationConfig(tan_triggs=True),
    "clahe": NormalisationConfig(light=Light.CLAHE, featurewise_std_normalization=True),
    "he_blend": NormalisationConfig(light=Light.HE_BLEND, featurewise_std_normalization=True),
    "dlib": NormalisationConfig(dlib=True),
}
"""Members of a committee that normalise differently err differently (Kim et al., ICMI 2015)."""


def normalisation_preset(name: str) -> NormalisationConfig:
    """Return the normalisation called `name`.

    Raises:
        ConfigError: there is none.
    """
    if name not in PRESETS:
        raise ConfigError(f"no normalisation is called {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


@dataclass(frozen=True, slots=True, eq=False)
class Normalisation:
    """A configuration with the statistics of the pictures it was fitted on.

    `mean` and `spread` are `(C,)`, of what the steps per picture leave, 0 and 1 where they are not used.
    `whitening` is `(D, D)`, or `(0, 0)` without ZCA.
    """

    config: NormalisationConfig
    mean: F32
    spread: F32
    whitening: F32

    def __post_init__(self) -> None:
        n_channels, n_numbers = len(self.mean), len(self.whitening)
        side = math.isqrt(n_numbers // max(1, n_channels))
        is_whole = n_channels > 0 and self.config.zca_whitening == (n_numbers > 0)
        wanted = (n_channels,), (n_channels * side**2,) * 2
        if not is_whole or (self.spread.shape, self.whitening.shape) != wanted:
            raise ValueError(f"{self.config.zca_whitening=} {self.spread.shape=} {self.whitening.shape=}")

    @classmethod
    def fit(cls, config: NormalisationConfig, pictures: U8) -> Self:
        """Return the normalisation of `(N, S, S, C)` uint8 training pictures, after `with_light`.

        Raises:
            ConfigError: too few pictures, or too large to be whitened.
        """
        if len(pictures) == 0:
            raise ConfigError("no pictures to fit a normalisation on; is the training part empty?")
        n_channels, n_numbers = pictures.shape[3], math.prod(pictures.shape[1:])
        mean, spread = np.zeros(n_channels), np.ones(n_channels)
        unwhitened, nothing = structs.replace(config, zca_whitening=False), np.zeros((0, 0), np.float32)
        if config.dlib:
            return cls(config, _f32(np.array(DLIB_MEAN)), np.full(3, DLIB_SCALE, np.float32), nothing)
        plain = cls(unwhitened, _f32(mean), _f32(spread), nothing)
        if not _is_featurewise(config):
            return plain
        if config.zca_whitening and n_numbers > MAX_WHITENED:
            raise ConfigError(
                f"zca_whitening of {n_numbers} numbers per picture would need a matrix of that size squared; "
                f"take at most {MAX_WHITENED}, as 64 x 64 grey"
            )
        squares = np.zeros(n_channels)
        for chunk in _chunks(plain, pictures):
            mean += chunk.mean(axis=(2, 3)).sum(axis=0) / len(pictures)
        for chunk in _chunks(plain, pictures):
            away = chunk - mean[:, None, None]
            squares += np.square(away).mean(axis=(2, 3)).sum(axis=0) / len(pictures)
        if not config.zca_whitening:
            spread = np.sqrt(squares) + EPSILON if config.featurewise_std_normalization else spread
            return cls(config, _f32(mean), _f32(spread), nothing)
        centred = cls(unwhitened, _f32(mean), np.full(n_channels, 255, np.float32), nothing)
        covariance = np.zeros((n_numbers, n_numbers))
        for chunk in _chunks(centred, pictures):
            rows = chunk.reshape(len(chunk), -1)
            covariance += rows.T @ rows / len(pictures)
        return cls(config, centred.mean, centred.spread, _whitening(covariance, config.zca_epsilon))

    @classmethod
    def fit_train_part(
        cls, config: NormalisationConfig, samples: Samples, tune: float = 0.1, test: float = 0.1
    ) -> Self:
        """Return the normalisation of the samples whose group `split_of` puts into the train part."""
        return cls.fit(config, samples.pictures[split_of(samples.groups, tune, test) == TRAIN])

    def apply(self, pictures: U8) -> F32:
        """Return `(N, C, S, S)` float32 of `(N, S, S, C)` uint8 pictures, after `with_light`."""
        return np.concatenate(list(_chunks(self, pictures))) if len(pictures) else _nchw(pictures)

    def save(self, path: Path) -> None:
        """Write it to an `.npz` file, whole or not at all."""
        buffer = io.BytesIO()
        about = np.array(msgspec.json.encode(self.config).decode())
        np.savez(buffer, config=about, mean=self.mean, spread=self.spread, whitening=self.whitening)
        write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Return what `save` wrote; nothing in the file is run.

        Raises:
            ModelError: missing or not such a file.
        """
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                config = msgspec.json.decode(str(file["config"]), type=NormalisationConfig)
                return cls(config, *(_f32(file[name]) for name in ("mean", "spread", "whitening")))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, msgspec.DecodeError) as error:
            raise ModelError(f"{path} is no normalisation ({error}); fit it again") from error


class Normaliser(nn.Module):
    """The graph of a normalisation: from `(N, C, S, S)` raw pixels, or a recipe's chips, to network input."""

    whitening: Tensor
    kernel: Tensor

    def __init__(
        self, normalisation: Normalisation, mean: tuple[float, ...] = (0.0,), scale: float = 1.0
    ) -> None:
        """Prepare the constants; what comes in is `(pixel - mean) / scale`."""
        super().__init__()
        self.config = config = normalisation.config
        n_channels = len(normalisation.mean)
        gain, bias = (
            np.full(n_channels, scale),
            np.zeros(n_channels) + np.array(mean, np.float32),
        )  # as `to_input`
        last_gain = 1 / normalisation.spread.astype(np.float64)
        last_bias = -normalisation.mean * last_gain
        if not _is_samplewise(config):  # two affine steps in a row are one
            gain, bias = gain * last_gain, bias * last_gain + last_bias
            last_gain, last_bias = np.ones(n_channels), np.zeros(n_channels)
        self.to_pixels, self.featurewise = _Affine(gain, bias), _Affine(last_gain, last_bias)
        side = math.isqrt(len(normalisation.whitening) // n_channels)
        self.shape = (-1, n_channels, side, side)
        self.register_buffer("whitening", torch.from_numpy(normalisation.whitening.copy()))
        kernel = difference_of_gaussians() if config.tan_triggs else np.zeros((0, 0), np.float32)
        self.register_buffer("kernel", torch.from_numpy(np.tile(kernel, (n_channels, 1, 1, 1))))

    def forward(self, chips: Tensor) -> Tensor:
        """Return the normalised chips, of the same shape."""
        maps: Tensor = self.to_pixels(chips)
        config, whole = self.config, (1, 2, 3)
        if config.tan_triggs:
            maps = self._tan_triggs(maps)
        if config.gcn:
            maps = maps - maps.mean(whole, keepdim=True)
            maps = maps / (maps.square().mean(whole, keepdim=True) + GCN_LAMBDA).sqrt()
        if config.samplewise_center or config.samplewise_std_normalization:
            maps = maps - maps.mean(whole, keepdim=True)
        if config.samplewise_std_normalization:
            variance = maps.square().mean(whole, keepdim=True)
            maps = maps / (variance.clamp(min=1e-12).sqrt() + EPSILON)  # the slope of the root is finite
        maps = self.featurewise(maps)
        if config.zca_whitening:
            maps = (maps.flatten(1) @ self.whitening).reshape(self.shape)
        return maps

    def _tan_triggs(self, pixels: Tensor) -> Tensor:
        """Source: Tan and Triggs, "Enhanced local texture feature sets", IEEE TIP 2010, section II."""
        maps = (pixels.clamp(min=1e-9) / 255) ** GAMMA
        maps = maps - maps.mean((2, 3), keepdim=True)  # the kernel sums to 0 only up to rounding
        for axis in (2, 3):  # not `pad`, which is exported with paddings that are computed
            first, last = maps.narrow(axis, 0, 1), maps.select(axis, -1).unsqueeze(axis)
            maps = torch.cat([first] * MARGIN + [maps] + [last] * MARGIN, axis)
        maps = functional.conv2d(maps, self.kernel, groups=self.kernel.shape[0])
        for limit in (None, TAU):
            size = maps.abs() if limit is None else maps.abs().clamp(max=limit)
            maps = maps / ((size + FLOOR) ** ALPHA).mean((1, 2, 3), keepdim=True) ** (1 / ALPHA)
        return TAU * torch.tanh(maps / TAU)


class NormalisedNetwork(nn.Module):
    """A network behind its normalisation: the whole of what is trained, exported and run."""

    def __init__(
        self, normalisation: Normalisation, network: nn.Module, recipe: ChipRecipe | None = None
    ) -> None:
        """Put them together.

        Args:
            normalisation: fitted.
            network: takes `(N, C, S, S)`.
            recipe: how the chips come; None: as raw pixels in 0..255, which is how the trainer has them.

        Raises:
            ConfigError: the recipe's chips are not those that the normalisation was fitted for.
        """
        super().__init__()
        if recipe is not None:
            check_recipe(normalisation, recipe)
        mean, scale = (recipe.mean, recipe.scale) if recipe is not None else ((0.0,), 1.0)
        self.normaliser = Normaliser(normalisation, mean, scale)
        self.network = network

    def forward(self, chips: Tensor) -> Any:
        """Return what the network says about `(N, C, S, S)` chips."""
        return self.network(self.normaliser(chips))

    def trunk(self, chips: Tensor) -> Any:
        """Return what the network's trunk leaves of `(N, C, S, S)` chips."""
        return self.network.trunk(self.normaliser(chips))  # type: ignore[operator]

    def head(self, maps: Tensor) -> Any:
        """Return what the network's head says about what its trunk left."""
        return self.network.head(maps)  # type: ignore[operator]

    @property
    def stages(self) -> Any:
        """The stages of the network, for a trainer that gives them a rate of their own."""
        return self.network.stages

    @property
    def last(self) -> Any:
        """The last layer of the network."""
        return self.network.last

    def freeze(self, n_stages: int) -> None:
        """Keep the first `n_stages` of the network as they are."""
        freeze: Any = self.network.freeze
        freeze(n_stages)


def check_recipe(normalisation: Normalisation, recipe: ChipRecipe) -> None:
    """Check that chips cut by `recipe` are what the normalisation was fitted for.

    Raises:
        ConfigError: other channels, another light or another size.
    """
    config, n_channels = normalisation.config, len(normalisation.mean)
    if len(recipe.mean) != n_channels:
        raise ConfigError(f"the chips have {len(recipe.mean)} channels, the normalisation {n_channels}")
    if recipe.light is not config.light:
        raise ConfigError(
            f"the chips' light is {recipe.light.value}, the normalisation's {config.light.value}"
        )
    n_numbers = n_channels * recipe.size**2
    if config.zca_whitening and n_numbers != len(normalisation.whitening):
        raise ConfigError(f"a chip has {n_numbers} numbers, the whitening {len(normalisation.whitening)}")


def with_light(pictures: U8, config: NormalisationConfig) -> U8:
    """Return `(N, S, S, C)` uint8 pictures in the light the cropper gives to chips: once, before all else."""
    if config.light is Light.NONE:
        return pictures
    lit = np.empty_like(pictures)
    for picture, out in zip(pictures, lit, strict=True):
        rgb = np.ascontiguousarray(np.broadcast_to(picture, (*picture.shape[:2], 3)))
        rgb = relight(rgb, config.light)
        out[:] = rgb if picture.shape[2] == 3 else cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)[..., None]
    return lit


def difference_of_gaussians() -> F32:
    """Return the `(13, 13)` kernel of Tan and Triggs: inner minus outer Gaussian, each summing to 1."""
    at = np.arange(-MARGIN, MARGIN + 1)
    inner, outer = (np.exp(-(at**2) / (2 * sigma**2)) for sigma in (INNER_SIGMA, OUTER_SIGMA))
    inner, outer = inner / inner.sum(), outer / outer.sum()
    return _f32(np.outer(inner, inner) - np.outer(outer, outer))


class _Affine(nn.Module):
    """A gain and a bias per channel, as few operations as they need."""

    gain: Tensor
    bias: Tensor

    def __init__(self, gain: F64, bias: F64) -> None:
        super().__init__()
        self.has_gain, self.has_bias = bool((gain != 1).any()), bool((bias != 0).any())
        self.register_buffer("gain", torch.from_numpy(_f32(gain))[:, None, None])
        self.register_buffer("bias", torch.from_numpy(_f32(bias))[:, None, None])

    def forward(self, maps: Tensor) -> Tensor:
        """Return `maps * gain + bias`."""
        maps = maps * self.gain if self.has_gain else maps
        return maps + self.bias if self.has_bias else maps


def _whitening(covariance: F64, epsilon: float) -> F32:
    """Return U diag(1 / sqrt(s + epsilon)) U'. Source: Keras, `ImageDataGenerator.fit`."""
    values, vectors = np.linalg.eigh(covariance)
    return _f32((vectors / np.sqrt(values.clip(min=0) + epsilon)) @ vectors.T)


def _chunks(normalisation: Normalisation, pictures: U8) -> Any:
    """Yield `(n, C, S, S)` normalised pictures, a chunk at a time."""
    normaliser = Normaliser(normalisation)
    for at in range(0, len(pictures), CHUNK):
        with torch.no_grad():
            yield normaliser(torch.from_numpy(_nchw(pictures[at : at + CHUNK]))).numpy()


def _nchw(pictures: U8) -> F32:
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2), np.float32)


def _is_featurewise(config: NormalisationConfig) -> bool:
    return config.featurewise_center or config.featurewise_std_normalization or config.zca_whitening


def _is_samplewise(config: NormalisationConfig) -> bool:
    is_scaled = config.samplewise_center or config.samplewise_std_normalization
    return is_scaled or config.tan_triggs or config.gcn


def _f32(values: npt.NDArray[Any]) -> F32:
    return np.ascontiguousarray(values, np.float32)
