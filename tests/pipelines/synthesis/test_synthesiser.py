"""Synthetic samples of chips: of the same person and label, marked, counted when refused."""

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from visaged.kernels.chips import cut_chip
from visaged.pipelines.learning.samples import Samples
from visaged.pipelines.synthesis.admission import Admission, KnownFace
from visaged.pipelines.synthesis.synthesiser import Synthesiser

U8 = npt.NDArray[np.uint8]


@pytest.fixture(params=[1, 3], ids=["grey", "colour"])
def faces(request: pytest.FixtureRequest, known: KnownFace) -> Samples:
    """The same face three times and a wall, as chips a network is trained on."""
    chip = cut_chip(known.source.photo, known.source.landmarks, 96, 0.25)
    if request.param == 1:
        chip = cv2.cvtColor(chip, cv2.COLOR_RGB2GRAY)[..., None].astype(np.uint8)
    pictures = np.stack([chip, chip, chip, np.full_like(chip, 90)])
    groups = np.array(["eileen", "eileen", "eileen", "wall"])
    return Samples(pictures, np.eye(2, dtype=np.float32)[[1, 1, 1, 0]], groups, ("sad", "glad"))


def test_children_are_marked_and_of_their_parents_and_a_wall_has_none(
    faces: Samples, admission: Admission
) -> None:
    synthesiser = Synthesiser(admission, padding=0.25)

    both = synthesiser.extend(faces, n=4, seed=3)

    made = both.take(both.is_synthetic)
    assert 1 <= len(made) <= 3
    assert set(made.groups) == {"eileen"} and set(made.labels) == {1}
    assert sum(synthesiser.refused.values()) == 4 - len(made)
    assert all(np.abs(child.astype(int) - faces.pictures[0]).mean() > 0.5 for child in made.pictures)


def test_the_same_seed_makes_the_same_children(faces: Samples, admission: Admission) -> None:
    first, second = (Synthesiser(admission, 0.25).extend(faces, 2, seed=1) for _ in range(2))

    assert np.array_equal(first.pictures, second.pictures)


def test_children_have_no_children(faces: Samples, admission: Admission) -> None:
    synthesiser = Synthesiser(admission, padding=0.25)
    both = synthesiser.extend(faces, n=2, seed=3)

    again = synthesiser.extend(both.take(both.is_synthetic), n=2)

    assert len(again) == both.is_synthetic.sum()
