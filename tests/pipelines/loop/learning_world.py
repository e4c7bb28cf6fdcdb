"""A small world of features, without pictures: a head that knows it, and a site where faces differ."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from visaged.pipelines.importers.onnx_end import End, Node
from visaged.pipelines.loop.label_noise import soft_targets
from visaged.pipelines.loop.replay_memory import Remembered

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

N_CLASSES, N_FEATURES, N_HIDDEN = 8, 64, 32


@dataclass(frozen=True)
class Place:
    """Where the faces of each class lie, `(K, F)`, and which classes are seen there."""

    centres: F32
    classes: tuple[int, ...]
    spread: float

    def faces(self, n: int, seed: int) -> tuple[F32, I64]:
        random = np.random.default_rng(seed)
        labels = random.choice(self.classes, n).astype(np.int64)
        noise = random.normal(0, self.spread, (n, N_FEATURES))
        return (self.centres[labels] + noise).astype(np.float32), labels


def two_places(seed: int = 0) -> tuple[Place, Place]:
    """The base, and a site where some expressions look half like others do in the base."""
    random = np.random.default_rng(seed)
    centres, own = random.normal(0, 0.6, (2, N_CLASSES, N_FEATURES)).astype(np.float32)
    common = random.normal(0, 0.15, N_FEATURES)
    moved = (0.2 * centres + 0.6 * np.roll(centres, 1, axis=0) + 0.6 * own + common).astype(np.float32)
    return Place(centres, tuple(range(N_CLASSES)), 1.3), Place(moved, (1, 3, 4, 6), 0.7)


def remembered(features: F32, labels: I64) -> Remembered:
    return Remembered(
        features, np.eye(N_CLASSES, dtype=np.float32)[labels], np.arange(len(labels)).astype(str)
    )


def mislabelled(labels: I64, share: float, seed: int) -> I64:
    """Other labels for a share of them."""
    random = np.random.default_rng(seed)
    wrong, said = random.permutation(len(labels))[: int(share * len(labels))], labels.copy()
    said[wrong] = (said[wrong] + random.integers(1, N_CLASSES, len(wrong))) % N_CLASSES
    return said


def dense_end(layers: list[tuple[F32, F32]]) -> End:
    """Two dense layers with ReLU between, as the end of a network."""
    weights = {
        f"{kind}{index}": v for index, pair in enumerate(layers) for kind, v in zip("wb", pair, strict=True)
    }
    nodes = (
        Node("Gemm", ("features", "w0", "b0"), "sum", {}),
        Node("Relu", ("sum",), "hidden", {}),
        Node("Gemm", ("hidden", "w1", "b1"), "logits", {}),
    )
    return End("features", nodes, weights, {})


def logits_of(weights: Mapping[str, F32], features: F32) -> F32:
    hidden = np.maximum(features @ weights["w0"] + weights["b0"], 0)
    logits: F32 = hidden @ weights["w1"] + weights["b1"]
    return logits


def nothing() -> Remembered:
    return remembered(np.zeros((0, N_FEATURES), np.float32), np.zeros(0, np.int64))


def accuracy(weights: Mapping[str, F32], faces: tuple[F32, I64]) -> float:
    return float((logits_of(weights, faces[0]).argmax(axis=1) == faces[1]).mean())


def softened(weights: Mapping[str, F32], features: F32, said: I64) -> Remembered:
    logits = logits_of(weights, features)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    targets = soft_targets(said, (p / p.sum(axis=1, keepdims=True)).astype(np.float32))
    return Remembered(features, targets, np.arange(len(said)).astype(str))
