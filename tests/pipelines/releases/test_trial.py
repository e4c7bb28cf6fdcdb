"""A release on trial: what ends it, what takes it further, and that chance alone does neither."""

import numpy as np
import numpy.typing as npt
import pytest
from visaged.pipelines.releases.canary import lot_of
from visaged.pipelines.releases.side_by_side import Comparison
from visaged.pipelines.releases.trial import PromotionConfig, Trial, psi

F32 = npt.NDArray[np.float32]
CONFIG = PromotionConfig(least_tracks=50, shadow_tracks=60)
MINUTE = 60.0


def says(labels: list[int], sure: float = 0.8) -> F32:
    p = np.full((len(labels), 8), (1 - sure) / 7, np.float32)
    p[np.arange(len(labels)), labels] = sure
    return p


def show(
    trial: Trial, ours: F32, theirs: F32, *, took_s: tuple[float, float] = (0.01, 0.01), at_s: float = 0.0
) -> None:
    """Compare face by face, a track each."""
    for i in range(len(ours)):
        faces = [("door", len(ours) * 1000 + i)]
        trial.compare(Comparison(faces, ours[i : i + 1], theirs[i : i + 1], *took_s), at_s)


def mixed(n: int) -> list[int]:
    return [i % 8 for i in range(n)]


def test_a_shadow_ends_after_enough_tracks_or_enough_time_but_not_without_faces() -> None:
    trial = Trial(CONFIG, "shadow", 0.0)

    assert trial.verdict(31 * MINUTE).decision == "go on", "nothing was compared"
    show(trial, says(mixed(55)), says(mixed(55)))
    assert trial.verdict(29 * MINUTE).decision == "go on"
    assert trial.verdict(31 * MINUTE).decision == "next"
    show(trial, says(mixed(60)), says(mixed(60)))
    assert trial.verdict(1.0).decision == "next"
    assert trial.share == 0.0


def test_a_canary_grows_step_by_step_and_probation_lasts_a_day() -> None:
    trial = Trial(CONFIG, "canary", 0.0)
    shares = [trial.share]
    for step in (1, 2, 3):
        assert trial.verdict(step * 10 * MINUTE).decision == "go on", "no faces in this step yet"
        show(trial, says(mixed(50)), says(mixed(50)))
        assert trial.verdict(step * 10 * MINUTE).decision == "next"
        if trial.grow(step * 10 * MINUTE):
            shares.append(trial.share)
    trial.enter("probation", 0.0)

    assert shares == [0.1, 0.5, 1.0]
    assert trial.share == 1.0
    assert trial.verdict(23 * 60 * MINUTE).decision == "go on"
    assert trial.verdict(24 * 60 * MINUTE).decision == "next"


@pytest.mark.parametrize("stage", ["shadow", "canary", "probation"])
def test_a_fault_ends_every_stage_at_once(stage: str) -> None:
    trial = Trial(CONFIG, stage, 0.0)  # type: ignore[arg-type]

    trial.fail("the engine is gone")
    trial.fail("and more")

    verdict = trial.verdict(0.0)
    assert (verdict.decision, verdict.reason, verdict.sentence) == (
        "roll back",
        "fault",
        "the engine is gone",
    )


def test_other_answers_a_shift_of_emotions_and_of_confidence_are_seen() -> None:
    labels = mixed(96)
    turned = [(label + 1) % 8 if i % 3 == 0 else label for i, label in enumerate(labels)]
    one_sided = [0 if label in (1, 2, 3, 4, 5, 6) and i % 5 else label for i, label in enumerate(labels)]
    loose = PromotionConfig(least_tracks=50, least_agreement=0.0)
    reasons = []
    for config, ours in (
        (CONFIG, says(turned)),
        (loose, says(one_sided)),
        (CONFIG, says(labels, 0.9)),
        (CONFIG, says(labels, 0.84)),
    ):
        trial = Trial(config, "shadow", 0.0)
        show(trial, ours, says(labels))
        reasons.append(trial.verdict(1.0).reason)

    assert reasons == ["agreement", "psi", "confidence", ""]


def test_few_tracks_are_held_against_nobody_however_often_they_were_looked_at() -> None:
    trial = Trial(CONFIG, "canary", 0.0)

    for _ in range(3):
        show(trial, says([1] * 49), says([2] * 49))

    verdict = trial.verdict(60 * MINUTE)
    assert (trial.n_faces, verdict.decision, verdict.reason) == (147, "go on", "")
    show(trial, says([1] * 50), says([2] * 50))
    assert trial.verdict(0.0).reason == "agreement"


def test_a_slow_engine_is_rolled_back_and_an_unlucky_one_is_not() -> None:
    random = np.random.default_rng(0)
    verdicts = []
    for slowdown in (2.0, 1.0):
        trial = Trial(CONFIG, "canary", 0.0)
        for face in says(mixed(200)):
            noise = random.gamma(4, 0.002, 2)
            show(trial, face[None], face[None], took_s=(noise[0] * slowdown, noise[1]))
        verdicts.append(trial.verdict(1.0))

    assert (verdicts[0].decision, verdicts[0].reason) == ("roll back", "latency")
    assert verdicts[1].reason == ""


def test_a_few_slow_runs_are_no_proof() -> None:
    trial = Trial(CONFIG, "canary", 0.0)
    face = says([1])
    for i in range(60):
        show(trial, face, face, took_s=(0.1 if i % 15 == 0 else 0.01, 0.01))

    slowdown = trial.report()["slowdown"]

    assert slowdown > 5 and trial.verdict(1.0).reason == ""


def test_slowness_is_forgotten_after_the_window() -> None:
    trial = Trial(CONFIG, "canary", 0.0)
    show(trial, says(mixed(50)), says(mixed(50)), took_s=(0.05, 0.01))
    assert trial.verdict(0.0).reason == "latency"

    show(trial, says(mixed(50)), says(mixed(50)), at_s=61.0)

    assert trial.verdict(61.0).reason == ""


def test_corrections_count_when_they_are_more_often_and_no_chance() -> None:
    def after(ours: int, theirs: int) -> str:
        trial = Trial(CONFIG, "canary", 0.0)
        trial.answered("door", range(100), is_ours=True)
        trial.answered("door", range(100, 1000), is_ours=False)
        for track in (*range(ours), *range(100, 100 + theirs)):
            trial.corrected("door", track)
        return trial.verdict(1.0).reason

    assert after(ours=8, theirs=18) == "corrections"
    assert after(ours=3, theirs=9) == "", "three times as often, by chance"
    assert after(ours=75, theirs=450) == "", "for sure more often, but not twice"


def test_psi_is_zero_for_the_same_spread_and_grows_with_the_shift() -> None:
    flat = np.full(8, 100)

    assert psi(flat, flat) == 0.0
    assert 0 < psi(np.array([130, 70, *[100] * 6]), flat) < 0.25 < psi(np.array([400, 1, *[50] * 6]), flat)


def test_a_track_keeps_its_release_while_the_canary_grows() -> None:
    lots = [lot_of("door", track) for track in range(2000)]
    small = {track for track, lot in enumerate(lots) if lot < 0.1}
    large = {track for track, lot in enumerate(lots) if lot < 0.5}

    assert small < large
    assert len(small) / 2000 == pytest.approx(0.1, abs=0.03)
    assert all(0 <= lot < 1 for lot in lots)
