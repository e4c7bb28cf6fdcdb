"""A camera that was mounted on its side or head down."""

from typing import Literal

import cv2
import numpy as np

from ..camera import U8, Broken, Camera

TURNS = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}


class TurnedCamera:
    """Another camera, whose frames are turned clockwise. Owns it."""

    def __init__(self, camera: Camera, degrees: Literal[90, 180, 270]) -> None:
        self._camera, self._turn = camera, TURNS[degrees]

    @property
    def fps(self) -> float:
        """Frames per second the source claims; 0 when it does not say."""
        return self._camera.fps

    def read(self) -> U8 | Broken | None:
        """Return the next frame, `(H, W, 3)` uint8 RGB as people see it, or None at the end.

        Raises:
            SourceError: the source is lost.
        """
        item = self._camera.read()
        return np.asarray(cv2.rotate(item, self._turn), np.uint8) if isinstance(item, np.ndarray) else item

    def close(self) -> None:
        """Let go of the source."""
        self._camera.close()
