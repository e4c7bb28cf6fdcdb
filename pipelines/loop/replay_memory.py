"""What a network must not forget while it learns: features and labels of faces it did well on before.

The base memory is of the faces that the factory learned from: not shipped, made by the operator from FER+
(`visaged learn base`). Where there is none, confident samples of the site take its place, and protect less.
"""

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..cache_files import sha256_of, write_atomically
from ..errors import SampleError

F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Text = npt.NDArray[np.str_]

PRIVATE = 0o600


@dataclass(frozen=True, slots=True)
class Remembered:
    """N faces: `features` `(N, F)` of the trunk, `targets` `(N, K)` shares of votes, `(N,)` `groups`."""

    features: F32
    targets: F32
    groups: Text

    def __post_init__(self) -> None:
        n = len(self.features)
        if self.features.ndim != 2 or self.targets.shape[:1] != (n,) or self.groups.shape != (n,):
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

    def beside(self, other: "Remembered") -> "Remembered":
        """Return these faces and then those of `other`."""
        return Remembered(
            np.concatenate([self.features, other.features]),
            np.concatenate([self.targets, other.targets]),
            np.concatenate([self.groups, other.groups]),
        )


def nothing(n_features: int, n_classes: int) -> Remembered:
    """Return no faces."""
    return Remembered(
        np.zeros((0, n_features), np.float32), np.zeros((0, n_classes), np.float32), np.zeros(0, "<U1")
    )


def balanced(targets: F32, per_class: int, random: np.random.Generator) -> I64:
    """Return the sorted indices of at most `per_class` faces of each class, drawn at random."""
    labels = targets.argmax(axis=1)
    of_each = [random.permutation(np.flatnonzero(labels == k))[:per_class] for k in range(targets.shape[1])]
    indices: I64 = np.sort(np.concatenate(of_each)).astype(np.int64)
    return indices


@dataclass(frozen=True, slots=True)
class BaseMemory:
    """Faces of the data that the factory's head is from, in the three parts of learning.

    `trunk` is the SHA-256 of the trunk that the features are of; of another one they mean nothing. `digest`
    names the file.
    """

    train: Remembered
    tune: Remembered
    hold_out: Remembered
    trunk: str
    digest: str = ""


def base_path(state: Path) -> Path:
    """Return where the base memory is kept."""
    return state / "learning" / "base.npz"


def write_base(base: BaseMemory, state: Path) -> Path:
    """Keep the base memory, features in half precision; return its path.

    Raises:
        SampleError: the folder cannot be written.
    """
    arrays: dict[str, npt.NDArray[np.generic]] = {"trunk": np.array(base.trunk)}
    for name in ("train", "tune", "hold_out"):
        part: Remembered = getattr(base, name)
        arrays[f"{name}_features"] = part.features.astype(np.float16)
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


def read_base(state: Path, trunk: str) -> BaseMemory | None:
    """Return the base memory; None when there is none.

    Raises:
        SampleError: it is damaged, or of another trunk.
    """
    path = base_path(state)
    if not path.exists():
        return None
    again = "make it again with `visaged learn base FERPLUS`, or remove it"
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            found = str(file["trunk"])
            parts = [
                Remembered(
                    file[f"{name}_features"].astype(np.float32),
                    file[f"{name}_targets"],
                    file[f"{name}_groups"],
                )
                for name in ("train", "tune", "hold_out")
            ]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise SampleError(f"{path} is no base memory ({error}); {again}") from error
    if found != trunk:
        raise SampleError(f"the base memory {path} is of another trunk than the active release's; {again}")
    train, tune, hold_out = parts
    return BaseMemory(train, tune, hold_out, trunk, sha256_of(path))


def trunk_digest(trunk: bytes) -> str:
    """Return the name of a trunk: the SHA-256 of its ONNX file."""
    return hashlib.sha256(trunk).hexdigest()
