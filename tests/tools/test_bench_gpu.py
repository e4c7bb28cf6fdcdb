"""`bench_gpu` without a GPU says so; its machinery runs on host memory."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from visaged.pipelines.engines import cuda_device, cuda_kernels
from visaged.pipelines.engines.cuda_source import compile_host
from visaged.pipelines.engines.parity_inputs import face_chips
from visaged.pipelines.errors import ModelError
from visaged.pipelines.importers.dlib_dat import read_face_resnet
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.registry import FACE_RESNET
from visaged.tools import bench_gpu as module
from visaged.tools.bench_gpu import (
    WEIGHTS,
    bench_chips,
    bench_gpu,
    bench_torch,
    faces_per_s,
    gpu_rows,
    on_gpu,
)

from tests.conftest import skip_or_fail
from tests.pipelines.engines.host_gpu import HostGpu


def test_without_a_gpu_one_sentence_says_what_is_missing(store: ModelStore) -> None:
    if cuda_device.can_run():
        skip_or_fail("no-gpu", "there is a GPU")

    with pytest.raises(ModelError, match=r"^(no GPU can be used|the NVIDIA driver does not answer) \(.+\); "):
        bench_gpu(store)


def test_without_tensorrt_one_sentence_says_what_to_install(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "open_gpu", lambda device: HostGpu().gpu())
    monkeypatch.setattr(module, "version_of", lambda backend: "")

    with pytest.raises(ModelError, match=r"no TensorRT is installed; run `pip install"):
        bench_gpu(store)


def test_torch_without_a_gpu_is_a_note(store: ModelStore) -> None:
    if cuda_device.can_run():
        skip_or_fail("no-gpu", "there is a GPU")
    net = read_face_resnet(store.weights_file(WEIGHTS))

    figures = bench_torch(net, np.zeros((1, 3, 150, 150), np.float32), "cuda:0")

    assert list(figures) == ["torch"]
    assert figures["torch"]["note"].startswith("not measured: ")


def test_the_rate_is_faces_and_not_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    def median_ms(call: Any, rounds: int) -> float:
        call()
        return 2.0

    seen: list[int] = []
    monkeypatch.setattr(module, "median_ms", median_ms)

    rates = faces_per_s(lambda chips: seen.append(len(chips)), np.zeros((128, 1)), rounds=3)

    assert seen == [1, 8, 32, 128]
    assert rates == {"batch_1": 500, "batch_8": 4000, "batch_32": 16000, "batch_128": 64000}


def test_chips_lie_on_the_gpu_while_they_are_needed() -> None:
    host, chips = HostGpu(), face_chips(FACE_RESNET.recipe)

    with on_gpu(host.gpu(), chips) as there:
        assert np.array_equal(np.asarray(there[4:8]), chips[4:8])

    assert host.live["DeviceAllocation"] == host.live["PagelockedHostAllocation"] == 0


def test_the_crop_kernel_is_held_against_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor the numbers mean nothing; that they can be had, without a leak, is what counts."""
    if shutil.which("g++") is None:
        skip_or_fail("g++", "no g++ to compile chips.cu with (Debian: apt install g++)")
    monkeypatch.setattr(
        cuda_kernels, "compile_cubin", lambda name, arch, folder: compile_host(name, tmp_path)
    )
    host = HostGpu()

    figures = bench_chips(host.gpu(), tmp_path, rounds=2)

    assert figures["faces"] == 64
    assert all(value > 0 for value in figures.values())
    assert host.journal.count("crop_f32") == host.journal.count("copy across") == 3
    assert host.live["DeviceAllocation"] == host.live["PagelockedHostAllocation"] == 0


def test_rates_and_notes_become_rows() -> None:
    figures = {
        "gpu": {"gpu": "Some GPU", "driver": "13.0"},
        "network": "face-resnet",
        "tensorrt_rtx fp16": {"version": "1", "faces_per_s": {"batch_1": 900}},
        "torch": {"note": "not measured: why"},
        "chips.cu": {"faces": 64, "gb_per_s": 100.0, "copy_gb_per_s": 200.0},
    }

    rows = list(gpu_rows(figures))

    assert ("gpu", "Some GPU, 13.0", "") in rows
    assert ("gpu, tensorrt_rtx fp16, batch 1", "900 faces/s", "") in rows
    assert ("gpu, torch", "not measured: why", "") in rows
    assert ("gpu, chips.cu, copy gb per s", "200", "") in rows
