"""What is kept of a face: the chip, and what can be cut from it again."""

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from visaged.kernels import fusion
from visaged.kernels.alignment import template
from visaged.pipelines.assembly import StageConfigs, assemble
from visaged.pipelines.cropper import Cropper
from visaged.pipelines.loop.sighting import PADDING, SIDE_PX, cut_sample_chip

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


@given(scale=st.floats(0.3, 6.0), angle=st.floats(-3.0, 3.0), x=st.floats(-500, 500), y=st.floats(-500, 500))
def test_landmarks_go_where_the_template_wants_them(scale: float, angle: float, x: float, y: float) -> None:
    ideal = template(SIDE_PX, PADDING)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    landmarks = (ideal @ (scale * turn).T + [x, y]).astype(np.float32)

    _, inside = cut_sample_chip(np.zeros((40, 60, 3), np.uint8), landmarks)

    assert np.abs(inside - ideal).max() < 1.0  # dlib's half pixels: corners, not edges, lie on each other


def test_what_is_at_the_landmarks_of_the_frame_is_at_those_of_the_chip() -> None:
    landmarks = np.array([[300, 200], [270, 205], [180, 200], [212, 204], [240, 290]], np.float32)
    rgb = np.zeros((480, 640, 3), np.uint8)
    for x, y in landmarks.astype(int):
        cv2.circle(rgb, (int(x), int(y)), 3, (255, 255, 255), -1)

    chip, inside = cut_sample_chip(rgb, landmarks)

    assert chip.shape == (SIDE_PX, SIDE_PX, 3)
    for x, y in inside:
        assert chip[round(float(y)), round(float(x))].min() > 200
    assert chip.mean() < 10


def test_every_members_chip_can_be_cut_again(tmp_path: Path, cache: Path, astronaut: U8) -> None:
    """At three sizes of a face the networks say about the same of the kept chip as of the frame."""
    cropper = Cropper()
    with assemble(StageConfigs(), state=tmp_path, cache=cache) as stages:
        (face,) = stages.detector.detect(astronaut)
        frames = [(astronaut, face.landmarks)]
        for scale in (0.6, 1.9):
            resized = cv2.resize(astronaut, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            frames.append((np.asarray(resized, np.uint8), face.landmarks * np.float32(scale)))
        said = []
        for faces in (frames, [cut_sample_chip(rgb, marks) for rgb, marks in frames]):
            chips = cropper.crop_all([(rgb, marks[None]) for rgb, marks in faces], stages.ensemble.recipes)
            said.append(stages.ensemble.infer(chips))

    apart = np.linalg.norm(said[0].embeddings - said[1].embeddings, axis=1)
    p, again = (fusion.probabilities(s.logits, s.knows) for s in said)
    assert apart.max() < 0.08, "two looks at one person differ by 0.3"
    assert (p.argmax(axis=2) == again.argmax(axis=2)).all()
    assert np.abs(p - again).mean() < 0.05


def test_landmarks_that_are_not_finite_are_refused(astronaut: U8) -> None:
    with pytest.raises(ValueError, match="finite"):
        cut_sample_chip(astronaut, np.full((5, 2), np.nan, np.float32))
