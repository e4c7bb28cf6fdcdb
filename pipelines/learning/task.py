"""The problem statement: what goes in, what comes out, which classes, and where the data are.

    FOLDER/CLASS/photo.jpg            each photo its own group
    FOLDER/CLASS/GROUP/photo.jpg      photos of one person, track or session in a folder
    FOLDER/PERSON/photo.jpg           for an embedding: the classes are the people, each a group
    photos.xml                        for boxes: dlib's XML, which names photos beside it or in folders there

Read before anything is trained: `describe` says what the data are worth.
"""

import hashlib
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

from ...kernels.looks import NEAR_BITS, difference_hash
from ..errors import ConfigError, PhotoError, SourceError
from ..photo import photos_below, read_photo
from .boxed_photos import FaceBoxes, FaceCounts, advice_on_boxes, check_boxes, count_faces, read_boxes

U64 = npt.NDArray[np.uint64]

CHUNK = 512  # hashes compared at a time
FACE = "face"  # the one class of photos with boxes


class TaskConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A task file."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
    """Short name."""
    input: Literal["frame", "face", "box"] = "face"
    """What a network gets: a `frame` and who is in it, the crop of a `face`, or a `box` in a frame."""
    output: Literal["label", "embedding", "box"] = "label"
    """What it gives: a `label` of a class, an `embedding` that tells people apart, or a `box` around each
    face of a frame."""
    classes: tuple[str, ...] = ()
    """Names of the classes, two at least, which are the names of their folders. Left out for an embedding:
    every folder is a person. Left out for boxes."""
    folders: dict[Literal["train", "tune", "test"], Path]
    """Folder of each part, for boxes its XML file; relative ones start at the task file. One part is enough:
    it is split by group."""

    def __post_init__(self) -> None:
        if self.output == "box":
            if self.input != "frame" or self.classes:
                raise ValueError('boxes are of faces in frames; say input = "frame", and leave classes out')
        elif len(self.classes) < 2 and (self.classes or self.output == "label"):
            raise ValueError(f"classes must name two at least, not {len(self.classes)}")


@dataclass(frozen=True, slots=True)
class Photo:
    """One photo of a task: where it lies, in which part, of which class and group.

    `boxes` are those of its faces, where the task is about boxes.
    """

    path: Path
    part: str
    label: str
    group: str
    boxes: FaceBoxes | None = None


@dataclass(frozen=True, slots=True)
class Leak:
    """Two photos that must not be in two parts, and why: `same`, `alike` or `group`."""

    why: str
    first: Path
    second: Path


class Description(Struct, frozen=True, kw_only=True):
    """What the data of a task are.

    `counts` is photos by part and class. `sides_px` is smallest, median and largest shorter side. `imbalance`
    is the largest class over the smallest, of what is learned from. `n_duplicates` are photos that occur
    again in their own part, byte by byte of their pixels. `leaks` are pairs across parts. `unreadable` names
    files that are no pictures, or on which boxes cannot be; `unknown` folders that are no class. `faces` is
    what is boxed, where the task is about boxes.
    """

    counts: dict[str, dict[str, int]]
    sides_px: tuple[int, int, int]
    imbalance: float
    n_groups: int
    n_duplicates: int
    leaks: tuple[Leak, ...]
    unreadable: tuple[str, ...]
    unknown: tuple[str, ...]
    faces: FaceCounts | None
    advice: str


def read_task(path: Path) -> TaskConfig:
    """Return the task in the TOML file `path`, its folders absolute.

    Raises:
        ConfigError: missing, not TOML, an unknown key or a wrong value, or a folder that is not there.
    """
    try:
        task = msgspec.convert(tomllib.loads(path.read_text()), TaskConfig, dec_hook=_as_path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); name a task file") from error
    except (ValueError, RecursionError) as error:  # also numbers and nesting without an end
        raise ConfigError(f"{path} is no task: {error}; docs/learning.md shows one") from error
    folders = {part: path.parent / folder.expanduser() for part, folder in task.folders.items()}
    for part, folder in folders.items():
        if task.output == "box" and not folder.is_file():
            raise ConfigError(f"{path}: the XML file of {part}, {folder}, is not there")
        if task.output != "box" and not folder.is_dir():
            raise ConfigError(f"{path}: the folder of {part}, {folder}, is not there")
    if not folders:
        raise ConfigError(f"{path}: [folders] names none; say at least train = FOLDER")
    if task.output == "box":
        return msgspec.structs.replace(task, folders=folders)
    people = {child.name for folder in folders.values() for child in folder.iterdir() if child.is_dir()}
    classes = task.classes or tuple(sorted(people))
    if len(classes) < 2:
        raise ConfigError(f"{path}: its folders hold {len(classes)} people; an embedding needs two at least")
    return msgspec.structs.replace(task, folders=folders, classes=classes)


def _as_path(kind: type, value: object) -> Path:
    if kind is not Path or not isinstance(value, str):
        raise NotImplementedError(f"a {kind.__name__} of {value!r}")
    return Path(value)


def photos_of(task: TaskConfig) -> Iterator[Photo]:
    """Yield every photo of every class, in the order of the paths; of boxes, in that of the XML file.

    Raises:
        SourceError: an XML file of boxes is wrong.
    """
    for part, folder in task.folders.items():
        for path, boxes in read_boxes(folder).items() if task.output == "box" else ():
            inside = path.relative_to(folder.parent).parts
            yield Photo(path, part, FACE, inside[0] if len(inside) > 1 else path.stem, boxes)
        for label in task.classes:
            for path in photos_below(folder / label):
                inside = path.relative_to(folder / label).parts
                group = inside[0] if len(inside) > 1 else path.stem
                yield Photo(path, part, label, label if task.output == "embedding" else group)


def describe(task: TaskConfig, on_photo: Callable[[], None] = lambda: None) -> Description:
    """Return what the data of `task` are; every photo is opened, and `on_photo` called for each.

    Raises:
        SourceError: no photo can be read, or an XML file of boxes is wrong.
    """
    photos: list[Photo] = []
    digests: list[str] = []
    hashes: list[int] = []
    sides: list[int] = []
    unreadable: list[str] = []
    for photo in photos_of(task):
        on_photo()
        try:
            rgb = read_photo(photo.path)
            if photo.boxes is not None:
                check_boxes(photo.path, photo.boxes, rgb.shape)
        except PhotoError as error:
            unreadable.append(str(error))
            continue
        photos.append(photo)
        digests.append(hashlib.sha256(rgb.tobytes()).hexdigest())
        hashes.append(difference_hash(rgb))
        sides.append(min(rgb.shape[:2]))
    if not photos:
        raise SourceError(
            f"the task {task.name} has no photo in {', '.join(map(str, task.folders.values()))}"
        )
    classes = (FACE,) if task.output == "box" else task.classes
    counts: dict[str, dict[str, int]] = {part: dict.fromkeys(classes, 0) for part in task.folders}
    for photo in photos:
        counts[photo.part][photo.label] += 1
    learned = counts.get("train") or next(iter(counts.values()))
    seen = [(photo.part, digest) for photo, digest in zip(photos, digests, strict=True)]
    unknown = sorted(
        str(child)
        for folder in task.folders.values()
        if folder.is_dir()
        for child in folder.iterdir()
        if child.is_dir() and child.name not in task.classes
    )
    boxes = [photo.boxes for photo in photos if photo.boxes is not None]
    faces = count_faces([photo.part for photo in photos], boxes, tuple(task.folders)) if boxes else None
    return Description(
        counts=counts,
        sides_px=(min(sides), int(np.median(sides)), max(sides)),
        imbalance=max(learned.values()) / max(1, min(learned.values())),
        n_groups=len({(photo.part, photo.label, photo.group) for photo in photos}),
        n_duplicates=len(seen) - len(set(seen)),
        leaks=tuple(leaks_of(photos, digests, np.array(hashes, np.uint64))),
        unreadable=tuple(unreadable),
        unknown=tuple(unknown),
        faces=faces,
        advice=_advice(task, learned, faces),
    )


def _advice(task: TaskConfig, learned: dict[str, int], faces: FaceCounts | None) -> str:
    if faces is not None:
        return advice_on_boxes(faces.n_faces.get("train") or next(iter(faces.n_faces.values())))
    return advice(learned) if task.output == "label" else advice_on_people(learned)


def leaks_of(photos: list[Photo], digests: list[str], hashes: U64) -> Iterator[Leak]:
    """Yield every photo that another part has too, or that is of a group that another part has.

    Args:
        photos: N of them.
        digests: of their pixels.
        hashes: `(N,)` of `difference_hash`.
    """
    parts = np.array([photo.part for photo in photos])
    for at in range(0, len(photos), CHUNK):
        differing = np.bitwise_count(hashes[at : at + CHUNK, None] ^ hashes[None])
        for first, second in np.argwhere(differing <= NEAR_BITS) + np.array([at, 0]):
            if first < second and parts[first] != parts[second]:
                why = "same" if digests[first] == digests[second] else "alike"
                yield Leak(why, photos[first].path, photos[second].path)
    first_of: dict[tuple[str, str], Photo] = {}
    for photo in photos:
        known = first_of.setdefault((photo.label, photo.group), photo)
        if known.part != photo.part and photo.group != photo.path.stem:
            yield Leak("group", known.path, photo.path)


def advice(counts: dict[str, int]) -> str:
    """Return what depth of network so many photos of each class support. Rules of thumb, not measured."""
    smallest, total = min(counts.values()), sum(counts.values())
    if smallest == 0:
        return "a class has no photo: nothing can be learned about it; take it out or collect some"
    if smallest < 50:
        return "learn only a head on an imported network's features (freeze all stages), and augment"
    if smallest < 500:
        return "start from an imported network and learn its end part; from scratch it would learn by heart"
    if total < 20_000:
        return "a network of at most about 1 M parameters from scratch, or the end part of an imported one"
    return "enough for a network like vgg13 from scratch; starting from an imported one is still quicker"


def advice_on_people(counts: dict[str, int]) -> str:
    """Return what an embedder can learn of so many photos of each person. Rules of thumb, not measured."""
    n_twice = sum(count > 1 for count in counts.values())
    if n_twice < 100:
        return f"{n_twice} people have two photos or more: too few; use the embedder that is there"
    if n_twice < 5_000:
        return f"{n_twice} people have two photos or more: learn a head on the network dlib_resnet"
    return f"{n_twice} people have two photos or more: enough for an embedder from scratch"
