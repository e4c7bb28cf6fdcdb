"""A site for the loop bench: a video of real faces in a light that the ensemble was not made for.

The faces are those of a FER+ folder, in blue light through a fogged lens, eight at a time. Nothing of
them is kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track

from ..pipelines.detector import Detector, DetectorConfig, build_detector
from ..pipelines.errors import SourceError
from ..pipelines.learning.ferplus import Aligner, Faces, load_faces, tuning_part
from ..pipelines.model_store import PREDICTOR, ModelStore
from ..pipelines.registry import FERPLUS_CLASSES
from .demo_material import VIEW_HEIGHT, VIEW_WIDTH, open_writer

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]

FPS = 30
SHOWN, GAP = 45, 40  # frames: a face is there, then nobody until its track is lost: the next is another
ACROSS, DOWN = 4, 2
CELL_W, CELL_H = VIEW_WIDTH // ACROSS, VIEW_HEIGHT // DOWN  # px
CELLS = ACROSS * DOWN
SHAKE_PX = 2
GAINS, VEIL, BLUR_PX, NOISE = (0.20, 0.28, 0.40), (40, 55, 90), 3.0, 1.5
"""Blue light through a fogged lens: what is left of red, green and blue, the veil over it, sigma, levels."""
EXPRESSIONS = ("neutral", "happiness", "surprise", "sadness", "anger")  # FER+ has few of the others


@dataclass(frozen=True, slots=True)
class Site:
    """The video, and who is where in it: face `n` is in cell `n % 8` of slot `n // 8`.

    `truths` are the expressions by majority vote. The first `n_measured` faces are never flagged: they are
    what the loop is measured on.
    """

    video: Path
    truths: tuple[str, ...]
    n_measured: int

    @property
    def n_frames(self) -> int:
        """Frames until the video begins again."""
        return -(-len(self.truths) // CELLS) * (SHOWN + GAP)

    @property
    def seconds(self) -> float:
        """How long one showing of the video takes."""
        return self.n_frames / FPS

    def face_at(self, frame_seq: int, box: tuple[float, float, float, float]) -> tuple[int, int] | None:
        """Return which face a box of a frame shows, and since how many frames; None: nobody."""
        slot, since = divmod((frame_seq - 1) % self.n_frames, SHOWN + GAP)
        column, row = int((box[0] + box[2]) / 2) // CELL_W, int((box[1] + box[3]) / 2) // CELL_H
        face = slot * CELLS + row * ACROSS + column
        is_there = since < SHOWN and 0 <= column < ACROSS and 0 <= row < DOWN and face < len(self.truths)
        return (face, since) if is_there else None


def build_site(
    ferplus: Path, video: Path, n_each: tuple[int, int], models: ModelStore, console: Console
) -> Site:
    """Write the video of a site.

    Faces to measure are of the test part, faces to flag of the part of the training faces that was kept
    from training. Each expression is there equally often. Faces that the detector does not find in this
    light are left out: nobody can flag what is not found.

    Args:
        ferplus: folder with FER+.
        video: where to write it.
        n_each: faces of each expression to measure, and to flag.
        models: where dlib's predictor is.
        console: shows the progress.

    Raises:
        SourceError: no FER+ there, too few faces, or the video cannot be written.
    """
    training, test = load_faces(ferplus)
    detector, aligner = build_detector(DetectorConfig(), models), Aligner(models.weights_file(PREDICTOR))
    views: list[U8] = []
    truths: list[str] = []
    for faces, n in zip((test, training.take(tuning_part(training))), n_each, strict=True):
        for view, truth in _chosen(faces, n, aligner, detector, console):
            views.append(view)
            truths.append(truth)
    site = Site(video, tuple(truths), n_each[0] * len(EXPRESSIONS))
    _write(site, views)
    return site


def in_blue_fog(rgb: U8, random: np.random.Generator) -> U8:
    """Return an `(H, W, 3)` picture as a camera with a fogged lens sees it in blue light."""
    soft = cv2.GaussianBlur(rgb * np.array(GAINS) + np.array(VEIL), (0, 0), BLUR_PX)
    values = soft + random.normal(0, NOISE, rgb.shape)
    lit: U8 = np.clip(values, 0, 255).astype(np.uint8)
    return lit


def _chosen(
    faces: Faces, n_each: int, aligner: Aligner, detector: Detector, console: Console
) -> list[tuple[U8, str]]:
    """Return cells with faces that can be found, and their expressions, in mixed order."""
    agreed = faces.take(faces.has_majority())
    labels = agreed.targets().argmax(axis=1)
    random = np.random.default_rng(0)
    chosen: list[tuple[U8, str]] = []
    for name in track(EXPRESSIONS, description="faces in blue fog", console=console, transient=True):
        found = 0
        for index in random.permutation(np.flatnonzero(labels == FERPLUS_CLASSES.index(name))):
            if found == n_each:
                break
            cell = _cell(aligner.enlarged(agreed.pictures[index])[0], random)
            if len(detector.detect(cell)) == 1:
                chosen.append((cell, name))
                found += 1
        if found < n_each:
            raise SourceError(f"FER+ has only {found} faces of {name} that are found in this light")
    return [chosen[index] for index in random.permutation(len(chosen))]


def _cell(face: U8, random: np.random.Generator) -> U8:
    """Return a face in blue fog in the middle of a cell of the frame."""
    cell = np.full((CELL_H, CELL_W, 3), 90, np.uint8)
    top, left = (CELL_H - face.shape[0]) // 2, (CELL_W - face.shape[1]) // 2
    cell[top : top + face.shape[0], left : left + face.shape[1]] = face
    return in_blue_fog(cell, random)


def _write(site: Site, views: list[U8]) -> None:
    writer = open_writer(site.video, FPS)
    for frame in _frames(views):
        writer.write(frame[..., ::-1])
    writer.release()


def _frames(views: list[U8]) -> Iterator[U8]:
    empty = in_blue_fog(np.full((CELL_H, CELL_W, 3), 90, np.uint8), np.random.default_rng(1))
    for at in range(0, len(views), CELLS):
        cells = [*views[at : at + CELLS], *[empty] * CELLS][:CELLS]
        whole = _joined(cells)
        for index in range(SHOWN):
            shake = round(SHAKE_PX * np.sin(index / 3)), round(SHAKE_PX * np.cos(index / 4))
            yield np.roll(whole, shake, axis=(0, 1))
        for _ in range(GAP):
            yield _joined([empty] * CELLS)


def _joined(cells: list[U8]) -> U8:
    rows = [np.concatenate(cells[row * ACROSS : (row + 1) * ACROSS], axis=1) for row in range(DOWN)]
    return np.concatenate(rows, axis=0)
