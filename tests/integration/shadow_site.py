"""A site made of one public photo: a face in ever other shadows and two lights, and a data set of it in grey.

In blue light people call it angry, whatever the daemon thinks: that is what can be learned here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from visaged.pipelines.registry import FERPLUS_CLASSES

from tests.videos import write_video

U8 = npt.NDArray[np.uint8]

FPS, SHOWN, GAP = 20, 12, 8  # frames: a face is there, then nobody until its track is lost
TRACKER: dict[str, object] = {
    "return_within_s": 0,
    "occlusion_s": 0.2,
}  # so that the gap is long enough, and nobody comes back
CELL = 330  # px, side of what one face has for itself
LIGHTS = ("blue", "amber", "blue")
GAINS = {"blue": (0.25, 0.5, 1.0), "amber": (1.0, 0.6, 0.3)}


@dataclass(frozen=True)
class ShadowSite:
    """The video; look `n` is in cell `n % 3` of slot `n // 3`, in the light of its cell."""

    video: Path
    n_slots: int

    def look_at(self, seq: int, box: tuple[float, float, float, float]) -> int:
        """Return which look a box of frame `seq` shows."""
        slot = (seq - 1) % (self.n_slots * (SHOWN + GAP)) // (SHOWN + GAP)
        return slot * len(LIGHTS) + int((box[0] + box[2]) / 2) // CELL


def in_shadows(rgb: U8, random: np.random.Generator, depth: float = 0.45) -> U8:
    """Return `(H, W, 3)` with soft shadows of its own: another picture, the same face."""
    height, width = rgb.shape[:2]
    coarse = random.uniform(1 - depth, 1 + depth, (6, 6)).astype(np.float32)
    shade = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)[..., None]
    shadowed: U8 = np.clip(rgb * shade, 0, 255).astype(np.uint8)
    return shadowed


def build_site(astronaut: U8, video: Path, n_slots: int) -> ShadowSite:
    """Write the video of the site."""
    return ShadowSite(write_video(video, _frames(astronaut, n_slots), FPS), n_slots)


def _frames(astronaut: U8, n_slots: int) -> Iterator[U8]:
    random = np.random.default_rng(0)
    face = np.asarray(cv2.resize(astronaut[20:240, 110:330], (CELL, CELL)), np.uint8)
    nobody = np.full((CELL, CELL * len(LIGHTS), 3), 90, np.uint8)
    for _ in range(n_slots):
        cells = [in_shadows(face, random) * np.array(GAINS[light]) for light in LIGHTS]
        yield from [np.clip(np.concatenate(cells, axis=1), 0, 255).astype(np.uint8)] * SHOWN
        yield from [nobody] * GAP


def build_ferplus(astronaut: U8, folder: Path, counts: dict[str, int], seed: int) -> Path:
    """Write a data set like FER+ of so many faces a file; ten people see the smile in each."""
    random = np.random.default_rng(seed)
    folder.mkdir()
    for name, n in counts.items():
        votes = np.zeros((n, 10), np.uint8)
        votes[:, FERPLUS_CLASSES.index("happiness")] = 10
        np.savez(
            folder / f"{name}.npz", x=np.stack([_small(astronaut, random) for _ in range(n)]), votes=votes
        )
    return folder


def _small(astronaut: U8, random: np.random.Generator) -> U8:
    """Return `(48, 48)` grey: the face as FER+ has faces, never twice alike."""
    top, left = 70 + random.integers(-6, 7), 150 + random.integers(-6, 7)
    face = in_shadows(astronaut[top : top + 140, left : left + 140], random, depth=0.3)
    grey = cv2.resize(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY), (48, 48), interpolation=cv2.INTER_AREA)
    noisy: U8 = np.clip(grey + random.normal(0, 4, grey.shape), 0, 255).astype(np.uint8)
    return noisy
