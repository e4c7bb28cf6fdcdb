"""What this machine is, as far as plans depend on it, and how much memory is free."""

import importlib.metadata
import platform
from functools import cache
from pathlib import Path

from ..errors import ModelError
from .plan import Backend, Hardware

CPUINFO, MEMINFO = Path("/proc/cpuinfo"), Path("/proc/meminfo")
VECTOR_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp")
PACKAGES = {
    Backend.ONNXRUNTIME: ("onnxruntime",),
    Backend.OPENVINO: ("openvino",),
    Backend.TENSORRT: ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    Backend.TENSORRT_RTX: ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
}
"""Distributions that bring a backend, the first that is installed counts."""
EXTRAS = {Backend.OPENVINO: "openvino", Backend.TENSORRT: "tensorrt", Backend.TENSORRT_RTX: "tensorrt-rtx"}
"""Extras of visaged that install a backend; ONNX Runtime comes with it."""
RESERVE_BYTES = 64 << 20  # left free beside what an engine takes


@cache
def cpu_hardware() -> Hardware:
    """Return what plans for this machine's processor depend on."""
    fields = _cpu_fields()
    model = fields.get("model name") or platform.processor() or platform.machine()
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return Hardware(cpu=" ".join([model, *(flag for flag in VECTOR_FLAGS if flag in flags)]))


def has_int8_instructions() -> bool:
    """Whether the processor multiplies uint8 by int8 without overflow (VNNI).

    Without, ONNX Runtime's int8 kernels saturate in 16 bits, which costs accuracy, and are hardly faster.
    """
    return any(flag in cpu_hardware().cpu.split() for flag in ("avx512_vnni", "avx_vnni"))


def version_of(backend: Backend) -> str:
    """Return the installed version of the library behind `backend`, or "" when there is none."""
    for name in PACKAGES[backend]:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def free_memory_bytes() -> int:
    """Return how much memory the kernel would give without swapping; 0 when it does not say."""
    for line in _lines(MEMINFO):
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) << 10
    return 0


def check_head_room(need_bytes: int, free_bytes: int, what: str, where: str) -> None:
    """Refuse to load what would not fit beside what already runs.

    Args:
        need_bytes: what loading takes, at its highest.
        free_bytes: what is free; 0: not known, and nothing is refused.
        what: named in the sentence.
        where: "memory", or a GPU's name.

    Raises:
        ModelError: it does not fit.
    """
    if free_bytes and need_bytes + RESERVE_BYTES > free_bytes:
        raise ModelError(
            f"{what} needs {need_bytes / 1e6:.0f} MB of {where} and {free_bytes / 1e6:.0f} MB are free; "
            f"stop other programs, or choose fewer [ensemble] members or a smaller max_batch"
        )


def _cpu_fields() -> dict[str, str]:
    """Return the fields of the first processor in /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in _lines(CPUINFO):
        if not line.strip():
            break
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    return fields


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
