"""How much a chip can be trusted: sharp, well lit, frontal."""

import cv2
import numpy as np
import numpy.typing as npt

from .alignment import MEAN_FACE, similarity

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

SHARP_VARIANCE = 60.0  # variance of the Laplacian of a 64 px chip at which sharpness is one half


def quality(chip: U8, landmarks: F32) -> float:
    """Return the product of `sharpness`, `exposure` and `frontality`, in [0, 1]."""
    return sharpness(chip) * exposure(chip) * frontality(landmarks)


def sharpness(chip: U8) -> float:
    """Return in [0, 1) how much fine structure an `(S, S, 3)` uint8 chip has; a small face has little.

    Source: variance of the Laplacian, Pech-Pacheco et al., "Diatom autofocusing", ICPR 2000.
    """
    grey = cv2.cvtColor(chip, cv2.COLOR_RGB2GRAY)
    variance = float(cv2.Laplacian(grey, cv2.CV_32F).var())
    return variance / (variance + SHARP_VARIANCE)


def exposure(chip: U8) -> float:
    """Return in [0, 1] how well lit a chip is: 1 for mid tones, 0 for all black or all white."""
    grey = cv2.cvtColor(chip, cv2.COLOR_RGB2GRAY)
    clipped = float(((grey < 8) | (grey > 247)).mean())
    mean = float(grey.mean()) / 255
    return (1 - clipped) * min(1.0, 4 * mean, 4 * (1 - mean))


def frontality(landmarks: F32) -> float:
    """Return in [0, 1] how frontal `(5, 2)` landmarks are: 1 when they are the mean face's shape.

    The landmarks are laid on the mean face by the best similarity; what is left over, in units of the
    face's size, comes from turning left or right, up or down. A tilted head is as good as an upright one.
    """
    a, b = similarity(landmarks.astype(np.float64), MEAN_FACE)
    fitted = a * (landmarks.astype(np.float64) @ [1, 1j]) + b
    error = float(np.sqrt(np.mean(np.abs(fitted - MEAN_FACE @ [1, 1j]) ** 2)))
    return float(np.exp(-((error / 0.08) ** 2)))
