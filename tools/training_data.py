"""What `visaged train` learns from: FER+ folders and task files, as aligned chips in three parts."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console

from ..pipelines.errors import ConfigError
from ..pipelines.importers.dlib_dat import FaceResnet, read_face_resnet
from ..pipelines.learning.ferplus import Faces, align_all, as_samples, tuning_part
from ..pipelines.learning.ferplus import load_faces as load_ferplus
from ..pipelines.learning.normalisation import with_light
from ..pipelines.learning.recipe import RecipeConfig
from ..pipelines.learning.samples import TEST, TRAIN, TUNE, Samples
from ..pipelines.learning.task import photos_of, read_task
from ..pipelines.learning.task_faces import FaceFinder, load_faces
from ..pipelines.model_store import PREDICTOR, ModelStore
from ..pipelines.registry import FERPLUS_CLASSES
from ..pipelines.synthesis.admission import build_admission
from ..pipelines.synthesis.synthesiser import Synthesiser
from .counted import counted

U8 = npt.NDArray[np.uint8]

TRUNK = "dlib_face_recognition_resnet_model_v1.dat"
_GIVES = {"label": "to name classes", "embedding": "to tell people apart"}


@dataclass(frozen=True, slots=True)
class Parts:
    """What is learned from, what chooses, and what is tested on: no group is in two of them."""

    train: Samples
    tune: Samples
    test: Samples


@dataclass(frozen=True, slots=True)
class Loader:
    """Loads data for one recipe.

    `most` faces at most are learned from, 0: all. `synthetic` is how many synthetic faces are tried for each
    of them, 0 to 1.
    """

    recipe: RecipeConfig
    models: ModelStore
    console: Console
    most: int = 0
    synthetic: float = 0.0

    def output_of(self, paths: Sequence[Path]) -> str:
        """Return what the data at `paths` teach: `label` or `embedding`.

        Raises:
            ConfigError: neither a folder nor a task file, some teach the one and some the other, or boxes.
        """
        outputs = ["label" if path.is_dir() else read_task(path).output for path in paths]
        for output, path in zip(outputs, paths, strict=True):
            if output == "box":
                raise ConfigError(f"{path} teaches to box faces; `visaged train-detector {path}` learns that")
            if output != outputs[0]:
                raise ConfigError(
                    f"{paths[0]} teaches a network {_GIVES[outputs[0]]}, and {path} {_GIVES[output]}; "
                    "write a recipe for each"
                )
        return outputs[0]

    def classes_of(self, path: Path) -> tuple[str, ...]:
        """Return the classes of the data at `path`: a task's own, or FER+'s.

        Raises:
            ConfigError: neither a folder nor a task file.
        """
        return FERPLUS_CLASSES if path.is_dir() else read_task(path).classes

    def trunk(self) -> FaceResnet | None:
        """Return the imported weights of a network that has some.

        Raises:
            ModelError: they are missing or corrupt.
        """
        if self.recipe.network.kind != "dlib_resnet":
            return None
        return read_face_resnet(self.models.weights_file(TRUNK))

    def load(self, path: Path, classes: tuple[str, ...]) -> Parts:
        """Return the data at `path`, a folder of FER+ or a task file, as samples of `classes`.

        Raises:
            ConfigError: no such task, or a class that is not among `classes`.
            SourceError: nothing there that can be learned from.
        """
        parts = self.load_as_they_are(path)
        return Parts(*(part.in_classes(classes) for part in (parts.train, parts.tune, parts.test)))

    def load_as_they_are(self, path: Path) -> Parts:
        """Return the data at `path` as samples of their own classes; for an embedding, each part's people.

        Raises:
            ConfigError: no such task.
            SourceError: nothing there that can be learned from.
        """
        parts = self._ferplus(path) if path.is_dir() else self._task(path)
        return replace(parts, train=self.with_synthetic(parts.train)) if self.synthetic else parts

    def with_synthetic(self, train: Samples) -> Samples:
        """Return the training part with synthetic faces; say what was refused."""
        synthesiser = Synthesiser(build_admission(self.models), self.recipe.padding)
        n = round(self.synthetic * len(train))
        with self._bar("synthesising", n) as advance:
            both = synthesiser.extend(train, n, on_progress=advance)
        self.console.print(f"{both.is_synthetic.sum()} of {n} synthetic faces are admitted")
        for reason, count in synthesiser.refused.most_common():
            self.console.print(f"  {count} refused: {reason}")
        return both

    def _task(self, path: Path) -> Parts:
        task = read_task(path)
        finder = FaceFinder(task.input, self.models)
        self.console.print(f"{task.name}: looking for faces")
        with self._bar("photos", sum(1 for _ in photos_of(task))) as advance:
            found = load_faces(task, self.recipe.chip_recipe(), finder, lambda: advance(1))
        counts = ", ".join(f"{len(part)} {name}" for name, part in found.parts.items())
        self.console.print(
            f"{task.name}: faces: {counts}; left out: {found.n_faceless} photos without a face, "
            f"{found.n_repeated} seen before, {found.n_unreadable} unreadable; guessed: {finder.n_guessed}",
            soft_wrap=True,
        )
        train = found.parts[TRAIN]
        if self.most:  # the first ones would be of the first class
            train = train.take(np.sort(np.random.default_rng(0).permutation(len(train))[: self.most]))
        return Parts(train, found.parts[TUNE], found.parts[TEST])

    def _ferplus(self, folder: Path) -> Parts:
        training, test = load_ferplus(folder)
        training = training.take(np.arange(len(training)) < (self.most or len(training)))
        tune = tuning_part(training)
        learned, tested = (as_samples(faces, self._aligned(faces)) for faces in (training, test))
        return Parts(*(self._coloured(part) for part in (learned.take(~tune), learned.take(tune), tested)))

    def _aligned(self, faces: Faces) -> U8:
        """Return the grey chips `(N, S, S, 1)` of `faces`, lit; they are kept as they were before that."""
        size, padding = self.recipe.network.size, self.recipe.padding
        digest = hashlib.sha256(f"{size} {padding}".encode() + faces.pictures.tobytes()).hexdigest()[:12]
        path = self.models.cache_dir / "training" / f"chips-{digest}.npy"
        if path.exists():
            grey: U8 = np.load(path)
        else:
            self.console.print(f"aligning {len(faces)} faces")
            with self._bar("aligning", len(faces)) as advance:
                grey = align_all(faces, self.models.weights_file(PREDICTOR), size, padding, advance)
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".unfinished.npy")
            np.save(unfinished, grey)
            unfinished.replace(path)
        return with_light(grey, self.recipe.normalisation_config())

    def _coloured(self, samples: Samples) -> Samples:
        """Return grey samples in the network's channels, without a copy."""
        shape = (*samples.pictures.shape[:3], self.recipe.network.channels)
        return replace(samples, pictures=np.broadcast_to(samples.pictures, shape))

    @contextmanager
    def _bar(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        with counted(self.console, is_transient=True) as progress:
            bar = progress.add_task(what, total=total)
            yield lambda n: progress.advance(bar, n)
