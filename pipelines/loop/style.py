"""Remembered faces as they would look at the site: what a change of light or camera does to all faces alike.

A few flagged faces cannot say what every expression looks like in another light. The many that are
remembered can, once the change is made to them too.
"""

import numpy as np
import numpy.typing as npt

from .replay_memory import Remembered, weighed

F32 = npt.NDArray[np.float32]

MIN_FACES = 10  # of the site, below which their mean says more of the people than of the place
FLAT = 1e-3  # a feature that spreads less is not stretched


def in_style_of(site: Remembered, memory: Remembered) -> Remembered:
    """Return the remembered faces with each feature moved and stretched to its mean and spread at the site.

    The memory counts as if it showed the site's mix of classes, so that what distinguishes the places is
    not mistaken for what distinguishes the expressions. Faces of classes that the site has not shown are
    moved too. Nothing comes back where the site has too few faces, or none of its classes is remembered.

    Args:
        site: labelled faces of the site.
        memory: of the same trunk. Of maps, each place is a feature.

    Source: Huang and Belongie, "Arbitrary style transfer in real-time with adaptive instance
    normalization", ICCV 2017, equation 8, over faces in place of pixels.
    """
    weights = weighed(memory, np.bincount(site.labels, minlength=memory.targets.shape[1]))
    if len(site) < MIN_FACES or not weights.any():
        return memory.none()
    there, here = (faces.features.astype(np.float32) for faces in (memory, site))
    mean = np.tensordot(weights, there, 1)
    spread = np.sqrt(np.tensordot(weights, np.square(there - mean), 1)) + np.float32(FLAT)
    moved: F32 = (there - mean) / spread * here.std(axis=0) + here.mean(axis=0)
    return Remembered(moved.astype(np.float32), memory.targets, memory.groups)
