"""Light normalisation of chips."""

import cv2
import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]


def clahe(chip: U8, clip: float = 2.0, tiles: int = 8) -> U8:
    """Return an `(S, S, 3)` uint8 RGB chip with its lightness equalised tile by tile.

    Only L of Lab is changed, so skin keeps its hue.

    Args:
        chip: `(S, S, 3)` uint8 RGB.
        clip: contrast limit in units of the mean histogram bin; larger is stronger.
        tiles: tiles per side.

    Source: Zuiderveld, "Contrast limited adaptive histogram equalization", Graphics Gems IV, 1994.
    """
    lab = cv2.cvtColor(chip, cv2.COLOR_RGB2LAB)
    lab[..., 0] = cv2.createCLAHE(clip, (tiles, tiles)).apply(np.ascontiguousarray(lab[..., 0]))
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB).astype(np.uint8)
