"""Enrolment from photos, with a reader that sees a face in every white square.

`SquareReader` stands for the networks: a square's height of grey decides the embedding.
"""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from visaged.pipelines.errors import GalleryError, PhotoError
from visaged.pipelines.identity.enrolment import Enrolment, ReadFace, people_in
from visaged.pipelines.identity.gallery import Gallery
from visaged.pipelines.identity.identity import IdentityConfig

SPACE = "squares"


class SquareReader:
    """Finds coloured squares on black: a person is a colour."""

    def read(self, rgb: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> list[ReadFace]:
        """Return a face per square, largest first."""
        n, _, stats, _ = cv2.connectedComponentsWithStats((rgb.max(axis=2) > 20).astype(np.uint8))
        found = []
        for left, top, width, height, _ in stats[1:n]:
            colour = rgb[top + height // 2, left + width // 2].astype(np.float32) / 255
            embedding = np.zeros(128, np.float32)
            embedding[:3] = colour
            box = np.array([left, top, left + width, top + height], np.float32)
            quality = float(min(1.0, width / 20))
            found.append(ReadFace(box, np.zeros((5, 2), np.float32), quality, embedding))
        return sorted(found, key=lambda face: -float(np.prod(face.box[2:] - face.box[:2])))


RED, GREEN, DARK_RED = (255, 0, 0), (0, 255, 0), (225, 0, 0)


def photo(path: Path, *squares: tuple[tuple[int, int, int], int]) -> Path:
    """Write a photo with squares (colour, side) side by side."""
    rgb = np.zeros((60, 240, 3), np.uint8)
    for i, (colour, side) in enumerate(squares):
        rgb[5 : 5 + side, 5 + 60 * i : 5 + 60 * i + side] = colour
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    return path


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    with Gallery(tmp_path / "state") as gallery:
        yield gallery


@pytest.fixture
def enrolment(gallery: Gallery) -> Enrolment:
    return Enrolment(gallery, SquareReader(), SPACE, IdentityConfig())


def test_photos_become_templates_with_quality_and_source(
    tmp_path: Path, enrolment: Enrolment, gallery: Gallery
) -> None:
    photos = [photo(tmp_path / "a.png", (RED, 30)), photo(tmp_path / "b.png", (DARK_RED, 30))]

    report = enrolment.enrol("Anna", photos, consent="form 3")

    assert (report.templates, report.failed) == (2, 0)
    assert gallery.people()[0].consent == "form 3"
    assert gallery.templates(SPACE).embeddings[:, 0].tolist() == pytest.approx([1.0, 225 / 255])


def test_a_photo_without_a_face_says_what_to_do(tmp_path: Path, enrolment: Enrolment) -> None:
    with pytest.raises(PhotoError, match=r"shows no face.*from the front"):
        enrolment.read_face(photo(tmp_path / "wall.png"))


def test_a_photo_with_two_faces_says_how_many(tmp_path: Path, enrolment: Enrolment) -> None:
    two = photo(tmp_path / "two.png", (RED, 20), (GREEN, 40))

    with pytest.raises(PhotoError, match=r"shows 2 faces.*--largest"):
        enrolment.read_face(two)
    assert enrolment.read_face(two, largest=True).embedding[1] == 1.0


def test_a_bad_photo_does_not_stop_the_others(tmp_path: Path, enrolment: Enrolment, gallery: Gallery) -> None:
    empty = tmp_path / "empty.jpg"
    empty.touch()
    photos = [empty, photo(tmp_path / "a.png", (RED, 30)), photo(tmp_path / "wall.png")]

    report = enrolment.enrol("Anna", photos)

    assert [bool(p.problem) for p in report.photos] == [True, False, True]
    assert (report.templates, report.failed) == (1, 2)
    assert gallery.people()[0].templates == 1


def test_a_person_without_a_usable_photo_is_not_created(
    tmp_path: Path, enrolment: Enrolment, gallery: Gallery
) -> None:
    report = enrolment.enrol("Anna", [photo(tmp_path / "wall.png")])

    assert (report.templates, report.failed) == (0, 1)
    assert gallery.people() == []


def test_a_name_that_cannot_be_used_stores_nothing(
    tmp_path: Path, enrolment: Enrolment, gallery: Gallery
) -> None:
    with pytest.raises(GalleryError, match="belong to strangers"):
        enrolment.enrol("unknown-1", [photo(tmp_path / "a.png", (RED, 30))])

    assert gallery.people() == []


def test_somebody_who_is_enrolled_under_another_name_is_pointed_out(
    tmp_path: Path, enrolment: Enrolment
) -> None:
    enrolment.enrol("Anna", [photo(tmp_path / "a.png", (RED, 30))])

    report = enrolment.enrol("Ann", [photo(tmp_path / "b.png", (DARK_RED, 30))])
    again = enrolment.enrol("anna", [photo(tmp_path / "c.png", (GREEN, 30))])

    assert "looks like Anna" in report.photos[0].warning
    assert report.templates == 1
    assert again.photos[0].warning == ""


def test_a_poor_view_is_stored_with_a_warning(tmp_path: Path, enrolment: Enrolment) -> None:
    report = enrolment.enrol("Anna", [photo(tmp_path / "tiny.png", (RED, 3))])

    assert report.templates == 1
    assert "poor view" in report.photos[0].warning


def test_a_rejected_photo_is_stored_as_a_negative(
    tmp_path: Path, enrolment: Enrolment, gallery: Gallery
) -> None:
    enrolment.enrol("Anna", [photo(tmp_path / "a.png", (RED, 30))])
    enrolment.reject("Anna", photo(tmp_path / "b.png", (DARK_RED, 30)))

    assert gallery.people()[0].negatives == 1
    with pytest.raises(GalleryError, match="nobody is called Zoe"):
        enrolment.reject("Zoe", tmp_path / "b.png")


def test_a_folder_of_people_is_names_and_their_photos(tmp_path: Path) -> None:
    photo(tmp_path / "people" / "Anna" / "1.png", (RED, 30))
    photo(tmp_path / "people" / "Anna" / "2.JPG", (RED, 30))
    photo(tmp_path / "people" / "Ben Bo" / "x.jpeg", (GREEN, 30))
    (tmp_path / "people" / "Anna" / "notes.txt").write_text("not a photo")
    (tmp_path / "people" / "empty").mkdir()
    (tmp_path / "people" / ".cache").mkdir()

    people = people_in(tmp_path / "people")

    assert {name: [p.name for p in photos] for name, photos in people.items()} == {
        "Anna": ["1.png", "2.JPG"],
        "Ben Bo": ["x.jpeg"],
    }


def test_a_folder_without_people_says_how_it_should_look(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(PhotoError, match="folder"):
            people_in(folder)
