import math

import numpy as np
import pytest
from visaged.pipelines.errors import ModelError
from visaged.pipelines.importers.dlib_stream import DlibStream


def stream(hex_bytes: str) -> DlibStream:
    return DlibStream(bytes.fromhex(hex_bytes), "test.dat")


@pytest.mark.parametrize(
    ("hex_bytes", "value"),
    [("01 00", 0), ("01 05", 5), ("81 05", -5), ("02 00 01", 256), ("08 ffffffffffffffff", 2**64 - 1)],
)
def test_integers_are_packed_with_sign_and_size(hex_bytes: str, value: int) -> None:
    assert stream(hex_bytes).integer() == value


@pytest.mark.parametrize(
    ("hex_bytes", "value"),
    [("01 10 81 04", 1.0), ("81 03 81 01", -1.5), ("01 01 02 007d", math.inf), ("01 00 01 00", 0.0)],
)
def test_floats_have_the_mantissa_first(hex_bytes: str, value: float) -> None:
    assert stream(hex_bytes).number() == value


@pytest.mark.parametrize("hex_bytes", ["00", "09 00", "11 00", "02 01", ""])
def test_a_bad_or_truncated_integer_is_refused(hex_bytes: str) -> None:
    with pytest.raises(ModelError, match=r"test\.dat is not the expected dlib network"):
        stream(hex_bytes).integer()


@pytest.mark.parametrize(
    ("method", "hex_bytes"),
    [
        ("boolean", "32"),
        ("string", "01 02 ff ff"),
        ("string", "02 ff ff 61"),
        ("string", "81 01 61"),
        ("number", "01 01 02 ff 7f"),
        ("tensor", "01 01 01 01 01 01 01 01 01 01"),
        ("view", "01 02"),
    ],
)
def test_what_makes_no_sense_is_refused(method: str, hex_bytes: str) -> None:
    with pytest.raises(ModelError):
        getattr(stream(hex_bytes), method)()


def test_a_tensor_is_read_as_raw_little_endian_floats() -> None:
    assert stream("01 02 01 01 01 01 01 01 01 02 0000803f 000000c0").tensor() == pytest.approx([1.0, -2.0])


def test_a_tensor_that_claims_terabytes_is_refused_before_memory_is_taken() -> None:
    with pytest.raises(ModelError):
        stream("01 02" + "04 ffffff7f" * 4).tensor()


def test_weights_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ModelError, match="not finite"):
        stream("01 02 01 01 01 01 01 01 01 01" + np.float32(np.nan).tobytes().hex()).tensor()
