"""What a sample keeps of a face, sealed: nothing that shows or describes it is on disk in clear.

The embedding is sealed apart, so that many are read quickly. Each is bound to its sample: moved to another
row it does not open.
"""

from dataclasses import dataclass

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from ..privacy.seal import Sealer
from .sighting import Sighting

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


class _Face(Struct, frozen=True):
    """What `sealed_face` holds, as MessagePack; arrays are little-endian float32."""

    png: bytes
    landmarks: bytes
    probabilities: bytes
    members: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class StoredFace:
    """The opened contents of a sample: see `Sighting`. `embedding` and `probabilities` may be missing."""

    chip: U8
    landmarks: F32
    embedding: F32 | None
    probabilities: F32 | None
    members: dict[str, F32]


def seal_face(sealer: Sealer, sighting: Sighting) -> tuple[bytes, bytes | None]:
    """Return the sealed face of a sighting and its sealed embedding, None where it has none."""
    face = _Face(
        png=cv2.imencode(".png", np.ascontiguousarray(sighting.chip[..., ::-1]))[1].tobytes(),
        landmarks=_bytes(sighting.landmarks),
        probabilities=b"" if sighting.probabilities is None else _bytes(sighting.probabilities),
        members={name: _bytes(values) for name, values in sighting.members.items()},
    )
    id, embedding = sighting.id, sighting.embedding
    sealed = sealer.seal(msgspec.msgpack.encode(face), face_context(id))
    return sealed, None if embedding is None else sealer.seal(_bytes(embedding), embedding_context(id))


def open_face(sealer: Sealer, id: str, sealed: bytes, sealed_embedding: bytes | None) -> StoredFace:
    """Return the contents of the sample `id`.

    Raises:
        StoreError: they do not open: altered, moved or sealed with another key.
    """
    face = msgspec.msgpack.decode(sealer.open(sealed, face_context(id)), type=_Face)
    bgr = np.asarray(cv2.imdecode(np.frombuffer(face.png, np.uint8), cv2.IMREAD_COLOR), np.uint8)
    return StoredFace(
        chip=np.ascontiguousarray(bgr[..., ::-1]),
        landmarks=_floats(face.landmarks).reshape(5, 2),
        embedding=None if sealed_embedding is None else open_embedding(sealer, id, sealed_embedding),
        probabilities=_floats(face.probabilities) if face.probabilities else None,
        members={name: _floats(values) for name, values in face.members.items()},
    )


def open_embedding(sealer: Sealer, id: str, sealed: bytes) -> F32:
    """Return the embedding `(D,)` of the sample `id`.

    Raises:
        StoreError: as `open_face`.
    """
    return _floats(sealer.open(sealed, embedding_context(id)))


def face_context(id: str) -> str:
    """Return what the sealed face of a sample is bound to."""
    return f"face of sample {id}"


def embedding_context(id: str) -> str:
    """Return what the sealed embedding of a sample is bound to."""
    return f"embedding of sample {id}"


def _bytes(values: F32) -> bytes:
    return values.astype("<f4").tobytes()


def _floats(raw: bytes) -> F32:
    return np.frombuffer(raw, "<f4").astype(np.float32)
