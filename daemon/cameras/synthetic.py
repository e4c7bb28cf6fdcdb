"""Cameras without hardware: a test pattern, and a view that wanders over a still photo.

Frame `n` depends on `n` only, so two runs see the same frames.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote

import cv2
import msgspec
import numpy as np
from msgspec import Meta, Struct

from ...pipelines.errors import ConfigError, SourceError
from ..camera import U8, Broken, CameraConfig
from .folder import read_photo

X_PERIOD_S, Y_PERIOD_S, ZOOM_PERIOD_S = 9.0, 7.0, 13.0  # no common multiple soon: the view keeps changing
ZOOM_RANGE = (0.6, 1.0)  # of the largest view that fits into the photo


class SyntheticOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may stand behind `synthetic:NAME?`."""

    photo: str = ""
    width: Annotated[int, Meta(ge=16, le=7680)] = 640
    height: Annotated[int, Meta(ge=16, le=4320)] = 480
    fps: Annotated[float, Meta(gt=0, le=1000)] = 30.0
    seconds: Annotated[float, Meta(ge=0)] = 0.0


class SyntheticCamera:
    """Frames from a function of the frame number."""

    def __init__(self, draw: Callable[[int], U8], fps: float, n_frames: int | None) -> None:
        """Draw with `draw`; end after `n_frames`, or never."""
        self._draw = draw
        self.fps = fps
        self._n_frames = n_frames
        self._next = 0

    def read(self) -> U8 | Broken | None:
        """Return the next frame, or None when the time is over."""
        if self._next == self._n_frames:
            return None
        self._next += 1
        return self._draw(self._next - 1)

    def close(self) -> None:
        """Nothing is held open."""


def open_synthetic(config: CameraConfig) -> SyntheticCamera:
    """Return the synthetic camera that `config.source` describes.

    Raises:
        ConfigError: unknown name or option, or a value out of range.
        SourceError: the photo cannot be read.
    """
    kind, options = parse_source(config)
    n_frames = round(options.seconds * options.fps) if options.seconds else None
    if kind == "pattern":
        return SyntheticCamera(
            lambda n: draw_pattern(n, options.height, options.width), options.fps, n_frames
        )
    photo = read_photo(Path(options.photo).expanduser(), config.max_pixels)
    if isinstance(photo, Broken):
        raise SourceError(f"camera {config.name}: {photo.why}")
    return SyntheticCamera(
        lambda n: draw_pan(photo, n / options.fps, options.height, options.width), options.fps, n_frames
    )


def parse_source(config: CameraConfig) -> tuple[Literal["pattern", "pan"], SyntheticOptions]:
    """Return which synthetic camera and its options; those of the source go before those of `config`."""
    name, _, query = config.source.removeprefix("synthetic:").partition("?")
    wanted: dict[str, str | int | float] = {}
    if config.width and config.height:
        wanted |= {"width": config.width, "height": config.height}
    if config.fps:
        wanted["fps"] = config.fps
    for pair in filter(None, query.split("&")):
        key, _, value = pair.partition("=")
        wanted[key] = unquote(value)
    try:
        options = msgspec.convert(wanted, SyntheticOptions, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"camera {config.name}: source {config.source}: {error}; "
            f"options are {', '.join(SyntheticOptions.__struct_fields__)}"
        ) from error
    if name == "pattern":
        return "pattern", options
    if name == "pan" and options.photo:
        return "pan", options
    raise ConfigError(
        f"camera {config.name}: source {config.source} is unknown; "
        f"use synthetic:pattern or synthetic:pan?photo=PATH"
    )


def draw_pattern(n: int, height: int, width: int) -> U8:
    """Return frame `n` of a moving colour gradient with its number written on it."""
    rgb = np.empty((height, width, 3), np.uint8)
    rgb[..., 0] = (np.arange(width) + 2 * n) % 256
    rgb[..., 1] = ((np.arange(height) + n) % 256)[:, None]
    rgb[..., 2] = 128
    cv2.putText(rgb, f"{n}", (8, height // 2), cv2.FONT_HERSHEY_SIMPLEX, 1.0, (255, 255, 255), 2)
    return rgb


def draw_pan(photo: U8, at_s: float, height: int, width: int) -> U8:
    """Return the view at `at_s`: a window that wanders and zooms on Lissajous curves, inside the photo."""
    photo_height, photo_width = photo.shape[:2]
    largest = min(photo_width / width, photo_height / height)  # photo px per frame px
    low, high = ZOOM_RANGE
    scale = largest * (low + (high - low) * (0.5 + 0.5 * math.cos(2 * math.pi * at_s / ZOOM_PERIOD_S)))
    left = (photo_width - scale * width) * (0.5 + 0.5 * math.sin(2 * math.pi * at_s / X_PERIOD_S))
    top = (photo_height - scale * height) * (0.5 + 0.5 * math.sin(2 * math.pi * at_s / Y_PERIOD_S))
    # pixel centres: frame (0, 0) looks at photo (left + scale/2 - 1/2, ...)
    to_photo = np.array([[scale, 0, left + scale / 2 - 0.5], [0, scale, top + scale / 2 - 0.5]], np.float32)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    view = cv2.warpAffine(photo, to_photo, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(view, np.uint8)
