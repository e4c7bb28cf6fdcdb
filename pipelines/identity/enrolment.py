"""Enrol people from photos: read, find the one face, check, store. One transaction per person."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..errors import PhotoError
from ..photo import SUFFIXES, read_photo
from ..privacy.audit import note
from .consent import check_consent, check_note
from .gallery import Gallery
from .matcher import IdentityConfig, Matcher

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

POOR_QUALITY = 0.2  # below: enrolled, with a word of warning


@dataclass(frozen=True, slots=True)
class ReadFace:
    """A face found in a photo: `box` `(4,)`, `landmarks` `(5, 2)` px, `embedding` `(D,)`."""

    box: F32
    landmarks: F32
    quality: float
    embedding: F32


class FaceReader(Protocol):
    """Finds the faces of a photo and computes their embeddings."""

    def read(self, rgb: U8) -> list[ReadFace]:
        """Return every face of `rgb`, `(H, W, 3)` uint8, largest first."""


@dataclass(frozen=True, slots=True)
class PhotoReport:
    """What became of one photo: `face` is None when it failed, and `problem` says why."""

    path: Path
    face: ReadFace | None = None
    problem: str = ""
    warning: str = ""


@dataclass(frozen=True, slots=True)
class PersonReport:
    """What became of one person. `templates` is how many there are in the gallery now."""

    name: str
    photos: tuple[PhotoReport, ...]
    templates: int = 0

    @property
    def failed(self) -> int:
        """How many photos could not be used."""
        return sum(photo.face is None for photo in self.photos)


class Enrolment:
    """Reads photos and stores templates. Owned by one thread, with its gallery."""

    def __init__(self, gallery: Gallery, reader: FaceReader, space: str, config: IdentityConfig) -> None:
        self._gallery, self._reader, self._space, self._config = gallery, reader, space, config

    def read_face(self, path: Path, *, largest: bool = False) -> ReadFace:
        """Return the one face of a photo.

        Args:
            path: the photo.
            largest: take the largest of several faces.

        Raises:
            PhotoError: unreadable, no face, or several.
        """
        faces = self._reader.read(read_photo(path))
        if not faces:
            raise PhotoError(
                f"{path} shows no face that can be found; take a photo from the front, with the face "
                "at least 80 pixels wide"
            )
        if len(faces) > 1 and not largest:
            raise PhotoError(
                f"{path} shows {len(faces)} faces; crop it to the one meant, or use --largest to take "
                "the largest"
            )
        return max(faces, key=lambda face: float(np.prod(face.box[2:] - face.box[:2])))

    def enrol(
        self, name: str, photos: Sequence[Path], *, consent: str = "", largest: bool = False
    ) -> PersonReport:
        """Add the faces in `photos` to `name`: those that can be used, all at once; report on every photo.

        Raises:
            GalleryError: the name cannot be used, the consent that is required is missing, or the gallery
                cannot be written; nothing is stored.
        """
        check_note(consent)
        if self._config.require_consent:
            check_consent(self._gallery, name, consent, self._gallery.now())
        others = self._others(name)
        reports = [self._report(path, others, largest) for path in photos]
        good = [(report.path, report.face) for report in reports if report.face is not None]
        if not good:
            return PersonReport(name, tuple(reports))
        count = self._gallery.enrol(
            name,
            np.stack([face.embedding for _, face in good]),
            space=self._space,
            qualities=[face.quality for _, face in good],
            sources=[path.name for path, _ in good],
            consent=consent,
        )
        number = self._gallery.number_of(name)
        note(self._gallery.folder, "enrol", person=number, detail=f"{len(good)} photos")
        return PersonReport(name, tuple(reports), count)

    def reject(self, name: str, photo: Path, *, largest: bool = False) -> None:
        """Store that the face in `photo` is not `name`.

        Raises:
            PhotoError: the photo cannot be used.
            GalleryError: nobody has that name.
        """
        face = self.read_face(photo, largest=largest)
        self._gallery.reject(name, face.embedding[None], space=self._space, source=photo.name)
        note(self._gallery.folder, "reject", person=self._gallery.number_of(name), detail="a photo")

    def _others(self, name: str) -> Matcher:
        """Return a matcher of everybody but `name`."""
        templates = self._gallery.templates(self._space).without(self._gallery.name_of(name))
        return Matcher(templates, self._gallery.templates(self._space, negatives=True), self._config)

    def _report(self, path: Path, others: Matcher, largest: bool) -> PhotoReport:
        try:
            face = self.read_face(path, largest=largest)
        except PhotoError as error:
            return PhotoReport(path, problem=str(error))
        (looks_like,) = others.match(face.embedding[None])
        warning = ""
        if looks_like.state == "known":
            warning = (
                f"looks like {looks_like.person}, who is enrolled (distance {looks_like.distance:.2f}); "
                f"if they are one person, merge them, else `visaged reject {looks_like.person!r} PHOTO`"
            )
        elif face.quality < POOR_QUALITY:
            warning = f"poor view (quality {face.quality:.2f}); a sharper, frontal photo would help"
        return PhotoReport(path, face, warning=warning)


def people_in(folder: Path) -> dict[str, list[Path]]:
    """Return name -> photos for a folder of people: `folder/NAME/*.jpg`, sorted.

    Raises:
        PhotoError: no such folder, or nobody in it.
    """
    if not folder.is_dir():
        raise PhotoError(f"{folder} is no folder; give one with a folder of photos per person")
    people = {person.name: photos_in(person) for person in sorted(folder.iterdir()) if person.is_dir()}
    people = {name: photos for name, photos in people.items() if photos and not name.startswith(".")}
    if not people:
        raise PhotoError(f"{folder} holds no folders with photos; expected {folder}/NAME/photo.jpg")
    return people


def photos_in(folder: Path) -> list[Path]:
    """Return the files of `folder` that are photos by their name, sorted."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
