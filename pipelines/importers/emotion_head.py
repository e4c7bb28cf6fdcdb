"""The small network that reads an expression from inside dlib's face ResNet, and its file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import NO_ARCHIVE, ModelError

F32 = npt.NDArray[np.float32]

MAX_LAYERS = 4
MAX_HEAD_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Tap:
    """Where features are taken: the output of block `block` (from 0), averaged over `grid` x `grid` cells."""

    block: int
    grid: int


DEFAULT_TAPS = (Tap(6, 4), Tap(9, 4), Tap(12, 4))
"""Ends of the stages with 64, 128 and 256 channels: 7168 features."""


@dataclass(frozen=True, slots=True, eq=False)
class EmotionHead:
    """Linear layers over the tapped features, ReLU between them, standardisation folded in.

    `layers` holds (weights `(in, out)`, bias `(out,)`); the last one gives logits in the order of
    `classes`.
    """

    taps: tuple[Tap, ...]
    layers: tuple[tuple[F32, F32], ...]
    classes: tuple[str, ...]

    def logits(self, features: F32) -> F32:
        """Return `(N, K)` logits of `(N, F)` features: the reference for the ONNX graph."""
        values = features
        for index, (weights, bias) in enumerate(self.layers):
            values = (np.maximum(values, 0) if index else values) @ weights + bias
        return values


def write_head(head: EmotionHead, path: Path) -> None:
    """Write `head` in half precision."""
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "taps": np.array([(tap.block, tap.grid) for tap in head.taps], np.int16),
        "classes": np.array(head.classes),
    }
    for index, (weights, bias) in enumerate(head.layers):
        arrays[f"weights{index}"] = weights.astype(np.float16)
        arrays[f"bias{index}"] = bias.astype(np.float32)
    np.savez_compressed(path, allow_pickle=False, **arrays)


def read_head(path: Path) -> EmotionHead:
    """Return the head in `path`.

    Raises:
        ModelError: the file is missing, corrupt, or no emotion head.
    """
    try:
        if path.stat().st_size > MAX_HEAD_BYTES:
            raise ValueError("too large")
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files[: 2 * MAX_LAYERS + 2]}
        return _head_of(arrays)
    except NO_ARCHIVE as error:
        raise ModelError(f"{path} is no emotion head ({error}); install visaged again") from error


def _head_of(arrays: dict[str, npt.NDArray[np.generic]]) -> EmotionHead:
    taps = tuple(Tap(int(block), int(grid)) for block, grid in np.asarray(arrays["taps"], np.int64))
    classes = tuple(str(name) for name in arrays["classes"])
    layers: list[tuple[F32, F32]] = []
    while f"weights{len(layers)}" in arrays:
        weights = np.asarray(arrays[f"weights{len(layers)}"], np.float32)
        bias = np.asarray(arrays[f"bias{len(layers)}"], np.float32)
        layers.append((weights, bias))
    _check(layers, len(classes))
    return EmotionHead(taps, tuple(layers), classes)


def _check(layers: Sequence[tuple[F32, F32]], n_classes: int) -> None:
    if not layers:
        raise ValueError("no layers")
    width = layers[0][0].shape[0]
    for weights, bias in layers:
        if weights.ndim != 2 or weights.shape != (width, bias.size):
            raise ValueError(f"{weights.shape=} {bias.shape=} after {width} inputs")
        if not (np.isfinite(weights).all() and np.isfinite(bias).all()):
            raise ValueError("weights that are not finite")
        width = bias.size
    if width != n_classes:
        raise ValueError(f"{width} outputs for {n_classes} classes")
