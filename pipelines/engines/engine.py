"""What every inference backend looks like."""

from collections.abc import Mapping
from typing import Annotated, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

F32 = npt.NDArray[np.float32]


class EngineConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What runs the networks. `auto` takes the fastest that keeps the answers, see docs/engines.md."""

    backend: Literal["auto", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"] = "auto"
    """`auto`: TensorRT on an NVIDIA GPU when it is installed, else ONNX Runtime."""
    precision: Literal["auto", "fp32", "fp16", "int8"] = "auto"
    """`auto`: `fp16` on a GPU; on a CPU `int8` when it has VNNI instructions, else `fp32`."""
    device: Annotated[str, Meta(pattern=r"^(auto|cpu|cuda:[0-9]{1,2})$")] = "auto"
    """`auto`: the first NVIDIA GPU that can be used, else the CPU. `cpu`, or `cuda:0`, `cuda:1`, ..."""
    batch_wait_ms: Annotated[float, Meta(ge=0, le=100)] = 0.0
    """How long a frame waits for those of other cameras, to share one batch with them. ms."""
    threads: Annotated[int, Meta(ge=1, le=64)] = 1
    """Cores that one run of a network may use on a CPU."""


class Inputs(Protocol):
    """Network input `(N, C, H, W)` float32: an array, or `DeviceChips` that lie on a GPU."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return N, C, H, W."""

    def __len__(self) -> int:
        """Return N."""

    def __getitem__(self, rows: slice, /) -> Self:
        """Return a run of rows."""

    def __array__(self) -> F32:
        """Return it as an array on the host."""


class Engine(Protocol):
    """A plan, loaded and able to run. Owned by one thread at a time."""

    def infer(self, inputs: Inputs) -> Mapping[str, F32]:
        """Return every named output for `inputs`, the first axis being the batch."""

    def close(self) -> None:
        """Free what the engine holds; it cannot run afterwards."""
