"""The wire format: what goes out comes back, and nothing malformed gets in."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from visaged.pipelines.errors import MessageError
from visaged.pipelines.message import (
    MAX_HEADER_BYTES,
    CameraEnded,
    Emotion,
    Face,
    FaceFrame,
    Identity,
    decode,
    encode,
    json_schema,
)


def frame_of(*faces: Face, dim: int = 4) -> FaceFrame:
    return FaceFrame(
        camera="door", run="r1", seq=7, frame_seq=9, captured_ns=1, captured_at=2.0, published_ns=3,
        width=640, height=360, release="abc", embedding_space="face-resnet", embedding_dim=dim,
        faces=list(faces),
        drops={"stale": 2}, stages_ms={"infer": 1.5},
    )  # fmt: skip


FACE = Face(
    track=3,
    box=(1.0, 2.0, 3.0, 4.0),
    identity=Identity(state="known", person="Ada", distance=0.3, margin=0.2),
    emotion=Emotion(label="happiness", probability=0.9, probabilities=[0.1, 0.9]),
    embedding_row=0,
)


def test_a_result_survives_the_wire() -> None:
    embeddings = np.arange(4, dtype=np.float32).reshape(1, 4)

    result, back = decode(encode(frame_of(FACE), embeddings))

    assert result == frame_of(FACE)
    assert np.array_equal(back, embeddings)


def test_the_topic_comes_first_and_names_the_camera() -> None:
    assert encode(frame_of())[0] == b"faces.v1.door"


def test_the_end_of_a_camera_survives_the_wire() -> None:
    ended = CameraEnded(camera="door", run="r1", seq=8)

    assert decode(encode(ended))[0] == ended


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ([b"faces.v1.door", b"x"], "has 2"),
        ([b"t", b"\xc1", b""], "malformed"),
        ([b"t", b"x" * (MAX_HEADER_BYTES + 1), b""], "over the limit"),
        ([b"t", msgspec.msgpack.encode({"type": "faces", "schema": [9, 0]}), b""], "schema 9"),
        ([*encode(frame_of(FACE))[:2], b"12345"], "do not divide"),
        ([*encode(frame_of(FACE))[:2], b""], "points past"),
    ],
)
def test_bad_messages_are_refused_in_a_sentence(parts: list[bytes], sentence: str) -> None:
    with pytest.raises(MessageError, match=sentence):
        decode(parts)


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_bytes_from_anywhere_are_refused_with_our_own_error(parts: list[bytes]) -> None:
    with pytest.raises(MessageError):
        decode(parts)


@given(st.data())
def test_a_flipped_byte_gives_a_result_or_our_own_error(data: st.DataObject) -> None:
    topic, header, buffer = encode(frame_of(FACE), np.zeros((1, 4), np.float32))
    broken = bytearray(header)
    broken[data.draw(st.integers(0, len(header) - 1))] = data.draw(st.integers(0, 255))

    try:
        decode([topic, bytes(broken), buffer])
    except MessageError as error:
        assert str(error)


def test_the_schema_describes_every_field() -> None:
    properties = json_schema()["$defs"]["FaceFrame"]["properties"]

    assert {"camera", "seq", "frame_seq", "release", "faces", "drops"} <= properties.keys()
