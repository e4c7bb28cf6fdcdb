"""How members are combined: every method on members whose skill is known, and what it needs."""

import re
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest
from visaged.kernels.fusion import probabilities
from visaged.pipelines.ensemble import Outputs
from visaged.pipelines.errors import ConfigError
from visaged.pipelines.fuser import FeatureFusion, Fuser, Group
from visaged.pipelines.learning.combiner import How, fit_combination
from visaged.pipelines.learning.metrics import ACCURACY, Truth

F32 = npt.NDArray[np.float32]


def outputs_of(n: int, seed: int, *skills: float) -> tuple[Outputs, Truth]:
    """Return members that see the truth through noise of their own, in their features and their logits."""
    random = np.random.default_rng(seed)
    targets = np.eye(8, dtype=np.float32)[random.integers(0, 8, n)]
    names = tuple("abc"[: len(skills)])
    logits = np.stack([random.normal(0, 1, (n, 8)) + skill * targets for skill in skills]).astype(np.float32)
    spread = np.random.default_rng(9).normal(0, 1, (8, 20))
    features = {name: np.asarray(part @ spread, np.float32) for name, part in zip(names, logits, strict=True)}
    knows = np.ones((len(skills), 8), bool)
    outputs = Outputs(np.zeros((n, 4), np.float32), logits, knows, names, features)
    return outputs, Truth(targets, np.arange(n).astype(str))


@pytest.mark.parametrize("how", get_args(How))
def test_three_members_together_are_better_than_each_on_faces_that_nothing_was_fitted_on(how: How) -> None:
    tuning, truth = outputs_of(1500, 0, 1.5, 1.7, 1.5)
    fresh, answers = outputs_of(1500, 1, 1.5, 1.7, 1.5)

    found = fit_combination(how, tuning, truth)
    fused = Fuser(found.fusion, found.heads).fuse(fresh).probabilities

    alone = max(ACCURACY(p, answers.targets) for p in probabilities(fresh.logits, fresh.knows))
    assert ACCURACY(fused, answers.targets) > alone + (0 if how == "vote" else 0.05)
    assert bool(found.files) == isinstance(found.fusion, FeatureFusion)


def test_a_member_that_is_guessing_is_hardly_heard() -> None:
    tuning, truth = outputs_of(1500, 0, 2.0, 0.0, 2.0)

    for how in ("accuracy", "select"):
        fusion = fit_combination(how, tuning, truth).fusion
        assert getattr(fusion, "weights")["b"] < 0.2  # noqa: B009
    gates = next(iter(fit_combination("weighted-cascade", tuning, truth).heads.values())).gates
    assert gates[1] < min(gates[0], gates[2]) / 3


def test_a_committee_takes_its_groups() -> None:
    tuning, truth = outputs_of(600, 0, 2.0, 0.0, 2.0)
    group = Group(name="all", parts=(Group(name="first", parts=("a", "b")), "c"))

    fusion = fit_combination("committee", tuning, truth, group).fusion

    shape = r"committee: all \(first \(a 1\.\d\d, b 0\.\d\d\) \d\.\d\d, c \d\.\d\d\)"
    assert re.fullmatch(shape, str(fusion))


def test_features_are_needed_for_a_cascade() -> None:
    tuning, truth = outputs_of(100, 0, 2.0, 2.0)
    bare = Outputs(tuning.embeddings, tuning.logits, tuning.knows, tuning.names, {})

    with pytest.raises(ConfigError, match="these do: none"):
        fit_combination("cascade", bare, truth)
