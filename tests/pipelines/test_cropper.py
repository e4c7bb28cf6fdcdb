"""From a frame to network input, by recipe."""

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from visaged.kernels.chips import cut_chip
from visaged.kernels.light import he_blend
from visaged.pipelines.cropper import Cropper
from visaged.pipelines.detector import DetectorConfig, build_detector
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.registry import NETWORKS, ChipRecipe, Colour, Light

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def landmarks(astronaut: U8, store: ModelStore) -> F32:
    return build_detector(DetectorConfig(), store).detect(astronaut)[0].landmarks[None]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_member_gets_the_input_its_recipe_promises(name: str, astronaut: U8, landmarks: F32) -> None:
    recipe = NETWORKS[name].recipe

    chips = Cropper().crop(astronaut, np.concatenate([landmarks, landmarks]), recipe)

    assert chips.shape == (2, len(recipe.mean), recipe.size, recipe.size)
    assert chips.dtype == np.float32
    pixels = chips * recipe.scale + np.array(recipe.mean, np.float32).reshape(1, -1, 1, 1)
    assert pixels.min() > -0.01
    assert pixels.max() < 255.01
    assert pixels.std() > 20  # a face, not a blank


def test_light_normalisation_changes_the_chip(astronaut: U8, landmarks: F32) -> None:
    plain = ChipRecipe(size=64, padding=0.25, colour=Colour.GREY, mean=(0.0,), scale=1.0)
    lit = ChipRecipe(size=64, padding=0.25, colour=Colour.GREY, light=Light.CLAHE, mean=(0.0,), scale=1.0)
    dark = (astronaut // 5).astype(np.uint8)

    assert Cropper().crop(dark, landmarks, lit).std() > 1.3 * Cropper().crop(dark, landmarks, plain).std()


def test_he_blend_is_half_of_each_and_comes_before_the_grey_of_a_chip(astronaut: U8, landmarks: F32) -> None:
    lit = ChipRecipe(size=64, padding=0.25, colour=Colour.GREY, light=Light.HE_BLEND, mean=(0.0,), scale=1.0)

    chip = Cropper().crop(astronaut, landmarks, lit)

    blended = he_blend(cut_chip(astronaut, landmarks[0], 64, 0.25), 0.5)
    assert np.array_equal(chip[0, 0], cv2.cvtColor(blended, cv2.COLOR_RGB2GRAY))


def test_no_faces_give_empty_batches(astronaut: U8) -> None:
    none = np.zeros((0, 5, 2), np.float32)

    assert Cropper().crop(astronaut, none, NETWORKS["face-resnet"].recipe).shape == (0, 3, 150, 150)
    assert Cropper().quality(astronaut, none).shape == (0,)


def test_a_face_in_a_good_photo_has_good_quality(astronaut: U8, landmarks: F32) -> None:
    assert Cropper().quality(astronaut, landmarks)[0] > 0.5
