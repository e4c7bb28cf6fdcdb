"""The faces of a task's photos as samples: found and cut as live ones, nothing in two parts at once.

Shape letters: N faces, C channels, S side of a chip, K classes.
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from ..cropper import Cropper
from ..detector import Detector, build_photo_detector
from ..errors import ConfigError, PhotoError, SourceError
from ..model_store import ModelStore
from ..photo import read_photo
from ..registry import ChipRecipe
from .ferplus import FAR, USUAL_BOX, USUAL_LANDMARKS
from .samples import PARTS, TEST, TRAIN, TUNE, Samples, split_of
from .task import Photo, TaskConfig, photos_of

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

SMALL_PX = 160  # a crop of a face below this is enlarged to it, so that the detector can see it


class TaskFaces(Struct, frozen=True, kw_only=True):
    """Samples of each part, and what did not come: photos without a face, seen before, unreadable."""

    parts: dict[str, Samples]
    n_faceless: int
    n_repeated: int
    n_unreadable: int


class FaceFinder:
    """Finds the landmarks of the face that a task's photo is about. Owned by one thread.

    `n_guessed` counts crops in which no face was detected: there landmarks are where they usually are.
    """

    def __init__(self, kind: str, store: ModelStore) -> None:
        """Load the detector; `kind` is a task's `input`.

        Raises:
            ModelError: a weights file is missing or corrupt.
        """
        self._find = {"frame": self._in_frame, "face": self._in_crop, "box": self._in_box}[kind]
        detector = build_photo_detector(store)
        self._detector: Detector = detector
        self._predictor = detector.landmarks
        self.n_guessed = 0

    def find(self, rgb: U8) -> tuple[U8, F32] | None:
        """Return a frame `(H, W, 3)` with the face in it and its `(5, 2)` px landmarks; None: no face."""
        return self._find(rgb)

    def _in_frame(self, rgb: U8) -> tuple[U8, F32] | None:
        found = self._detector.detect(rgb)
        if not found:
            return None
        sizes = [float(np.prod(face.box[2:] - face.box[:2])) for face in found]
        return rgb, found[int(np.argmax(sizes))].landmarks

    def _in_box(self, rgb: U8) -> tuple[U8, F32] | None:
        height, width = rgb.shape[:2]
        return rgb, self._predictor.place(rgb, np.array([[0, 0, width, height]], np.float32))[0]

    def _in_crop(self, rgb: U8) -> tuple[U8, F32] | None:
        """Detect with room around; else guess where a crop's face usually is, as for FER+."""
        height, width = rgb.shape[:2]
        if min(height, width) < SMALL_PX:
            scale = SMALL_PX / min(height, width)
            width, height = round(width * scale), round(height * scale)
            rgb = np.asarray(cv2.resize(rgb, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)
        border = min(height, width) // 2
        around = cv2.copyMakeBorder(rgb, border, border, border, border, cv2.BORDER_REPLICATE)
        frame = np.asarray(around, np.uint8)
        found = self._in_frame(frame)
        if found:
            return found
        side = np.array([width, height], np.float32)
        box = USUAL_BOX * np.tile(side, 2) + border
        marks: F32 = (self._predictor.place(frame, box[None])[0] - border) / side
        if float(np.linalg.norm(marks - USUAL_LANDMARKS, axis=1).mean()) >= FAR:
            marks = USUAL_LANDMARKS
        self.n_guessed += 1
        return frame, (marks * side + border).astype(np.float32)


def load_faces(
    task: TaskConfig,
    recipe: ChipRecipe,
    finder: FaceFinder,
    on_photo: Callable[[], None] = lambda: None,
) -> TaskFaces:
    """Return the faces of `task` as samples of its classes; for an embedding, of the part's own people.

    Parts that the task does not name are split off `train` by the groups' names. A photo whose pixels came
    before is dropped, test photos being looked at first: what is tested on may not be trained on.

    Args:
        task: its photos.
        recipe: how chips are cut; mean and scale do not count here.
        finder: of faces.
        on_photo: called after every photo.

    Raises:
        ConfigError: no train folder, or a group in two parts.
        SourceError: a part has no face.
    """
    plain = msgspec.structs.replace(recipe, mean=(0.0,) * len(recipe.mean), scale=1.0)
    chips: dict[str, list[tuple[U8, Photo]]] = {part: [] for part in PARTS}
    seen: set[bytes] = set()
    counts = dict.fromkeys(("n_faceless", "n_repeated", "n_unreadable"), 0)
    for photo in sorted(parted(task), key=lambda photo: PARTS.index(photo.part), reverse=True):
        chip = _chip_of(photo.path, plain, finder, seen)
        if isinstance(chip, str):
            counts[chip] += 1
        else:
            chips[photo.part].append((chip, photo))
        on_photo()
    empty = next((part for part, cut in chips.items() if not cut), None)
    if empty:
        raise SourceError(
            f"the task {task.name} has no face in its part {empty}; "
            "add photos or groups, or name a folder for it"
        )
    parts = {
        part: _samples(cut, task.classes if task.output == "label" else _people(cut))
        for part, cut in chips.items()
    }
    return TaskFaces(parts=parts, **counts)


def parted(task: TaskConfig) -> list[Photo]:
    """Return every photo with the part it is in: as the task says, or else by its group's name.

    Raises:
        ConfigError: no folder to learn from, or a group in two parts.
    """
    photos = list(photos_of(task))
    if len(task.folders) > 1 and TRAIN not in task.folders:
        raise ConfigError(f"the task {task.name} names no folder train; there is nothing to learn from")
    source = TRAIN if TRAIN in task.folders else next(iter(task.folders))
    shares = {part: 0.0 if part in task.folders and part != source else 0.1 for part in (TUNE, TEST)}
    chosen = split_of([photo.group for photo in photos], **shares)
    known: dict[str, Photo] = {}
    out: list[Photo] = []
    for photo, part in zip(photos, chosen, strict=True):
        placed = replace(photo, part=str(part)) if photo.part == source else photo
        out.append(placed)
        if photo.group == photo.path.stem:
            continue  # a group of its own: other folders may well have a file of that name
        first = known.setdefault(photo.group, placed)
        if first.part != placed.part:
            raise ConfigError(
                f"the task {task.name} has the group {photo.group!r} in {first.part} ({first.path}) and in "
                f"{placed.part} ({photo.path}); move one: who is learned from cannot test"
            )
    return out


def _chip_of(path: Path, recipe: ChipRecipe, finder: FaceFinder, seen: set[bytes]) -> U8 | str:
    """Return the chip `(S, S, C)` of a photo, or the count that it goes to."""
    try:
        rgb = read_photo(path)
    except PhotoError:
        return "n_unreadable"
    digest = hashlib.sha256(f"{rgb.shape}".encode() + rgb.tobytes()).digest()
    if digest in seen:
        return "n_repeated"
    seen.add(digest)
    face = finder.find(rgb)
    if face is None:
        return "n_faceless"
    frame, landmarks = face
    chip: U8 = Cropper().crop(frame, landmarks[None], recipe)[0].astype(np.uint8)
    return chip.transpose(1, 2, 0)


def _people(cut: list[tuple[U8, Photo]]) -> tuple[str, ...]:
    return tuple(sorted({photo.label for _, photo in cut}))


def _samples(cut: list[tuple[U8, Photo]], classes: tuple[str, ...]) -> Samples:
    labels = [classes.index(photo.label) for _, photo in cut]
    return Samples(
        np.stack([chip for chip, _ in cut]),
        np.eye(len(classes), dtype=np.float32)[labels],
        np.array([photo.group for _, photo in cut]),
        classes,
    )
