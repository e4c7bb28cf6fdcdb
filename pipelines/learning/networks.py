"""A small zoo of networks in plain torch: what is inside is written out, and can be configured.

Every network takes `(N, C, S, S)` float32 and returns `Seen`: logits `(N, K)` and the features `(N, D)`
in front of its last layer. `summary` counts parameters and multiplications.

Shape letters: N faces, C channels, S side in px, D features, K classes.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from msgspec import Meta, Struct
from torch import Tensor, nn

from ..importers.dlib_dat import Block, Conv, FaceResnet
from ..importers.emotion_head import DEFAULT_TAPS, Tap
from ..registry import FACE_RESNET

TAPS = (*DEFAULT_TAPS, Tap(13, 1))  # the last: the end of the trunk, which embeddings are made of


class Seen(NamedTuple):
    """What a network says about N faces."""

    logits: Tensor
    features: Tensor


class NetworkConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which network, and how large."""

    kind: Literal["vgg13", "small_resnet", "mini_xception", "dlib_resnet"] = "vgg13"
    """`vgg13`: plain convolutions. `small_resnet`: residual blocks. `mini_xception`: separable ones.
    `dlib_resnet`: dlib's face recognition network with its weights, 15 stages, of 150 px RGB."""
    size: Annotated[int, Meta(ge=32, le=224)] = 48
    """px: side of the input."""
    channels: Literal[1, 3] = 1
    """1: grey, 3: RGB."""
    width: Annotated[int, Meta(ge=4, le=256)] = 32
    """Filters of the first stage; later stages have 2, 4 and 4 or 8 times as many. Not of `dlib_resnet`."""
    units: Annotated[int, Meta(ge=0, le=4096)] = 256
    """Units of the fully connected layer before the last; 0: none, the features are the pooled maps."""
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.4
    """Share of the units that are left out while training; half of it after each stage of convolutions."""

    def __post_init__(self) -> None:
        if self.kind == "dlib_resnet" and (self.size, self.channels) != (FACE_RESNET.recipe.size, 3):
            raise ValueError("dlib_resnet takes size = 150 and channels = 3")


class Network(nn.Module):
    """Convolutional stages, then fully connected layers; the parts are in `stages`, `neck` and `last`."""

    def __init__(self, stages: Sequence[nn.Module], neck: nn.Module, n_features: int, n_classes: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.neck = neck
        self.last = nn.Linear(n_features, n_classes)

    def forward(self, inputs: Tensor) -> Seen:
        """Return logits and features of `(N, C, S, S)` inputs."""
        return self.head(self.trunk(inputs))

    def trunk(self, inputs: Tensor) -> Tensor:
        """Return what all stages leave of `(N, C, S, S)` inputs: what `head` takes."""
        maps = inputs
        for stage in self.stages:
            maps = stage(maps)
        return maps

    def head(self, maps: Tensor) -> Seen:
        """Return logits and features of what `trunk` left."""
        features: Tensor = self.neck(maps)
        return Seen(self.last(features), features)

    def freeze(self, n_stages: int) -> None:
        """Keep the first `n_stages` as they are: no gradients, and BatchNorm with the statistics it has.

        Call it again after `train()`, which wakes BatchNorm up.
        """
        for index, stage in enumerate(self.stages):
            is_frozen = index < n_stages
            for parameter in stage.parameters():
                parameter.requires_grad_(not is_frozen)
            if is_frozen:
                stage.eval()


def build_network(
    config: NetworkConfig, n_classes: int, *, seed: int | None = None, trunk: FaceResnet | None = None
) -> Network:
    """Return the network that `config` describes, with random weights.

    Args:
        config: kind and size.
        n_classes: K.
        seed: of the weights; None: of torch's generator.
        trunk: the imported weights of `dlib_resnet`, of which only the head is random.

    Raises:
        ValueError: fewer than two classes, or `dlib_resnet` without its trunk.
    """
    if n_classes < 2:
        raise ValueError(f"{n_classes=}")
    if seed is not None:
        torch.manual_seed(seed)
    if config.kind != "dlib_resnet":
        return _BUILDERS[config.kind](config, n_classes)
    if trunk is None:
        raise ValueError("dlib_resnet needs its trunk")
    return TappedNetwork(trunk, config, n_classes)


def _vgg13(config: NetworkConfig, n_classes: int) -> Network:
    """Return 10 convolutions of 3 x 3 in 4 stages, pooling after each, then fully connected layers.

    Source: Barsoum et al., "Training deep networks for facial expression recognition with crowd-sourced
    label distribution", ICMI 2016, figure 3; there with 64 filters and 1024 units at 64 px.
    """
    stages: list[nn.Module] = []
    inside: int = config.channels
    side = config.size
    for factor, n_convs in ((1, 2), (2, 2), (4, 3), (4, 3)):
        outside = config.width * factor
        layers: list[nn.Module] = []
        for _ in range(n_convs):
            layers += _conv(inside, outside)
            inside = outside
        stages.append(nn.Sequential(*layers, nn.MaxPool2d(2), nn.Dropout(config.dropout / 2)))
        side //= 2
    flat = inside * side * side
    units = config.units or flat
    neck = [nn.Flatten(), *([nn.Linear(flat, units), nn.ReLU()] if config.units else [])]
    return Network(stages, nn.Sequential(*neck, nn.Dropout(config.dropout)), units, n_classes)


def _small_resnet(config: NetworkConfig, n_classes: int) -> Network:
    """Return a stem and 4 stages of 2 residual blocks, averaged over the map at the end.

    Source: He et al., "Deep residual learning for image recognition", CVPR 2016: ResNet-18, with a stem of
    3 x 3 for small pictures.
    """
    stages: list[nn.Module] = [nn.Sequential(*_conv(config.channels, config.width))]
    inside = config.width
    for factor, stride in ((1, 1), (2, 2), (4, 2), (8, 2)):
        outside = config.width * factor
        blocks = [Residual(inside, outside, stride), Residual(outside, outside, 1)]
        stages.append(nn.Sequential(*blocks, nn.Dropout(config.dropout / 2)))
        inside = outside
    return Network(stages, *_pooled_neck(inside, config), n_classes)


def _mini_xception(config: NetworkConfig, n_classes: int) -> Network:
    """Return a stem and 4 residual stages of separable convolutions, averaged over the map at the end.

    Source: Arriaga et al., "Real-time convolutional neural networks for emotion and gender
    classification", 2017: mini-Xception.
    """
    stem = nn.Sequential(*_conv(config.channels, config.width), *_conv(config.width, config.width))
    stages: list[nn.Module] = [stem]
    inside = config.width
    for factor in (2, 4, 8, 16):
        outside = config.width * factor
        stages.append(nn.Sequential(Separable(inside, outside), nn.Dropout(config.dropout / 2)))
        inside = outside
    return Network(stages, *_pooled_neck(inside, config), n_classes)


def _pooled_neck(n_maps: int, config: NetworkConfig) -> tuple[nn.Module, int]:
    units = config.units or n_maps
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    if config.units:
        layers += [nn.Linear(n_maps, units), nn.ReLU()]
    return nn.Sequential(*layers, nn.Dropout(config.dropout)), units


def _conv(inside: int, outside: int, stride: int = 1, *, relu: bool = True) -> list[nn.Module]:
    layers: list[nn.Module] = [
        nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outside),
    ]
    return [*layers, nn.ReLU()] if relu else layers


class Residual(nn.Module):
    """Two convolutions of 3 x 3 beside a shortcut, which is a convolution of 1 x 1 where sizes differ."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(*_conv(inside, outside, stride), *_conv(outside, outside, relu=False))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps of half the side where the stride is 2."""
        return torch.relu(self.convs(maps) + self.shortcut(maps))


class Separable(nn.Module):
    """Two separable convolutions and a pooling beside a strided convolution of 1 x 1."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *_separable(inside, outside), nn.ReLU(), *_separable(outside, outside), nn.MaxPool2d(3, 2, 1)
        )
        self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, 2, bias=False), nn.BatchNorm2d(outside))

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps of half the side."""
        total: Tensor = self.convs(maps) + self.shortcut(maps)
        return total


def _separable(inside: int, outside: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inside, inside, 3, padding=1, groups=inside, bias=False),
        nn.Conv2d(inside, outside, 1, bias=False),
        nn.BatchNorm2d(outside),
    ]


_BUILDERS: dict[str, Callable[[NetworkConfig, int], Network]] = {
    "vgg13": _vgg13,
    "small_resnet": _small_resnet,
    "mini_xception": _mini_xception,
}


class DlibTrunk(nn.Module):
    """dlib's face ResNet, with its published weights, to be fine-tuned; see `importers/dlib_dat.py`.

    Its 15 parts, the stem and 14 blocks, are in `stages`; `blocks_of` gives the maps after each block.
    """

    def __init__(self, net: FaceResnet) -> None:
        super().__init__()
        window, stride = net.stem_pool.window[0], net.stem_pool.stride[0]
        self.stages = nn.ModuleList(
            [nn.Sequential(_imported(net.stem), nn.ReLU(), nn.MaxPool2d(window, stride))]
        )
        self.stages.extend(DlibBlock(block) for block in net.blocks)
        n_maps, n_numbers = net.projection.shape
        self.projection = nn.Linear(n_maps, n_numbers, bias=False)
        with torch.no_grad():
            self.projection.weight.copy_(torch.from_numpy(net.projection.T.copy()))

    def forward(self, chips: Tensor) -> Tensor:
        """Return the embedding `(N, 128)` of `(N, 3, 150, 150)` chips, `(pixel - mean) / 256`."""
        embedding: Tensor = self.projection(self.blocks_of(chips)[-1].mean(dim=(2, 3)))
        return embedding

    def blocks_of(self, chips: Tensor) -> list[Tensor]:
        """Return the maps after every block, as the emotion head's taps count them."""
        maps, after = chips, []
        for stage in self.stages:
            maps = stage(maps)
            after.append(maps)
        return after[1:]


class TappedNetwork(Network):
    """dlib's trunk, and a head on its maps at the four depths of `TAPS`, averaged over cells."""

    def __init__(self, net: FaceResnet, config: NetworkConfig, n_classes: int) -> None:
        n_inputs = sum(_n_maps(net.blocks[tap.block]) * tap.grid**2 for tap in TAPS)
        n_features = config.units or n_inputs
        layers: list[nn.Module] = [nn.BatchNorm1d(n_inputs)]
        if config.units:
            layers += [nn.Dropout(config.dropout / 2), nn.Linear(n_inputs, n_features), nn.ReLU()]
        super().__init__(
            list(DlibTrunk(net).stages),
            nn.Sequential(*layers, nn.Dropout(config.dropout)),
            n_features,
            n_classes,
        )

    def trunk(self, inputs: Tensor) -> Tensor:
        """Return `(N, F)`: the maps' averages over cells."""
        cells, maps = [], inputs
        for index, stage in enumerate(self.stages):
            maps = stage(maps)
            cells += [_cells(maps, tap.grid) for tap in TAPS if tap.block == index - 1]
        return torch.cat(cells, 1)


def _cells(maps: Tensor, grid: int) -> Tensor:
    """Return averages over grid x grid cells, overlapping where they do not divide, as the graph's taps."""
    side = int(maps.shape[2])
    stride = side // grid
    return nn.functional.avg_pool2d(maps, side - (grid - 1) * stride, stride).flatten(1)


class DlibBlock(nn.Module):
    """A residual block that pads the smaller side with zeros, as dlib does."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.first, self.second = _imported(block.first), _imported(block.second)
        self.is_down = block.is_down
        self.n_maps = _n_maps(block)

    def forward(self, maps: Tensor) -> Tensor:
        """Return `relu(shortcut + second(relu(first)))`."""
        inner = self.second(torch.relu(self.first(maps)))
        shortcut = nn.functional.avg_pool2d(maps, 2, 2) if self.is_down else maps
        side = max(int(inner.shape[2]), int(shortcut.shape[2]))  # int: a constant where it is exported
        return torch.relu(_grown(inner, self.n_maps, side) + _grown(shortcut, self.n_maps, side))


def _n_maps(block: Block) -> int:
    """Return how many maps a block leaves: the more of what comes in and what its convolutions make."""
    return max(int(block.first.weights.shape[1]), int(block.second.weights.shape[0]))


def _grown(maps: Tensor, channels: int, side: int) -> Tensor:
    """Pad with zeros at the end of channels, rows and columns."""
    more = side - int(maps.shape[2])
    return nn.functional.pad(maps, (0, more, 0, more, 0, channels - int(maps.shape[1])))


def _imported(conv: Conv) -> nn.Conv2d:
    outside, inside, height, width = conv.weights.shape
    layer = nn.Conv2d(inside, outside, (height, width), conv.stride, conv.padding)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(conv.weights.copy()))
        assert layer.bias is not None  # convolutions have one unless told otherwise
        layer.bias.copy_(torch.from_numpy(conv.bias.copy()))
    return layer


class LayerCount(Struct, frozen=True, kw_only=True):
    """One layer: its name, kind, output shape without N, parameters, and multiplications for one face."""

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    macs: int


def summary(network: nn.Module, shape: tuple[int, int, int]) -> list[LayerCount]:
    """Return every convolution and linear layer of `network`, in the order in which they run.

    Args:
        network: takes `(N, *shape)`.
        shape: C, S, S.
    """
    rows: list[LayerCount] = []

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
            weight = layer.weight
            assert isinstance(weight, Tensor)
            places = int(np.prod(output.shape[2:])) if output.ndim == 4 else 1
            rows.append(
                LayerCount(
                    name=name,
                    kind=type(layer).__name__,
                    output=tuple(output.shape[1:]),
                    parameters=sum(p.numel() for p in layer.parameters()),
                    macs=weight.numel() * places,
                )
            )

        return hook

    layers = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(note(name)) for name, layer in layers]
    was_training = network.training
    network.eval()
    with torch.no_grad():
        network(torch.zeros(1, *shape))
    network.train(was_training)
    for hook in hooks:
        hook.remove()
    return rows
