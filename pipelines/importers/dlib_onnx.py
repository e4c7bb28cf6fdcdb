"""Rebuild dlib's face networks as ONNX, bit-faithful to about 4e-7.

The input is normalised by the crop recipe, not in the graph. dlib pads the smaller operand of a
residual sum with zeros at the end of channels, rows and columns, and averages over such zeros too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from ..errors import ModelError
from .dlib_dat import Block, Conv, FaceResnet, Mmod, Pool
from .emotion_head import DEFAULT_TAPS, EmotionHead, Tap
from .graph import GraphBuilder

F32 = npt.NDArray[np.float32]

Shape = tuple[int, int]  # channels, side


@dataclass(frozen=True, slots=True)
class _Map:
    """A value in the graph: its name, channels and side in px."""

    name: str
    channels: int
    side: int


def face_resnet_onnx(
    net: FaceResnet, head: EmotionHead | None = None, with_features: bool = False
) -> onnx.ModelProto:
    """Return dlib's face ResNet as one graph, with the emotion head on the same trunk.

    Input `chips` `(N, 3, 150, 150)`, `(pixel - mean) / 256`. Outputs: `embedding` `(N, 128)`, as dlib
    gives it (not unit length: compare by Euclidean distance); with `head`, `logits` `(N, K)` and what
    its last layer reads, `hidden` `(N, U)`; with `with_features`, `features` `(N, F)`: what the head reads,
    or would read at `DEFAULT_TAPS`.

    Raises:
        ModelError: the network or the head does not fit together.
    """
    graph = GraphBuilder("face_resnet", "chips", ["N", net.stem.weights.shape[1], net.size, net.size])
    taps = head.taps if head else DEFAULT_TAPS
    if not taps or any(not 0 <= tap.block < len(net.blocks) for tap in taps):
        raise ModelError("the emotion head taps a block that the face ResNet does not have; train it again")
    x = _pool(graph, _conv(graph, _Map("chips", 3, net.size), net.stem), net.stem_pool)
    outputs: list[_Map] = []
    for block in net.blocks:
        x = _block(graph, x, block)
        outputs.append(x)
    if x.channels != net.projection.shape[0]:
        raise ModelError(f"the last block has {x.channels} channels for a projection {net.projection.shape}")
    pooled = graph.node("ReduceMean", x.name, axes=[2, 3], keepdims=0)
    graph.linear(pooled, net.projection, output="embedding")
    graph.declare_output("embedding", ["N", net.projection.shape[1]])
    if head or with_features:
        _attach(graph, [(outputs[tap.block], tap) for tap in taps], head, with_features)
    return graph.build()


def mmod_onnx(net: Mmod) -> onnx.ModelProto:
    """Return dlib's CNN face detector as a graph.

    Input `canvas` `(1, 3, H, W)`: the tiled pyramid, `(pixel - mean) / 256`, gaps 0. Output `scores`
    `(1, 1, h, w)`; cell (r, c) lies at px (14 + 8c, 14 + 8r) of the canvas.
    """
    graph = GraphBuilder("mmod", "canvas", [1, 3, "H", "W"])
    x = "canvas"
    for index, conv in enumerate(net.convs):
        x = graph.conv(x, conv.weights, conv.bias, strides=conv.stride, pads=conv.padding * 2)
        if index < len(net.convs) - 1:
            x = graph.node("Relu", x)
    graph.node("Identity", x, output="scores")
    graph.declare_output("scores", [1, 1, "h", "w"])
    return graph.build()


def _conv(graph: GraphBuilder, x: _Map, conv: Conv, *, relu: bool = True) -> _Map:
    outputs, inputs, window, columns = conv.weights.shape
    (stride, stride_x), (padding, padding_x) = conv.stride, conv.padding
    side = 1 + (x.side + 2 * padding - window) // stride
    is_square = (window, stride, padding) == (columns, stride_x, padding_x)
    if inputs != x.channels or side < 1 or not is_square:
        raise ModelError(
            f"a convolution {conv.weights.shape} does not fit a map of {x.channels} x {x.side} x {x.side}; "
            "the weights file is not dlib's"
        )
    name = graph.conv(x.name, conv.weights, conv.bias, strides=conv.stride, pads=conv.padding * 2)
    return _Map(graph.node("Relu", name) if relu else name, outputs, side)


def _pool(graph: GraphBuilder, x: _Map, pool: Pool) -> _Map:
    window, stride = pool.window[0], pool.stride[0]
    side = 1 + (x.side - window) // stride
    if side < 1 or pool.window != (window, window) or pool.stride != (stride, stride):
        raise ModelError(f"a pooling window of {pool.window} does not fit a map of {x.side} px")
    operator = "MaxPool" if pool.is_max else "AveragePool"
    name = graph.node(operator, x.name, kernel_shape=[window] * 2, strides=[stride] * 2)
    return _Map(name, x.channels, side)


def _block(graph: GraphBuilder, x: _Map, block: Block) -> _Map:
    inner = _conv(graph, _conv(graph, x, block.first), block.second, relu=False)
    shortcut = _pool(graph, x, Pool(False, (2, 2), (2, 2))) if block.is_down else x
    channels, side = max(inner.channels, shortcut.channels), max(inner.side, shortcut.side)
    total = graph.node("Add", _grow(graph, inner, channels, side), _grow(graph, shortcut, channels, side))
    return _Map(graph.node("Relu", total), channels, side)


def _grow(graph: GraphBuilder, x: _Map, channels: int, side: int) -> str:
    """Pad with zeros at the end of channels, rows and columns."""
    if (x.channels, x.side) == (channels, side):
        return x.name
    more = side - x.side
    pads = graph.constant([0, 0, 0, 0, 0, channels - x.channels, more, more], np.int64)
    return graph.node("Pad", x.name, pads)


def _attach(
    graph: GraphBuilder, sources: Sequence[tuple[_Map, Tap]], head: EmotionHead | None, with_features: bool
) -> None:
    """Add the pooled features and the head to the graph."""
    parts = [_tap(graph, x, tap.grid) for x, tap in sources]
    n_features = sum(x.channels * tap.grid**2 for x, tap in sources)
    features = graph.node("Concat", *parts, output="features", axis=1)
    if with_features:
        graph.declare_output("features", ["N", n_features])
    if head is None:
        return
    if head.layers[0][0].shape[0] != n_features:
        raise ModelError(f"the emotion head reads {head.layers[0][0].shape[0]} features, not {n_features}")
    for index, (weights, bias) in enumerate(head.layers):
        is_last = index == len(head.layers) - 1
        if index:  # the last layer's input is what a feature-level ensemble takes
            features = graph.node("Relu", features, output="hidden" if is_last else "")
        features = graph.linear(features, weights, bias, output="logits" if is_last else "")
    graph.declare_output("logits", ["N", len(head.classes)])
    if len(head.layers) > 1:
        graph.declare_output("hidden", ["N", head.layers[-1][0].shape[0]])


def _tap(graph: GraphBuilder, x: _Map, grid: int) -> str:
    """Average `x` over grid x grid cells (overlapping by a pixel where they do not divide) and flatten."""
    if not 1 <= grid <= x.side:
        raise ModelError(f"a grid of {grid} cells does not fit a map of {x.side} px; train the head again")
    stride = x.side // grid
    window = x.side - (grid - 1) * stride
    cells = graph.node("AveragePool", x.name, kernel_shape=[window] * 2, strides=[stride] * 2)
    return graph.node("Flatten", cells, axis=1)
