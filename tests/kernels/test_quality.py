"""Quality falls when a face gets blurred, dark, burnt out or turned away."""

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from visaged.kernels import quality
from visaged.kernels.alignment import MEAN_FACE
from visaged.kernels.light import clahe, he_blend

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
FRONTAL = (MEAN_FACE * 100).astype(np.float32)


@pytest.fixture(scope="module")
def chip(astronaut: U8) -> U8:
    return np.ascontiguousarray(astronaut[70:170, 175:275])


def test_the_more_blur_the_less_sharp(chip: U8) -> None:
    scores = [
        quality.sharpness(chip),
        *(quality.sharpness(cv2.GaussianBlur(chip, (0, 0), s).astype(np.uint8)) for s in (1, 3)),
    ]

    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 5 * scores[2]


def test_black_and_white_chips_are_worth_nothing(chip: U8) -> None:
    assert quality.exposure(np.zeros_like(chip)) == 0
    assert quality.exposure(np.full_like(chip, 255)) == 0
    assert quality.exposure(chip) > quality.exposure((chip // 6).astype(np.uint8))


def test_a_tilted_head_is_as_frontal_as_an_upright_one() -> None:
    tilted = FRONTAL @ np.array([[0.8, 0.6], [-0.6, 0.8]], np.float32)

    assert quality.frontality(FRONTAL) == pytest.approx(1.0)
    assert quality.frontality(tilted) == pytest.approx(1.0, abs=1e-4)


def test_the_further_the_nose_wanders_the_less_frontal() -> None:
    scores = []
    for shift in (0, 10, 20, 30):
        turned = FRONTAL.copy()
        turned[4, 0] += shift
        scores.append(quality.frontality(turned))

    assert scores == sorted(scores, reverse=True)
    assert scores[-1] < 0.3


def test_quality_is_the_product_of_its_parts(chip: U8) -> None:
    expected = quality.sharpness(chip) * quality.exposure(chip) * quality.frontality(FRONTAL)

    assert quality.quality(chip, FRONTAL) == pytest.approx(expected)


def test_clahe_raises_the_contrast_of_a_flat_chip_and_keeps_grey_grey(chip: U8) -> None:
    grey = np.repeat(chip[..., :1], 3, axis=2)
    flat = (grey // 4 + 96).astype(np.uint8)

    equalised = clahe(flat)

    assert equalised.std() > 1.3 * flat.std()
    assert np.abs(equalised.astype(int) - equalised[..., :1]).max() <= 4


def test_he_blend_is_half_the_luma_and_half_its_equalised_self(chip: U8) -> None:
    grey = (100 + chip[..., :1] // 8).repeat(3, axis=2).astype(np.uint8)

    blended = he_blend(grey)

    wanted = 0.5 * cv2.equalizeHist(np.ascontiguousarray(grey[..., 0])) + 0.5 * grey[..., 0]
    assert np.abs(blended[..., 0] - wanted).max() <= 0.5
    assert (np.ptp(blended, axis=2) == 0).all()
    assert np.abs(he_blend(chip, 0.0).astype(int) - chip).max() <= 2  # through YCrCb and back
