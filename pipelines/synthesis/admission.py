"""Which synthetic faces may be learned from: those that are still found and are still the same person."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...kernels.chips import cut_chip, to_input
from ..detector import Detector, build_photo_detector
from ..engines.engine import Engine
from ..engines.ort_engine import OrtEngine
from ..errors import PhotoError
from ..frame import Detection
from ..model_store import ModelStore
from ..registry import FACE_RESNET
from .renderer import Rendering, Source

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

MAX_DISTANCE = 0.45
"""Of a rendering from its source. Different people are rarely nearer than 0.5."""
MAX_DISTANCE_GENERATED = 0.5
MAX_YAW = 45.0  # degrees; beyond, half of the face is guessed
MAX_YAW_ACROSS = 20.0  # degrees; a head turned further shows too little of the other half to turn it there


@dataclass(frozen=True, slots=True)
class KnownFace:
    """A source and the embedding `(D,)` of its face."""

    source: Source
    embedding: F32


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a synthetic face may be used; `reason` says why not and is empty when it may.

    `distance` is that of the embeddings of face and source, NaN when no face was found.
    """

    reason: str
    distance: float

    @property
    def kind(self) -> str:
        """Return the reason without its numbers, to be counted by."""
        return self.reason.partition(":")[0]

    @property
    def is_admitted(self) -> bool:
        """Return whether nothing speaks against it."""
        return not self.reason

    @property
    def is_found(self) -> bool:
        """Return whether the detector found the face again."""
        return not np.isnan(self.distance)


@dataclass(frozen=True, slots=True)
class Admission:
    """Detector and identity network that judge. Owned by one thread, as its engine is."""

    detector: Detector
    engine: Engine

    def known_face(self, photo: U8) -> KnownFace:
        """Return the largest face of an `(H, W, 3)` photo.

        Raises:
            PhotoError: there is none.
        """
        faces = self.detector.detect(photo)
        if not faces:
            raise PhotoError("no face was found; take a photo that looks into the camera")
        face = max(faces, key=lambda found: float(np.prod(found.box[2:] - found.box[:2])))
        return self.known_at(photo, face.landmarks)

    def known_at(self, photo: U8, landmarks: F32) -> KnownFace:
        """Return the face of an `(H, W, 3)` photo whose `(5, 2)` landmarks are known."""
        return KnownFace(Source.of(photo, landmarks), self._embedding(photo, landmarks))

    def judge(self, known: KnownFace, rendering: Rendering) -> Verdict:
        """Return whether `rendering` may be used as another view of `known`."""
        before, after = known.source.pose.yaw, rendering.yaw
        face = self.find(rendering)
        if face is None:
            return Verdict("the detector does not find the face again", float("nan"))
        distance = self._distance(known.embedding, rendering.photo, face)
        if abs(after) > MAX_YAW:
            return Verdict(f"turned too far: to {after:.0f} degrees, more than {MAX_YAW:.0f}", distance)
        if abs(before) > MAX_YAW_ACROSS and before * after < 0:
            return Verdict(f"turned across the front: from {before:.0f} to {after:.0f} degrees", distance)
        return _judged_by_identity(distance, MAX_DISTANCE)

    def judge_generated(self, known: KnownFace, photo: U8) -> Verdict:
        """Return whether an `(H, W, 3)` picture that a generator made of `known` may be used."""
        faces = self.detector.detect(photo)
        if not faces:
            return Verdict("the detector finds no face in it", float("nan"))
        distance = self._distance(known.embedding, photo, faces[0])
        return _judged_by_identity(distance, MAX_DISTANCE_GENERATED)

    def find(self, rendering: Rendering) -> Detection | None:
        """Return the face that the detector finds where the rendering's landmarks are, or None."""
        middle = rendering.landmarks.mean(axis=0)
        for face in self.detector.detect(rendering.photo):
            reach = float((face.box[2:] - face.box[:2]).max()) / 2
            if np.linalg.norm(face.landmarks.mean(axis=0) - middle) < reach:
                return face
        return None

    def _distance(self, embedding: F32, photo: U8, face: Detection) -> float:
        return float(np.linalg.norm(self._embedding(photo, face.landmarks) - embedding))

    def _embedding(self, photo: U8, landmarks: F32) -> F32:
        recipe = FACE_RESNET.recipe
        chip = cut_chip(photo, landmarks, recipe.size, recipe.padding)
        inputs = to_input(chip[None], recipe.mean, recipe.scale, grey=False)
        embedding: F32 = self.engine.infer(inputs)["embedding"][0]
        return embedding


def _judged_by_identity(distance: float, limit: float) -> Verdict:
    if distance >= limit:
        return Verdict(f"looks like somebody else: distance {distance:.2f}, not below {limit}", distance)
    return Verdict("", distance)


def build_admission(models: ModelStore) -> Admission:
    """Return detector and identity network.

    Raises:
        ModelError: a network cannot be had.
    """
    detector = build_photo_detector(models)
    return Admission(detector, OrtEngine(models.ensure(FACE_RESNET.name), threads=2))
