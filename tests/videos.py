"""Videos for the tests, and a photo that moves in one."""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]

CODECS = {".avi": "MJPG", ".mp4": "mp4v"}


def write_video(path: Path, frames: Iterable[U8], fps: float) -> Path:
    """Write `(H, W, 3)` uint8 RGB frames of one size, as the ending of `path` says; return `path`."""
    frames = iter(frames)
    first = next(frames)
    size = first.shape[1], first.shape[0]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*CODECS[path.suffix]), fps, size)
    assert writer.isOpened()
    for frame in chain([first], frames):
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return path


def pan(photo: U8, n_frames: int, *, left: int = 40, step: int = 1, width: int = 640) -> Iterator[U8]:
    """Yield frames as high as `photo`, which moves to the right in them, `step` px a frame, from `left`."""
    for n in range(n_frames):
        frame = np.zeros((photo.shape[0], width, 3), np.uint8)
        frame[:, left + step * n : left + step * n + photo.shape[1]] = photo
        yield frame
