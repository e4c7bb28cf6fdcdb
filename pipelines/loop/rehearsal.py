"""Teach the end of a network new faces while it rehearses old ones: DER++ on features. A door to torch.

Every step depends on its number, not on what ran before it: so a run that is killed and started again from
its checkpoint ends with the same bits as one that was not.

Source: Buzzega et al., "Dark Experience for General Continual Learning", NeurIPS 2020, eq. 6 (DER++).
"""

import io
import math
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, mse_loss

from ..cache_files import write_atomically
from ..importers.onnx_end import End
from ..learning.losses import LossConfig, WeightedLosses
from ..learning.metrics import log_loss
from .layers import answer, run, tensors
from .replay_memory import Remembered, weighed

F32 = npt.NDArray[np.float32]
Weights = Mapping[str, F32]

PROFILE_STEPS = 20
HOPELESS, UNMOVED = 1.25, 1e-4  # tuning loss after `PROFILE_STEPS`, as a factor of and in nats from the first
STILL = "the loss on tuning faces does not move"
WORSE = "the loss on tuning faces grows"
UNHELPED = "no look at the tuning faces was better than the first"


@dataclass(frozen=True, slots=True)
class Schedule:
    """How an end is taught. `replay` and `logits` weigh memory against the new faces, as in the paper.

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
    """What an end is taught from; any but `new` may be empty.

    Without `memory` nothing holds the end to what it knew; `restyled` is memory as it looks at the site
    (`style.in_style_of`); without `tune` every look is as good as the last. `shares` `(K,)` is how often
    each class of the memory is rehearsed, empty: as often as it is there. Flags are of mistakes, and hardly
    ever of the commonest class: without it the end forgets that it is common.
    """

    new: Remembered
    memory: Remembered
    restyled: Remembered
    tune: Remembered
    shares: F32


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
    """What came of it: the weights of the best look at the tuning faces, or those before, and why."""

    weights: Weights
    n_steps: int
    abandoned: str = ""


def rehearse(
    end: End,
    begin: Weights,
    curriculum: Curriculum,
    schedule: Schedule,
    checkpoint: Path,
    go_on: Callable[[Step], bool],
) -> Taught | None:
    """Return the end taught from the weights `begin`; None when `go_on` stopped it after a checkpoint.

    Args:
        end: of the champion; what it says of the memory is what must not be forgotten.
        begin: where to begin, by name; for those that are not there, as the champion.
        curriculum: from what.
        schedule: how.
        checkpoint: file that keeps the state between steps, and what came of it: asked again, it is there.
        go_on: asked after every step; False stops.
    """
    torch.set_num_threads(1)
    lesson = _Rehearsal(end, begin, curriculum, schedule)
    lesson.load(checkpoint)
    begun_s, begun_at = time.monotonic(), lesson.step
    while lesson.step < schedule.max_steps and not lesson.abandoned:
        loss = lesson.learn()
        is_look = lesson.step % schedule.check_every == 0 or lesson.step in (
            PROFILE_STEPS,
            schedule.max_steps,
        )
        if is_look:
            lesson.look()
        per_step_s = (time.monotonic() - begun_s) / (lesson.step - begun_at)
        left_s = per_step_s * (schedule.max_steps - lesson.step)
        may_go_on = go_on(Step(lesson.step, schedule.max_steps, loss, lesson.tuning_loss, left_s))
        if is_look or not may_go_on:
            lesson.save(checkpoint)
        if not may_go_on:
            return None
    why = lesson.abandoned or ("" if lesson.is_better else UNHELPED)
    return Taught({**end.weights, **begin} if why else lesson.best(), lesson.step, why)


class _Scale:
    """Moves features that a dense layer reads to one scale, as AdamW likes them; maps stay as they are."""

    def __init__(self, end: End, *seen: Remembered) -> None:
        self._first = end.nodes[0]
        self._is_dense = end.is_dense
        self._mean: F32 = np.zeros(1, np.float32)
        self._spread: F32 = np.ones(1, np.float32)
        if end.is_dense:
            features = np.concatenate([faces.features for faces in seen]).astype(np.float32)
            self._mean, self._spread = features.mean(axis=0), features.std(axis=0) + np.float32(1e-3)

    def of(self, faces: Remembered) -> Tensor:
        """Return the features of faces in that scale."""
        return torch.from_numpy((faces.features.astype(np.float32) - self._mean) / self._spread)

    def unfold(self, weights: Weights) -> dict[str, F32]:
        """Return weights for features in that scale."""
        return self._changed(weights, lambda w, b: (w * self._spread[:, None], b + self._mean @ w))

    def fold(self, weights: Weights) -> dict[str, F32]:
        """Return weights for features as they are."""

        def folded(w: F32, b: F32) -> tuple[F32, F32]:
            raw = w / self._spread[:, None]
            return raw, b - self._mean @ raw

        return self._changed(weights, folded)

    def _changed(self, weights: Weights, change: Callable[[F32, F32], tuple[F32, F32]]) -> dict[str, F32]:
        """Return the weights with those of the first layer changed, `(F, U)` and `(U,)`."""
        if not self._is_dense:
            return dict(weights)
        is_turned = bool(self._first.attributes.get("transB"))
        _, name, bias = self._first.inputs
        new, new_bias = change(weights[name].T if is_turned else weights[name], weights[bias])
        return {**weights, name: new.T if is_turned else new, bias: new_bias}


class _Rehearsal:
    """The end under training, its average, and the best average so far. Owned by `rehearse`."""

    def __init__(self, end: End, begin: Weights, curriculum: Curriculum, schedule: Schedule) -> None:
        self._end, self._schedule = end, schedule
        self._new, self._memory = curriculum.new, curriculum.memory
        self._restyled, tune = curriculum.restyled, curriculum.tune
        odds = weighed(self._memory, curriculum.shares) if curriculum.shares.size else np.zeros(0, np.float32)
        self._odds = odds.astype(np.float64) / odds.sum(dtype=np.float64) if odds.any() else None
        _, self._group_of_new = np.unique(self._new.groups, return_inverse=True)
        self._scale = _Scale(end, self._new, self._memory)
        self._tune, self._tune_targets = self._scale.of(tune).numpy(), tune.targets
        # what the champion says of what it must not forget: the dark knowledge of the paper
        self._memory_logits, hidden = answer(end, tensors(end.weights), self._memory.features)
        started = tensors(self._scale.unfold({**end.weights, **begin}))
        self._weights = {name: nn.Parameter(values) for name, values in started.items()}
        self._average = {name: values.clone() for name, values in started.items()}
        self._best = {name: values.clone() for name, values in started.items()}
        torch.manual_seed(schedule.seed)  # centres begin at random
        counts = self._new.targets.sum(axis=0).tolist()
        self._losses = WeightedLosses(schedule.losses, len(counts), hidden.shape[1], counts)
        self._optimiser = torch.optim.AdamW(
            [*self._weights.values(), *self._losses.parameters()],
            lr=schedule.rate,
            weight_decay=schedule.decay,
        )
        self.step, self.is_better, self.abandoned = 0, False, ""
        self.first_loss = self.tuning_loss = self.best_loss = self._loss_of(self._weights)

    def learn(self) -> float:
        """Take one step; return its loss."""
        schedule = self._schedule
        random = np.random.default_rng([schedule.seed, self.step])
        torch.manual_seed(schedule.seed * 1_000_003 + self.step)
        rows = random.integers(0, len(self._new), schedule.batch)
        logits, hidden = self._run(new := self._new.take(rows))
        groups = torch.from_numpy(self._group_of_new[rows])
        loss, _ = self._losses(logits, hidden, torch.from_numpy(new.targets), groups)
        if len(self._memory):
            rows, dark = random.choice(len(self._memory), (2, schedule.batch), p=self._odds)
            loss = loss + schedule.replay * self._replayed(self._memory.take(rows))
            before = torch.from_numpy(self._memory_logits[dark])
            loss = loss + schedule.logits * mse_loss(self._run(self._memory.take(dark))[0], before)
        if len(self._restyled) and schedule.restyled:
            rows = random.integers(0, len(self._restyled), schedule.batch)
            loss = loss + schedule.restyled * self._replayed(self._restyled.take(rows))
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()
        with torch.no_grad():
            for name, average in self._average.items():
                average.lerp_(self._weights[name], 1 - schedule.ema)
        self.step += 1
        return float(loss.detach())

    def look(self) -> None:
        """Measure the end and its average on the tuning faces; keep the average if it is the best.

        After the first few steps, say in `abandoned` when it is not worth going on.
        """
        self.tuning_loss = self._loss_of(self._weights)
        if self.step == PROFILE_STEPS and len(self._tune):
            if self.tuning_loss > HOPELESS * self.first_loss:
                change = f"from {self.first_loss:.3f} to {self.tuning_loss:.3f}"
                self.abandoned = f"{WORSE}, {change} in {PROFILE_STEPS} steps"
            elif abs(self.tuning_loss - self.first_loss) < UNMOVED:
                self.abandoned = STILL
        loss = self._loss_of(self._average)
        if not math.isnan(loss) and loss >= self.best_loss:
            return
        self.best_loss, self.is_better = loss, True
        self._best = {name: values.clone() for name, values in self._average.items()}

    def best(self) -> dict[str, F32]:
        """Return the best average as weights on raw features."""
        return self._scale.fold({name: values.numpy().copy() for name, values in self._best.items()})

    def save(self, path: Path) -> None:
        """Keep the state, whole or not at all."""
        state = {
            "step": self.step,
            "is_better": self.is_better,
            "abandoned": self.abandoned,
            "losses": [self.first_loss, self.tuning_loss, self.best_loss],
            "weights": {name: values.detach() for name, values in self._weights.items()},
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
        self.step, self.is_better, self.abandoned = state["step"], state["is_better"], state["abandoned"]
        self.first_loss, self.tuning_loss, self.best_loss = state["losses"]
        with torch.no_grad():
            for name, weights in self._weights.items():
                weights.copy_(state["weights"][name])
        self._average, self._best = state["average"], state["best"]
        self._losses.load_state_dict(state["losses_state"])
        self._optimiser.load_state_dict(state["optimiser"])

    def _run(self, faces: Remembered) -> tuple[Tensor, Tensor]:
        """Return logits, and what the last layer reads, of faces of whose features some are dropped."""
        return run(self._end, self._weights, dropout(self._scale.of(faces), self._schedule.input_dropout))

    def _replayed(self, faces: Remembered) -> Tensor:
        return cross_entropy(self._run(faces)[0], torch.from_numpy(faces.targets))

    def _loss_of(self, weights: Mapping[str, Tensor]) -> float:
        if not len(self._tune):
            return math.nan
        logits, _ = answer(self._end, weights, self._tune)
        return log_loss(logits, self._tune_targets)
