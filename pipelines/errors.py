"""Every error visaged raises on purpose, as one tree.

    VisagedError                 exit code 1
    ├── ConfigError              exit code 78: configuration wrong; restarting will not help
    ├── SourceError              a camera, video, photo or folder cannot be read
    ├── PhotoError               a photo cannot be used (no face, two faces, broken, too large)
    ├── ModelError               a weights file, ONNX file or archive is missing, corrupt or foreign
    ├── ReleaseError             a release is missing, damaged or cannot be served
    ├── StoreError               what is stored of people cannot be sealed, opened or used
    │   ├── GalleryError         the gallery cannot do what was asked
    │   └── SampleError          the sample store cannot do what was asked
    ├── RingError                frames in shared memory: stale, foreign
    │   └── NoRoomError          shared memory is full; there may be room later
    └── MessageError             a message from outside is malformed, oversized or of another version

Every message is one sentence for an operator at 3 a.m.: what, where, what to do.
"""

import struct
import zipfile
import zlib

import msgspec

MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are no message: broken UTF-8 and bottomless nesting pass through it."""

NO_ARCHIVE = (
    OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, EOFError,
    MemoryError, SyntaxError, NotImplementedError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What NumPy and zipfile raise while they read an `.npz` file that is damaged or none."""


class VisagedError(Exception):
    """Something visaged can explain; `str(error)` is the sentence to show."""

    exit_code = 1


class ConfigError(VisagedError):
    """The configuration is wrong; restarting will not help."""

    exit_code = 78


class SourceError(VisagedError):
    """A camera, video, photo or folder cannot be read."""


class PhotoError(VisagedError):
    """A photo cannot be used: no face, several faces, broken or too large."""


class ModelError(VisagedError):
    """A weights file, ONNX file or archive is missing, corrupt or foreign."""


class ReleaseError(VisagedError):
    """A release is missing, damaged or cannot be served."""


class StoreError(VisagedError):
    """What is stored of people cannot be sealed, opened or used."""


class GalleryError(StoreError):
    """The gallery cannot do what was asked."""


class SampleError(StoreError):
    """The sample store cannot do what was asked."""


class RingError(VisagedError):
    """Frames in shared memory: stale, foreign, or no room."""


class NoRoomError(RingError):
    """Shared memory has no room for the frames of a camera; it may have later."""


class MessageError(VisagedError):
    """A message from outside is malformed, oversized or of another version."""
