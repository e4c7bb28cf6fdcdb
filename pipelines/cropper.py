"""From faces in a frame to the input of each member."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..kernels.chips import cut_chip, to_input
from ..kernels.light import clahe, he_blend
from ..kernels.quality import quality
from .engines.engine import Inputs
from .registry import ChipRecipe, Colour, Light

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

QUALITY_SIZE, QUALITY_PADDING = 64, 0.1


def relight(chip: U8, light: Light) -> U8:
    """Return an `(S, S, 3)` uint8 RGB chip in the light that a recipe asks for."""
    if light is Light.NONE:
        return chip
    return clahe(chip) if light is Light.CLAHE else he_blend(chip)


def chips_to_input(chips: U8, recipe: ChipRecipe) -> F32:
    """Return `(N, C, S, S)` float32 network input of `(N, S, S, 3)` uint8 RGB chips: lit, and normalised."""
    if recipe.light is not Light.NONE:
        chips = np.array([relight(chip, recipe.light) for chip in chips], np.uint8).reshape(chips.shape)
    return to_input(chips, recipe.mean, recipe.scale, grey=recipe.colour is Colour.GREY)


class AnyCropper(Protocol):
    """What the pipeline needs of a cropper: `Cropper`, or `CudaCropper` beside engines on a GPU."""

    def crop_all(
        self, faces: Sequence[tuple[U8, F32]], recipes: Sequence[ChipRecipe]
    ) -> Mapping[ChipRecipe, Inputs]:
        """Return the chips of all faces of all frames under every recipe."""

    def quality(self, rgb: U8, landmarks: F32) -> F32:
        """Return `(N,)` in [0, 1]: how sharp, well lit and frontal each face is."""


@dataclass(frozen=True, slots=True)
class Cropper:
    """Cuts aligned chips by recipe. Holds nothing; any thread may use it."""

    def crop(self, rgb: U8, landmarks: F32, recipe: ChipRecipe) -> F32:
        """Return `(N, C, S, S)` float32 network input for the faces with `(N, 5, 2)` px landmarks.

        Raises:
            ValueError: wrong shapes, or landmarks that are not finite or all coincide.
        """
        chips = np.zeros((len(landmarks), recipe.size, recipe.size, 3), np.uint8)
        for chip, marks in zip(chips, landmarks, strict=True):
            chip[:] = cut_chip(rgb, marks, recipe.size, recipe.padding)
        return chips_to_input(chips, recipe)

    def crop_all(
        self, faces: Sequence[tuple[U8, F32]], recipes: Sequence[ChipRecipe]
    ) -> dict[ChipRecipe, F32]:
        """Return the chips of all faces of all frames under every recipe, one behind the other.

        `faces` are frames `(H, W, 3)` uint8 with the `(N, 5, 2)` landmarks in each.
        """
        return {
            recipe: np.concatenate([self.crop(rgb, landmarks, recipe) for rgb, landmarks in faces])
            for recipe in recipes
        }

    def quality(self, rgb: U8, landmarks: F32) -> F32:
        """Return `(N,)` in [0, 1]: how sharp, well lit and frontal each face is."""
        scores = [quality(cut_chip(rgb, marks, QUALITY_SIZE, QUALITY_PADDING), marks) for marks in landmarks]
        return np.array(scores, np.float32)
