"""A conditional VAE-GAN: encode a face, draw it again as a class, and let a discriminator judge.

Small, for chips of 64 px. It learns from tens of thousands of faces what a class looks like; from tens it
learns these by heart, blurred. What it draws goes through the same admission as any synthetic face.

Shape letters: N faces, S side in px, Z latent numbers, K classes.
"""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from msgspec import Meta, Struct
from torch import Tensor, nn
from torch.nn import functional

from ..cache_files import write_atomically
from ..engines.precision import parse_onnx
from ..errors import ModelError
from ..learning.samples import Samples, require_real
from ..learning.trunk_features import inputs_of

F32 = npt.NDArray[np.float32]

OPSET = 17
SMALLEST = 4  # px: side of the maps that meet the latent numbers


class GeneratorConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a generator is built and trained."""

    size: Literal[32, 64, 128] = 64
    """px: side of the chips."""
    width: Annotated[int, Meta(ge=4, le=128)] = 32
    """Filters of the largest maps; half the side, twice the filters, up to 4 times."""
    latent: Annotated[int, Meta(ge=2, le=1024)] = 128
    """Numbers a face is encoded in."""
    epochs: Annotated[int, Meta(ge=1, le=10_000)] = 60
    """Passes over the training part."""
    batch: Annotated[int, Meta(ge=2, le=1024)] = 32
    """Faces in one step."""
    rate: Annotated[float, Meta(gt=0, le=1)] = 5e-4
    """Learning rate, of Adam."""
    divergence: Annotated[float, Meta(ge=0, le=10)] = 1e-4
    """Weight, beside the L1, of the encoding's Kullback-Leibler divergence from a normal distribution."""
    adversarial: Annotated[float, Meta(ge=0, le=10)] = 0.02
    """Weight of the discriminator's opinion."""
    seed: int = 1
    """Of weights, order and noise."""
    threads: Annotated[int, Meta(ge=1, le=256)] = 2
    """Cores."""


class GeneratorEpoch(Struct, frozen=True, kw_only=True):
    """What a pass came to: L1 in shares of the pixels' range, of what was learned and of the tuning part."""

    number: int
    train_l1: float
    tune_l1: float
    discriminator: float


class Encoder(nn.Module):
    """Pictures `(N, 3, S, S)` in -1..1 to mean and log variance `(N, Z)`."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        widths = _widths(config)
        self.maps = nn.Sequential(*(_down(a, b) for a, b in zip([3, *widths], widths, strict=False)))
        self.last = nn.Linear(widths[-1] * SMALLEST**2, 2 * config.latent)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance."""
        mean, log_variance = self.last(self.maps(pictures).flatten(1)).chunk(2, 1)
        return mean, log_variance.clamp(-8, 8)


class Drawer(nn.Module):
    """Latent numbers `(N, Z)` and classes `(N, K)` to pictures `(N, 3, S, S)` in -1..1."""

    def __init__(self, config: GeneratorConfig, n_classes: int) -> None:
        super().__init__()
        widths = _widths(config)[::-1]
        self.first = nn.Linear(config.latent + n_classes, widths[0] * SMALLEST**2)
        self.maps = nn.Sequential(
            *(_up(a, b) for a, b in zip(widths, [*widths[1:], widths[-1]], strict=True))
        )
        self.last = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, latent: Tensor, classes: Tensor) -> Tensor:
        """Return pictures."""
        maps = self.first(torch.cat([latent, classes], 1)).unflatten(1, (-1, SMALLEST, SMALLEST))
        return torch.tanh(self.last(self.maps(maps)))


class Discriminator(nn.Module):
    """How real a picture looks as its class, `(N,)`: a projection discriminator (Miyato and Koyama 2018)."""

    def __init__(self, config: GeneratorConfig, n_classes: int) -> None:
        super().__init__()
        widths = _widths(config)
        self.maps = nn.Sequential(
            *(_down(a, b, normed=False) for a, b in zip([3, *widths], widths, strict=False))
        )
        self.last = nn.Linear(widths[-1], 1)
        self.as_class = nn.Linear(n_classes, widths[-1], bias=False)

    def forward(self, pictures: Tensor, classes: Tensor) -> Tensor:
        """Return a number for each: above 0 means real."""
        pooled = self.maps(pictures).mean((2, 3))
        opinion: Tensor = self.last(pooled)[:, 0] + (pooled * self.as_class(classes)).sum(1)
        return opinion


class VaeGan(nn.Module):
    """The three networks."""

    def __init__(self, config: GeneratorConfig, n_classes: int) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.drawer = Drawer(config, n_classes)
        self.discriminator = Discriminator(config, n_classes)

    def redraw(self, pictures: Tensor, classes: Tensor) -> Tensor:
        """Return `(N, 3, S, S)` pictures in 0..255 drawn again as `classes`, without noise."""
        mean, _ = self.encoder(pictures / 127.5 - 1)
        drawn: Tensor = (self.drawer(mean, classes) + 1) * 127.5
        return drawn


@dataclass(slots=True)
class GeneratorRun:
    """One training run in `folder`. Owned by the thread that calls `train`.

    Source: Larsen et al., "Autoencoding beyond pixels using a learned similarity metric", ICML 2016;
    conditioned as by Bao et al., "CVAE-GAN", ICCV 2017; hinge losses as by Lim and Ye 2017. The discriminator
    also sees every face drawn as another class, which is what teaches the classes.
    """

    config: GeneratorConfig
    classes: tuple[str, ...]
    folder: Path
    network: VaeGan = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(self.config.seed)
        self.network = VaeGan(self.config, len(self.classes))

    def train(
        self, train: Samples, tune: Samples, on_epoch: Callable[[GeneratorEpoch], None] = lambda epoch: None
    ) -> list[GeneratorEpoch]:
        """Train for all epochs; a run that was interrupted goes on where its last whole epoch ended.

        Args:
            train: what is learned from, RGB of the configured size.
            tune: faces of other groups, drawn again to see whether it generalises; may be empty.
            on_epoch: called after every epoch, also for those of an earlier run.

        Raises:
            ModelError: the checkpoint in the folder is of another run.
            ValueError: pictures of another size, no pictures, or synthetic ones to tune by.
        """
        size = self.config.size
        if train.pictures.shape[1:] != (size, size, 3) or len(train) < 2:
            raise ValueError(f"at least two RGB pictures of {size} px are needed: {train.pictures.shape=}")
        require_real(tune, "tuning")
        torch.set_num_threads(self.config.threads)
        drawers = [*self.network.encoder.parameters(), *self.network.drawer.parameters()]
        optimisers = [
            torch.optim.Adam(parameters, lr=self.config.rate, betas=(0.5, 0.99))
            for parameters in (drawers, list(self.network.discriminator.parameters()))
        ]
        epochs = self._resume(optimisers)
        for epoch in epochs:
            on_epoch(epoch)
        while len(epochs) < self.config.epochs:
            number = len(epochs) + 1
            torch.manual_seed(self.config.seed * 10_007 + number)  # each epoch begins alike when resumed
            l1, judged = self._pass(train, optimisers, number)
            epochs.append(
                GeneratorEpoch(number=number, train_l1=l1, tune_l1=self.l1(tune), discriminator=judged)
            )
            self._save(optimisers, epochs)
            on_epoch(epochs[-1])
        return epochs

    def l1(self, samples: Samples) -> float:
        """Return how far faces drawn again are from themselves, in shares of the range; NaN of none."""
        if not len(samples):
            return float("nan")
        self.network.eval()
        with torch.no_grad():
            apart = [
                float((self.network.redraw(pictures, targets) - pictures).abs().mean()) / 255 * len(pictures)
                for pictures, targets in self._batches(samples, np.arange(len(samples)))
            ]
        return sum(apart) / len(samples)

    def _pass(self, train: Samples, optimisers: list[Any], number: int) -> tuple[float, float]:
        """Learn from every face once; return the mean L1 and the mean loss of the discriminator."""
        self.network.train()
        order = np.random.default_rng([self.config.seed, number]).permutation(len(train))
        sums = np.zeros(2)
        for raw, classes in self._batches(train, order):
            pictures = raw / 127.5 - 1
            mean, log_variance = self.network.encoder(pictures)
            latent = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
            others = classes.roll(1, 1)[torch.randperm(len(classes))]
            same, other = self.network.drawer(latent, classes), self.network.drawer(latent, others)
            judge = self.network.discriminator
            loss = functional.relu(1 - judge(pictures, classes)).mean()
            for fake, label in ((same, classes), (other, others)):
                loss = loss + 0.5 * functional.relu(1 + judge(fake.detach(), label)).mean()
            _step(optimisers[1], loss)
            l1 = (same - pictures).abs().mean()
            divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1).mean()
            opinion = judge(same, classes).mean() + judge(other, others).mean()
            _step(
                optimisers[0],
                l1 + self.config.divergence * divergence - self.config.adversarial * opinion,
            )
            sums += len(raw) * np.array([float(l1.detach()) / 2, float(loss.detach())])
        return float(sums[0] / len(train)), float(sums[1] / len(train))

    def _batches(self, samples: Samples, order: npt.NDArray[np.int64]) -> list[tuple[Tensor, Tensor]]:
        parts = np.array_split(order, -(-len(order) // self.config.batch))
        return [
            (inputs_of(samples.pictures[rows]), torch.from_numpy(samples.targets[rows])) for rows in parts
        ]

    def _save(self, optimisers: list[Any], epochs: list[GeneratorEpoch]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        state = {
            "run": self._about(),
            "epochs": msgspec.json.encode(epochs).decode(),
            "network": self.network.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in optimisers],
        }
        torch.save(state, buffer)
        write_atomically(self.folder / "checkpoint.pt", buffer.getvalue())

    def _resume(self, optimisers: list[Any]) -> list[GeneratorEpoch]:
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return []
        try:
            state = torch.load(path, weights_only=True)
            if state["run"] != self._about():
                raise ModelError(f"{path} is of a run with another configuration; name another folder")
            self.network.load_state_dict(state["network"])
            for optimiser, kept in zip(optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(kept)
            return msgspec.json.decode(state["epochs"], type=list[GeneratorEpoch])
        except (RuntimeError, KeyError, ValueError, EOFError, UnpicklingError, msgspec.DecodeError) as error:
            reason = str(error).partition("\n")[0].partition(". ")[0]
            raise ModelError(
                f"{path} is no checkpoint of a generator ({reason}); name another folder"
            ) from error

    def _about(self) -> str:
        return msgspec.json.encode([msgspec.structs.replace(self.config, epochs=1), self.classes]).decode()


class _Redraw(nn.Module):
    def __init__(self, network: VaeGan) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: Tensor, classes: Tensor) -> Tensor:
        return self.network.redraw(pictures, classes)


def export_generator(network: VaeGan, size: int, classes: tuple[str, ...]) -> bytes:
    """Return the generator as ONNX that keeps the contract of `generator.py`."""
    buffer = io.BytesIO()
    inputs = torch.zeros(2, 3, size, size), torch.eye(len(classes))[[0, 0]]
    names = ("pictures", "classes", "made")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the other exporter needs onnxscript
        torch.onnx.export(
            _Redraw(network).eval(),
            inputs,
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=OPSET,
            input_names=list(names[:2]),
            output_names=[names[2]],
            dynamic_axes={name: {0: "N"} for name in names},
        )
    model = parse_onnx(buffer.getvalue())
    entry = model.metadata_props.add()
    entry.key, entry.value = "classes", ",".join(classes)
    data: bytes = model.SerializeToString()
    return data


def _step(optimiser: Any, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()


def _widths(config: GeneratorConfig) -> list[int]:
    """Return the filters of each halving, from the largest maps to those of `SMALLEST` px."""
    n = (config.size // SMALLEST).bit_length() - 1
    return [config.width * min(4, 2**level) for level in range(n)]


def _down(n_in: int, n_out: int, normed: bool = True) -> nn.Module:
    norm = [nn.BatchNorm2d(n_out)] if normed else []
    return nn.Sequential(nn.Conv2d(n_in, n_out, 4, 2, 1), *norm, nn.LeakyReLU(0.2))


def _up(n_in: int, n_out: int) -> nn.Module:
    return nn.Sequential(
        nn.Upsample(scale_factor=2),
        nn.Conv2d(n_in, n_out, 3, padding=1),
        nn.BatchNorm2d(n_out),
        nn.LeakyReLU(0.2),
    )
