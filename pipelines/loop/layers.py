"""What the layers at the end of a network compute, as torch does, so that they can learn. A door to torch.

Shape letters: N faces, K classes, U units.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, conv2d, max_pool2d

from ..importers.onnx_end import LOGITS, End

F32 = npt.NDArray[np.float32]

CHUNK = 256  # faces at a time where nothing is learned: maps of more would be hundreds of megabytes


def run(end: End, weights: Mapping[str, Tensor], entry: Tensor) -> tuple[Tensor, Tensor]:
    """Return `(N, K)` logits of what `end` reads, and `(N, U)` what its last layer reads.

    Args:
        end: the layers.
        weights: in place of those of `end`, by name.
        entry: `(N, F)` features or `(N, C, H, W)` maps.
    """
    values = {**tensors(end.constants), **weights, end.entry: entry}
    hidden = entry
    for node in end.nodes:
        inputs = [values[name] for name in node.inputs]
        hidden = inputs[0] if node.operator == "Gemm" else hidden
        values[node.output] = _OPERATORS[node.operator](node.attributes, *inputs)
    return values[LOGITS], hidden


def answer(end: End, weights: Mapping[str, Tensor], entry: npt.NDArray[np.floating]) -> tuple[F32, F32]:
    """Return the same of any number of faces, as arrays; nothing is learned."""
    chunks = [entry[at : at + CHUNK] for at in range(0, max(len(entry), 1), CHUNK)]
    with torch.no_grad():
        found = [run(end, weights, torch.from_numpy(np.asarray(chunk, np.float32))) for chunk in chunks]
    logits, hidden = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
    return logits, hidden


def tensors(weights: Mapping[str, F32]) -> dict[str, Tensor]:
    """Return copies of weights for torch."""
    return {
        name: torch.from_numpy(np.array(values, np.float32, order="C")) for name, values in weights.items()
    }


def _gemm(attributes: Any, values: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    return values @ (weights.T if attributes.get("transB") else weights) + bias


def _conv(attributes: Any, maps: Tensor, weights: Tensor, bias: Tensor | None = None) -> Tensor:
    return conv2d(
        maps,
        weights,
        bias,
        attributes.get("strides", [1, 1]),
        attributes.get("pads", [0, 0])[:2],
        attributes.get("dilations", [1, 1]),
        attributes.get("group", 1),
    )


def _max_pool(attributes: Any, maps: Tensor) -> Tensor:
    return max_pool2d(
        maps,
        attributes["kernel_shape"],
        attributes.get("strides", [1, 1]),
        attributes.get("pads", [0, 0])[:2],
        attributes.get("dilations", [1, 1]),
        bool(attributes.get("ceil_mode", 0)),
    )


_OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Gemm": _gemm,
    "Conv": _conv,
    "MaxPool": _max_pool,
    "Relu": lambda attributes, values: torch.relu(values),
    "Add": lambda attributes, one, other: one + other,
    "Div": lambda attributes, values, by: values / by,
    "Flatten": lambda attributes, values: values.flatten(1),
    "GlobalAveragePool": lambda attributes, maps: adaptive_avg_pool2d(maps, 1),
}
