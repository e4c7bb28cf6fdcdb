"""What a plan is: a network built for one backend, one precision and one machine, named by its content."""

import hashlib
from enum import Enum

import msgspec
from msgspec import Struct

from ..errors import ModelError
from .parity import ParityReport


class Backend(Enum):
    """What runs a network."""

    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"
    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt_rtx"

    @property
    def needs_gpu(self) -> bool:
        """Whether its engines run on an NVIDIA GPU only; TensorRT-RTX builds plans without one."""
        return self in (Backend.TENSORRT, Backend.TENSORRT_RTX)


class Precision(Enum):
    """Numbers a network computes with. It is in the graph, never a flag of the builder."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


Shape = tuple[int, int, int, int]


class Profile(Struct, frozen=True, kw_only=True):
    """Shapes `(N, C, H, W)` that a plan takes: from `minimum` to `maximum`, fastest at `optimum`."""

    minimum: Shape
    optimum: Shape
    maximum: Shape

    def __post_init__(self) -> None:
        triples = zip(self.minimum, self.optimum, self.maximum, strict=True)
        if any(not 1 <= low <= best <= high for low, best, high in triples):
            raise ModelError(
                f"no such profile: {self}; every side needs 1 <= minimum <= optimum <= maximum, "
                f"as in --max-batch 16 --opt-batch 8"
            )

    def __str__(self) -> str:
        parts = (self.minimum, self.optimum, self.maximum)
        return " / ".join("x".join(map(str, shape)) for shape in parts)


class Hardware(Struct, frozen=True, kw_only=True):
    """The machine a plan is for. Empty text: it does not matter to this backend.

    `cpu` is the processor's model and vector instructions; `compute_capability` is the GPU's, or those
    that a plan built without one is for.
    """

    cpu: str = ""
    gpu: str = ""
    compute_capability: str = ""
    driver: str = ""
    cuda: str = ""


class PlanKey(Struct, frozen=True, kw_only=True):
    """Everything that a plan depends on: plans of equal keys can stand for each other."""

    network: str
    onnx_sha256: str
    backend: Backend
    backend_version: str
    precision: Precision
    profiles: tuple[Profile, ...]
    hardware: Hardware
    flags: tuple[str, ...] = ()
    ranges_sha256: str = ""

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of the key's canonical JSON."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()[:16]

    def __str__(self) -> str:
        return f"{self.network} {self.precision.value} on {self.backend.value} ({self.fingerprint})"


class PlanRecord(Struct, frozen=True, kw_only=True):
    """What is written beside a plan: where it is from and how good it is.

    `sha256` and `n_bytes` are the plan file's; `seconds` is how long the build took; `parity` compares it
    with the fp32 graph; `built_at` is seconds since 1970.
    """

    key: PlanKey
    sha256: str
    n_bytes: int
    seconds: float
    built_at: float
    parity: ParityReport
    licence: str
