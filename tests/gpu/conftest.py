"""What the tests on a real GPU share. Without one every test here skips, loudly."""

from pathlib import Path

import pytest
from visaged.pipelines.engines.cuda_device import Gpu, open_gpu
from visaged.pipelines.engines.cuda_source import find_nvcc
from visaged.pipelines.engines.hardware import version_of
from visaged.pipelines.engines.plan import Backend
from visaged.pipelines.errors import ModelError

from tests.conftest import skip_or_fail

FLAVOURS = [backend for backend in Backend if backend.needs_gpu]


@pytest.fixture(scope="session")
def gpu() -> Gpu:
    """The first GPU."""
    try:
        return open_gpu("cuda:0")
    except ModelError as error:
        skip_or_fail("gpu", str(error))
        raise  # never reached


@pytest.fixture(scope="session", params=FLAVOURS, ids=lambda backend: backend.value)
def flavour(gpu: Gpu, request: pytest.FixtureRequest) -> Backend:
    """TensorRT and TensorRT-RTX in turn, as far as they are installed."""
    if not any(version_of(backend) for backend in FLAVOURS):
        skip_or_fail("gpu", "no TensorRT is installed; run `pip install 'visaged[tensorrt-rtx]'`")
    chosen: Backend = request.param
    if not version_of(chosen):
        pytest.skip(f"{chosen.value} is not installed")
    return chosen


@pytest.fixture(scope="session")
def kernels(gpu: Gpu, cache: Path) -> Path:
    """The cache folder, where the compiled kernels are kept."""
    try:
        find_nvcc()
    except ModelError as error:
        skip_or_fail("gpu", str(error))
    return cache
