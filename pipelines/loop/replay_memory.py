"""What a network must not forget while it learns: features and labels of faces it did well on before.

The base memory is of the faces that the factory learned from: not shipped, made by the operator from FER+
(`visaged learn base`). Where there is none, confident samples of the site take its place, and protect less.

Shape letters: N faces, K classes, F features; or C, H, W of maps in place of F.
"""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..cache_files import sha256_of, write_atomically
from ..errors import NO_ARCHIVE, SampleError

F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Text = npt.NDArray[np.str_]

PRIVATE = 0o600
PARTS = ("train", "tune", "hold_out")
AGAIN = "make it again with `visaged learn base FERPLUS`"


@dataclass(frozen=True, slots=True)
class Remembered:
    """N faces: `features` of a trunk, `(N, F)` or `(N, C, H, W)`, and `targets` `(N, K)`, shares of votes.

    Features are in half precision where there are many; `groups` `(N,)` are names.
    """

    features: F16 | F32
    targets: F32
    groups: Text

    def __post_init__(self) -> None:
        n = len(self.features)
        if self.features.ndim not in (2, 4) or self.targets.shape[:1] != (n,) or self.groups.shape != (n,):
            raise ValueError(f"{self.features.shape=} {self.targets.shape=} {self.groups.shape=}")

    def __len__(self) -> int:
        return len(self.features)

    @property
    def labels(self) -> I64:
        """`(N,)` the class with the largest share."""
        labels: I64 = self.targets.argmax(axis=1)
        return labels

    def take(self, keep: npt.NDArray[np.generic]) -> "Remembered":
        """Return the faces where `keep` is true, or those at its indices."""
        return Remembered(self.features[keep], self.targets[keep], self.groups[keep])

    def none(self) -> "Remembered":
        """Return no faces, of these features."""
        return self.take(np.zeros(0, np.int64))

    def beside(self, other: "Remembered") -> "Remembered":
        """Return these faces and then those of `other`."""
        return Remembered(
            np.concatenate([self.features, other.features]),
            np.concatenate([self.targets, other.targets]),
            np.concatenate([self.groups, other.groups]),
        )


def balanced(targets: F32, per_class: int, random: np.random.Generator) -> I64:
    """Return the sorted indices of at most `per_class` faces of each class, drawn at random."""
    labels = targets.argmax(axis=1)
    of_each = [random.permutation(np.flatnonzero(labels == k))[:per_class] for k in range(targets.shape[1])]
    indices: I64 = np.sort(np.concatenate(of_each)).astype(np.int64)
    return indices


def weighed(faces: Remembered, wanted: npt.NDArray[Any]) -> F32:
    """Return `(N,)` weights, sum 1, by which classes are as often among `faces` as `wanted` `(K,)` says.

    All are 0 where none of the wanted classes is there.
    """
    there = np.bincount(faces.labels, minlength=len(wanted))
    weights = (wanted / np.maximum(there, 1))[faces.labels].astype(np.float32)
    total = weights.sum()
    return weights / total if total else weights


@dataclass(frozen=True, slots=True)
class Parts:
    """The same faces for all trunks, in the three parts of learning."""

    train: Remembered
    tune: Remembered
    hold_out: Remembered


@dataclass(frozen=True, slots=True)
class BaseMemory:
    """Faces of the data that the factory's networks are from, as each trunk sees them.

    `of_trunk` has them by the SHA-256 of the trunk: to another one its features mean nothing. `shares` `(K,)`
    is how often each class was in the data, of which the memory has all classes alike; empty in one that was
    made before these were kept. `digest` names the file.
    """

    of_trunk: Mapping[str, Parts]
    shares: F32
    digest: str = ""


def base_path(state: Path) -> Path:
    """Return where the base memory is kept."""
    return state / "learning" / "base.npz"


def write_base(of_trunk: Mapping[str, Parts], shares: F32, state: Path) -> Path:
    """Keep the base memory, features in half precision, and the `shares` of classes; return its path.

    Raises:
        SampleError: the folder cannot be written.
    """
    arrays: dict[str, npt.NDArray[np.generic]] = {"trunks": np.array(list(of_trunk)), "shares": shares}
    for name in PARTS:
        for index, parts in enumerate(of_trunk.values()):
            part: Remembered = getattr(parts, name)
            arrays[f"{name}_features_{index}"] = part.features.astype(np.float16)
            arrays[f"{name}_targets"], arrays[f"{name}_groups"] = part.targets, part.groups
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    path = base_path(state)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue(), PRIVATE)
    except OSError as error:
        raise SampleError(f"the base memory cannot be written to {path} ({error.strerror})") from error
    return path


def read_base(state: Path) -> BaseMemory | None:
    """Return the base memory; None when there is none.

    Raises:
        SampleError: it is damaged.
    """
    path = base_path(state)
    if not path.exists():
        return None
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            if "trunk" in file:  # made when one network learned
                found = {str(file["trunk"]): _parts(file, "features")}
            else:
                trunks = [str(trunk) for trunk in file["trunks"]]
                found = {trunk: _parts(file, f"features_{i}") for i, trunk in enumerate(trunks)}
            shares = file["shares"] if "shares" in file else np.zeros(0, np.float32)
    except NO_ARCHIVE as error:
        raise SampleError(f"{path} is no base memory ({error}); {AGAIN}, or remove it") from error
    return BaseMemory(found, shares, sha256_of(path))


def _parts(file: Mapping[str, npt.NDArray[Any]], features: str) -> Parts:
    train, tune, hold_out = (
        Remembered(file[f"{name}_{features}"], file[f"{name}_targets"], file[f"{name}_groups"])
        for name in PARTS
    )
    return Parts(train, tune, hold_out)


def trunk_digest(trunk: bytes) -> str:
    """Return the name of a trunk: the SHA-256 of its ONNX file."""
    return hashlib.sha256(trunk).hexdigest()
