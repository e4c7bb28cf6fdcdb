"""Faces with labels, whole: each member of an ensemble cuts its own chip from them, as it does live.

Shape letters: N faces, K emotions.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..cropper import Cropper
from ..ensemble import Ensemble, Outputs
from ..errors import ConfigError, PhotoError, SourceError
from ..message import EMOTIONS
from ..model_store import PREDICTOR, ModelStore
from ..photo import read_photo
from .ferplus import Aligner, Faces, load_faces, tuning_part
from .metrics import Truth
from .samples import picture_digests
from .task import Photo, TaskConfig, photos_of, read_task
from .task_faces import FaceFinder, parted

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
Text = npt.NDArray[np.str_]

Part = Literal["tune", "test"]
DARK, BRIGHT = 90, 150  # mean grey level of a face


@dataclass(frozen=True, slots=True)
class LabelledFaces:
    """N faces and what people saw in them.

    `faces` yields each as `(H, W, 3)` uint8 RGB and its landmarks `(5, 2)` px. `truth.targets` are over
    `EMOTIONS`. `subgroups` `(N,)` says what else one would like to look at alone.
    """

    faces: Iterable[tuple[U8, F32]]
    truth: Truth
    subgroups: Text
    n_lost: int = 0
    """Photos without a face that could be found; they are not among the N."""

    def __len__(self) -> int:
        return len(self.truth)


def answer(
    ensembles: Sequence[Ensemble],
    labelled: LabelledFaces,
    on_progress: Callable[[int], None] = lambda n: None,
) -> list[Outputs]:
    """Return what the members of each ensemble say about all faces, cut and run as live faces are.

    Args:
        ensembles: who is asked, all of them about each face while it is at hand: to open one takes longer.
        labelled: N faces.
        on_progress: called with the number of faces that one of them was just asked about.
    """
    parts: list[list[Outputs]] = [[] for _ in ensembles]
    faces = iter(labelled.faces)
    while batch := list(islice(faces, min(ensemble.max_batch for ensemble in ensembles))):
        seen = [(rgb, landmarks[None]) for rgb, landmarks in batch]
        for ensemble, said in zip(ensembles, parts, strict=True):
            said.append(ensemble.infer(Cropper().crop_all(seen, ensemble.recipes)))
            on_progress(len(batch))
    return [_joined(said) for said in parts]


def _joined(parts: Sequence[Outputs]) -> Outputs:
    return Outputs(
        np.concatenate([part.embeddings for part in parts]),
        np.concatenate([part.logits for part in parts], axis=1),
        parts[0].knows,
        parts[0].names,
        {name: np.concatenate([part.features[name] for part in parts]) for name in parts[0].features},
    )


def load_labelled(data: Path, part: Part, models: ModelStore) -> LabelledFaces:
    """Return one part of FER+ (a folder) or of a task (a TOML file).

    Args:
        data: folder or file.
        part: what is chosen by (`tune`), or tested on (`test`).
        models: has dlib's predictor, and the detector of faces in photos.

    Raises:
        SourceError: the data cannot be read, or hold no face.
        ConfigError: the task is wrong, or is not about emotions.
    """
    if data.suffix == ".toml":
        return _of_task(read_task(data), part, models)
    training, test = load_faces(data)
    faces = training.take(tuning_part(training)) if part == "tune" else test
    return of_ferplus(faces, models.weights_file(PREDICTOR))


def of_ferplus(faces: Faces, predictor: Path) -> LabelledFaces:
    """Return faces of FER+, which says of nobody who it is: each is a group of its own."""
    levels = faces.pictures.mean(axis=(1, 2))
    light = np.where(levels < DARK, "dark", np.where(levels > BRIGHT, "bright", "usual light"))
    votes = np.where(faces.has_majority(), "most agree", "votes are split")
    subgroups = np.array([f"{a}, {b}" for a, b in zip(votes, light, strict=True)])
    truth = Truth(faces.targets(), np.array(picture_digests(faces.pictures)))
    return LabelledFaces(_Enlarged(faces, predictor), truth, subgroups)


@dataclass(frozen=True, slots=True)
class _Enlarged:
    """The faces of FER+ one after the other: all at once would fill the memory."""

    faces: Faces
    predictor: Path

    def __iter__(self) -> Iterator[tuple[U8, F32]]:
        aligner = Aligner(self.predictor)
        return (aligner.enlarged(picture) for picture in self.faces.pictures)


def _of_task(task: TaskConfig, part: Part, models: ModelStore) -> LabelledFaces:
    if task.output == "box":
        raise ConfigError(
            f"task {task.name} is about boxes, not emotions; `visaged train-detector` measures it"
        )
    strange = sorted(set(task.classes) - set(EMOTIONS))
    if strange:
        raise ConfigError(f"task {task.name}: {strange[0]!r} is no emotion; known are {', '.join(EMOTIONS)}")
    photos, finder = photos_of_part(task, part), FaceFinder(task.input, models)
    found = [(photo, face) for photo in photos if (face := _face_in(photo.path, finder)) is not None]
    if not found:
        raise SourceError(f"task {task.name}: none of the {len(photos)} photos of part {part} shows a face")
    targets = np.zeros((len(found), len(EMOTIONS)), np.float32)
    targets[np.arange(len(found)), [EMOTIONS.index(photo.label) for photo, _ in found]] = 1
    groups = np.array([photo.group for photo, _ in found])
    subgroups = np.array([f"{min(rgb.shape[:2]) // 100 * 100} px and more" for _, (rgb, _) in found])
    return LabelledFaces(
        [face for _, face in found], Truth(targets, groups), subgroups, len(photos) - len(found)
    )


def photos_of_part(task: TaskConfig, part: Part) -> list[Photo]:
    """Return the photos of one part: those of its folder, or else those that training keeps for it.

    Raises:
        ConfigError: as `parted`.
    """
    photos = photos_of(task) if part in task.folders else parted(task)
    return [photo for photo in photos if photo.part == part]


def _face_in(path: Path, finder: FaceFinder) -> tuple[U8, F32] | None:
    """Return a frame with the face of a photo and its landmarks; None: no face, or no picture."""
    try:
        return finder.find(read_photo(path))
    except PhotoError:
        return None
