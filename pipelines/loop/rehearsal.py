"""Teach an emotion head new faces while it rehearses old ones: DER++ on features. A door to torch.

Every step depends on its number, not on what ran before it: so a run that is killed and started again from
its checkpoint ends with the same bits as one that was not.

Source: Buzzega et al., "Dark Experience for General Continual Learning", NeurIPS 2020, eq. 6 (DER++).
"""

import io
import math
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, mse_loss

from ..cache_files import write_atomically
from ..importers.emotion_head import EmotionHead
from ..importers.onnx_head import Layers
from ..learning.losses import LossConfig, WeightedLosses
from ..learning.metrics import log_loss
from .replay_memory import Remembered

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

PROFILE_STEPS = 20
HOPELESS, UNMOVED = 1.25, 1e-4  # tuning loss after `PROFILE_STEPS`, as a factor of and in nats from the first
STILL = "the loss on tuning faces does not move"
WORSE = "the loss on tuning faces grows"
UNHELPED = "no look at the tuning faces was better than the first"


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a head is taught. `replay` and `logits` weigh memory against the new faces, as in the paper.

    `losses` are those on new faces; `restyled` weighs the memory that was moved to where these are.
    """

    max_steps: int = 200
    batch: int = 32
    rate: float = 3e-4
    decay: float = 0.01
    input_dropout: float = 0.2
    losses: tuple[LossConfig, ...] = (LossConfig(kind="cross_entropy"),)
    replay: float = 0.5
    logits: float = 0.5
    restyled: float = 1.0
    ema: float = 0.99
    seed: int = 1
    check_every: int = 20  # steps between checkpoints and looks at the tuning faces


@dataclass(frozen=True, slots=True)
class Curriculum:
    """What a head is taught from; any but `new` may be empty.

    Without `memory` nothing holds the head to what it knew; `restyled` is memory as it looks at the site
    (`style.in_style_of`); without `tune` every look is as good as the last.
    """

    new: Remembered
    memory: Remembered
    restyled: Remembered
    tune: Remembered


@dataclass(frozen=True, slots=True)
class Step:
    """Where the teaching is: losses in nats, the tuning loss NaN without tuning faces."""

    step: int
    n_steps: int
    loss: float
    tuning_loss: float
    eta_s: float


@dataclass(frozen=True, slots=True)
class Taught:
    """What came of it: the head of the best look at the tuning faces, or why it was given up."""

    layers: Layers
    n_steps: int
    abandoned: str = ""


def rehearse(
    layers: Layers,
    curriculum: Curriculum,
    schedule: Schedule,
    checkpoint: Path,
    go_on: Callable[[Step], bool],
) -> Taught | None:
    """Return the head taught from where `layers` is; None when `go_on` stopped it after a checkpoint.

    Args:
        layers: of the champion.
        curriculum: from what.
        schedule: how.
        checkpoint: file that keeps the state between steps; removed at the end.
        go_on: asked after every step; False stops.
    """
    pupil = _Pupil(layers, curriculum, schedule)
    pupil.load(checkpoint)
    begun_s, begun_at = time.monotonic(), pupil.step
    torch.set_num_threads(1)
    while pupil.step < schedule.max_steps:
        loss = pupil.learn()
        is_look = pupil.step % schedule.check_every == 0 or pupil.step == schedule.max_steps
        if is_look:
            pupil.look()
        per_step_s = (time.monotonic() - begun_s) / (pupil.step - begun_at)
        left_s = per_step_s * (schedule.max_steps - pupil.step)
        if why := pupil.hopeless():
            checkpoint.unlink(missing_ok=True)
            return Taught(layers, pupil.step, why)
        may_go_on = go_on(Step(pupil.step, schedule.max_steps, loss, pupil.tuning_loss, left_s))
        if is_look or not may_go_on:
            pupil.save(checkpoint)
        if not may_go_on:
            return None
    checkpoint.unlink(missing_ok=True)
    return Taught(pupil.best(), pupil.step, "" if pupil.is_better else UNHELPED)


class _Pupil:
    """The head under training, its average, and the best average so far. Owned by `rehearse`."""

    def __init__(self, layers: Layers, curriculum: Curriculum, schedule: Schedule) -> None:
        self._new, self._memory = curriculum.new, curriculum.memory
        self._restyled, self._tune = curriculum.restyled, curriculum.tune
        self._schedule = schedule
        _, self._group_of_new = np.unique(self._new.groups, return_inverse=True)
        seen = np.concatenate([self._new.features, self._memory.features])
        self._mean, self._spread = seen.mean(axis=0), seen.std(axis=0) + np.float32(1e-3)
        # what the champion says of what it must not forget: the dark knowledge of the paper
        self._memory_logits = EmotionHead((), layers, ()).logits(self._memory.features)
        self._weights = [nn.Parameter(torch.from_numpy(values)) for values in self._unfold(layers)]
        self._average = [w.detach().clone() for w in self._weights]
        self._best = [w.detach().clone() for w in self._weights]
        torch.manual_seed(schedule.seed)  # centres begin at random
        n_features, n_classes = layers[-1][0].shape
        self._losses = WeightedLosses(
            schedule.losses, n_classes, n_features, self._new.targets.sum(axis=0).tolist()
        )
        self._optimiser = torch.optim.AdamW(
            [*self._weights, *self._losses.parameters()], lr=schedule.rate, weight_decay=schedule.decay
        )
        self.step, self.is_better = 0, False
        self.first_loss = self.tuning_loss = self.best_loss = self._loss_of(self._weights)

    def learn(self) -> float:
        """Take one step; return its loss."""
        schedule = self._schedule
        random = np.random.default_rng([schedule.seed, self.step])
        torch.manual_seed(schedule.seed * 1_000_003 + self.step)
        rows = random.integers(0, len(self._new), schedule.batch)
        logits, hidden = self._run(self._new.features[rows])
        targets, groups = torch.from_numpy(self._new.targets[rows]), self._group_of_new[rows]
        loss, _ = self._losses(logits, hidden, targets, torch.from_numpy(groups))
        if len(self._memory):
            rows, dark = random.integers(0, len(self._memory), (2, schedule.batch))
            loss = loss + schedule.replay * self._replayed(self._memory.take(rows))
            before = torch.from_numpy(self._memory_logits[dark])
            loss = loss + schedule.logits * mse_loss(self._run(self._memory.features[dark])[0], before)
        if len(self._restyled) and schedule.restyled:
            rows = random.integers(0, len(self._restyled), schedule.batch)
            loss = loss + schedule.restyled * self._replayed(self._restyled.take(rows))
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()
        with torch.no_grad():
            for average, weights in zip(self._average, self._weights, strict=True):
                average.lerp_(weights, 1 - schedule.ema)
        self.step += 1
        return float(loss.detach())

    def look(self) -> None:
        """Measure the head and its average on the tuning faces, and keep the average if it is the best."""
        self.tuning_loss = self._loss_of(self._weights)
        loss = self._loss_of(self._average)
        if not math.isnan(loss) and loss >= self.best_loss:
            return
        self.best_loss, self.is_better = loss, True
        self._best = [w.clone() for w in self._average]

    def hopeless(self) -> str:
        """Return why it is not worth going on, known after the first few steps; else ""."""
        if self.step != PROFILE_STEPS or not len(self._tune):
            return ""
        loss = self._loss_of(self._weights)
        if loss > HOPELESS * self.first_loss:
            return f"{WORSE}, from {self.first_loss:.3f} to {loss:.3f} in {PROFILE_STEPS} steps"
        return STILL if abs(loss - self.first_loss) < UNMOVED else ""

    def best(self) -> Layers:
        """Return the best average as layers on raw features."""
        return self._fold(self._best)

    def save(self, path: Path) -> None:
        """Keep the state, whole or not at all."""
        state = {
            "step": self.step,
            "is_better": self.is_better,
            "losses": [self.first_loss, self.tuning_loss, self.best_loss],
            "weights": [w.detach() for w in self._weights],
            "average": self._average,
            "best": self._best,
            "losses_state": self._losses.state_dict(),
            "optimiser": self._optimiser.state_dict(),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(path, buffer.getvalue(), 0o600)

    def load(self, path: Path) -> None:
        """Go on from the state in `path`, where there is one that can be read."""
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
            return
        self.step, self.is_better = state["step"], state["is_better"]
        self.first_loss, self.tuning_loss, self.best_loss = state["losses"]
        with torch.no_grad():
            for weights, kept in zip(self._weights, state["weights"], strict=True):
                weights.copy_(kept)
        self._average, self._best = state["average"], state["best"]
        self._losses.load_state_dict(state["losses_state"])
        self._optimiser.load_state_dict(state["optimiser"])

    def _run(self, features: F32) -> tuple[Tensor, Tensor]:
        """Return logits, and what the last layer reads, of raw features, some of which are dropped."""
        scaled = torch.from_numpy((features - self._mean) / self._spread)
        values = hidden = dropout(scaled, self._schedule.input_dropout)
        for index in range(0, len(self._weights), 2):
            hidden = torch.relu(values) if index else values
            values = hidden @ self._weights[index] + self._weights[index + 1]
        return values, hidden

    def _replayed(self, faces: Remembered) -> Tensor:
        return cross_entropy(self._run(faces.features)[0], torch.from_numpy(faces.targets))

    def _loss_of(self, weights: list[Any]) -> float:
        if not len(self._tune):
            return math.nan
        logits = EmotionHead((), self._fold(weights), ()).logits(self._tune.features)
        return log_loss(logits, self._tune.targets)

    def _unfold(self, layers: Layers) -> list[F32]:
        """Return weights and biases for standardised features: all of one scale, as AdamW likes them."""
        (weights, bias), *rest = layers
        first = (weights * self._spread[:, None], bias + self._mean @ weights)
        return [np.array(values, np.float32) for layer in (first, *rest) for values in layer]

    def _fold(self, tensors: list[Any]) -> Layers:
        values: list[F32] = [tensor.detach().numpy().copy() for tensor in tensors]
        weights = values[0] / self._spread[:, None]
        values[:2] = weights, values[1] - self._mean @ weights
        return tuple(zip(values[::2], values[1::2], strict=True))
