"""Chips against dlib's own, and what a chip's geometry promises."""

import dlib
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from visaged.kernels.alignment import chip_to_frame, face_square, similarity, template
from visaged.kernels.chips import cut_chip, pyramid_levels, to_input
from visaged.pipelines.dlib_faces import HogDetector, LandmarkPredictor
from visaged.pipelines.model_store import ModelStore

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


def dlib_chip(rgb: U8, landmarks: F32, size: int, padding: float) -> U8:
    points = [dlib.point(int(x), int(y)) for x, y in landmarks]
    shape = dlib.full_object_detection(dlib.rectangle(0, 0, 10, 10), points)
    chip: U8 = dlib.get_face_chip(rgb, shape, size, padding)
    return chip


@pytest.fixture(scope="module")
def face(astronaut: U8, store: ModelStore) -> F32:
    """Landmarks."""
    boxes, _ = HogDetector().boxes(astronaut, 1.0)
    predictor = LandmarkPredictor(store.weights_file("shape_predictor_5_face_landmarks.dat"))
    landmarks: F32 = predictor.place(astronaut, boxes[:1])[0]
    return landmarks


@pytest.mark.parametrize(("size", "padding"), [(150, 0.25), (64, 0.25), (112, 0.4)])
@pytest.mark.parametrize("grow", [1, 4])  # 4: the face is far larger than the chip, so the pyramid is used
@pytest.mark.parametrize("turn", [0, 1])
def test_chips_equal_dlibs(astronaut: U8, face: F32, size: int, padding: float, grow: int, turn: int) -> None:
    rgb = np.ascontiguousarray(np.kron(astronaut, np.ones((grow, grow, 1), np.uint8)))
    landmarks = face * grow
    if turn:  # a quarter turn: the face lies on its side
        rgb = np.ascontiguousarray(rgb[::-1].transpose(1, 0, 2))
        landmarks = np.stack([rgb.shape[1] - 1 - landmarks[:, 1], landmarks[:, 0]], axis=1)

    ours, theirs = cut_chip(rgb, landmarks, size, padding), dlib_chip(rgb, landmarks, size, padding)

    difference = np.abs(ours.astype(int) - theirs)
    assert difference.mean() <= 0.02
    assert (difference == 0).mean() > 0.99


def test_large_faces_go_through_the_pyramid(face: F32) -> None:
    assert pyramid_levels(face_square(face, 150, 0.25), 150) == 0
    assert pyramid_levels(face_square(face * 4, 150, 0.25), 150) == 1


def test_a_chip_outside_of_the_frame_is_black(astronaut: U8, face: F32) -> None:
    assert cut_chip(astronaut, face + 5000, 64, 0.25).max() == 0


def test_a_frame_of_one_pixel_gives_a_chip(face: F32) -> None:
    assert cut_chip(np.full((1, 1, 3), 255, np.uint8), face, 64, 0.25).shape == (64, 64, 3)


@pytest.mark.parametrize("bad", [np.full((5, 2), np.nan), np.zeros((5, 2)), np.zeros((68, 2))])
def test_impossible_landmarks_are_refused(astronaut: U8, bad: F32) -> None:
    if bad.shape == (5, 2) and not np.isnan(bad).any():  # all in one point: nothing to align
        assert cut_chip(astronaut, bad.astype(np.float32), 64, 0.25).shape == (64, 64, 3)
        return
    with pytest.raises(ValueError, match="landmarks"):
        cut_chip(astronaut, bad.astype(np.float32), 64, 0.25)


@given(
    scale=st.floats(0.1, 10),
    angle=st.floats(-np.pi, np.pi),
    shift=st.tuples(st.floats(-500, 500), st.floats(-500, 500)),
)
def test_a_similarity_is_found_again(scale: float, angle: float, shift: tuple[float, float]) -> None:
    source = template(150, 0.25)
    moved = (source @ [1, 1j]) * scale * np.exp(1j * angle) + complex(*shift)

    a, b = similarity(source, np.stack([moved.real, moved.imag], axis=1))

    assert abs(a - scale * np.exp(1j * angle)) < 1e-6 * scale + 1e-9
    assert abs(b - complex(*shift)) < 1e-4


def test_the_corner_pixels_of_a_chip_land_on_the_corners_of_the_square(face: F32) -> None:
    square = face_square(face, 150, 0.25)

    corners = chip_to_frame(square, 150) @ np.array([[0, 149], [0, 149], [1, 1]], float)

    assert np.linalg.norm(corners[:, 1] - corners[:, 0]) == pytest.approx(np.sqrt(2) * (square.side - 1))


def test_network_input_is_pixel_minus_mean_over_scale() -> None:
    chip = np.full((1, 4, 4, 3), [10, 20, 30], np.uint8)

    planes = to_input(chip, (1.0, 2.0, 3.0), 2.0, grey=False)
    luma = to_input(chip, (0.0,), 1.0, grey=True)

    assert planes.shape == (1, 3, 4, 4)
    assert planes[0, :, 0, 0] == pytest.approx([4.5, 9.0, 13.5])
    assert luma[0, 0, 0, 0] == pytest.approx(0.299 * 10 + 0.587 * 20 + 0.114 * 30, abs=0.6)


def test_no_faces_give_an_empty_batch() -> None:
    assert to_input(np.zeros((0, 8, 8, 3), np.uint8), (0.0,), 1.0, grey=True).shape == (0, 1, 8, 8)
