"""From a trained network to an ONNX file: normalisation and temperature inside, weights in half precision."""

import io
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.jit import TracerWarning  # type: ignore[attr-defined]
from torch.onnx.symbolic_helper import parse_args

from ..engines.precision import parse_onnx
from ..registry import ChipRecipe
from .networks import Network, Seen
from .normalisation import Normalisation, NormalisedNetwork

OPSET = 17
MIN_HALVED = 256  # numbers; smaller tensors stay as they are


class _Embedding(torch.nn.Module):
    """What is run live of an embedder: its features at the length at which distances are compared."""

    def __init__(self, network: NormalisedNetwork, length: float) -> None:
        super().__init__()
        self.network, self.length = network, length

    def forward(self, chips: torch.Tensor) -> torch.Tensor:
        seen: Seen = self.network(chips)
        return seen.features * self.length


class _Logits(torch.nn.Module):
    """What is run live: logits that are calibrated as they stand, and the features."""

    def __init__(self, network: NormalisedNetwork, temperature: float) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, chips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen: Seen = self.network(chips)
        return seen.logits / self.temperature, seen.features


def export(
    network: Network, normalisation: Normalisation, recipe: ChipRecipe, temperature: float = 1.0
) -> bytes:
    """Return ONNX: input `chips` as `recipe` cuts them, outputs `logits` over `temperature` and `features`.

    Raises:
        ConfigError: chips of `recipe` are not what the normalisation was fitted for.
    """
    whole = NormalisedNetwork(normalisation, network, recipe)
    return to_onnx(_Logits(whole, temperature), {"chips": _two(recipe)}, "logits", "features")


def export_embedder(
    network: Network, normalisation: Normalisation, recipe: ChipRecipe, length: float = 1.0
) -> bytes:
    """Return ONNX: input `chips` as `recipe` cuts them, output `embedding`: the features times `length`.

    The last layer, which knows the people that were learned from, is left out.

    Raises:
        ConfigError: chips of `recipe` are not what the normalisation was fitted for.
    """
    whole = NormalisedNetwork(normalisation, network, recipe)
    return to_onnx(_Embedding(whole, length), {"chips": _two(recipe)}, "embedding")


def _two(recipe: ChipRecipe) -> torch.Tensor:
    return torch.zeros(2, len(recipe.mean), recipe.size, recipe.size)


def to_onnx(whole: torch.nn.Module, inputs: Mapping[str, torch.Tensor], *outputs: str) -> bytes:
    """Return ONNX of a network as it is run: the first axis of all `inputs` and `outputs` is free.

    Args:
        whole: the network; it is put into its mode for use.
        inputs: by name, of any number above one.
        outputs: names of what it returns.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the other exporter needs onnxscript
        warnings.simplefilter("ignore", TracerWarning)  # sides of maps are constants: only N varies
        torch.onnx.register_custom_op_symbolic("aten::pad", _pad, OPSET)  # type: ignore[attr-defined]
        torch.onnx.export(
            whole.eval(),
            tuple(inputs.values()),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: {0: "N"} for name in (*inputs, *outputs)},
        )
    return buffer.getvalue()


@parse_args("v", "is", "s", "none")
def _pad(graph: Any, maps: Any, amounts: list[int], mode: str, value: None) -> Any:
    """Export zero padding with amounts that are constants; torch computes them in the graph."""
    if mode != "constant":
        raise NotImplementedError(f"padding of {mode=}")
    n_axes = 4  # N, C, S, S; torch names the last axis first, before and after
    both = [*amounts, *[0] * (2 * n_axes - len(amounts))]
    pads = [*both[-2::-2], *both[::-2]]
    return graph.op("Pad", maps, graph.op("Constant", value_t=torch.tensor(pads)))


def halve_weights(data: bytes) -> bytes:
    """Return the ONNX graph `data` with its large weights stored as fp16; it computes in fp32 as before."""
    model = parse_onnx(data)
    casts: list[onnx.NodeProto] = []
    for weights in model.graph.initializer:
        values = numpy_helper.to_array(weights)
        if weights.data_type != TensorProto.FLOAT or values.size < MIN_HALVED:
            continue
        name = weights.name
        weights.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
        casts.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *nodes])
    halved: bytes = model.SerializeToString()
    return halved
