"""What TensorRT-RTX compiled for this GPU is kept beside the plan; whatever is wrong with it is no harm."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from visaged.pipelines.engines import trt_engine
from visaged.pipelines.engines.plan import Backend
from visaged.pipelines.engines.trt_engine import TrtEngine

from tests.pipelines.engines.host_gpu import HostGpu
from tests.pipelines.engines.host_trt import WHOLE, HostTrt, assert_answers, chips_of, make_plan, use

Load = Callable[[], TrtEngine]


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> HostTrt:
    return use(HostTrt(HostGpu(1 << 28)), monkeypatch)


@pytest.fixture
def load(trt: HostTrt, tmp_path: Path) -> Load:
    """Loads a plan, always the same."""
    (tmp_path / "plan").write_bytes(make_plan(WHOLE))
    return lambda: TrtEngine(tmp_path / "plan", Backend.TENSORRT_RTX)


def test_a_restart_finds_what_was_compiled(load: Load, trt: HostTrt, tmp_path: Path) -> None:
    engine = load()
    engine.infer(chips_of(1))
    (file,) = tmp_path.glob("plan-kernels-*")  # from the first batch on: a daemon may be killed
    first = file.read_bytes()
    engine.infer(chips_of(16))
    engine.close()
    assert trt.n_compiled == 2
    assert file.read_bytes() != first

    engine = load()
    engine.infer(chips_of(16))
    engine.infer(chips_of(1))

    assert trt.n_compiled == 2
    assert file.name == "plan-kernels-Host_GPU-13.1-1.2.3.cache"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:20],
        lambda data: data[:-1],
        lambda data: data[:40] + b"?" + data[41:],
        lambda data: bytes(100),
    ],
)
def test_a_damaged_file_of_kernels_is_ignored_and_replaced(
    load: Load, trt: HostTrt, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    engine = load()
    engine.infer(chips_of(1))
    engine.close()
    (file,) = tmp_path.glob("plan-kernels-*")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))

    engine = load()
    assert_answers(engine.infer(chips_of(1)), chips_of(1))
    engine.close()

    assert trt.n_compiled == 2
    assert file.read_bytes() == whole


def test_kernels_of_another_gpu_are_not_used(load: Load, trt: HostTrt, tmp_path: Path) -> None:
    """The library looks for itself; its file name already differs."""
    engine = load()
    engine.infer(chips_of(1))
    engine.close()
    (file,) = tmp_path.glob("plan-kernels-*")
    foreign = b'["Other GPU", ["(1, 3, 5, 7)"]]'
    file.write_bytes(hashlib.sha256(foreign).digest() + foreign)

    engine = load()
    engine.infer(chips_of(1))

    assert trt.n_compiled == 2


def test_a_folder_that_takes_no_files_is_no_hindrance(
    load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(trt_engine, "write_atomically", refuse)
    engine = load()

    assert_answers(engine.infer(chips_of(2)), chips_of(2))
    engine.close()
    assert list(tmp_path.glob("plan-kernels-*")) == []
