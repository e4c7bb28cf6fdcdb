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


def he_blend(chip: U8, share: float = 0.5) -> U8:
    """Return an `(S, S, 3)` uint8 RGB chip whose luma is blended with its equalised self.

    `share * HE(luma) + (1 - share) * luma`; colour differences stay.

    Args:
        chip: `(S, S, 3)` uint8 RGB.
        share: of the equalised luma, 0..1.

    Source: Kuo, Lai, Sarkis, "A compact deep learning model for robust facial expression recognition",
    CVPR workshops 2018: weighted histogram equalisation.
    """
    ycc = cv2.cvtColor(chip, cv2.COLOR_RGB2YCrCb)
    luma = np.ascontiguousarray(ycc[..., 0])
    ycc[..., 0] = cv2.addWeighted(cv2.equalizeHist(luma), share, luma, 1 - share, 0)
    return cv2.cvtColor(ycc, cv2.COLOR_YCrCb2RGB).astype(np.uint8)
