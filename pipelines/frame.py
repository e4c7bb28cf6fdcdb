"""The values that pass between the stages, in the order a frame meets them.

Arrays inside these values are read-only by agreement: whoever wants to change one copies it.
Boxes are `(4,)` float32 `left, top, right, bottom` in px of the full frame, right and bottom
exclusive, so `right - left` is the width. Landmarks are `(5, 2)` float32 px in dlib's 5-point order.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Frame:
    """One camera image.

    `seq` counts the frames captured from this camera, from 1, without gaps, across restarts of the
    capture process. `captured_ns` is `time.monotonic_ns()` when the frame was complete.
    """

    camera: str
    seq: int
    captured_ns: int
    rgb: U8


@dataclass(frozen=True, slots=True)
class Detection:
    """A face in one frame, without memory. `score` is the detector's own; larger is surer."""

    box: F32
    score: float
    landmarks: F32


@dataclass(frozen=True, slots=True)
class Track:
    """The same person over the frames of one camera, as it stands in the current frame.

    `id` is never reused within a camera's life. `is_visible` is false while the track coasts on its
    motion model (occluded, or missed by the detector). `age` counts frames since the track began.
    `landmarks` belong to the last detection, moved along with the box.
    """

    id: int
    box: F32
    landmarks: F32
    score: float
    is_visible: bool
    age: int
