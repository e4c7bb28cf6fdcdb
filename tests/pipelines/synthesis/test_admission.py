"""The gate: somebody else, a head turned too far, a face that is gone, each refused with its reason."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from visaged.pipelines.errors import PhotoError
from visaged.pipelines.synthesis.admission import Admission, KnownFace
from visaged.pipelines.synthesis.renderer import View, render

U8 = npt.NDArray[np.uint8]


def at_yaw(known: KnownFace, yaw: float) -> KnownFace:
    return replace(known, source=replace(known.source, pose=replace(known.source.pose, yaw=yaw)))


def test_a_face_turned_a_little_is_admitted(known: KnownFace, admission: Admission) -> None:
    verdict = admission.judge(known, render(known.source, View(yaw=15)))

    assert verdict.is_admitted and verdict.is_found and 0 < verdict.distance < 0.45


def test_another_person_is_refused(known: KnownFace, admission: Admission) -> None:
    stranger = np.roll(known.embedding, 7)
    rendering = render(known.source, View(yaw=15))

    verdict = admission.judge(replace(known, embedding=stranger), rendering)
    generated = admission.judge_generated(replace(known, embedding=stranger), rendering.photo)

    assert "somebody else" in verdict.reason and "somebody else" in generated.reason
    assert not verdict.is_admitted and verdict.distance > 0.45


def test_a_head_turned_too_far_is_refused(known: KnownFace, admission: Admission) -> None:
    rendering = replace(render(known.source, View(yaw=20)), yaw=46.0)

    assert "46 degrees" in admission.judge(known, rendering).reason


@pytest.mark.parametrize(("before", "after", "is_admitted"), [(22, -5, False), (22, 0, True), (18, -5, True)])
def test_a_turned_head_is_not_turned_across_the_front(
    known: KnownFace, admission: Admission, before: float, after: float, is_admitted: bool
) -> None:
    rendering = replace(render(known.source, View()), yaw=after)

    verdict = admission.judge(at_yaw(known, before), rendering)

    assert verdict.is_admitted == is_admitted
    assert is_admitted or "across the front" in verdict.reason


def test_a_face_that_is_not_found_where_it_should_be_is_refused(
    known: KnownFace, admission: Admission
) -> None:
    same = render(known.source, View())
    blank = replace(same, photo=np.full_like(same.photo, 128))
    elsewhere = replace(same, landmarks=same.landmarks + 200)

    for rendering in (blank, elsewhere):
        verdict = admission.judge(known, rendering)
        assert "does not find" in verdict.reason and not verdict.is_found
    assert not admission.judge_generated(known, blank.photo).is_found


def test_a_photo_without_a_face_is_one_sentence(admission: Admission) -> None:
    with pytest.raises(PhotoError, match="no face was found"):
        admission.known_face(np.full((200, 200, 3), 128, np.uint8))
