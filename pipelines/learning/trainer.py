"""Training and testing together: per epoch, with early stopping, and checkpoints that resume exactly.

Everything that decides the result is in `TrainingConfig` and the samples: a run with the same of both, on
the same machine, gives the same network.
"""

import io
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated, Any, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from msgspec import Meta, Struct
from torch import Tensor

from ..cache_files import write_atomically
from ..errors import ModelError
from .metrics import log_loss
from .networks import Network, Seen
from .samples import Samples, require_real
from .trunk_features import Transform, TrunkFeatures, answers, inputs_of, see

F32 = npt.NDArray[np.float32]


class TrainingConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a network is trained."""

    epochs: Annotated[int, Meta(ge=1, le=1000)] = 30
    """Passes over the training samples at most."""
    batch: Annotated[int, Meta(ge=2, le=4096)] = 128
    """Samples in one step."""
    optimiser: Literal["sgd", "adamw"] = "sgd"
    """`sgd`: with Nesterov momentum 0.9. `adamw`: for heads and few samples."""
    rate: Annotated[float, Meta(gt=0, le=10)] = 0.05
    """Highest learning rate; it rises over the first tenth of the steps and then falls to 0 as a cosine."""
    end_rate_factor: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Rate of the stages as a share of the last layers'; below 1 to change an imported network gently."""
    decay: Annotated[float, Meta(ge=0, le=1)] = 5e-4
    """Weight decay."""
    freeze_stages: Annotated[int, Meta(ge=0, le=100)] = 0
    """Stages from the input that stay as they are: only the end part learns."""
    patience: Annotated[int, Meta(ge=1, le=1000)] = 8
    """Epochs without a smaller loss (for an embedding: equal error rate) on the tuning part after which
    training stops."""
    synthetic_weight: Annotated[float, Meta(ge=0, le=1)] = 0.4
    """What a synthetic sample weighs beside a real one: the share of them that an epoch shows."""
    seed: int = 1
    """Of weights, order, dropout and augmentation."""
    threads: Annotated[int, Meta(ge=1, le=256)] = 2
    """Cores."""


class Epoch(Struct, frozen=True, kw_only=True):
    """What one pass over the training samples came to; losses in nats, accuracies in 0..1.

    The last two are what the run's judge says; see `embedder.PairJudge` for an embedding.
    """

    number: int
    train_loss: float
    train_accuracy: float
    tune_loss: float
    tune_accuracy: float
    seconds: float


class Losses(Protocol):
    """What is minimised: a module over logits, features, targets and groups, with its parts by name."""

    def __call__(
        self, logits: Tensor, features: Tensor, targets: Tensor, groups: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum and its parts."""

    def parameters(self) -> Any:
        """Return what is learned beside the network."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return all of it, to be resumed."""

    def load_state_dict(self, state: dict[str, Tensor]) -> Any:
        """Resume."""


Watch = Callable[[str, int, int, float], None]
"""Told within an epoch: what is being done, how many samples are done and of how many, mean loss so far."""


Judge = Callable[[Seen, Samples], tuple[float, float]]
"""From what a network says about N samples, and these, to a figure that is to be small and an accuracy."""


def judge_labels(seen: Seen, samples: Samples) -> tuple[float, float]:
    """Return the log loss against the vote shares, in nats, and the accuracy."""
    return scores_of(seen.logits.numpy(), samples)


@dataclass(frozen=True, slots=True)
class _Steps:
    """What moves on with every batch, and who watches."""

    optimiser: torch.optim.Optimizer
    slope: torch.optim.lr_scheduler.LRScheduler
    watch: Watch


@dataclass(slots=True)
class Run:
    """One training run in `folder`. Owned by the thread that calls `train`."""

    network: Network
    losses: Losses
    augment: Transform | None
    """None: samples are learned from as they are."""
    config: TrainingConfig
    folder: Path
    about: str = ""
    """What else decides the result: data, augmentation, losses. A checkpoint with another is refused."""
    judge: Judge = judge_labels
    """Says which epoch is the best."""

    def train(
        self,
        train: Samples,
        tune: Samples,
        on_epoch: Callable[[Epoch], None] = lambda epoch: None,
        watch: Watch = lambda what, done, total, loss: None,
    ) -> list[Epoch]:
        """Train until `epochs` or patience is used up; leave the network of the best epoch.

        A run that was interrupted goes on where its last whole epoch ended. Where all stages are frozen, what
        they see is computed once, and only the head is run.

        Args:
            train: what is learned from, augmented.
            tune: what chooses the epoch, as it is.
            on_epoch: called after every epoch, also for those of an earlier run that is resumed.
            watch: called after every batch.

        Raises:
            ModelError: the checkpoint in the folder is of another run.
            ValueError: synthetic samples in `tune`, or in `train` some that were made of its groups.
        """
        require_real(tune, "tuning")
        if np.isin(train.groups[train.is_synthetic], tune.groups).any():
            raise ValueError("some synthetic training samples were made of groups of the tuning part")
        torch.set_num_threads(self.config.threads)
        optimiser = self._optimiser()
        n_batches = -(-len(self._order(train, np.random.default_rng(0))) // self.config.batch)
        slope = torch.optim.lr_scheduler.OneCycleLR(
            optimiser,
            [group["lr"] for group in optimiser.param_groups],
            total_steps=self.config.epochs * n_batches,
            pct_start=0.1,
        )
        epochs = self._resume(optimiser, slope)
        for epoch in epochs:
            on_epoch(epoch)
        seen: tuple[TrunkFeatures, TrunkFeatures] | None = None
        while len(epochs) < self.config.epochs and not self._is_hopeless(epochs):
            if seen is None and self.config.freeze_stages >= len(self.network.stages):
                seen = self._see(train, tune, watch)
            number = len(epochs) + 1
            torch.manual_seed(self.config.seed * 10_007 + number)  # each epoch begins alike when resumed
            start = time.perf_counter()
            steps = _Steps(optimiser, slope, watch)
            train_loss, train_accuracy = self._pass(train, seen[0] if seen else None, number, steps)
            said = answers(self.network, seen[1]) if seen else ask(self.network, tune, self.config.batch)
            tune_loss, tune_accuracy = self.judge(said, tune)
            epoch = Epoch(
                number=number,
                train_loss=train_loss,
                train_accuracy=train_accuracy,
                tune_loss=tune_loss,
                tune_accuracy=tune_accuracy,
                seconds=time.perf_counter() - start,
            )
            epochs.append(epoch)
            self._save(optimiser, slope, epochs)
            on_epoch(epoch)
        self.network.load_state_dict(torch.load(self.folder / "best.pt", weights_only=True))
        self.network.eval()
        return epochs

    def _pass(
        self, train: Samples, features: TrunkFeatures | None, number: int, steps: "_Steps"
    ) -> tuple[float, float]:
        """Learn from every sample once; return mean loss and accuracy on what was shown."""
        self.network.train()
        self.network.freeze(self.config.freeze_stages)
        total, n_right, n_shown = 0.0, 0, 0
        for seen, targets, groups in self._shown(train, features, number):
            loss, _ = self.losses(seen.logits, seen.features, targets, groups)
            steps.optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            steps.optimiser.step()
            steps.slope.step()
            total += float(loss.detach()) * len(targets)
            n_right += int((seen.logits.argmax(1) == targets.argmax(1)).sum())
            n_shown += len(targets)
            steps.watch(f"epoch {number}", n_shown, len(train), total / n_shown)
        return total / n_shown, n_right / n_shown

    def _shown(
        self, train: Samples, features: TrunkFeatures | None, number: int
    ) -> Iterator[tuple[Seen, Tensor, Tensor]]:
        """Yield what the network says about each batch, its targets and groups.

        Every real sample once, and a share of the synthetic ones.
        """
        random = np.random.default_rng([self.config.seed, number])
        _, group_of = np.unique(train.groups, return_inverse=True)
        order = self._order(train, random)
        views = random.integers(len(features.maps) if features else 1, size=len(train))
        for rows in np.array_split(order, -(-len(order) // self.config.batch)):
            groups = torch.from_numpy(group_of[rows])
            if features:
                maps, targets = features.show(rows, views)
                yield self.network.head(maps), targets, groups
                continue
            pictures, targets = inputs_of(train.pictures[rows]), torch.from_numpy(train.targets[rows])
            if self.augment:
                pictures, targets = self.augment(pictures, targets)
            yield self.network(pictures), targets, groups

    def _order(self, train: Samples, random: np.random.Generator) -> npt.NDArray[np.int64]:
        order = random.permutation(len(train))
        made = order[train.is_synthetic[order]]
        left_out = made[round(self.config.synthetic_weight * len(made)) :]
        return order[~np.isin(order, left_out)]

    def _see(self, train: Samples, tune: Samples, watch: Watch) -> tuple[TrunkFeatures, TrunkFeatures]:
        """Return what the trunk, all of it frozen, sees of both parts."""
        torch.manual_seed(self.config.seed * 10_007)  # of the augmentation

        def tell(done: int, total: int) -> None:
            watch("trunk features", done, total, math.nan)

        return see(self.network, train, self.augment, tell), see(self.network, tune)

    def _optimiser(self) -> torch.optim.Optimizer:
        early = [p for stage in self.network.stages for p in stage.parameters()]
        ids = {id(p) for p in early}
        late = [p for p in self.network.parameters() if id(p) not in ids]
        late = list(dict.fromkeys([*late, *self.losses.parameters()]))  # an embedder shares its last layer
        groups = [
            {"params": early, "lr": self.config.rate * self.config.end_rate_factor},
            {"params": late, "lr": self.config.rate},
        ]
        if self.config.optimiser == "adamw":
            return torch.optim.AdamW(groups, lr=self.config.rate, weight_decay=self.config.decay)
        return torch.optim.SGD(
            groups, lr=self.config.rate, momentum=0.9, nesterov=True, weight_decay=self.config.decay
        )

    def _is_hopeless(self, epochs: list[Epoch]) -> bool:
        if not epochs:
            return False
        best = min(epochs, key=lambda epoch: epoch.tune_loss)
        return epochs[-1].number - best.number >= self.config.patience

    def _save(self, optimiser: Any, slope: Any, epochs: list[Epoch]) -> None:
        """Write the best network, then the checkpoint, each whole or not at all; then the curves."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if min(epochs, key=lambda epoch: epoch.tune_loss) is epochs[-1]:
            _write_state(self.folder / "best.pt", self.network.state_dict())
        state = {
            "config": msgspec.json.encode(self.config).decode(),
            "about": self.about,
            "epochs": json.dumps(msgspec.to_builtins(epochs)),
            "network": self.network.state_dict(),
            "losses": self.losses.state_dict(),
            "optimiser": optimiser.state_dict(),
            "slope": {k: v for k, v in slope.state_dict().items() if k != "anneal_func"},
        }
        _write_state(self.folder / "checkpoint.pt", state)
        curves = msgspec.json.format(msgspec.json.encode(epochs), indent=1)
        write_atomically(self.folder / "curves.json", curves)

    def _resume(self, optimiser: Any, slope: Any) -> list[Epoch]:
        """Take up the checkpoint of this run, if there is one; return the epochs that are done."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return []
        try:
            state = torch.load(path, weights_only=True)
            config = msgspec.json.decode(state["config"], type=TrainingConfig)
            if config != self.config or state["about"] != self.about:
                raise ModelError(f"{path} is of a run with another configuration; name another folder")
            self.network.load_state_dict(state["network"])
            self.losses.load_state_dict(state["losses"])
            optimiser.load_state_dict(state["optimiser"])
            slope.load_state_dict(state["slope"])
            return msgspec.json.decode(state["epochs"], type=list[Epoch])
        except (RuntimeError, KeyError, ValueError, EOFError, UnpicklingError, msgspec.DecodeError) as error:
            reason = str(error).partition("\n")[0].partition(". ")[0]
            raise ModelError(
                f"{path} is no checkpoint of this run ({reason}); name another folder"
            ) from error


def score(network: Network, samples: Samples, batch: int = 256) -> tuple[float, float]:
    """Return the log loss against the vote shares, in nats, and the accuracy on `samples` as they are.

    Raises:
        ValueError: some of them are synthetic.
    """
    return scores_of(infer(network, samples, batch), samples)


def scores_of(logits: F32, samples: Samples) -> tuple[float, float]:
    """Return the log loss in nats and the accuracy of `(N, K)` logits on `samples`.

    Raises:
        ValueError: some of them are synthetic.
    """
    require_real(samples, "measured")
    return log_loss(logits, samples.targets), float((logits.argmax(1) == samples.labels).mean())


def infer(network: Network, samples: Samples, batch: int = 256) -> F32:
    """Return `(N, K)` logits of `samples` as they are."""
    logits: F32 = ask(network, samples, batch).logits.numpy()
    return logits


def ask(network: Network, samples: Samples, batch: int = 256) -> Seen:
    """Return what `network` says about `samples` as they are."""
    network.eval()
    with torch.no_grad():
        rows = [network(inputs_of(samples.pictures[at : at + batch])) for at in range(0, len(samples), batch)]
    return Seen(torch.cat([seen.logits for seen in rows]), torch.cat([seen.features for seen in rows]))


def _write_state(path: Path, state: Any) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())
