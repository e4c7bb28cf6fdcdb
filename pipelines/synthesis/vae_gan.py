"""A conditional VAE-GAN: encode a face, draw it again as a class, and let a discriminator judge.

Small, for chips of 64 px. From thousands of faces it learns what a class looks like; from tens it learns
these by heart, blurred. What it draws goes through the same admission as any synthetic face.

Shape letters: N faces, S side in px, Z latent numbers, K classes.
"""

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from msgspec import Struct
from torch import Tensor, nn
from torch.nn import functional

from ..cache_files import write_atomically
from ..engines.precision import parse_onnx
from ..errors import ModelError
from ..learning.exporter import to_onnx
from ..learning.losses import soft_cross_entropy
from ..learning.samples import Samples, require_real
from ..learning.trunk_features import inputs_of
from .vae_gan_networks import GeneratorConfig, VaeGan

F32 = npt.NDArray[np.float32]

Watch = Callable[[str, int, int, float], None]
"""Told within an epoch: what is being done, how many faces are done and of how many, mean L1 so far."""


class GeneratorEpoch(Struct, frozen=True, kw_only=True):
    """What a pass came to: L1 in shares of the pixels' range, of what was learned and of the tuning part."""

    number: int
    train_l1: float
    tune_l1: float
    discriminator: float


@dataclass(slots=True)
class GeneratorRun:
    """One training run in `folder`. Owned by the thread that calls `train`.

    Source: Larsen et al., "Autoencoding beyond pixels using a learned similarity metric", ICML 2016;
    conditioned as by Bao et al., "CVAE-GAN", ICCV 2017; hinge losses as by Lim and Ye 2017. What teaches the
    classes: the encoding must hide them (Lample et al., "Fader networks", NIPS 2017), so that only the class
    asked for says what to draw; and the discriminator sees every face drawn as another class too, and real
    faces under a wrong one (Reed et al., "Generative adversarial text to image synthesis", ICML 2016).
    """

    config: GeneratorConfig
    classes: tuple[str, ...]
    folder: Path
    network: VaeGan = field(init=False)
    """What comes out: the mean of `learner` over the last steps, which is steadier than any one of them."""
    learner: VaeGan = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(self.config.seed)
        self.learner = VaeGan(self.config, len(self.classes))
        self.network = copy.deepcopy(self.learner).eval()

    def train(
        self,
        train: Samples,
        tune: Samples,
        on_epoch: Callable[[GeneratorEpoch], None] = lambda epoch: None,
        watch: Watch = lambda what, done, total, l1: None,
    ) -> list[GeneratorEpoch]:
        """Train for all epochs; a run that was interrupted goes on where its last whole epoch ended.

        Args:
            train: what is learned from, RGB of the configured size.
            tune: faces of other groups, drawn again to see whether it generalises; may be empty.
            on_epoch: called after every epoch, also for those of an earlier run.
            watch: called after every batch.

        Raises:
            ModelError: the checkpoint in the folder is of another run.
            ValueError: pictures of another size, no pictures, or synthetic ones to tune by.
        """
        size = self.config.size
        if train.pictures.shape[1:] != (size, size, 3) or len(train) < 2:
            raise ValueError(f"at least two RGB pictures of {size} px are needed: {train.pictures.shape=}")
        require_real(tune, "tuning")
        torch.set_num_threads(self.config.threads)
        drawers = [*self.learner.encoder.parameters(), *self.learner.drawer.parameters()]
        judges = [*self.learner.discriminator.parameters(), *self.learner.informer.parameters()]
        optimisers = [
            torch.optim.Adam(parameters, lr=self.config.rate, betas=(0.5, 0.99))
            for parameters in (drawers, judges)
        ]
        epochs = self._resume(optimisers)
        for epoch in epochs:
            on_epoch(epoch)
        while len(epochs) < self.config.epochs:
            number = len(epochs) + 1
            torch.manual_seed(self.config.seed * 10_007 + number)  # each epoch begins alike when resumed
            l1, judged = self._pass(train, optimisers, number, watch)
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
        with torch.no_grad():
            apart = [
                float((self.network.redraw(pictures, targets) - pictures).abs().mean()) / 255 * len(pictures)
                for pictures, targets in self._batches(samples, np.arange(len(samples)))
            ]
        return sum(apart) / len(samples)

    def _pass(self, train: Samples, optimisers: list[Any], number: int, watch: Watch) -> tuple[float, float]:
        """Learn from every face once; return the mean L1 and the mean loss of the discriminator."""
        self.learner.train()
        judge, informer = self.learner.discriminator, self.learner.informer
        order = np.random.default_rng([self.config.seed, number]).permutation(len(train))
        sums, n_done, n_classes = np.zeros(2), 0, len(self.classes)
        batches = self._batches(train, order)
        for step, (raw, classes) in enumerate(batches, (number - 1) * len(batches) + 1):
            pictures, others = raw / 127.5 - 1, _others(classes)
            mean, log_variance = self.learner.encoder(pictures)
            latent = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
            same, other = self.learner.drawer(latent, classes), self.learner.drawer(latent, others)
            real = judge(pictures)
            fakes = (
                judge.opinion(real[-1], others),
                judge.opinion(judge(same.detach())[-1], classes),
                judge.opinion(judge(other.detach())[-1], others),
            )
            loss = functional.relu(1 - judge.opinion(real[-1], classes)).mean()
            loss = loss + torch.stack([functional.relu(1 + fake).mean() for fake in fakes]).mean()
            guessed = soft_cross_entropy(informer(mean.detach()), classes)
            _step(optimisers[1], loss + guessed)
            judge.requires_grad_(False)  # its own gradients would be thrown away
            seen = judge(same)
            opinion = judge.opinion(seen[-1], classes) + judge.opinion(judge(other)[-1], others)
            l1 = (same - pictures).abs().mean()
            divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1).mean()
            _step(
                optimisers[0],
                l1
                + self.config.divergence * divergence
                + self.config.hiding
                * soft_cross_entropy(informer(mean), torch.full_like(classes, 1 / n_classes))
                + self.config.similarity * _apart(seen, [maps.detach() for maps in real])
                - self.config.adversarial * opinion.mean(),
            )
            judge.requires_grad_(True)
            self._follow(step)
            n_done += len(raw)
            sums += len(raw) * np.array([float(l1.detach()) / 2, float(loss.detach())])
            watch(f"epoch {number}", n_done, len(train), float(sums[0] / n_done))
        return float(sums[0] / n_done), float(sums[1] / n_done)

    def _follow(self, step: int) -> None:
        """Move what comes out towards what learns: over the last tenth of the steps, 1,000 at most."""
        share = max(1e-3, 10 / (9 + step))  # of the first step: all
        with torch.no_grad():
            kept, learned = self.network.state_dict(), self.learner.state_dict()
            for name, values in kept.items():
                if values.is_floating_point():
                    values.lerp_(learned[name], share)
                else:
                    values.copy_(learned[name])

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
            "learner": self.learner.state_dict(),
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
            self.learner.load_state_dict(state["learner"])
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
    inputs = {"pictures": torch.zeros(2, 3, size, size), "classes": torch.eye(len(classes))[[0, 0]]}
    model = parse_onnx(to_onnx(_Redraw(network), inputs, "made"))
    entry = model.metadata_props.add()
    entry.key, entry.value = "classes", ",".join(classes)
    data: bytes = model.SerializeToString()
    return data


def _step(optimiser: Any, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()


def _others(classes: Tensor) -> Tensor:
    """Return `(N, K)` one-hot: for each of `(N, K)` another class than its own, any of them alike."""
    n_classes = classes.shape[1]
    steps = torch.randint(1, n_classes, (len(classes),))
    return functional.one_hot((classes.argmax(1) + steps) % n_classes, n_classes).to(classes.dtype)


def _apart(seen: list[Tensor], real: list[Tensor]) -> Tensor:
    """Return how far two lists of maps are apart, as a mean share of the second's size."""
    return torch.stack(
        [(a - b).abs().mean() / b.abs().mean().clamp_min(1e-6) for a, b in zip(seen, real, strict=True)]
    ).mean()
