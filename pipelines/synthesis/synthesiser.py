"""Synthetic training samples: each made of a real one, judged, and marked.

Shape letters: N samples, M children, S side of a chip, C channels.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from ...kernels.alignment import template
from ...kernels.chips import cut_chip
from ..learning.samples import Samples
from .admission import Admission
from .ageing import aged
from .expressions import EXPRESSIONS, bend
from .renderer import Rendering, Source, View, render

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

KINDS = {"turned": 0.5, "lit": 0.2, "aged": 0.15, "bent": 0.15}
"""What is made of a face, and how often."""
YAW, PITCH = 30.0, 12.0  # degrees to either side; at 45 a third of the faces is not found again
ENLARGED_PX = 240  # side to which a chip grows before it is rendered: the detector wants faces of 80 px
BORDER_SHARE = 0.25  # of it around the chip, so that the detector sees all of the face


@dataclass(slots=True)
class Synthesiser:
    """Makes synthetic samples and counts why others were refused. Owned by one thread.

    `padding` is that of the chips, in units of the face's size. `refused` counts the reasons.
    """

    admission: Admission
    padding: float
    refused: Counter[str] = field(default_factory=Counter)

    def extend(
        self, samples: Samples, n: int, seed: int = 0, on_progress: Callable[[int], None] = lambda n: None
    ) -> Samples:
        """Return `samples` and at most `n` synthetic ones, one for a parent; the refused are not replaced.

        Args:
            samples: the training part, chips with the landmarks of dlib's template; never another part.
            n: how many are tried, at most as many as there are real samples.
            seed: of choice and change.
            on_progress: called with 1 for each that was tried.
        """
        rng = np.random.default_rng(seed)
        real = np.flatnonzero(~samples.is_synthetic)
        children: list[U8] = []
        parents: list[int] = []
        for parent in rng.permutation(real)[:n]:
            child = self.child_of(samples.pictures[parent], rng)
            if child is not None:
                children.append(child)
                parents.append(int(parent))
            on_progress(1)
        if not children:
            return samples
        return samples.with_children(np.stack(children), np.array(parents))

    def child_of(self, chip: U8, rng: np.random.Generator) -> U8 | None:
        """Return a synthetic `(S, S, C)` chip of the person in `chip`, or None if it was refused."""
        photo, landmarks = enlarged(chip, self.padding)
        known = self.admission.known_at(photo, landmarks)
        rendering = varied(known.source, rng)
        verdict = self.admission.judge(known, rendering)
        if not verdict.is_admitted:
            self.refused[verdict.kind] += 1
            return None
        child = cut_chip(rendering.photo, rendering.landmarks, chip.shape[0], self.padding)
        return (
            child
            if chip.shape[2] == 3
            else cv2.cvtColor(child, cv2.COLOR_RGB2GRAY)[..., None].astype(np.uint8)
        )


def varied(source: Source, rng: np.random.Generator) -> Rendering:
    """Return a random rendering of `source`: turned, lit, aged or with another expression."""
    kind = rng.choice(list(KINDS), p=list(KINDS.values()))
    if kind == "turned":
        return render(source, View(yaw=rng.uniform(-YAW, YAW), pitch=rng.uniform(-PITCH, PITCH)))
    if kind == "lit":
        angle, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 1.2)
        return render(source, View(light=(float(np.cos(angle)), float(np.sin(angle)), height)))
    if kind == "aged":
        return aged(source, rng.uniform(-0.8, 1.0))
    pulls = EXPRESSIONS[str(rng.choice(list(EXPRESSIONS)))]
    return render(source, View(bend=bend(pulls, rng.uniform(0.3, 1.0))))


def enlarged(chip: U8, padding: float) -> tuple[U8, F32]:
    """Return a chip as a small RGB photo and the `(5, 2)` px landmarks in it."""
    side = chip.shape[0]
    rgb = np.repeat(chip, 3, axis=2) if chip.shape[2] == 1 else chip
    grown = cv2.resize(rgb, (ENLARGED_PX, ENLARGED_PX), interpolation=cv2.INTER_CUBIC)
    border = round(BORDER_SHARE * ENLARGED_PX)
    photo = cv2.copyMakeBorder(grown, border, border, border, border, cv2.BORDER_REPLICATE).astype(np.uint8)
    scale = ENLARGED_PX / side
    landmarks = (template(side, padding) + 0.5) * scale - 0.5 + border
    return photo, landmarks.astype(np.float32)
