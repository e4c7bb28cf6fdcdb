"""Looking inside: where on a face the emotion network looks, what its layers see, and its first filters.

The network is dlib's trunk with the emotion head, rebuilt in torch; its answers are those of the engine.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
from captum.attr import IntegratedGradients, LayerGradCam
from torch import Tensor, nn

from ..importers.dlib_dat import FaceResnet
from ..importers.emotion_head import EmotionHead
from .networks import DlibTrunk

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

SMOOTH_PX = 2.0  # standard deviation: single pixels are noise to an eye
STEPS = 32  # of the path that integrated gradients go along
SHOWN_STAGES = {"stem": 0, "block 7": 7, "block 10": 10, "block 13": 13}  # index in DlibTrunk.stages
MAPS_A_SIDE = 4  # of a montage


class EmotionNetwork(nn.Module):
    """dlib's trunk and the head on its pooled maps: `(N, 3, 150, 150)` chips to `(N, K)` logits."""

    def __init__(self, net: FaceResnet, head: EmotionHead) -> None:
        super().__init__()
        self.trunk, self.head = DlibTrunk(net), head
        self.layers = nn.ModuleList(nn.Linear(*weights.shape) for weights, _ in head.layers)
        with torch.no_grad():
            for layer, (weights, bias) in zip(self.layers, head.layers, strict=True):
                assert isinstance(layer, nn.Linear)
                layer.weight.copy_(torch.from_numpy(weights.T.copy()))
                layer.bias.copy_(torch.from_numpy(bias.copy()))

    def forward(self, chips: Tensor) -> Tensor:
        """Return logits, calibrated as the head's are."""
        blocks = self.trunk.blocks_of(chips)
        values = torch.cat([pooled(blocks[tap.block], tap.grid) for tap in self.head.taps], 1)
        for index, layer in enumerate(self.layers):
            values = layer(torch.relu(values) if index else values)
        return values


def pooled(maps: Tensor, grid: int) -> Tensor:
    """Return `(N, C grid grid)` averages of maps over grid x grid cells, as the exported graph has them."""
    stride = maps.shape[2] // grid
    window = maps.shape[2] - (grid - 1) * stride
    return nn.functional.avg_pool2d(maps, window, stride).flatten(1)


@dataclass(frozen=True, slots=True)
class Explanation:
    """What was found about one chip and one class.

    `target` is the class; `probabilities` is `(K,)`. `where` is `(S, S)` in [0, 1]: how much a place speaks
    for the class, coarsely. `pixels` is `(S, S)` in [-1, 1]: how much each pixel, with those around it,
    speaks for or against it. `maps` holds montages `(M, M)` in [0, 1] of the strongest maps of some stages,
    by name.
    """

    target: int
    probabilities: F32
    where: F32
    pixels: F32
    maps: dict[str, F32]


def explain(network: EmotionNetwork, chip: F32, target: int | None = None) -> Explanation:
    """Return why `network` sees class `target`, None: the likeliest, in a `(3, S, S)` chip.

    Source: Selvaraju et al., "Grad-CAM", ICCV 2017, at the head's last tap but one; Sundararajan et al.,
    "Axiomatic attribution for deep networks", ICML 2017, from a chip of the mean colour.
    """
    network.eval()
    inputs = torch.from_numpy(chip[None].copy())
    with torch.no_grad():
        probabilities: F32 = torch.softmax(network(inputs), 1)[0].numpy()
        stages = [inputs]
        for stage in network.trunk.stages:
            stages.append(stage(stages[-1]))
    target = int(probabilities.argmax()) if target is None else target
    place = network.head.taps[min(1, len(network.head.taps) - 1)].block
    cam = LayerGradCam(network, network.trunk.stages[place + 1]).attribute(
        inputs, target=target, relu_attributions=True
    )
    side = chip.shape[1]
    where = cv2.resize(cam[0, 0].detach().numpy(), (side, side), interpolation=cv2.INTER_CUBIC)
    paths = IntegratedGradients(network).attribute(
        inputs, torch.zeros_like(inputs), target=target, n_steps=STEPS, internal_batch_size=8
    )
    pixels = cv2.GaussianBlur(paths[0].sum(0).detach().numpy(), (0, 0), SMOOTH_PX)
    maps = {name: montage(stages[index + 1][0].numpy()) for name, index in SHOWN_STAGES.items()}
    return Explanation(
        target,
        probabilities,
        np.clip(where / max(float(where.max()), 1e-12), 0, 1).astype(np.float32),
        (pixels / max(float(np.quantile(np.abs(pixels), 0.995)), 1e-12)).clip(-1, 1).astype(np.float32),
        maps,
    )


def montage(maps: F32, a_side: int = MAPS_A_SIDE) -> F32:
    """Return the `a_side` x `a_side` strongest of `(C, s, s)` maps in one square, each stretched alone."""
    order = np.argsort(-maps.mean(axis=(1, 2)), kind="stable")[: a_side * a_side]
    tiles = [stretched(maps[index]) for index in order]
    tiles += [np.zeros_like(tiles[0])] * (a_side * a_side - len(tiles))
    rows = [np.concatenate(tiles[at : at + a_side], axis=1) for at in range(0, len(tiles), a_side)]
    return np.concatenate(rows, axis=0)


def filters_of(network: EmotionNetwork) -> F32:
    """Return the first layer's filters as `(n, h, w, 3)` in [0, 1], RGB, each stretched alone."""
    stem = network.trunk.stages[0]
    assert isinstance(stem, nn.Sequential) and isinstance(stem[0], nn.Conv2d)
    weights = stem[0].weight.detach().numpy().transpose(0, 2, 3, 1)
    return np.stack([stretched(kernel) for kernel in weights])


def stretched(values: F32) -> F32:
    """Return `values` over the whole of [0, 1]; constant ones become 0."""
    low, high = float(values.min()), float(values.max())
    scaled: F32 = ((values - low) / max(high - low, 1e-12)).astype(np.float32)
    return scaled
