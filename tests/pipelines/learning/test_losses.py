"""Losses: against values a person can check, against autograd, and for what each is there to do."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pytest
from visaged.pipelines.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import SGD

torch = pytest.importorskip("torch", reason="torch is not installed (extra `learn`)")
pytestmark = pytest.mark.torch

from visaged.pipelines.learning.losses import (  # noqa: E402
    KINDS,
    AngularMargin,
    Batch,
    CentreLoss,
    LossConfig,
    WeightedLosses,
    balanced_weights,
    centre_change,
    closeness,
    generalised_cross_entropy,
    parse_losses,
    soft_cross_entropy,
)

N, K, D = 24, 4, 6
ALL = parse_losses(
    [
        {"kind": "cross_entropy", "smoothing": 0.05, "balance": 0.9},
        {"kind": "generalised_cross_entropy", "weight": 0.5},
        {"kind": "centre", "weight": 0.25},
        {"kind": "island", "weight": 0.01},
        {"kind": "tuplet_clusters", "weight": 2.0},
        {"kind": "arcface", "weight": 0.125, "scale": 8.0},
    ]
)


@pytest.fixture(autouse=True)
def _one_core() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def random_batch(seed: int = 0) -> Batch:
    source = torch.Generator().manual_seed(seed)
    shares = torch.rand(N, K, generator=source).softmax(1)
    return Batch(
        torch.randn(N, K, generator=source),
        torch.randn(N, D, generator=source),
        shares,
        torch.randint(0, 5, (N,), generator=source),
    )


def batch_of(features: Sequence[Sequence[float]], labels: Sequence[int], n_classes: int = 2) -> Batch:
    targets = torch.eye(n_classes)[torch.tensor(labels)]
    rows = torch.tensor(features, dtype=torch.float32)
    return Batch(torch.zeros_like(targets), rows, targets, torch.arange(len(labels)))


def test_every_kind_is_covered_here() -> None:
    assert {config.kind for config in ALL} == set(KINDS)


def test_cross_entropy_with_shares_has_the_value_a_person_computes() -> None:
    logits = torch.tensor([[0.0, np.log(3.0)]])  # probabilities 1/4 and 3/4

    half = soft_cross_entropy(logits, torch.tensor([[0.5, 0.5]]))
    smoothed = soft_cross_entropy(logits, torch.tensor([[1.0, 0.0]]), smoothing=0.2)  # 0.9 and 0.1
    weighted = soft_cross_entropy(logits, torch.tensor([[0.5, 0.5]]), class_weights=torch.tensor([2.0, 0.0]))

    assert float(half) == pytest.approx(-0.5 * np.log(0.25) - 0.5 * np.log(0.75))
    assert float(smoothed) == pytest.approx(-0.9 * np.log(0.25) - 0.1 * np.log(0.75))
    assert float(weighted) == pytest.approx(-np.log(0.25))


def test_cross_entropy_with_one_hot_shares_is_the_usual_one() -> None:
    logits, labels = torch.randn(N, K), torch.randint(0, K, (N,))

    ours = soft_cross_entropy(logits, torch.eye(K)[labels], smoothing=0.1)

    theirs = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)


def test_rare_classes_weigh_more_and_absent_ones_nothing_special() -> None:
    weights = balanced_weights([1, 3, 0], balance=0.5)  # 0.5 / 0.5 and 0.5 / 0.875, then mean 1

    assert weights.tolist() == pytest.approx([1 / (5.5 / 7), (4 / 7) / (5.5 / 7), 1.0])
    assert balanced_weights([10, 1000], balance=0.0).tolist() == [1.0, 1.0]


def test_generalised_cross_entropy_lies_between_cross_entropy_and_the_absolute_error() -> None:
    logits = torch.tensor([[0.0, np.log(3.0)]], dtype=torch.float64)
    wrong = torch.tensor([[1.0, 0.0]], dtype=torch.float64)

    assert float(generalised_cross_entropy(logits, wrong, q=1.0)) == pytest.approx(1 - 0.25)
    assert float(generalised_cross_entropy(logits, wrong, q=0.5)) == pytest.approx((1 - 0.5) / 0.5)
    assert float(generalised_cross_entropy(logits, wrong, q=1e-6)) == pytest.approx(-np.log(0.25), rel=1e-5)


def test_generalised_cross_entropy_is_pulled_less_by_a_label_that_looks_wrong() -> None:
    logits = torch.tensor([[0.0, 6.0]], requires_grad=True)
    wrong = torch.tensor([[1.0, 0.0]])

    (robust,) = torch.autograd.grad(generalised_cross_entropy(logits, wrong), logits)
    (plain,) = torch.autograd.grad(soft_cross_entropy(logits, wrong), logits)

    assert float(robust.norm()) < 0.05 * float(plain.norm())


def test_a_centre_moves_by_half_the_rule_of_the_paper() -> None:
    loss = CentreLoss(2, 2, alpha=0.5)
    loss.centres = torch.tensor([[0.0, 0.0], [5.0, 5.0]])

    value = loss(batch_of([[1, 0], [3, 0]], [0, 0]))

    assert float(value) == pytest.approx((1 + 9) / 2 / 2)  # at the centres as they were
    # ((0 - 1) + (0 - 3)) / (1 + 2) = -4/3, half of it; class 1 is not in the batch
    assert loss.centres.tolist() == [pytest.approx([2 / 3, 0]), [5.0, 5.0]]


def test_islands_turn_away_from_each_other_by_the_rule_of_the_paper() -> None:
    centres = torch.tensor([[1.0, 0.0], [1.0, 1.0]])

    change = centre_change(centres, torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), apart=10.0)

    # c1 / (|c1| |c0|) - (c1 . c0) c0 / (|c1| |c0|^3) = (1, 1) / sqrt 2 - (1, 0) / sqrt 2
    assert change[0].tolist() == pytest.approx([0, 10 / np.sqrt(2)], abs=1e-5)
    # (1, 0) / sqrt 2 - (1, 1) / (2 sqrt 2)
    assert change[1].tolist() == pytest.approx([10 / 2**1.5, -10 / 2**1.5], abs=1e-5)
    assert float(closeness(centres)) == pytest.approx(2 * (1 + 1 / np.sqrt(2)))


def test_the_rules_of_the_centres_agree_with_autograd() -> None:
    centres = torch.randn(K, D, dtype=torch.float64, requires_grad=True)
    features, labels = torch.randn(N, D, dtype=torch.float64), torch.arange(N) % (K - 1)  # one class absent
    n_each = torch.bincount(labels, minlength=K)[:, None]

    (near,) = torch.autograd.grad((features - centres[labels]).square().sum() / 2, centres)
    (apart,) = torch.autograd.grad(closeness(centres), centres)
    expected = near / (1 + n_each) + 3.0 / (K - 1) * apart / 2

    assert torch.allclose(centre_change(centres.detach(), features, labels, 3.0), expected, atol=1e-12)


def test_centres_move_once_a_call_and_only_while_training() -> None:
    losses = WeightedLosses(ALL, K, D, counts=[1, 2, 3, 4])
    centres = losses.get_buffer("losses.island.centres").clone()

    losses.eval()(*random_batch())
    assert torch.equal(losses.get_buffer("losses.island.centres"), centres)
    losses.train()(*random_batch())
    assert not torch.equal(losses.get_buffer("losses.island.centres"), centres)

    names = {name for name, _ in losses.named_parameters()}  # an optimiser must not move them as well
    assert names == {"losses.arcface.weights", "losses.tuplet_clusters.reference"}


def train_on_toy(configs: Sequence[LossConfig]) -> float:
    """Train a linear map to features and a linear layer after it; return the mean cosine of class centres."""
    torch.manual_seed(1)
    labels = torch.arange(90) % 3
    inputs = torch.randn(90, 8) * 0.5 + 2.0  # all in about one direction
    inputs[torch.arange(90), labels] += 2.0
    to_features, to_logits = torch.randn(8, D) / 3, torch.randn(D, 3) / 3
    losses = WeightedLosses(configs, 3, D)
    for _ in range(150):
        weights = [to_features.requires_grad_(), to_logits.requires_grad_()]
        features = inputs @ to_features
        total, _ = losses(features @ to_logits, features, torch.eye(3)[labels], torch.arange(90))
        slopes = torch.autograd.grad(total, weights)
        to_features, to_logits = (w.detach() - 0.02 * s for w, s in zip(weights, slopes, strict=True))
    features = inputs @ to_features
    assert float(((features @ to_logits).argmax(1) == labels).float().mean()) > 0.95
    centres = torch.stack([features[labels == k].mean(0) for k in range(3)])
    return float(closeness(centres)) / 6 - 1


def test_island_loss_spreads_the_classes_over_more_directions() -> None:
    entropy = LossConfig(kind="cross_entropy")

    without = train_on_toy([entropy])
    centre = train_on_toy([entropy, LossConfig(kind="centre", weight=0.1)])
    island = train_on_toy([entropy, LossConfig(kind="island", weight=0.1)])

    assert island < min(without, centre) - 0.3


def test_without_a_margin_arcface_is_softmax_of_cosines() -> None:
    batch = random_batch()
    loss = AngularMargin(K, D, margin=0.0, scale=8.0)

    value = loss(batch)

    unit = torch.nn.functional.normalize
    cosines = unit(batch.features) @ unit(loss.weights.detach()).T
    assert float(value.detach()) == pytest.approx(
        float(soft_cross_entropy(8 * cosines, batch.targets)), rel=1e-5
    )


def arcface_at(degrees: float, margin: float, easy_margin: bool = False) -> float:
    """Return the loss of a sample so far from its class, whose only rival is at a right angle to both."""
    loss = AngularMargin(2, 3, margin=margin, scale=2.0, easy_margin=easy_margin)
    with torch.no_grad():
        loss.weights.copy_(torch.tensor([[2.0, 0, 0], [0, 0, 3]]))
    angle = np.radians(degrees)
    return float(loss(batch_of([[5 * np.cos(angle), 5 * np.sin(angle), 0]], [0])).detach())


def test_the_margin_of_arcface_is_added_to_the_angle() -> None:
    assert arcface_at(40, margin=np.radians(30)) == pytest.approx(arcface_at(70, margin=0), rel=1e-5)
    assert arcface_at(40, margin=0) == pytest.approx(
        np.log(1 + np.exp(-2 * np.cos(np.radians(40)))), rel=1e-5
    )


def test_arcface_falls_all_the_way_to_the_class_also_where_the_margin_passes_the_far_side() -> None:
    losses = [arcface_at(degrees, margin=0.5) for degrees in range(179, 0, -2)]

    assert (np.diff(losses) < 0).all()


def test_the_easy_margin_leaves_samples_alone_that_are_far_from_their_class() -> None:
    assert arcface_at(100, 0.5, easy_margin=True) == pytest.approx(arcface_at(100, 0.0))
    assert arcface_at(80, 0.5, easy_margin=True) == pytest.approx(arcface_at(80, 0.5))
    assert arcface_at(80, 0.5) > arcface_at(80, 0.0) + 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradients_of_every_loss_are_right(kind: str) -> None:
    losses = WeightedLosses([LossConfig(kind=kind)], K, D).double().eval()
    batch = random_batch()
    inputs = batch.logits.double().requires_grad_(), batch.features.double().requires_grad_()

    def total(logits: "Tensor", features: "Tensor") -> "Tensor":
        value: Tensor = losses(logits, features, batch.targets.double(), batch.groups)[0]
        return value

    assert torch.autograd.gradcheck(total, inputs)
    slopes = torch.autograd.grad(total(*inputs), inputs, allow_unused=True, materialize_grads=True)
    assert any(float(slope.abs().max()) > 1e-4 for slope in slopes)


def test_the_parts_are_for_reading_and_the_total_is_for_learning() -> None:
    total, parts = WeightedLosses(parse_losses([{"kind": "arcface"}]), K, D)(*random_batch())

    assert total.requires_grad
    assert not parts["arcface"].requires_grad


def test_the_total_is_the_weighted_sum_of_the_parts() -> None:
    losses = WeightedLosses(ALL, K, D, counts=[1, 2, 3, 4]).eval()

    with torch.no_grad():
        total, parts = losses(*random_batch())

    assert set(parts) == set(KINDS)
    assert all(float(part) > 0 for part in parts.values())
    weights = {config.kind: config.weight for config in ALL}
    assert float(total) == pytest.approx(sum(weights[kind] * float(parts[kind]) for kind in KINDS), rel=1e-6)
    alone, _ = WeightedLosses(ALL[:1], K, D, counts=[1, 2, 3, 4])(*random_batch())
    assert float(alone) == pytest.approx(float(parts["cross_entropy"]))


def test_the_settings_reach_the_losses() -> None:
    batch = random_batch()

    _, parts = WeightedLosses(ALL, K, D, counts=[1, 2, 3, 40])(*batch)
    _, tuned = WeightedLosses(parse_losses([{"kind": "generalised_cross_entropy", "q": 0.3}]), K, D)(*batch)

    weights = balanced_weights([1, 2, 3, 40], 0.9)
    entropy = soft_cross_entropy(batch.logits, batch.targets, 0.05, weights)
    assert float(parts["cross_entropy"]) == pytest.approx(float(entropy))
    robust = generalised_cross_entropy(batch.logits, batch.targets, 0.3)
    assert float(tuned["generalised_cross_entropy"]) == pytest.approx(float(robust))


def test_a_resumed_run_takes_exactly_the_next_step() -> None:
    def begin(seed: int) -> tuple[WeightedLosses, "SGD"]:
        torch.manual_seed(seed)
        losses = WeightedLosses(ALL, K, D, counts=[1, 2, 3, 4])
        return losses, torch.optim.SGD(losses.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)

    def step(losses: WeightedLosses, optimiser: "SGD", number: int) -> dict[str, float]:
        total, parts = losses(*random_batch(number))
        parameters = list(losses.parameters())
        for parameter, slope in zip(parameters, torch.autograd.grad(total, parameters), strict=True):
            parameter.grad = slope
        optimiser.step()
        return {kind: float(part) for kind, part in parts.items()}

    losses, optimiser = begin(1)
    for number in range(3):
        step(losses, optimiser, number)
    saved = io.BytesIO()
    torch.save({"losses": losses.state_dict(), "optimiser": optimiser.state_dict()}, saved)
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    expected = [step(losses, optimiser, number) for number in (3, 4)]

    other, other_optimiser = begin(2)
    forgetful, forgetful_optimiser = begin(2)
    other.load_state_dict(state["losses"])
    other_optimiser.load_state_dict(state["optimiser"])

    assert [step(other, other_optimiser, number) for number in (3, 4)] == expected
    assert step(forgetful, forgetful_optimiser, 3) != expected[0]
    for name, tensor in losses.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_an_unknown_kind_names_those_that_there_are() -> None:
    with pytest.raises(
        ConfigError, match=r"no loss 'islnd'; known: cross_entropy, .*centre, island, .*arcface"
    ):
        parse_losses([{"kind": "cross_entropy"}, {"kind": "islnd", "weight": 0.01}])


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"kind": "centre", "margin": 0.3}, "margin is no setting of the loss 'centre'"),
        ({"kind": "centre", "wieght": 0.3}, "unknown field `wieght`"),
        ({"kind": "centre", "alpha": 1.5}, "<= 1.0"),
        ({"kind": "island", "weight": -1}, ">= 0.0"),
        ({"weight": 1}, "missing required field `kind`"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused(row: dict[str, object], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        parse_losses([row])


def test_a_sum_that_makes_no_sense_is_refused() -> None:
    entropy = LossConfig(kind="cross_entropy")

    with pytest.raises(ConfigError, match="no loss to minimise"):
        WeightedLosses([], K, D)
    with pytest.raises(ConfigError, match="'cross_entropy' comes twice"):
        WeightedLosses([entropy, LossConfig(kind="centre"), entropy], K, D)
    with pytest.raises(ValueError, match="one count per class"):
        WeightedLosses([LossConfig(kind="cross_entropy", balance=0.9)], K, D)
    with pytest.raises(ValueError, match="n_classes=1"):
        WeightedLosses([entropy], 1, D)
    with pytest.raises(ValueError, match=r"targets\.shape"):
        WeightedLosses([entropy], K, D)(*random_batch()._replace(targets=torch.ones(N, K + 1)))
