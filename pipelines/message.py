"""The messages that leave and enter the daemon. Defined here and nowhere else.

A result is three ZeroMQ parts: the topic (`faces.v1.<camera>`), a MessagePack header (`FaceFrame`), and
one raw buffer with the embeddings, `(n, D)` little-endian float32, row `face.embedding_row` for a face.
Adding a field is a minor change; changing or removing one is major, and a reader refuses another major.
"""

from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

from .errors import MessageError

F32 = npt.NDArray[np.float32]

SCHEMA_MAJOR, SCHEMA_MINOR = 1, 1
TOPIC_PREFIX = f"faces.v{SCHEMA_MAJOR}."
MAX_HEADER_BYTES = 1 << 20
MAX_EMBEDDINGS_BYTES = 1 << 22

EMOTIONS = (
    "neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt",
)  # fmt: skip
"""Class order of every published probability list: that of FER+ (Barsoum et al. 2016)."""

Probability = Annotated[float, Meta(ge=0.0, le=1.0 + 1e-5)]


class Identity(Struct, frozen=True, kw_only=True):
    """Who a face is.

    `known`: `person` is an enrolled name. `unknown`: a stranger; `person` is a stable id such as
    `unknown-17`. `uncertain`: near someone, but not near enough or not clearly nearer than to the next;
    `person` is the nearest name. `pending`: not looked at yet, or switched off; `person` is empty.
    `distance` is Euclidean to the best template, `margin` how much farther the second-best person is;
    both are -1 when there is nothing to compare with.
    """

    state: Literal["known", "unknown", "uncertain", "pending"] = "pending"
    person: str = ""
    distance: float = -1.0
    margin: float = -1.0


class Emotion(Struct, frozen=True, kw_only=True):
    """What a face shows: fused probabilities in the order of `EMOTIONS`.

    `disagreement` is the Jensen-Shannon divergence between the members, in [0, 1] (base 2): 0 when
    they say the same. `label` is empty when emotion is pending or switched off.
    """

    label: str = ""
    probability: Probability = 0.0
    probabilities: list[Probability] = []
    disagreement: Probability = 0.0


class Face(Struct, frozen=True, kw_only=True):
    """One face of one frame. Lengths are px of the full frame.

    `box` is left, top, right, bottom. `is_visible` is false while the track coasts on its motion model.
    `quality` is in [0, 1] and belongs to the chip last analysed. `analysed_seq` is the frame whose chip
    gave identity, emotion and embedding (0: none yet); `embedding_row` is -1 when there is none. `release`
    is what analysed it where that is not the message's: a release that is tried, or one that served before.
    """

    track: int
    box: tuple[float, float, float, float]
    landmarks: list[tuple[float, float]] = []
    score: float = 0.0
    is_visible: bool = True
    quality: float = 0.0
    identity: Identity = Identity()
    emotion: Emotion = Emotion()
    analysed_seq: int = 0
    embedding_row: int = -1
    release: str = ""


class FaceFrame(Struct, frozen=True, kw_only=True, tag="faces", tag_field="type"):
    """Everything known about one frame of one camera.

    `seq` counts the messages of this topic from 1 without gaps: a hole means that this subscriber lost
    one. `frame_seq` counts captured frames: a hole means that the daemon dropped some, which `drops`
    explains (reason -> frames since the last message). `captured_ns` and `published_ns` are
    `time.monotonic_ns()` of the box; `captured_at` is wall-clock seconds since 1970 for humans.
    `stages_ms` says where the time went. `release` is the ensemble that made the result. `run` is drawn
    at random when the daemon's inference process starts: `seq` starts again with a new `run`.
    """

    schema: tuple[int, int] = (SCHEMA_MAJOR, SCHEMA_MINOR)
    camera: str
    run: str
    seq: int
    frame_seq: int
    captured_ns: int
    captured_at: float
    published_ns: int
    width: int
    height: int
    release: str
    embedding_space: str
    embedding_dim: int
    faces: list[Face] = []
    drops: dict[str, int] = {}
    stages_ms: dict[str, float] = {}


class CameraEnded(Struct, frozen=True, kw_only=True, tag="ended", tag_field="type"):
    """A file or folder has been read to its end; no more frames will come on this topic."""

    schema: tuple[int, int] = (SCHEMA_MAJOR, SCHEMA_MINOR)
    camera: str
    run: str
    seq: int
    reason: str = "end of file"


Result = FaceFrame | CameraEnded

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Result)
# msgspec lets broken UTF-8 in keys and bottomless nesting through as Python's own errors.
_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_schema_probe = msgspec.msgpack.Decoder(dict[str, Any])


def topic_of(camera: str) -> bytes:
    """Return the topic on which the results of `camera` are published."""
    return f"{TOPIC_PREFIX}{camera}".encode()


def encode(result: Result, embeddings: F32 | None = None) -> list[bytes]:
    """Return the ZeroMQ parts of `result`; `embeddings` is `(n, D)`, or None for none."""
    buffer = b"" if embeddings is None else np.ascontiguousarray(embeddings, dtype="<f4").tobytes()
    return [topic_of(result.camera), _encoder.encode(result), buffer]


def decode(parts: list[bytes]) -> tuple[Result, F32]:
    """Return the message and its `(n, D)` embeddings, after checking sizes and types.

    Raises:
        MessageError: wrong number of parts, oversized, malformed, or of another major version.
    """
    if len(parts) != 3:
        raise MessageError(f"a result has 3 parts, this message has {len(parts)}; is this a visaged topic?")
    _, header, buffer = parts
    if len(header) > MAX_HEADER_BYTES or len(buffer) > MAX_EMBEDDINGS_BYTES:
        raise MessageError(
            f"result of {len(header)} + {len(buffer)} bytes is over the limit of "
            f"{MAX_HEADER_BYTES} + {MAX_EMBEDDINGS_BYTES}; it was dropped"
        )
    try:
        result = _decoder.decode(header)
    except _MALFORMED as error:
        raise MessageError(_explain(header, error)) from error
    if result.schema[0] != SCHEMA_MAJOR:
        raise MessageError(_version_sentence(result.schema[0]))
    return result, _embeddings_of(result, buffer)


def _embeddings_of(result: Result, buffer: bytes) -> F32:
    dim = result.embedding_dim if isinstance(result, FaceFrame) else 0
    if dim < 0 or dim > 4096 or (dim == 0 and buffer) or (dim and len(buffer) % (4 * dim)):
        raise MessageError(f"{len(buffer)} bytes of embeddings do not divide into rows of {dim} float32")
    rows = np.frombuffer(buffer, dtype="<f4").astype(np.float32, copy=False)
    embeddings: F32 = rows.reshape(-1, dim) if dim else rows.reshape(0, 0)
    if isinstance(result, FaceFrame) and any(face.embedding_row >= len(embeddings) for face in result.faces):
        raise MessageError(f"a face points past the {len(embeddings)} embeddings of its message")
    return embeddings


def _explain(header: bytes, error: Exception) -> str:
    try:
        schema = _schema_probe.decode(header).get("schema")
    except _MALFORMED:
        schema = None
    if isinstance(schema, list) and schema and schema[0] != SCHEMA_MAJOR:
        return _version_sentence(schema[0])
    return f"malformed result header ({error}); it was dropped"


def _version_sentence(major: object) -> str:
    return f"message of schema {major}, this reader knows {SCHEMA_MAJOR}; update the older of the two"


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the result header."""
    return msgspec.json.schema(Result)
