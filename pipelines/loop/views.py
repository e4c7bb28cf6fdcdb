"""More looks at the faces that are learned: augmented as in training, and rendered from a 3D model."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ...kernels.chips import cut_chip
from ..cropper import chips_to_input
from ..learning.augmentation import Augmenter, preset
from ..learning.samples import Samples
from ..message import EMOTIONS
from ..registry import ChipRecipe
from ..synthesis.synthesiser import Synthesiser
from .replay_memory import Remembered
from .schedule import LearningConfig
from .sealed_face import StoredFace

F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]

BATCH = 16
SEED = 0  # a round that goes on after a kill sees the same views again


def views_of(
    faces: Sequence[StoredFace],
    learned: Remembered,
    config: LearningConfig,
    recipe: ChipRecipe,
    look: Callable[[F32], F16 | F32],
    synthesiser: Synthesiser | None,
) -> Remembered:
    """Return what the trunk sees of altered copies of faces, each with its face's targets and group.

    Rendered copies that the detector or the identity network does not know again are left out and counted
    in `synthesiser.refused`.

    Args:
        faces: N of the training part; never any that choose or measure.
        learned: the same N as they are learned without alteration.
        config: how many copies, and how they are altered.
        recipe: of the trunk's chips.
        look: the trunk, chips to features.
        synthesiser: renders; None: nothing is rendered.
    """
    chips = np.stack([cut_chip(f.chip, f.landmarks, recipe.size, recipe.padding) for f in faces])
    real = Samples(chips, learned.targets, learned.groups, EMOTIONS)
    copies = []
    if synthesiser is not None:
        both = synthesiser.extend(real, len(real), SEED)
        copies.append(both.take(both.is_synthetic))
    augmenter = Augmenter(preset(config.augmentation), SEED)
    copies += [augmenter.children(real) for _ in range(config.augmented_views)]
    views = learned.none()
    for copy in copies:
        if len(copy):
            views = views.beside(Remembered(_features(copy, recipe, look), copy.targets, copy.groups))
    return views


def _features(samples: Samples, recipe: ChipRecipe, look: Callable[[F32], F16 | F32]) -> F16 | F32:
    inputs = chips_to_input(samples.pictures, recipe)
    return np.concatenate([look(inputs[at : at + BATCH]) for at in range(0, len(inputs), BATCH)])
