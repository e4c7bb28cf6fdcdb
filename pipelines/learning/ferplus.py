"""FER+ as the emotion head learns from it: de-duplicated, aligned like live chips, seen by the trunk.

Shape letters: N faces, V views, F features, K classes.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from ...kernels.chips import cut_chip
from ..cropper import chips_to_input
from ..dlib_faces import HogDetector, LandmarkPredictor
from ..engines.ort_engine import OrtEngine
from ..errors import SourceError
from ..registry import FACE_RESNET, FERPLUS_CLASSES, ChipRecipe
from .samples import Samples, picture_digests

F32 = npt.NDArray[np.float32]
F16 = npt.NDArray[np.float16]
U8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]

N_CLASSES = 8  # the votes for unknown and "no face" follow
FACE_PX, BORDER_PX = 128, 64  # a face of 48 px enlarged, and room around it for the chip
# Where HOG finds the face, and dlib the landmarks, in most of 400 faces: fractions of the picture.
USUAL_BOX = np.array([0.083, 0.167, 0.922, 0.948], np.float32)
USUAL_LANDMARKS = np.array(
    [[0.755, 0.391], [0.609, 0.401], [0.240, 0.391], [0.385, 0.401], [0.500, 0.667]], np.float32
)
FAR = 0.2  # mean distance from the usual landmarks beyond which a guess without detection is not believed
SKIN = np.array([1.12, 1.0, 0.86], np.float32)  # a grey face times this looks like most skin does
JITTER_VERSION = 1  # raised with every change to how chips are made, so that kept features are not taken
CHUNK = 256  # faces in one file of cached features


@dataclass(frozen=True, slots=True)
class Faces:
    """Pictures `(N, 48, 48)` uint8 grey and the votes `(N, 10)` of ten people for each."""

    pictures: U8
    votes: U8

    def __len__(self) -> int:
        return len(self.pictures)

    def take(self, keep: npt.NDArray[np.generic]) -> "Faces":
        """Return the faces where `keep` `(N,)` is true, or those at its indices."""
        return Faces(self.pictures[keep], self.votes[keep])

    def targets(self) -> F32:
        """Return `(N, 8)` shares of the votes; a lone vote against several others does not count."""
        votes = self.votes[:, :N_CLASSES].astype(np.float32)
        votes[(votes <= 1) & (votes.max(axis=1, keepdims=True) >= 4)] = 0
        shares: F32 = votes / votes.sum(axis=1, keepdims=True)
        return shares

    def has_majority(self) -> Bool:
        """Return `(N,)`: more than half of all ten votes are for one expression."""
        best = self.votes[:, :N_CLASSES].max(axis=1).astype(int)
        majority: Bool = 2 * best > self.votes.sum(axis=1)
        return majority


def load_faces(folder: Path) -> tuple[Faces, Faces]:
    """Return training and test faces: no picture twice, none whose votes say unknown or no face.

    Raises:
        SourceError: a file is missing or not what it should be.
    """
    parts = [_load(folder / name) for name in ("PublicTest.npz", "Training.npz")]
    seen: set[bytes] = set()
    unique: list[Faces] = []
    for faces in parts:  # the test part first: what it holds may not be trained on
        keep = np.zeros(len(faces), bool)
        for index, picture in enumerate(faces.pictures):
            digest = hashlib.sha256(picture.tobytes()).digest()
            keep[index] = digest not in seen
            seen.add(digest)
        usable = faces.votes.argmax(axis=1) < N_CLASSES
        unique.append(faces.take(keep & usable))
    test, training = unique
    return training, test


def _load(path: Path) -> Faces:
    try:
        with np.load(path, allow_pickle=False) as file:
            faces = Faces(file["x"], file["votes"])
    except (OSError, KeyError, ValueError) as error:
        raise SourceError(
            f"{path} cannot be read as FER+ ({error}); name the folder that holds it"
        ) from error
    if faces.pictures.shape[1:] != (48, 48) or faces.votes.shape != (len(faces), 10):
        raise SourceError(f"{path} does not hold (N, 48, 48) pictures and (N, 10) votes; is it FER+?")
    return faces


def tuning_part(faces: Faces, share: float = 0.1) -> Bool:
    """Return `(N,)`: the faces kept from training to choose by; decided by the picture, not by its place."""
    buckets = [hashlib.sha256(picture.tobytes()).digest()[0] for picture in faces.pictures]
    chosen: Bool = np.array(buckets) < share * 256
    return chosen


class Aligner:
    """Finds the landmarks of enlarged FER faces and cuts chips as they are cut live. One per process."""

    def __init__(self, predictor: Path) -> None:
        """Load dlib's 5-point predictor."""
        self._hog = HogDetector()
        self._predictor = LandmarkPredictor(predictor)

    def landmarks(self, picture: U8) -> F32:
        """Return `(5, 2)` as fractions of the picture: detected, or guessed, or the usual ones."""
        rgb = _enlarge(picture, cv2.BORDER_REPLICATE)
        boxes, _ = self._hog.boxes(rgb, 1.0, -0.2)
        is_found = len(boxes) > 0
        box = boxes[:1] if is_found else USUAL_BOX[None] * FACE_PX + BORDER_PX
        marks: F32 = (self._predictor.place(rgb, box)[0] - BORDER_PX) / FACE_PX
        distance = float(np.linalg.norm(marks - USUAL_LANDMARKS, axis=1).mean())
        return marks if is_found or distance < FAR else USUAL_LANDMARKS

    def enlarged(self, picture: U8) -> tuple[U8, F32]:
        """Return the face as a small frame, `(256, 256, 3)`, and its `(5, 2)` px landmarks there."""
        marks = self.landmarks(picture)
        return _enlarge(picture, cv2.BORDER_REPLICATE), (marks * FACE_PX + BORDER_PX).astype(np.float32)

    def chips(
        self, picture: U8, marks: F32, n_views: int, random: np.random.Generator, recipe: ChipRecipe
    ) -> list[U8]:
        """Return the plain chip `(S, S, 3)` of a picture with `marks`, and `n_views - 1` jittered ones."""
        size, padding = recipe.size, recipe.padding
        rgb = _enlarge(picture, cv2.BORDER_REPLICATE)
        chips = [cut_chip(rgb, marks * FACE_PX + BORDER_PX, size, padding)]
        for _ in range(n_views - 1):
            border = int(random.choice([cv2.BORDER_REPLICATE, cv2.BORDER_REFLECT_101, cv2.BORDER_CONSTANT]))
            rgb = _enlarge(_coarsen(picture, random), border)
            shaken = marks + random.normal(0, 0.012, (5, 2)) + random.normal(0, 0.015, (1, 2))
            chip = cut_chip(rgb, (shaken * FACE_PX + BORDER_PX).astype(np.float32), size, padding)
            chips.append(_jitter(chip, random))
        return chips


def as_samples(faces: Faces, pictures: U8) -> Samples:
    """Return `faces` as samples with `pictures` `(N, S, S, C)` of them; FER+ says of nobody who it is.

    So each picture is a group of its own.
    """
    groups = np.array(picture_digests(faces.pictures))
    return Samples(pictures, faces.targets(), groups, FERPLUS_CLASSES)


def align_all(
    faces: Faces, predictor: Path, size: int, padding: float, on_progress: Callable[[int], None]
) -> U8:
    """Return `(N, S, S, 1)` uint8 grey chips of all faces, cut as live faces are cut.

    Args:
        faces: N of them.
        predictor: dlib's 5-point predictor.
        size: S in px.
        padding: around the face in units of its size.
        on_progress: called with the number of faces that were just done.
    """
    aligner = Aligner(predictor)
    chips = np.zeros((len(faces), size, size, 1), np.uint8)
    for index, picture in enumerate(faces.pictures):
        frame, marks = aligner.enlarged(picture)
        chips[index, :, :, 0] = cut_chip(frame, marks, size, padding)[:, :, 0]
        on_progress(1)
    return chips


def _enlarge(picture: U8, border: int) -> U8:
    grey = cv2.resize(picture, (FACE_PX, FACE_PX), interpolation=cv2.INTER_CUBIC)
    grey = cv2.copyMakeBorder(grey, BORDER_PX, BORDER_PX, BORDER_PX, BORDER_PX, border)
    return np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)


def _coarsen(picture: U8, random: np.random.Generator) -> U8:
    """Sometimes throw resolution away, as a face far from the camera has lost it."""
    if random.random() > 0.3:
        return picture
    side = int(random.integers(26, 44))
    return np.asarray(cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def _jitter(chip: U8, random: np.random.Generator) -> U8:
    """Mirror, sharpen or blur, re-light and tint a chip at random."""
    if random.random() < 0.5:
        chip = chip[:, ::-1]
    values: npt.NDArray[np.float64] = chip.astype(np.float64)
    blurred = cv2.GaussianBlur(values, (0, 0), float(random.uniform(1.0, 2.5)))
    values = blurred + (values - blurred) * float(random.uniform(0.3, 2.6))  # below 1 softer, above sharper
    values = 255 * (np.clip(values, 0, 255) / 255) ** float(np.exp(random.normal(0, 0.2)))
    values = (values - 128) * float(random.uniform(0.7, 1.25)) + 128 + float(random.normal(0, 14))
    tint = SKIN ** float(random.uniform(-0.3, 2.0)) * np.exp(random.normal(0, 0.03, 3))
    values = values * tint + random.normal(0, random.uniform(0, 5), values.shape)
    return np.clip(values, 0, 255).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class Trunk:
    """What looks at faces: an ONNX file, which of its outputs is wanted, and the recipe of its chips."""

    onnx: Path
    output: str = "features"
    recipe: ChipRecipe = FACE_RESNET.recipe


_aligner: Aligner
_engines: list[OrtEngine]


def _start_worker(predictor: Path, trunks: Sequence[Trunk]) -> None:
    """Load what a worker process needs, once."""
    global _aligner, _engines
    cv2.setNumThreads(1)
    _aligner, _engines = Aligner(predictor), [OrtEngine(trunk.onnx) for trunk in trunks]


def _see(job: tuple[int, U8], n_views: int, trunks: Sequence[Trunk], folders: Sequence[Path]) -> list[Path]:
    """Return each trunk's file with the `(n, V, ...)` outputs for one chunk of pictures, made if missing."""
    start, pictures = job
    name = f"{start:06d}-{hashlib.sha256(pictures.tobytes()).hexdigest()[:12]}.npy"
    paths = [folder / name for folder in folders]
    if all(path.exists() for path in paths):
        return paths
    marks = [_aligner.landmarks(picture) for picture in pictures]
    for trunk, engine, path in zip(trunks, _engines, paths, strict=True):
        random = np.random.default_rng(start)
        both = zip(pictures, marks, strict=True)
        chips = np.stack([c for p, m in both for c in _aligner.chips(p, m, n_views, random, trunk.recipe)])
        inputs = chips_to_input(chips, trunk.recipe)
        batches = [engine.infer(inputs[at : at + 16])[trunk.output] for at in range(0, len(inputs), 16)]
        features = np.concatenate(batches).astype(np.float16)
        unfinished = path.with_suffix(".unfinished.npy")
        np.save(unfinished, features.reshape(len(pictures), n_views, *features.shape[1:]))
        unfinished.replace(path)
    return paths


def see(
    pictures: U8,
    n_views: int,
    predictor: Path,
    trunks: Sequence[Trunk],
    folder: Path,
    *,
    jobs: int = 1,
    on_progress: Callable[[int], None] = lambda n: None,
) -> list[F16]:
    """Return `(N, V, ...)` of every trunk and picture; view 0 is plain, the others are jittered.

    Args:
        pictures: `(N, 48, 48)` uint8.
        n_views: V.
        predictor: dlib's 5-point predictor.
        trunks: what looks at them.
        folder: where features are kept, so that a second run, or one after an interruption, is quick.
        jobs: processes.
        on_progress: called with the number of pictures that were just done.
    """
    kept = []
    for trunk in trunks:
        what = f"jitter {JITTER_VERSION}, {n_views} views, {trunk.output}, {trunk.recipe}"
        digest = hashlib.sha256(what.encode())
        digest.update(predictor.read_bytes() + trunk.onnx.read_bytes())
        kept.append(folder / digest.hexdigest()[:12])
        kept[-1].mkdir(parents=True, exist_ok=True)
    chunks = [(start, pictures[start : start + CHUNK]) for start in range(0, len(pictures), CHUNK)]
    done: list[list[F16]] = [[] for _ in trunks]
    with ProcessPoolExecutor(jobs, get_context("spawn"), _start_worker, (predictor, trunks)) as pool:
        for paths in pool.map(partial(_see, n_views=n_views, trunks=trunks, folders=kept), chunks):
            for parts, path in zip(done, paths, strict=True):
                parts.append(np.load(path))
            on_progress(len(done[0][-1]))
    return [np.concatenate(parts) for parts in done]
