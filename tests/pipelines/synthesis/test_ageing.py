"""The ageing filter: the same person, with more or fewer creases; and the bends of the face."""

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from visaged.pipelines.synthesis.admission import Admission, KnownFace
from visaged.pipelines.synthesis.ageing import aged
from visaged.pipelines.synthesis.expressions import EXPRESSIONS, bend
from visaged.pipelines.synthesis.face_mesh import face_mesh
from visaged.pipelines.synthesis.renderer import View, render

U8 = npt.NDArray[np.uint8]


def creases(photo: U8, known: KnownFace) -> float:
    """How much fine contrast there is on the cheeks, in grey levels."""
    x, y = known.source.landmarks[4].astype(int)
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY).astype(np.float32)[y - 10 : y + 10]
    band = cv2.GaussianBlur(grey, (0, 0), 0.7) - cv2.GaussianBlur(grey, (0, 0), 3)
    return float(np.concatenate([band[:, x - 30 : x - 15], band[:, x + 15 : x + 30]]).std())


def test_age_deepens_creases_and_youth_takes_them_away(known: KnownFace) -> None:
    amounts = (-0.8, -0.4, 0, 0.5, 1.0)

    depths = [creases(aged(known.source, amount).photo, known) for amount in amounts]

    assert depths == sorted(depths)
    assert depths[-1] > 1.2 * depths[2] and depths[0] < 0.9 * depths[2], depths


@pytest.mark.parametrize("amount", [-0.7, 0.6, 1.2])
def test_an_aged_face_is_still_the_same_person(known: KnownFace, admission: Admission, amount: float) -> None:
    verdict = admission.judge(known, aged(known.source, amount))

    assert verdict.is_admitted and 0.02 < verdict.distance < 0.4


def test_no_age_changes_nothing_and_the_background_never_changes(known: KnownFace) -> None:
    same, old = aged(known.source, 0).photo, aged(known.source, 1).photo
    photo = known.source.photo

    assert np.abs(same.astype(int) - photo).max() <= 1
    assert np.array_equal(old[320:], photo[320:])


def test_an_age_out_of_range_is_refused(known: KnownFace) -> None:
    with pytest.raises(ValueError, match="amount"):
        aged(known.source, 3)


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_is_symmetrical_and_keeps_the_person(
    known: KnownFace, admission: Admission, name: str
) -> None:
    mesh = face_mesh()
    face, moved = mesh.vertices[: mesh.n_face], bend(EXPRESSIONS[name])
    mirrored = np.array([np.argmin(np.linalg.norm(face - place * [-1, 1, 1], axis=1)) for place in face])

    assert moved[mirrored] * [-1, 1, 1] == pytest.approx(moved, abs=1e-2)
    assert np.abs(bend(EXPRESSIONS[name], 0.5) * 2 - moved).max() < 1e-12
    assert admission.judge(known, render(known.source, View(bend=moved))).is_admitted


def test_a_smile_lifts_the_corners_of_the_mouth_and_a_frown_lowers_them(known: KnownFace) -> None:
    corners = [61, 291]

    assert (bend(EXPRESSIONS["smile"])[corners, 1] < -0.5).all()  # y points down
    assert (bend(EXPRESSIONS["frown"])[corners, 1] > 0.5).all()
