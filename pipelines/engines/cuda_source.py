"""Compile the `.cu` files of `kernels/`: for a GPU with nvcc, or for this processor with g++.

What was compiled is kept in a folder, named by the digest of everything that decides it, so that one
machine compiles a file once, and a machine without a compiler can be given the folder of one that has it.
Loading and launching is the business of the GPU runtime.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from ..cache_files import locked, unwritable, write_atomically
from ..errors import ModelError

SOURCES = ("chips", "pyramid")
"""The files there are, without `.cu`."""

FOLDER = Path(__file__).resolve().parents[2] / "kernels"
TIMEOUT_S = 300  # a file takes a second; a machine that swaps, minutes

# The sources say where they fuse (fmaf); fused elsewhere, a GPU's last bits would not be a CPU's.
NVCC_FLAGS = ("-std=c++17", "-O3", "-fmad=false")
HOST_FLAGS = ("-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")


def compile_cubin(name: str, arch: str, folder: Path) -> Path:
    """Return the machine code of a source for GPUs of one architecture, compiled unless `folder` has it.

    Args:
        name: one of `SOURCES`.
        arch: compute capability, as "sm_86"; the code runs on it and on later minor versions.
        folder: is made when it is missing.

    Raises:
        ModelError: no nvcc, one that does not know `arch`, or a folder that cannot be written.
    """
    return _compiled(name, "cubin", _checked(arch), ("-cubin", f"-arch={arch}"), folder)


def compile_ptx(name: str, arch: str, folder: Path) -> Path:
    """Return the PTX of a source, which the driver compiles for `arch` and any later GPU.

    Arguments and errors are those of `compile_cubin`.
    """
    compute = f"-arch={_checked(arch).replace('sm', 'compute')}"
    return _compiled(name, "ptx", arch, ("-ptx", compute), folder)


def compile_host(name: str, folder: Path) -> Path:
    """Return a source as a shared library for this processor, to check its arithmetic without a GPU.

    Raises:
        ModelError: no g++, a source it cannot compile, or a folder that cannot be written.
    """
    return _compiled(name, "so", os.uname().machine, ("-x", "c++"), folder)


def find_nvcc() -> Path:
    """Return nvcc of `CUDA_HOME`, else of `PATH`.

    Raises:
        ModelError: there is none.
    """
    home = os.environ.get("CUDA_HOME")  # where the CUDA toolkit is, by its own convention
    places = [str(Path(home) / "bin")] if home else []
    return _find("nvcc", places, "install the CUDA toolkit, or set CUDA_HOME to where it is")


def _find(program: str, places: list[str], advice: str) -> Path:
    for place in [*places, None]:
        found = shutil.which(program, path=place)
        if found is not None:
            return Path(found)
    raise ModelError(f"cannot compile CUDA sources: {program} is not on PATH; {advice}")


def _checked(arch: str) -> str:
    """Return `arch`, which becomes part of a file's name."""
    if not re.fullmatch(r"sm_[0-9]{2,3}[af]?", arch):
        raise ModelError(f"{arch!r} is no GPU architecture; name one like sm_86")
    return arch


def _compiled(name: str, form: str, arch: str, options: tuple[str, ...], folder: Path) -> Path:
    """Return `name` compiled to `form`, from `folder` or by compiling it there."""
    source = FOLDER / f"{name}.cu"
    flags = (*(HOST_FLAGS if form == "so" else NVCC_FLAGS), *options)
    try:
        text = source.read_bytes()
    except OSError as error:
        raise ModelError(f"the CUDA source {source} cannot be read; install visaged again") from error
    # The compiler's version is left out on purpose: any that knows `arch` compiles the same arithmetic.
    digest = hashlib.sha256(text + "\0".join(flags).encode()).hexdigest()
    target = folder / f"{name}-{arch}-{digest[:16]}.{form}"
    if target.is_file():
        return target
    compiler = _find("g++", [], "install it (Debian: apt install g++)") if form == "so" else find_nvcc()
    with locked(folder):
        if not target.is_file():  # another process may have been faster
            data = _run([str(compiler), *flags], source, arch)
            try:
                write_atomically(target, data)
            except OSError as error:
                raise unwritable(folder, error) from error
    return target


def _run(command: list[str], source: Path, arch: str) -> bytes:
    """Return what the compiler makes of `source`."""
    where = f"{Path(command[0]).name} could not compile {source.name} for {arch}"
    with tempfile.TemporaryDirectory(prefix="visaged-") as scratch:
        out = Path(scratch) / "out"
        line = [*command, str(source), "-o", str(out)]
        try:
            done = subprocess.run(
                line, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ModelError(f"{where} within {TIMEOUT_S} s; try again when the machine is idle") from error
        except OSError as error:
            raise ModelError(f"{where} ({error}); install the compiler again") from error
        if done.returncode != 0 or not out.is_file():
            said = [text.strip() for text in (done.stderr + done.stdout).splitlines() if text.strip()]
            reason = next((text for text in said if "error" in text or "fatal" in text), (said or ["?"])[0])
            raise ModelError(f"{where} ({reason}); install a version of it that knows {arch}")
        return out.read_bytes()
