"""Read dlib's two face networks from their published `.dat` files, without dlib.

The file is a nesting of templates written depth first: first the version numbers of all wrappers from
the outside in, then the input layer, then the layers in the order in which they run. Tags and skips
leave only a version `1` among the wrappers, which is where the residual blocks are recovered from.

Source: dlib 20.0, dlib/dnn/core.h, layers.h, input.h, loss.h.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import ModelError
from .dlib_stream import DlibStream

F32 = npt.NDArray[np.float32]

MAX_FILE_BYTES = 64 << 20
MAX_WRAPPERS = 1024
MAX_SIDE = 1024  # of kernels, strides and paddings
_TAG, _OLD_OR_INPUT = 1, (2, 3)


@dataclass(frozen=True, slots=True, eq=False)
class Conv:
    """A convolution, the affine layer after it (or what BatchNorm comes to) already folded in.

    `weights` is `(O, I, kh, kw)`, `bias` is `(O,)`; `stride` and `padding` are (y, x) in px.
    """

    weights: F32
    bias: F32
    stride: tuple[int, int]
    padding: tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """A pooling window; (0, 0) means the whole map."""

    is_max: bool
    window: tuple[int, int]
    stride: tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A residual block: `relu(shortcut(x) + second(relu(first(x))))`.

    In a down block the shortcut is a 2x2 average with stride 2. Where the two sides differ in size,
    the smaller is padded with zeros at the end of channels, rows and columns.
    """

    first: Conv
    second: Conv
    is_down: bool


@dataclass(frozen=True, slots=True, eq=False)
class FaceResnet:
    """dlib's face recognition network: a chip `(3, size, size)` becomes 128 numbers.

    Input is RGB, `(pixel - mean) / 256`. `projection` is `(256, 128)`: `out = pooled @ projection`.
    """

    stem: Conv
    stem_pool: Pool
    blocks: tuple[Block, ...]
    projection: F32
    mean: tuple[float, float, float]
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class Mmod:
    """dlib's CNN face detector: a canvas of pyramid levels becomes a map of scores.

    ReLU follows every convolution but the last. A detection window is `window` (w, h) px; of two
    detections the weaker goes when they overlap by more than `nms_iou` or `nms_covered`.
    """

    convs: tuple[Conv, ...]
    mean: tuple[float, float, float]
    window: tuple[int, int]
    nms_iou: float
    nms_covered: float


@dataclass(frozen=True, slots=True, eq=False)
class _Affine:
    gamma: F32
    beta: F32


@dataclass(frozen=True, slots=True, eq=False)
class _Matrix:
    weights: F32  # (in, out)


@dataclass(frozen=True, slots=True)
class _Mark:
    """`relu`, `add` or, for the `1`s of the prefix, `tag`."""

    kind: str


_Step = Conv | Pool | _Affine | _Matrix | _Mark
_RELU, _ADD, _TAGGED = _Mark("relu"), _Mark("add"), _Mark("tag")


def read_face_resnet(path: Path) -> FaceResnet:
    """Return the network in dlib_face_recognition_resnet_model_v1.dat.

    Raises:
        ModelError: the file is missing, truncated, overwritten, or another network.
    """
    stream = _open(path)
    stream.version(1)
    if stream.string() != "loss_metric_2":
        raise stream.fail("another loss layer than loss_metric_2")
    stream.numbers(2)  # margin and distance threshold matter in training only
    steps, mean, size = _read_subnet(stream)
    return _assemble_resnet(stream, _fold(stream, steps), mean, size)


def read_mmod(path: Path) -> Mmod:
    """Return the network in mmod_human_face_detector.dat.

    Raises:
        ModelError: the file is missing, truncated, overwritten, or another network.
    """
    stream = _open(path)
    stream.version(1)
    if stream.string() != "loss_mmod_":
        raise stream.fail("another loss layer than loss_mmod_")
    stream.version(1)
    window = (stream.count(MAX_SIDE), stream.count(MAX_SIDE))
    stream.numbers(3)  # training costs
    nms_iou, nms_covered = stream.numbers(2)
    stream.numbers(2)  # which truth boxes to ignore in training
    steps, mean, _ = _read_subnet(stream)
    convs = [step for step in _fold(stream, steps) if isinstance(step, Conv)]
    kinds = [step if isinstance(step, _Mark) else type(step) for step in _fold(stream, steps)]
    expected: list[object] = [Conv, _RELU] * (len(convs) - 1) + [Conv]
    if not convs or kinds != expected or convs[0].weights.shape[1] != 3 or len(convs[-1].weights) != 1:
        raise stream.fail("layers in another order than a detector's")
    if any(a.weights.shape[0] != b.weights.shape[1] for a, b in pairwise(convs)):
        raise stream.fail("convolutions that do not fit together")
    return Mmod(tuple(convs), mean, window, nms_iou, nms_covered)


def _open(path: Path) -> DlibStream:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}; check the path") from error
    if len(data) > MAX_FILE_BYTES:
        raise ModelError(
            f"{path} has more than {MAX_FILE_BYTES} bytes, so it is none of dlib's face networks"
        )
    return DlibStream(data, str(path))


def _read_subnet(stream: DlibStream) -> tuple[list[_Step], tuple[float, float, float], int]:
    """Return the steps in running order, the mean colour and the side of the input (0: any)."""
    prefix: list[int] = []
    while not stream.peek_is_string(b"input_"):
        prefix.append(stream.version(_TAG, *_OLD_OR_INPUT))
        if len(prefix) > MAX_WRAPPERS:
            raise stream.fail(f"more than {MAX_WRAPPERS} nested layers")
    if not prefix or prefix[-1] not in _OLD_OR_INPUT:
        raise stream.fail("no layer around the input")
    mean, size = _read_input(stream)
    steps: list[_Step] = []
    for depth, version in enumerate(reversed(prefix)):
        if depth and version == _TAG:
            steps.append(_TAGGED)
            continue
        steps.append(_read_layer(stream))
        _skip_tail(stream, version, owns_input=depth == 0)
    if not stream.at_end:
        raise stream.fail("bytes left over")
    return steps, mean, size


def _read_input(stream: DlibStream) -> tuple[tuple[float, float, float], int]:
    kind = stream.string()
    red, green, blue = stream.numbers(3)
    size = 0
    if kind == "input_rgb_image_sized":
        size, columns = stream.count(MAX_SIDE), stream.count(MAX_SIDE)
        if size != columns or size == 0:
            raise stream.fail(f"input of {size}x{columns} px")
    elif kind == "input_rgb_image_pyramid2":
        stream.integer()
        stream.integer()
    elif kind != "input_rgb_image_pyramid":
        raise stream.fail(f"unknown input layer {kind!r}")
    return (red, green, blue), size


def _skip_tail(stream: DlibStream, version: int, *, owns_input: bool) -> None:
    """Read past what training left behind each layer: flags and cached tensors."""
    for _ in range(3):
        stream.boolean()
    stream.tensor()
    stream.tensor()
    if owns_input or version == 2:
        stream.tensor()
    if owns_input and version == 3:
        stream.integer()


def _read_layer(stream: DlibStream) -> _Step:
    kind = stream.string()
    family = kind.rstrip("0123456789")
    reader = _LAYERS.get(family)
    if reader is None:
        raise stream.fail(f"unknown layer {kind!r}")
    return reader(stream, kind)


def _read_conv(stream: DlibStream, kind: str) -> Conv:
    if kind not in ("con_4", "con_5", "con_6"):
        raise stream.fail(f"unknown layer {kind!r}")
    params = stream.tensor()
    n_filters, rows, columns, *rest = (stream.count(1 << 16) for _ in range(7))
    filters, biases = stream.view(), stream.view()
    stream.numbers(4)  # learning rates
    if kind != "con_4":
        stream.boolean()
    if kind == "con_6":
        stream.boolean()
    outputs, inputs, *window = filters
    is_sound = (
        (outputs, *window) == (n_filters, rows, columns)
        and outputs > 0 and inputs > 0 and 0 < rows <= MAX_SIDE and 0 < columns <= MAX_SIDE
        and rest[0] > 0 and rest[1] > 0 and max(rest) <= MAX_SIDE
        and prod(filters) + prod(biases) == params.size and prod(biases) in (0, outputs)
    )  # fmt: skip
    if not is_sound:
        raise stream.fail("a convolution whose sizes contradict each other")
    split = prod(filters)
    bias = params[split:] if params.size > split else np.zeros(outputs, np.float32)
    return Conv(params[:split].reshape(filters), bias, (rest[0], rest[1]), (rest[2], rest[3]))


def _read_affine(stream: DlibStream, kind: str) -> _Affine:
    params = stream.tensor()
    _check_halves(stream, params, stream.view(), stream.view())
    stream.integer()
    if kind == "affine_2" and stream.boolean():
        raise stream.fail("a disabled affine layer")
    gamma, beta = np.split(params, 2)
    return _Affine(gamma, beta)


def _read_batch_norm(stream: DlibStream, kind: str) -> _Affine:
    """Return what BatchNorm does when it no longer learns."""
    params = stream.tensor()
    _check_halves(stream, params, stream.view(), stream.view())
    _, _, means, variances = (stream.tensor() for _ in range(4))
    stream.integer()
    stream.integer()
    stream.numbers(4)
    epsilon = stream.number()
    gamma, beta = np.split(params, 2)
    if not means.size == variances.size == gamma.size or not 0 < epsilon < 1 or variances.min(initial=0) < 0:
        raise stream.fail("a BatchNorm whose statistics make no sense")
    with _in_range(stream):
        scale = gamma.astype(np.float64) / np.sqrt(variances.astype(np.float64) + epsilon)
        return _Affine(scale.astype(np.float32), (beta - scale * means).astype(np.float32))


def _check_halves(stream: DlibStream, params: F32, *views: Sequence[int]) -> None:
    if any(2 * prod(view) != params.size for view in views):
        raise stream.fail("an affine layer whose sizes contradict each other")


def _read_pool(stream: DlibStream, kind: str) -> Pool:
    rows, columns, stride_y, stride_x, padding_y, padding_x = (stream.count(MAX_SIDE) for _ in range(6))
    if stride_y == 0 or stride_x == 0 or padding_y or padding_x:
        raise stream.fail("a pooling layer of an unknown kind")
    return Pool(kind == "max_pool_2", (rows, columns), (stride_y, stride_x))


def _read_matrix(stream: DlibStream, kind: str) -> _Matrix:
    if kind not in ("fc_2", "fc_3"):
        raise stream.fail(f"unknown layer {kind!r}")
    n_outputs, n_inputs = stream.count(1 << 16), stream.count(1 << 16)
    params = stream.tensor()
    stream.view()
    stream.view()
    if stream.integer() != 1 or not n_outputs or params.size != n_inputs * n_outputs:
        raise stream.fail("a final layer of an unknown kind")
    stream.numbers(4)
    if kind == "fc_3":
        stream.boolean()
    return _Matrix(params.reshape(n_inputs, n_outputs))


def _read_relu(stream: DlibStream, kind: str) -> _Mark:
    if kind == "relu_2" and stream.boolean():
        raise stream.fail("a disabled ReLU")
    return _RELU


_LAYERS: dict[str, Callable[[DlibStream, str], _Step]] = {
    "con_": _read_conv,
    "affine_": _read_affine,
    "bn_con": _read_batch_norm,
    "max_pool_": _read_pool,
    "avg_pool_": _read_pool,
    "fc_": _read_matrix,
    "relu_": _read_relu,
    "add_prev_": lambda stream, kind: _ADD,
}


def _fold(stream: DlibStream, steps: Sequence[_Step]) -> list[_Step]:
    """Return `steps` with every affine layer multiplied into the convolution before it."""
    folded: list[_Step] = []
    for step in steps:
        if not isinstance(step, _Affine):
            folded.append(step)
            continue
        conv = folded[-1] if folded else None
        if not isinstance(conv, Conv) or conv.bias.size != step.gamma.size:
            raise stream.fail("an affine layer without its convolution")
        with _in_range(stream):
            weights: F32 = conv.weights * step.gamma[:, None, None, None]
            bias: F32 = conv.bias * step.gamma + step.beta
        folded[-1] = Conv(weights, bias, conv.stride, conv.padding)
    return folded


@contextlib.contextmanager
def _in_range(stream: DlibStream) -> Iterator[None]:
    """Refuse weights whose products float32 cannot hold."""
    try:
        with np.errstate(over="raise", invalid="raise"):
            yield
    except FloatingPointError as error:
        raise stream.fail("weights out of range") from error


def _assemble_resnet(
    stream: DlibStream, steps: list[_Step], mean: tuple[float, float, float], size: int
) -> FaceResnet:
    queue = list(reversed(steps))

    def take(*kinds: object) -> list[_Step]:
        taken = [queue.pop() for _ in range(min(len(kinds), len(queue)))]
        shapes = [step if isinstance(step, _Mark) else type(step) for step in taken]
        if shapes != list(kinds):
            raise stream.fail("layers in another order than a face ResNet's")
        return taken

    stem, _, stem_pool = take(Conv, _RELU, Pool)
    blocks: list[Block] = []
    while queue and queue[-1] == _TAGGED:
        _, first, _, second = take(_TAGGED, Conv, _RELU, Conv)
        is_down = bool(queue) and queue[-1] == _TAGGED
        if is_down:
            *_, shortcut = take(_TAGGED, _TAGGED, Pool)
            if not isinstance(shortcut, Pool) or shortcut.is_max or (shortcut.window, shortcut.stride) != (
                (2, 2), (2, 2),
            ):  # fmt: skip
                raise stream.fail("a shortcut that is no 2x2 average")
        take(_ADD, _RELU)
        assert isinstance(first, Conv) and isinstance(second, Conv)  # take() checked
        blocks.append(Block(first, second, is_down))
    whole, projection = take(Pool, _Matrix)
    if queue:
        raise stream.fail("layers left over")
    assert isinstance(stem, Conv) and isinstance(stem_pool, Pool)
    assert isinstance(whole, Pool) and isinstance(projection, _Matrix)
    if whole.window != (0, 0) or whole.is_max or not stem_pool.is_max or not size or not blocks:
        raise stream.fail("pooling of another kind than a face ResNet's")
    return FaceResnet(stem, stem_pool, tuple(blocks), projection.weights, mean, size)
