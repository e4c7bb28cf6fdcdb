"""The pose of five landmarks: that of a head of which it is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from visaged.pipelines.synthesis.face_mesh import LANDMARK_VERTICES, border, face_mesh, rotation
from visaged.pipelines.synthesis.pose import fit_pose


def landmarks_at(yaw: float, pitch: float, roll: float = 0.0, px_per_cm: float = 8.0) -> np.ndarray:
    turned = face_mesh().vertices[LANDMARK_VERTICES] @ rotation(yaw, pitch).T
    flat = px_per_cm * np.exp(1j * np.radians(roll)) * (turned[:, 0] + 1j * turned[:, 1]) + 100 + 120j
    return np.column_stack([flat.real, flat.imag]).astype(np.float32)


@settings(max_examples=40)
@given(st.floats(-50, 50), st.floats(-17, 17), st.floats(-40, 40), st.floats(1, 60))
def test_an_average_head_is_found_as_it_is_turned(yaw: float, pitch: float, roll: float, size: float) -> None:
    pose = fit_pose(landmarks_at(yaw, pitch, roll, size))

    assert pose.yaw == pytest.approx(yaw, abs=3)
    assert pose.pitch == pytest.approx(pitch, abs=9)  # drawn towards 0 by its prior
    assert abs(pose.scale_roll) == pytest.approx(size, rel=0.05)
    assert pose.residual < 0.15


def test_projecting_and_back_is_the_same_place() -> None:
    pose = fit_pose(landmarks_at(10, 5, 3))
    points = face_mesh().vertices[:20]

    assert pose.unproject(pose.project(points)[:, :2]) == pytest.approx(points[:, :2])


def test_a_head_turned_to_the_right_of_the_picture_has_its_nose_there() -> None:
    nose, left_eye, right_eye = (landmarks_at(30, 0)[index] for index in (4, 2, 0))

    assert nose[0] - left_eye[0] > right_eye[0] - nose[0]


def test_the_face_has_one_border_and_is_symmetrical() -> None:
    mesh = face_mesh()
    face = mesh.vertices[: mesh.n_face]

    assert len(face) == 468 and len(set(mesh.outline.tolist())) == len(mesh.outline) == 36
    assert face[:, 0].sum() == pytest.approx(0, abs=1e-3)
    assert border(np.array([[0, 1, 2], [0, 2, 3]])).tolist() == [0, 1, 2, 3]


def test_landmarks_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="coincide"):
        fit_pose(np.full((5, 2), 7, np.float32))
    with pytest.raises(ValueError, match=r"\(5, 2\)"):
        fit_pose(np.zeros((68, 2), np.float32))
