"""CUDA sources become code for GPUs: with the real nvcc where there is one, with a script for mishaps."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from visaged.pipelines.engines import cuda_source
from visaged.pipelines.engines.cuda_source import SOURCES, compile_cubin, compile_host, compile_ptx, find_nvcc
from visaged.pipelines.errors import ModelError

from tests.conftest import skip_or_fail

ARCHS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")  # Turing to Blackwell
ENTRY_POINTS = {
    "chips": {"halve", "crop_f32", "crop_f16"},
    "pyramid": {"paint_frame", "paint_level"},
}


@pytest.fixture(scope="session")
def known_archs() -> set[str]:
    """What the installed nvcc compiles for."""
    try:
        nvcc = find_nvcc()
    except ModelError as error:
        skip_or_fail("nvcc", str(error))
    done = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True)
    return {line.replace("compute", "sm") for line in done.stdout.split()}


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is nvcc: writes "code" and counts its runs, until a test writes something else."""
    home = tmp_path / "cuda"
    (home / "bin").mkdir(parents=True)
    nvcc = home / "bin" / "nvcc"
    # The output is the last argument.
    nvcc.write_text(f'#!/bin/sh\necho run >> {home}/runs\nfor last; do :; done\nprintf code > "$last"\n')
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(home))
    return nvcc


def runs(nvcc: Path) -> int:
    return len((nvcc.parents[1] / "runs").read_text().split())


def test_every_source_is_listed() -> None:
    assert {path.stem for path in cuda_source.FOLDER.glob("*.cu")} == set(SOURCES)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", SOURCES)
def test_nvcc_compiles_every_source_for_every_gpu(
    known_archs: set[str], tmp_path: Path, name: str, arch: str
) -> None:
    if arch not in known_archs:
        skip_or_fail("nvcc", f"this nvcc does not know {arch}")

    code = compile_cubin(name, arch, tmp_path).read_bytes()

    assert code.startswith(b"\x7fELF")
    for entry in ENTRY_POINTS[name]:  # by this name, unmangled, a runtime asks for them
        assert f"\0.text.{entry}\0".encode() in code


@pytest.mark.parametrize("name", SOURCES)
def test_ptx_fuses_only_where_the_source_says_so(known_archs: set[str], tmp_path: Path, name: str) -> None:
    """A GPU would otherwise compute other last bits than the library that the kernels' tests check."""
    ptx = compile_ptx(name, "sm_75", tmp_path).read_text()

    assert set(re.findall(r"\.visible \.entry (\w+)\(", ptx)) == ENTRY_POINTS[name]
    # Without an explicit rounding (.rn) the driver may fuse a product with a sum.
    assert not re.findall(r"\b(?:mul|add|sub|mad)\.(?:ftz\.)?f(?:32|64)\b", ptx)
    assert ("fma.rn.f32" in ptx) == ("fmaf(" in (cuda_source.FOLDER / f"{name}.cu").read_text())


def test_a_source_is_compiled_once(scripted: Path, tmp_path: Path) -> None:
    first = compile_cubin("chips", "sm_86", tmp_path / "kernels")
    again = compile_cubin("chips", "sm_86", tmp_path / "kernels")

    assert first == again
    assert first.read_bytes() == b"code"
    assert runs(scripted) == 1


def test_a_kept_file_needs_no_compiler(
    scripted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = compile_cubin("chips", "sm_86", tmp_path)
    scripted.unlink()
    monkeypatch.setenv("PATH", "")

    assert compile_cubin("chips", "sm_86", tmp_path) == kept


def test_another_gpu_form_or_source_is_another_file(
    scripted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [compile_cubin("chips", "sm_86", tmp_path), compile_cubin("chips", "sm_90", tmp_path)]
    files += [compile_ptx("chips", "sm_86", tmp_path), compile_cubin("pyramid", "sm_86", tmp_path)]
    (tmp_path / "chips.cu").write_text("// changed\n")
    monkeypatch.setattr(cuda_source, "FOLDER", tmp_path)
    files += [compile_cubin("chips", "sm_86", tmp_path)]

    assert len(set(files)) == runs(scripted) == 5


def test_what_nvcc_says_is_in_the_error_and_nothing_is_kept(scripted: Path, tmp_path: Path) -> None:
    scripted.write_text("#!/bin/sh\necho 'nvcc fatal   : Unsupported gpu architecture' >&2\nexit 1\n")
    folder = tmp_path / "kernels"

    with pytest.raises(ModelError, match=r"chips\.cu for sm_86 \(nvcc fatal .*Unsupported gpu"):
        compile_cubin("chips", "sm_86", folder)

    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_a_compiler_that_writes_nothing_is_an_error(scripted: Path, tmp_path: Path) -> None:
    scripted.write_text("#!/bin/sh\nexit 0\n")

    with pytest.raises(ModelError, match=r"could not compile chips\.cu"):
        compile_cubin("chips", "sm_86", tmp_path)


def test_a_compiler_that_hangs_is_given_up(
    scripted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.write_text("#!/bin/sh\nwhile :; do :; done\n")
    monkeypatch.setattr(cuda_source, "TIMEOUT_S", 0.1)

    with pytest.raises(ModelError, match=r"could not compile chips\.cu for sm_86 within 0\.1 s"):
        compile_cubin("chips", "sm_86", tmp_path)


def test_a_compiler_that_does_not_start_is_an_error(scripted: Path, tmp_path: Path) -> None:
    scripted.write_text("no program\n")

    with pytest.raises(ModelError, match="install the compiler again"):
        compile_cubin("chips", "sm_86", tmp_path)


def test_without_nvcc_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))

    with pytest.raises(ModelError, match="CUDA toolkit"):
        compile_cubin("chips", "sm_86", tmp_path)


def test_without_gxx_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(ModelError, match=r"apt install g\+\+"):
        compile_host("chips", tmp_path)


@pytest.mark.parametrize("arch", ["86", "sm_86/../x", "sm_", "compute_86", "sm_86 -run"])
def test_what_is_no_architecture_is_refused(tmp_path: Path, arch: str) -> None:
    for compile_one in (compile_cubin, compile_ptx):
        with pytest.raises(ModelError, match="no GPU architecture"):
            compile_one("chips", arch, tmp_path)


def test_a_missing_source_is_an_installation_gone_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_source, "FOLDER", tmp_path)

    with pytest.raises(ModelError, match="install visaged again"):
        compile_cubin("chips", "sm_86", tmp_path)


def test_a_folder_that_takes_no_files_is_named(scripted: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ModelError, match=r"the cache folder .*file/kernels cannot be written"):
        compile_cubin("chips", "sm_86", tmp_path / "file" / "kernels")


@pytest.mark.parametrize("name", SOURCES)
def test_gxx_compiles_every_source(tmp_path: Path, name: str) -> None:
    if shutil.which("g++") is None:
        skip_or_fail("g++", "no g++ (Debian: apt install g++)")

    assert compile_host(name, tmp_path).suffix == ".so"
