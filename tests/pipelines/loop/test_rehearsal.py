"""Teaching the head: it learns the site, keeps what it knew because of its memory, and survives a kill."""

import os
import signal
import time
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from visaged.pipelines.importers.onnx_end import End
from visaged.pipelines.loop.label_noise import find_suspects
from visaged.pipelines.loop.style import in_style_of

from tests.pipelines.loop.learning_world import (
    N_CLASSES,
    N_FEATURES,
    N_HIDDEN,
    accuracy,
    dense_end,
    mislabelled,
    nothing,
    remembered,
    softened,
    two_places,
)

torch = pytest.importorskip("torch", reason="torch is not installed (extra `learn`)")
pytestmark = pytest.mark.torch

from visaged.pipelines.learning.losses import LossConfig  # noqa: E402
from visaged.pipelines.loop.rehearsal import Curriculum, Schedule, Step, Taught, rehearse  # noqa: E402

F32 = npt.NDArray[np.float32]

BASE, SITE = two_places()
NO_SHARES = np.zeros(0, np.float32)
TOY = Schedule(rate=1e-3)  # 32 hidden units on 64 features: weights move more than in the real head


@pytest.fixture(scope="module")
def champion() -> End:
    """A head that knows the base."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = torch.nn.Sequential(
        torch.nn.Linear(N_FEATURES, N_HIDDEN), torch.nn.ReLU(), torch.nn.Linear(N_HIDDEN, N_CLASSES)
    )
    features, labels = map(torch.from_numpy, BASE.faces(4000, 1))
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    for step in range(300):
        rows = torch.from_numpy(np.random.default_rng(step).integers(0, 4000, 128))
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(features[rows]), labels[rows]).backward()
        optimiser.step()
    return dense_end(
        [(layer.weight.detach().numpy().T.copy(), layer.bias.detach().numpy().copy()) for layer in net[::2]]
    )


def go_on(step: Step) -> bool:
    return True


def taught(
    champion: End,
    folder: Path,
    *,
    remembers: bool = True,
    ask: Callable[[Step], bool] = go_on,
    schedule: Schedule = TOY,
) -> Taught | None:
    """Teach 60 flagged faces of which 6 have wrong labels."""
    folder.mkdir(exist_ok=True)
    features, labels = SITE.faces(60, 2)
    said = mislabelled(labels, 0.1, 3)
    kept = ~find_suspects(features, said, np.arange(60).astype(str), N_CLASSES)
    new = softened(champion.weights, features, said).take(kept)
    memory = remembered(*BASE.faces(200, 4)) if remembers else nothing()
    tune = remembered(*SITE.faces(40, 5))
    tune = tune.beside(remembered(*BASE.faces(40, 6))) if remembers else tune
    restyled = in_style_of(remembered(features, said).take(kept), memory)
    curriculum = Curriculum(new, memory, restyled, tune, NO_SHARES)
    return rehearse(champion, {}, curriculum, schedule, folder / "checkpoint.pt", ask)


def head(done: Taught | None) -> Mapping[str, F32]:
    assert done is not None and not done.abandoned
    return done.weights


def test_sixty_noisy_flags_teach_the_site_and_memory_keeps_the_base(
    champion: End, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, site = BASE.faces(2000, 7), SITE.faces(2000, 8)
    before, begun_s = (accuracy(champion.weights, base), accuracy(champion.weights, site)), time.monotonic()

    careful = head(taught(champion, tmp_path / "careful"))
    seconds = time.monotonic() - begun_s
    naive = head(taught(champion, tmp_path / "naive", remembers=False))

    gain, drop = accuracy(careful, site) - before[1], before[0] - accuracy(careful, base)
    naive_drop = before[0] - accuracy(naive, base)
    with capsys.disabled():
        print(
            f"\n  before: base {before[0]:.3f}, site {before[1]:.3f}; with memory: site {gain:+.3f}, base "
            f"{-drop:+.3f}; without: base {-naive_drop:+.3f}; {seconds:.1f} s on {os.cpu_count()} cores"
        )
    assert gain >= 0.10
    assert drop <= 0.02
    assert naive_drop > max(0.02, drop + 0.02)
    assert seconds < 300


def test_a_class_that_nobody_flags_is_rehearsed_as_often_as_it_is_there(
    champion: End, tmp_path: Path
) -> None:
    """The commonest class is hardly ever wrong, so no flag is of it, and the memory has all classes alike."""
    features, labels = SITE.faces(90, 2)
    new = remembered(features[labels > 0], labels[labels > 0])
    memory, tune = remembered(*BASE.faces(200, 4)), remembered(*BASE.faces(40, 6))
    shares = np.full(N_CLASSES, 0.4 / (N_CLASSES - 1), np.float32)
    shares[0] = 0.6
    features, labels = BASE.faces(4000, 7)
    common = features[labels == 0], labels[labels == 0]

    recalls = {}
    for name, rehearsed in (("alike", NO_SHARES), ("as there", shares)):
        curriculum = Curriculum(new, memory, nothing(), tune, rehearsed)
        done = rehearse(champion, {}, curriculum, TOY, tmp_path / f"{name}.pt", go_on)
        recalls[name] = accuracy(head(done), common)

    assert recalls["as there"] > recalls["alike"] + 0.01


def die(step: Step) -> bool:
    if step.step == 50:
        os.kill(os.getpid(), signal.SIGKILL)
    return True


def learn_and_die(champion: End, folder: Path) -> None:
    taught(champion, folder, ask=die)


def test_a_round_killed_between_two_checkpoints_ends_with_the_same_head(
    champion: End, tmp_path: Path
) -> None:
    (whole := tmp_path / "whole").mkdir()
    expected = head(taught(champion, whole))
    victim = get_context("spawn").Process(target=learn_and_die, args=(champion, tmp_path))
    victim.start()
    victim.join()
    steps: list[int] = []

    found = head(taught(champion, tmp_path, ask=lambda step: not steps.append(step.step)))  # type: ignore[func-returns-value]

    assert victim.exitcode == -signal.SIGKILL
    assert steps[0] == 41, "it did not go on from the checkpoint at 40"
    for name, weights in expected.items():
        np.testing.assert_array_equal(weights, found[name])


def test_what_came_of_it_is_there_when_it_is_asked_again(champion: End, tmp_path: Path) -> None:
    """Killed while the next network learns, a round does not teach this one twice."""
    schedule = Schedule(rate=1e-3, max_steps=40)
    expected = taught(champion, tmp_path, schedule=schedule)
    steps: list[int] = []

    found = taught(champion, tmp_path, schedule=schedule, ask=lambda step: not steps.append(step.step))  # type: ignore[func-returns-value]

    assert expected is not None and found is not None and steps == []
    assert (found.n_steps, found.abandoned) == (expected.n_steps, expected.abandoned) == (40, "")
    for name, weights in expected.weights.items():
        np.testing.assert_array_equal(weights, found.weights[name])


def test_a_damaged_checkpoint_begins_anew(champion: End, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"PK\x03\x04 torn")
    steps: list[int] = []

    def stop(step: Step) -> bool:
        steps.append(step.step)
        return step.step < 3

    assert taught(champion, tmp_path, ask=stop) is None
    assert steps == [1, 2, 3]


def test_what_does_not_get_better_on_tuning_faces_is_given_up_early(champion: End, tmp_path: Path) -> None:
    features, labels = BASE.faces(60, 2)
    senseless = remembered(features, (labels + 3) % N_CLASSES)
    nobody, tune = nothing(), remembered(*BASE.faces(80, 5))
    only_new = Curriculum(senseless, nobody, nobody, tune, NO_SHARES)
    wild, still = Schedule(rate=0.02), Schedule(rate=0.0)

    given_up = rehearse(champion, {}, only_new, wild, tmp_path / "wild.pt", go_on)
    again = rehearse(champion, {}, only_new, wild, tmp_path / "wild.pt", go_on)
    unmoved = rehearse(champion, {}, only_new, still, tmp_path / "still.pt", go_on)

    assert given_up is not None and given_up.n_steps == 20 and "grows" in given_up.abandoned
    assert unmoved is not None and unmoved.n_steps == 20 and "does not move" in unmoved.abandoned
    assert given_up == again and all(given_up.weights[n] is w for n, w in champion.weights.items())


def test_a_killed_round_with_centres_goes_on_with_the_same_ones(champion: End, tmp_path: Path) -> None:
    losses = (LossConfig(kind="cross_entropy"), LossConfig(kind="island", weight=0.01))
    schedule = Schedule(rate=1e-3, losses=losses, max_steps=40)
    (whole := tmp_path / "whole").mkdir()
    expected = head(taught(champion, whole, schedule=schedule))
    plain = head(taught(champion, tmp_path / "plain", schedule=Schedule(rate=1e-3, max_steps=40)))

    assert taught(champion, tmp_path, schedule=schedule, ask=lambda step: step.step < 33) is None
    found = head(taught(champion, tmp_path, schedule=schedule))

    np.testing.assert_array_equal(expected["w0"], found["w0"])
    assert np.abs(expected["w0"] - plain["w0"]).max() > 1e-4, "the island loss does nothing"
