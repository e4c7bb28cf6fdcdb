"""A site's own face detector: the photos of its task in parts, and how it does beside dlib's.

It is trained, chosen and measured on photos of one scale, that in which the daemon will search.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..dlib_faces import HOG_FACE_PX, HogDetector, scaled_grey
from ..errors import SourceError
from ..photo import read_photo
from .boxed_photos import (
    SMALLEST_PX,
    FaceBoxes,
    aspect_of,
    check_boxes,
    is_within_reach,
    sides_px,
)
from .detection import DetectionFigures, Found, judge
from .hog_trainer import HogTrainer, scaled
from .samples import PARTS, TRAIN, picture_digests
from .task import Photo, TaskConfig
from .task_faces import parted

F32 = npt.NDArray[np.float32]

SMALL_SHARE = 0.05  # of the faces to learn from that may be too small: one far away costs much time
DEEPEST = -1.0  # score down to which boxes are searched for, so that a curve can be drawn


@dataclass(frozen=True, slots=True)
class BoxedParts:
    """The photos of each part, and how many of them were left out as their pixels came before."""

    photos: dict[str, list[Photo]]
    n_repeated: int

    def boxes(self, part: str) -> list[FaceBoxes]:
        """Return the boxes of every photo of a part."""
        return [photo.boxes for photo in self.photos[part] if photo.boxes is not None]


def boxed_parts(task: TaskConfig, on_photo: Callable[[], None] = lambda: None) -> BoxedParts:
    """Return the photos of a task of boxes by part, each photo in one only; every one is looked at.

    Parts that the task does not name are split off `train` by group. Of photos with the same pixels one
    stays, test photos first: what is tested on may not be trained on.

    Raises:
        ConfigError: no train file, or a group in two parts.
        SourceError: an XML file is wrong, there is no face to learn from, or one that no window can cover.
        PhotoError: a photo is missing or broken, or its boxes cannot be on it.
    """
    photos: dict[str, list[Photo]] = {part: [] for part in PARTS}
    seen: set[str] = set()
    n_repeated = 0
    for photo in sorted(parted(task), key=lambda photo: PARTS.index(photo.part), reverse=True):
        rgb = read_photo(photo.path)
        assert photo.boxes is not None  # read_task has seen to it
        check_boxes(photo.path, photo.boxes, rgb.shape)
        (digest,) = picture_digests(rgb[None])
        if digest in seen:
            n_repeated += 1
        else:
            seen.add(digest)
            photos[photo.part].append(photo)
        on_photo()
    parts = BoxedParts(photos, n_repeated)
    if not any(len(boxes.faces) for boxes in parts.boxes(TRAIN)):
        raise SourceError(f"the task {task.name} has no boxed face to learn from; box some in its part train")
    _check_reach(photos[TRAIN])
    return parts


def _check_reach(photos: Sequence[Photo]) -> None:
    """Refuse faces that the one window cannot cover: dlib would, without saying which.

    Those too small to be looked for are ignored, whatever their shape.
    """
    boxed = [
        (photo, box)
        for photo in photos
        if photo.boxes is not None
        for box in photo.boxes.faces[sides_px(photo.boxes.faces) >= SMALLEST_PX]
    ]
    if not boxed:
        return
    boxes = np.array([box for _, box in boxed], np.float32)
    aspect = aspect_of(boxes)
    odd = ~is_within_reach(boxes, aspect)
    if odd.any():
        width, height = (boxes[:, 2:] - boxes[:, :2]).T
        photo, box = boxed[int(np.abs(np.log(width / height / aspect)).argmax())]
        left, top, right, bottom = box.tolist()
        raise SourceError(
            f"{photo.path}: the face at left {left:g}, top {top:g}, width {right - left:g}, "
            f"height {bottom - top:g} is out of reach of a window {aspect:.2f} times as wide as high, their "
            f'mean shape ({odd.sum()} such in all); draw it like the others, or mark it ignore="1"'
        )


def smallest_face(boxes: Iterable[FaceBoxes]) -> int:
    """Return px: the side from which on nineteen of twenty faces are, within what a detector can look for."""
    sides = sides_px(np.concatenate([found.faces for found in boxes]))
    return max(SMALLEST_PX, int(np.quantile(sides, SMALL_SHARE)))


def fill(trainer: HogTrainer, photos: Iterable[Photo], scale: float) -> Iterator[int]:
    """Give `photos`, resized by `scale`, to the trainer; yields after each how many of its faces are used.

    Raises:
        PhotoError: a photo has gone meanwhile.
        SourceError: no room for them.
    """
    for photo in photos:
        grey = scaled_grey(read_photo(photo.path), scale)
        assert photo.boxes is not None
        boxes = scaled(photo.boxes, scale)
        if grey.size:
            trainer.add(photo.path.stem, grey, boxes)
        yield len(boxes.faces) if grey.size else 0


def search(detector: HogDetector, photos: Iterable[Photo], min_face_px: int) -> Iterator[Found]:
    """Yield the boxes and scores that `detector` finds in each photo, searched as the daemon does."""
    for photo in photos:
        yield detector.boxes(read_photo(photo.path), HOG_FACE_PX / min_face_px, DEEPEST)


def figures(found: Sequence[Found], photos: Sequence[Photo]) -> DetectionFigures:
    """Return how well the boxes of `photos` were found, at the daemon's threshold of 0."""
    return judge(found, [photo.boxes for photo in photos if photo.boxes is not None])
