"""Augmentation: the network sees each picture turned, shifted, lit and spoilt anew, never as it is.

What Keras' `ImageDataGenerator` draws, with its names and its distributions, and what spoils the chips
of cameras: noise, blur, few pixels, JPEG, something in front of the face. Centre, spread and whitening
are in `normalisation`: they belong to the network that is exported.

Shape letters: N pictures, C channels (1 grey, 3 RGB), S side, K classes.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch
from kornia import enhance
from kornia.filters import gaussian_blur2d
from msgspec import Meta, Struct, structs
from torch import Tensor
from torch.nn import functional

from ..errors import ConfigError
from .samples import Samples

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

CHUNK = 256  # pictures that `children` holds as float32 at a time
ERASED_ASPECT = 0.3  # of the flattest rectangle, height to width; of the steepest its inverse. Zhong et al.

Share = Annotated[float, Meta(ge=0, le=1)]
Pixels = Annotated[float, Meta(gt=0, le=20)]
Factor = Annotated[float, Meta(ge=0, le=10)]
Remainder = Annotated[float, Meta(gt=0, le=1)]
Quality = Annotated[int, Meta(ge=1, le=100)]


class AugmentationConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is drawn anew for each picture. All defaults leave it as it is.

    Names and meanings are Keras' down to `channel_shift_range`.

    Source: Keras, `ImageDataGenerator.apply_transform` and `get_random_transform`.
    """

    rotation_range: Annotated[float, Meta(ge=0, le=180)] = 0.0
    """Degrees: turned by an angle uniform in plus or minus this."""
    width_shift_range: Share = 0.0
    """Share of the width: moved sideways, uniform in plus or minus this."""
    height_shift_range: Share = 0.0
    """Share of the height: moved up or down, uniform in plus or minus this."""
    shear_range: Annotated[float, Meta(ge=0, lt=90)] = 0.0
    """Degrees: sheared by an angle uniform in plus or minus this."""
    zoom_range: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Height and width each divided by a factor uniform in 1 plus or minus this."""
    horizontal_flip: bool = False
    """Left and right change places in half of the pictures."""
    vertical_flip: bool = False
    """Top and bottom change places in half of the pictures."""
    fill_mode: Literal["nearest", "constant", "reflect", "wrap"] = "nearest"
    """Outside: `nearest` aa|abc|cc, `constant` the value `cval`, `reflect` ba|abc|cb, `wrap` bc|abc|ab."""
    cval: Annotated[float, Meta(ge=0, le=255)] = 0.0
    """Pixel value outside, for `constant`."""
    brightness_range: tuple[Factor, Factor] = (1.0, 1.0)
    """Pixels multiplied by a factor uniform between these."""
    channel_shift_range: Annotated[float, Meta(ge=0, le=255)] = 0.0
    """Added to all pixels, uniform in plus or minus this; they stay within the picture's own extremes."""

    contrast: Share = 0.0
    """Distance from the picture's mean multiplied by a factor uniform in 1 plus or minus this."""
    saturation: Share = 0.0
    """RGB only: distance from grey multiplied by a factor uniform in 1 plus or minus this."""
    hue: Annotated[float, Meta(ge=0, le=0.5)] = 0.0
    """RGB only, turns of the colour circle: uniform in plus or minus this. Slow; skin bears 0.02."""
    noise_p: Share = 0.0
    """Probability of noise."""
    noise_std: Share = 0.03
    """Its standard deviation as a share of 255; drawn for each channel of each pixel."""
    blur_p: Share = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[Pixels, Pixels] = (0.5, 1.5)
    """px: its standard deviation, uniform between these."""
    resolution_p: Share = 0.0
    """Probability that the picture is made small and large again, as a face far away is."""
    resolution_range: tuple[Remainder, Remainder] = (0.3, 0.8)
    """Share of the side that is left in between, uniform between these."""
    jpeg_p: Share = 0.0
    """Probability of JPEG compression."""
    jpeg_quality: tuple[Quality, Quality] = (50, 95)
    """Its quality, uniform between these."""
    erasing_p: Share = 0.0
    """Probability that a rectangle is replaced by random pixels."""
    erasing_area: tuple[Share, Share] = (0.02, 0.15)
    """Its share of the picture, uniform between these."""
    mixup_alpha: Annotated[float, Meta(ge=0, le=10)] = 0.0
    """Each picture and its targets blended with another's, the share from Beta(alpha, alpha); 0: not."""

    def __post_init__(self) -> None:
        for name in ("brightness_range", "blur_sigma", "resolution_range", "jpeg_quality", "erasing_area"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} must be [smaller, larger], it is [{low}, {high}]")


SLIDES = AugmentationConfig(
    rotation_range=20, width_shift_range=0.2, height_shift_range=0.2, horizontal_flip=True
)
"""The generator of the course, "Keras: data augmentation"; its centre and spread: `normalisation.SLIDES`."""

FACE = AugmentationConfig(
    rotation_range=10,
    width_shift_range=0.06,  # chips are aligned already; 0.2 cuts the mouth off
    height_shift_range=0.06,
    zoom_range=0.1,
    horizontal_flip=True,
    brightness_range=(0.8, 1.2),
    contrast=0.2,
    saturation=0.2,  # no hue: faces do not turn green
    noise_p=0.3,
    blur_p=0.1,
    jpeg_p=0.2,
    erasing_p=0.25,
)
"""For aligned chips of faces; how strong the spoiling is, the defaults say."""

BASE = structs.replace(FACE, mixup_alpha=0.2)
"""`FACE` and mixup: for training in the large."""

PRESETS = {"none": AugmentationConfig(), "slides": SLIDES, "face": FACE, "base": BASE}


def preset(name: str) -> AugmentationConfig:
    """Return the augmentation called `name`.

    Raises:
        ConfigError: there is none.
    """
    if name not in PRESETS:
        raise ConfigError(f"no augmentation is called {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


class Augmenter:
    """Draws from one configuration. Owned by one thread: each call goes on in the stream of its seed."""

    def __init__(self, config: AugmentationConfig, seed: int | None = None) -> None:
        """Begin the stream of draws.

        With a seed, the same calls in the same order give the same pictures. Without one each call takes its
        seed from torch's generator: a run that is resumed after `torch.manual_seed` sees the same again.
        """
        self.config = config
        self._random = None if seed is None else np.random.default_rng(seed)

    def augment(self, pictures: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return other pictures and their targets; what came in is not touched.

        Only mixup changes targets. A picture keeps the larger share in its place, so its group stays right.

        Args:
            pictures: `(N, C, S, S)` uint8, or float32 in 0..255.
            targets: `(N, K)` shares.

        Returns:
            `(N, C, S, S)` float32 in 0..255, and `(N, K)`.

        Raises:
            ValueError: wrong shapes.

        Source: Zhang et al., "mixup: Beyond empirical risk minimization", ICLR 2018.
        """
        if targets.shape[:1] != pictures.shape[:1]:
            raise ValueError(f"one row of targets for each picture: {pictures.shape=} {targets.shape=}")
        random = self._draws()
        pictures = self._transform(pictures, random)
        if self.config.mixup_alpha == 0 or len(pictures) == 0:
            return pictures, targets.clone()
        share = random.beta(self.config.mixup_alpha, self.config.mixup_alpha, len(pictures))
        keep = _column(np.maximum(share, 1 - share), pictures)
        other = torch.from_numpy(random.permutation(len(pictures))).to(pictures.device)
        keep_targets = keep[:, :, 0, 0].to(targets)
        pictures = pictures * keep + pictures[other] * (1 - keep)
        return pictures, targets * keep_targets + targets[other] * (1 - keep_targets)

    def transform(self, pictures: Tensor) -> Tensor:
        """Return other pictures as `augment` does, but without mixup, which needs targets."""
        return self._transform(pictures, self._draws())

    def children(self, samples: Samples) -> Samples:
        """Return as many samples, drawn anew; each keeps its parent's place and group."""
        pictures, targets = [samples.pictures[:0]], [samples.targets[:0]]
        for at in range(0, len(samples), CHUNK):
            parents = torch.from_numpy(samples.pictures[at : at + CHUNK].transpose(0, 3, 1, 2))
            drawn, mixed = self.augment(parents, torch.from_numpy(samples.targets[at : at + CHUNK]))
            pictures.append(drawn.round().to(torch.uint8).numpy().transpose(0, 2, 3, 1))
            targets.append(mixed.numpy())
        return replace(samples, pictures=np.concatenate(pictures), targets=np.concatenate(targets))

    def _draws(self) -> np.random.Generator:
        if self._random is not None:
            return self._random
        return np.random.default_rng(int(torch.randint(2**62, ())))

    def _transform(self, pictures: Tensor, random: np.random.Generator) -> Tensor:
        if pictures.ndim != 4 or pictures.shape[1] not in (1, 3):
            raise ValueError(f"pictures must be (N, 1 or 3, S, S): {pictures.shape=}")
        with torch.no_grad():
            drawn = pictures.to(torch.float32, copy=True)
            if len(drawn):
                for step in STEPS:
                    drawn = step(drawn, self.config, random)
        return drawn


# Each step owns the `(N, C, S, S)` float32 batch it is given and may change it.


def _warp(pictures: Tensor, config: AugmentationConfig, random: np.random.Generator) -> Tensor:
    """Rotation, shift, shear and zoom in one bilinear warp about the centre."""
    turn, slant = config.rotation_range, config.shear_range
    if not any((turn, slant, config.height_shift_range, config.width_shift_range, config.zoom_range)):
        return pictures
    n, _, height, width = pictures.shape
    angle, shear = np.radians(random.uniform(-turn, turn, n)), np.radians(random.uniform(-slant, slant, n))
    down = random.uniform(-config.height_shift_range, config.height_shift_range, n) * height
    right = random.uniform(-config.width_shift_range, config.width_shift_range, n) * width
    zoom = random.uniform(1 - config.zoom_range, 1 + config.zoom_range, (n, 2))
    matrix = keras_matrix(angle, shear, down, right, zoom)
    # grid_sample counts x first, and in halves of the picture
    to_px = np.diag([width / 2, height / 2, 1.0])
    matrix = np.linalg.inv(to_px) @ matrix[:, [1, 0, 2]][:, :, [1, 0, 2]] @ to_px
    theta = torch.from_numpy(matrix[:, :2]).to(pictures)
    grid = functional.affine_grid(theta, list(pictures.shape), align_corners=False)
    if config.fill_mode == "constant":
        return _sample(pictures - config.cval, grid, "zeros") + config.cval
    if config.fill_mode == "wrap":
        size = torch.tensor([width, height]).to(grid)
        grid = (torch.remainder(grid + 1, 2) * size + 2) / (
            size + 2
        ) - 1  # in the picture with 1 px more around
        return _sample(functional.pad(pictures, (1, 1, 1, 1), mode="circular"), grid, "border")
    return _sample(pictures, grid, "reflection" if config.fill_mode == "reflect" else "border")


def keras_matrix(angle: F64, shear: F64, down: F64, right: F64, zoom: F64) -> F64:
    """Return `(N, 3, 3)` from (row, column, 1) of the result to that of the picture, px about the centre.

    Args:
        angle: `(N,)` radians.
        shear: `(N,)` radians.
        down: `(N,)` px along the rows.
        right: `(N,)` px along the columns.
        zoom: `(N, 2)` factors of row and column; above 1 things become smaller.

    Source: Keras, `apply_affine_transform`: rotation x shift x shear x zoom.
    """
    n = len(angle)
    rotate, shift, slant, scale = (np.tile(np.eye(3), (n, 1, 1)) for _ in range(4))
    rotate[:, 0, 0], rotate[:, 0, 1] = np.cos(angle), -np.sin(angle)
    rotate[:, 1, 0], rotate[:, 1, 1] = np.sin(angle), np.cos(angle)
    shift[:, 0, 2], shift[:, 1, 2] = down, right
    slant[:, 0, 1], slant[:, 1, 1] = -np.sin(shear), np.cos(shear)
    scale[:, 0, 0], scale[:, 1, 1] = zoom[:, 0], zoom[:, 1]
    matrix: F64 = rotate @ shift @ slant @ scale
    return matrix


def _shift_channels(pictures: Tensor, config: AugmentationConfig, random: np.random.Generator) -> Tensor:
    if config.channel_shift_range == 0:
        return pictures
    low, high = pictures.amin((1, 2, 3), keepdim=True), pictures.amax((1, 2, 3), keepdim=True)
    shift = _around(0.0, config.channel_shift_range, pictures, random)[:, None, None, None]
    return torch.minimum(torch.maximum(pictures + shift, low), high)


def _flip(pictures: Tensor, config: AugmentationConfig, random: np.random.Generator) -> Tensor:
    for is_wanted, axis in ((config.horizontal_flip, 3), (config.vertical_flip, 2)):
        if is_wanted:
            chosen = _chosen(0.5, pictures, random)
            pictures[chosen] = pictures[chosen].flip(axis)
    return pictures


def _colour(pictures: Tensor, config: AugmentationConfig, random: np.random.Generator) -> Tensor:
    """Brightness, contrast, saturation and hue."""
    is_rgb = pictures.shape[1] == 3
    if config.brightness_range != (1.0, 1.0):
        gains = random.uniform(*config.brightness_range, len(pictures))
        pictures = (pictures * _column(gains, pictures)).clamp_(0, 255)
    if config.contrast:
        factors = _around(1.0, config.contrast, pictures, random)
        pictures = enhance.adjust_contrast_with_mean_subtraction(pictures / 255, factors) * 255
    if config.saturation and is_rgb:
        factors = _around(1.0, config.saturation, pictures, random)
        pictures = enhance.adjust_saturation_with_gray_subtraction(pictures / 255, factors) * 255
    if config.hue and is_rgb:
        radians = _around(0.0, 2 * np.pi * config.hue, pictures, random)
        pictures = enhance.adjust_hue(pictures / 255, radians) * 255
    return pictures


def _blur(pictures: Tensor, config: AugmentationConfig, random: np.random.Generator) -> Tensor:
    chosen = _chosen(config.blur_p, pictures, random)
    if len(chosen):
        sigma = torch.from_numpy(random.uniform(*config.blur_sigma, len(chosen))).to(pictures)
        taps = 2 * int(np.ceil(3 * config.blur_sigma[1])) + 1
        sigmas = sigma[:, None].repeat(1, 2)
        pictures[chosen] = gaussian_blur2d(pictures[chosen], (taps, taps), sigmas, border_type="replicate")
    return pictures


def _lower_resolution(pictures: Tensor, config: AugmentationConfig, random: np.random.Generator) -> Tensor:
    chosen = _chosen(config.resolution_p, pictures, random)
    height, width = pictures.shape[2:]
    shares = random.uniform(*config.resolution_range, len(chosen))
    heights: I64 = np.maximum(1, np.rint(shares * height)).astype(np.int64)
    for few in np.unique(heights):
        rows = chosen[torch.from_numpy(np.flatnonzero(heights == few)).to(chosen.device)]
        size = (int(few), max(1, round(int(few) * width / height)))
        small = functional.interpolate(pictures[rows], size, mode="bilinear", antialias=True)
        pictures[rows] = functional.interpolate(small, (height, width), mode="bilinear")
    return pictures


def _add_noise(pictures: Tensor, config: AugmentationConfig, random: np.random.Generator) -> Tensor:
    chosen = _chosen(config.noise_p, pictures, random)
    if len(chosen):
        clean = pictures[chosen]
        noise = torch.randn(clean.shape, generator=_pixel_draws(pictures, random), device=pictures.device)
        pictures[chosen] = (clean + noise * (255 * config.noise_std)).clamp_(0, 255)
    return pictures


def _compress(pictures: Tensor, config: AugmentationConfig, random: np.random.Generator) -> Tensor:
    """JPEG by the codec itself: faster than kornia's differentiable one, and what cameras send."""
    chosen = _chosen(config.jpeg_p, pictures, random)
    low, high = config.jpeg_quality
    for row in chosen.tolist():
        rgb = pictures[row].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        bgr = np.ascontiguousarray(rgb[..., ::-1])
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(random.integers(low, high + 1))]
        coded = cv2.imdecode(cv2.imencode(".jpg", bgr, quality)[1], cv2.IMREAD_UNCHANGED)
        back = np.reshape(np.asarray(coded), bgr.shape)[..., ::-1].transpose(2, 0, 1)
        pictures[row] = torch.from_numpy(back.copy()).to(pictures)
    return pictures


def _erase(pictures: Tensor, config: AugmentationConfig, random: np.random.Generator) -> Tensor:
    """Source: Zhong et al., "Random erasing data augmentation", AAAI 2020; filled with random pixels."""
    chosen = _chosen(config.erasing_p, pictures, random)
    if len(chosen) == 0:
        return pictures
    n, (height, width) = len(chosen), pictures.shape[2:]
    area = random.uniform(*config.erasing_area, n) * height * width
    aspect = np.exp(random.uniform(np.log(ERASED_ASPECT), -np.log(ERASED_ASPECT), n))
    inside = np.ones((n, 1, 1, 1), np.bool_)
    for length, whole, axis in ((np.sqrt(area * aspect), height, 2), (np.sqrt(area / aspect), width, 3)):
        length = np.minimum(np.rint(length), whole)
        start = np.floor(random.uniform(0, whole - length + 1))
        at = np.arange(whole).reshape([-1 if a == axis else 1 for a in range(4)])
        inside = inside & (at >= start[:, None, None, None]) & (at < (start + length)[:, None, None, None])
    kept = pictures[chosen]
    fill = 255 * torch.rand(kept.shape, generator=_pixel_draws(pictures, random), device=pictures.device)
    pictures[chosen] = torch.where(torch.from_numpy(inside).to(pictures.device), fill, kept)
    return pictures


Step = Callable[[Tensor, AugmentationConfig, np.random.Generator], Tensor]
STEPS: tuple[Step, ...] = (
    _warp, _shift_channels, _flip, _colour, _blur, _lower_resolution, _add_noise, _compress, _erase,
)  # fmt: skip
"""In the order of Keras, then of a camera: lens, sensor, codec; what is erased hides all of that."""


def _sample(pictures: Tensor, grid: Tensor, outside: str) -> Tensor:
    return functional.grid_sample(pictures, grid, "bilinear", outside, align_corners=False)


def _chosen(probability: float, pictures: Tensor, random: np.random.Generator) -> Tensor:
    """Indices of pictures, each in with `probability`."""
    return torch.from_numpy(np.flatnonzero(random.random(len(pictures)) < probability)).to(pictures.device)


def _around(centre: float, reach: float, pictures: Tensor, random: np.random.Generator) -> Tensor:
    """`(N,)` uniform in `centre` plus or minus `reach`."""
    return torch.from_numpy(random.uniform(centre - reach, centre + reach, len(pictures))).to(pictures)


def _column(values: F64, pictures: Tensor) -> Tensor:
    return torch.from_numpy(values).to(pictures)[:, None, None, None]


def _pixel_draws(pictures: Tensor, random: np.random.Generator) -> torch.Generator:
    """A generator on the pictures' device: too many numbers to draw elsewhere."""
    return torch.Generator(pictures.device).manual_seed(int(random.integers(2**62)))
