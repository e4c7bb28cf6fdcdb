"""The dependency rule of docs/architecture.md, checked from the source text."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ["kernels", "pipelines", "daemon", "tools"]  # each may import those before it
DOORS = {  # a heavy dependency and the only modules that may import it
    "av": {"daemon/cameras/video.py"},
    "cryptography": {"pipelines/privacy/seal.py"},
    "dlib": {"pipelines/dlib_faces.py", "pipelines/learning/hog_trainer.py", "tools/baseline.py"},
    "_dlib_pybind11": {"pipelines/dlib_faces.py"},
    "h5py": {"pipelines/importers/keras_h5.py"},
    "onnx": {
        "pipelines/importers/graph.py",
        "pipelines/importers/dlib_onnx.py",
        "pipelines/importers/halved.py",
        "pipelines/importers/keras_h5.py",
        "pipelines/importers/onnx_end.py",
        "pipelines/model_store.py",
        "pipelines/engines/precision.py",
        "pipelines/learning/exporter.py",
    },
    "onnxruntime": {"pipelines/engines/ort_engine.py", "pipelines/engines/precision.py"},
    "openvino": {"pipelines/engines/openvino_engine.py"},
    "prometheus_client": {"daemon/metrics.py"},
    "pycuda": {"pipelines/engines/cuda_device.py"},
    "psutil": {"tools/resources.py"},
    "tensorrt": set(),  # chosen by name in pipelines/engines/trt_builder.py
    "tensorrt_rtx": set(),
    "captum": {"pipelines/learning/"},
    "kornia": {"pipelines/learning/"},
    "matplotlib": {"pipelines/figure.py"},
    "torch": {
        "pipelines/learning/",
        "pipelines/loop/layers.py",
        "pipelines/loop/rehearsal.py",
        "pipelines/synthesis/vae_gan.py",
        "pipelines/synthesis/vae_gan_networks.py",
        "tools/bench_gpu.py",
        "tools/train_emotion.py",
    },
    "usearch": {"pipelines/identity/template_index.py"},
    "zmq": {"daemon/sockets.py", "daemon/remote_sockets.py", "daemon/curve.py"},
}
MAX_LINES = 400
SOURCES = [path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_point_down_and_use_the_right_door(path: Path) -> None:
    here = path.relative_to(ROOT)
    below = LAYERS[: LAYERS.index(here.parts[0])]
    depth = len(here.parts)  # `from ..x` leaves this folder's layer when the level equals the depth

    for node in ast.walk(ast.parse(path.read_text())):
        where = f"{here}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            folder = (node.module or "").split(".")[0]
            assert folder in below, f"{where} {here.parts[0]} must not import {folder}"
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            check_absolute(node.module or "", here, where)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                check_absolute(alias.name, here, where)


def check_absolute(module: str, here: Path, where: str) -> None:
    top = module.split(".")[0]
    assert top not in {*LAYERS, "visaged"}, f"{where} import our own folders relatively"
    assert top not in DOORS or is_door(here, DOORS[top]), f"{where} imports {top} outside its door"


def is_door(here: Path, doors: set[str]) -> bool:
    """Whether `here` is one of `doors`, or below one that is a folder."""
    return any(str(here) == door or (door.endswith("/") and str(here).startswith(door)) for door in doors)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_module_fits_in_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES
