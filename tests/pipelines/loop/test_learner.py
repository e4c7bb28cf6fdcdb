"""A whole round on real networks: from a sample store to a candidate that is served, with its lineage."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from visaged.pipelines.assembly import StageConfigs, assemble
from visaged.pipelines.engines.ort_engine import OrtEngine
from visaged.pipelines.engines.precision import Int8Style, read_ranges, to_int8
from visaged.pipelines.ensemble import EnsembleConfig, blank_chips
from visaged.pipelines.errors import ModelError, ReleaseError, SampleError
from visaged.pipelines.importers.emotion_head import EmotionHead
from visaged.pipelines.importers.onnx_head import Layers, head_of, layers_of, trunk_of, with_layers
from visaged.pipelines.loop.progress import Progress
from visaged.pipelines.loop.replay_memory import (
    BaseMemory,
    Remembered,
    base_path,
    read_base,
    trunk_digest,
    write_base,
)
from visaged.pipelines.loop.report import Report, last_report
from visaged.pipelines.loop.sample import Label, Source
from visaged.pipelines.loop.sample_store import SampleStore
from visaged.pipelines.loop.schedule import LearningConfig
from visaged.pipelines.loop.sighting import Sighting, cut_sample_chip
from visaged.pipelines.message import EMOTIONS, Identity
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.releases.release_store import ReleaseStore

pytest.importorskip("torch", reason="torch is not installed (extra `learn`)")
pytestmark = pytest.mark.torch

from visaged.pipelines.loop import learner  # noqa: E402
from visaged.pipelines.loop.learner import Champion, champion_of, learn  # noqa: E402
from visaged.pipelines.loop.rehearsal import Curriculum, Taught, rehearse  # noqa: E402

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
MakeSighting = Callable[..., Sighting]

N_SAMPLES = 48
LANDMARKS = np.array([[270, 118], [250, 117], [198, 122], [218, 120], [228, 158]], np.float32)
MISTAKEN = range(3, N_SAMPLES, 12)
CONFIG = LearningConfig(min_samples=5, max_steps=60)


def look(rgb: U8, emotion: str, seed: int) -> tuple[U8, F32]:
    """The astronaut's face in one of two lights, a little different every time."""
    random = np.random.default_rng(seed)
    tint = np.array([0.25, 0.5, 1.0] if emotion == "anger" else [1.0, 0.5, 0.25])
    lit = np.clip(rgb * tint * random.uniform(0.8, 1.1) + random.normal(0, 6, rgb.shape), 0, 255)
    chip, marks = cut_sample_chip(lit.astype(np.uint8), LANDMARKS + random.normal(0, 2, (5, 2)).astype("f4"))
    shadows = cv2.resize(random.uniform(0.7, 1.3, (6, 6)), chip.shape[:2], interpolation=cv2.INTER_CUBIC)
    return np.clip(chip * shadows[..., None], 0, 255).astype(
        np.uint8
    ), marks  # looks that are alike count once


@pytest.fixture(scope="module")
def state(
    astronaut: U8, make_sighting: MakeSighting, store: ModelStore, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Flagged samples of people, and a base memory of features made up."""
    folder = tmp_path_factory.mktemp("state")
    with SampleStore(folder) as samples:
        for n in range(N_SAMPLES):
            emotion = ("anger", "sadness")[n % 2]
            chip, marks = look(astronaut, emotion, n)
            said = ("anger", "sadness")[(n + 1) % 2] if n in MISTAKEN else emotion
            person = Identity(state="known", person=f"person {n // 2}", distance=0.3, margin=0.4)
            seen = make_sighting(n, track=n, chip=chip, landmarks=marks, identity=person)
            samples.add(seen, Source.USER, Label(emotion=said, is_face=True))
    data = store.ensure("face-resnet").read_bytes()
    features = np.random.default_rng(0).uniform(0, 0.2, (90, layers_of(data)[0][0].shape[0])).astype("f4")
    logits = EmotionHead((), layers_of(data), ()).logits(features)
    targets = np.eye(len(EMOTIONS), dtype=np.float32)[logits.argmax(axis=1)]
    targets[:10] = np.eye(len(EMOTIONS), dtype=np.float32)[
        [EMOTIONS.index("anger"), EMOTIONS.index("sadness")] * 5
    ]
    everybody = Remembered(features, targets, np.arange(90).astype(str))
    train, tune, hold_out = (everybody.take(np.arange(at, at + n)) for at, n in ((0, 50), (50, 20), (70, 20)))
    write_base(BaseMemory(train, tune, hold_out, trunk_digest(trunk_of(data))), folder)
    return folder


@pytest.fixture(scope="module")
def champion(state: Path, store: ModelStore) -> Champion:
    return champion_of(StageConfigs(), state, store)


def go_on(progress: Progress) -> bool:
    return True


@dataclass(frozen=True)
class Whole:
    """A round from its begin to its end."""

    report: Report
    told: list[Progress]


@pytest.fixture(scope="module")
def whole(state: Path, champion: Champion) -> Whole:
    told: list[Progress] = []
    with SampleStore(state) as samples:
        report = learn(champion, samples, state, CONFIG, lambda now: not told.append(now))  # type: ignore[func-returns-value]
    assert report is not None and report.release, report
    return Whole(report, told)


def test_flagged_samples_become_a_candidate_that_is_served(
    state: Path, champion: Champion, whole: Whole, cache: Path
) -> None:
    report = whole.report
    with SampleStore(state) as samples:
        by_id = {sample.id: sample for sample in samples.samples()}

    stored = ReleaseStore(state).get(report.release)
    configs = StageConfigs(ensemble=EnsembleConfig(release=report.release))
    with assemble(configs, state=state, cache=cache, may_wait=False) as stages:
        outputs = stages.ensemble.infer({r: blank_chips(r, 2) for r in stages.ensemble.recipes})
    site = {e.metric: e for e in report.evidence if e.part == "site"}

    assert stored.about.parent == champion.release.id == report.parent
    names = [m.network.name for m in stored.release.members]
    assert names == [m.network.name for m in champion.release.members]
    assert stored.release.fusion == champion.release.fusion
    assert outputs.logits.shape == (len(names), 2, 8)
    assert {p.stage for p in whole.told} == {"looking", "learning", "measuring"}
    assert site["accuracy"].n_faces == report.counts["hold-out"] > 4
    assert site["log loss"].change.value is not None and site["log loss"].change.value < -0.3, (
        "nothing learned"
    )
    assert {e.part for e in report.evidence} == {"site", "base"}
    learned = {by_id[id].identity.person for id in stored.about.samples}
    assert (
        len(stored.about.samples)
        == report.counts["new"] + report.counts["tune"] + report.counts["remembered"]
    )
    assert 0 < len(learned) < N_SAMPLES // 2, "nobody is held out"
    assert last_report(state / "learning") == report
    assert list((state / "learning").glob("*.pt")) == []


def test_a_round_learns_from_altered_copies_with_the_losses_it_is_told(
    state: Path, champion: Champion, whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Altered copies and a loss on features, from the configuration alone."""
    config = msgspec.structs.replace(CONFIG, augmented_views=2, losses={"cross_entropy": 1.0, "island": 0.01})
    taught_from: list[Curriculum] = []

    def note(layers: Layers, curriculum: Curriculum, *rest: Any) -> Taught | None:
        taught_from.append(curriculum)
        return rehearse(layers, curriculum, *rest)

    monkeypatch.setattr(learner, "rehearse", note)
    with SampleStore(state) as samples:
        report = learn(champion, samples, state, config, go_on)

    assert report is not None and report.release and report.run != whole.report.run
    assert report.release != whole.report.release
    (curriculum,) = taught_from
    n_new = report.counts["new"]
    assert len(curriculum.new) == 3 * n_new and report.counts["altered copies"] == 2 * n_new
    assert len(ReleaseStore(state).get(report.release).about.samples) == len(
        ReleaseStore(state).get(whole.report.release).about.samples
    ), "copies are not samples"
    assert len(curriculum.restyled) == report.counts["base"]


def test_labels_in_doubt_are_the_mistaken_ones_and_are_not_learned_from(state: Path, whole: Whole) -> None:
    with SampleStore(state) as samples:
        seq_of = {sample.id: sample.seq for sample in samples.samples()}
    learned = {seq_of[id] for id in ReleaseStore(state).get(whole.report.release).about.samples}
    doubted = {seq_of[id] for id in whole.report.suspects}

    assert doubted & set(MISTAKEN), "no mistake was found"
    assert len(doubted - set(MISTAKEN)) <= 2
    assert not learned & doubted
    assert len(seq_of) == N_SAMPLES, "a sample in doubt was deleted"


def test_only_the_head_changes_and_int8_still_fits(state: Path, champion: Champion, whole: Whole) -> None:
    new = ReleaseStore(state).get(whole.report.release).networks()["face-resnet"]
    old = champion.pupil
    chips = np.random.default_rng(0).normal(0, 0.2, (2, 3, 150, 150)).astype(np.float32)
    assert new.ranges is not None and old.ranges is not None
    before, after = read_ranges(old.ranges), read_ranges(new.ranges)

    said = [OrtEngine(files.onnx).infer(chips) for files in (old, new)]
    int8 = OrtEngine(to_int8(new.onnx.read_bytes(), after, Int8Style.ASYMMETRIC)).infer(chips)

    np.testing.assert_array_equal(said[0]["embedding"], said[1]["embedding"])
    assert np.abs(said[0]["logits"] - said[1]["logits"]).max() > 0.01
    changed = {name for name in before.tensors if before.tensors[name] != after.tensors[name]}
    assert changed and not changed & {
        name for name in before.tensors if name.startswith(("conv", "add", "chips"))
    }
    assert {"logits", "hidden"} <= changed and "features" not in changed
    assert before.weights_sha256 == after.weights_sha256 and before.tensors.keys() == after.tensors.keys()
    assert np.abs(int8["embedding"] - said[1]["embedding"]).max() < 0.05


def test_a_round_that_is_stopped_goes_on_and_ends_with_the_same_release(
    state: Path, champion: Champion, whole: Whole
) -> None:
    steps: list[int] = []

    def until_45(now: Progress) -> bool:
        return now.stage != "learning" or now.step < 45

    def count(now: Progress) -> bool:
        steps.append(now.step if now.stage == "learning" else 0)
        return True

    with SampleStore(state) as samples:
        stopped = learn(champion, samples, state, CONFIG, until_45)
        is_kept = list((state / "learning").glob("checkpoint-*.pt"))
        again = learn(champion, samples, state, CONFIG, count)

    assert stopped is None and len(is_kept) == 1
    assert min(step for step in steps if step) == 46
    assert again is not None
    assert (whole.report.release, whole.report.run) == (again.release, again.run)


def test_a_label_that_changes_makes_another_run_and_few_samples_make_none(
    state: Path, champion: Champion
) -> None:
    few = msgspec.structs.replace(CONFIG, min_samples=1000)
    with SampleStore(state) as samples:
        first = learn(champion, samples, state, few, go_on)
        one = samples.samples()[0]
        samples.label(one.id, Label(emotion="fear", is_face=True))
        second = learn(champion, samples, state, few, go_on)
        samples.label(one.id, one.label)

    assert first is not None and second is not None
    assert first.release == "" and "too few" in first.outcome
    assert first.run != second.run


def test_two_rounds_at_once_and_empty_stores_are_refused(
    state: Path, champion: Champion, tmp_path: Path
) -> None:
    refused: list[str] = []

    def another(now: Progress) -> bool:
        with SampleStore(state) as samples, pytest.raises(SampleError) as error:
            learn(champion, samples, state, CONFIG, go_on)
        refused.append(str(error.value))
        return False

    with SampleStore(state) as samples:
        assert learn(champion, samples, state, CONFIG, another) is None
    with SampleStore(tmp_path) as samples, pytest.raises(SampleError, match="nobody has said"):
        learn(champion, samples, tmp_path, CONFIG, go_on)

    assert "already under way" in refused[0]


def test_without_anything_to_remember_there_is_no_round(
    state: Path, champion: Champion, tmp_path: Path
) -> None:
    with SampleStore(state) as samples:
        away = base_path(state).rename(tmp_path / "base.npz")
        report = learn(champion, samples, state, CONFIG, go_on)
        away.rename(base_path(state))

    assert report is not None and report.release == ""
    assert "visaged learn base" in report.outcome


def test_a_base_memory_that_is_damaged_or_of_another_trunk_is_refused(tmp_path: Path) -> None:
    one = Remembered(np.ones((1, 4), np.float32), np.full((1, 8), 0.125, np.float32), np.array(["a"]))
    path = write_base(BaseMemory(one, one, one, "trunk"), tmp_path)

    kept = read_base(tmp_path, "trunk")

    assert kept is not None and len(kept.digest) == 64 and path.stat().st_mode & 0o077 == 0
    with pytest.raises(SampleError, match="another trunk"):
        read_base(tmp_path, "other")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SampleError, match="no base memory"):
        read_base(tmp_path, "trunk")
    assert read_base(tmp_path / "none", "trunk") is None


def test_a_head_is_read_replaced_and_run_apart(store: ModelStore) -> None:
    data = store.ensure("face-resnet").read_bytes()
    chips = np.random.default_rng(0).normal(0, 0.2, (2, 3, 150, 150)).astype(np.float32)
    whole, trunk = OrtEngine(data).infer(chips), OrtEngine(trunk_of(data)).infer(chips)
    layers = layers_of(data)

    apart = OrtEngine(head_of(data)).infer(trunk["features"])
    doubled = with_layers(data, (*layers[:-1], (layers[-1][0] * 2, layers[-1][1] * 2)))

    np.testing.assert_array_equal(trunk["embedding"], whole["embedding"])
    assert apart["logits"] == pytest.approx(whole["logits"], abs=1e-5)
    assert EmotionHead((), layers, ()).logits(trunk["features"]) == pytest.approx(whole["logits"], abs=1e-3)
    assert OrtEngine(doubled).infer(chips)["logits"] == pytest.approx(whole["logits"] * 2, abs=1e-4)
    with pytest.raises(ModelError, match="not finite"):
        with_layers(data, (*layers[:-1], (layers[-1][0] * np.float32(np.nan), layers[-1][1])))
    with pytest.raises(ModelError, match="no emotion head"):
        layers_of(store.ensure("emotion-xception").read_bytes())


def test_a_release_without_a_head_on_a_trunk_cannot_learn(store: ModelStore, tmp_path: Path) -> None:
    configs = StageConfigs(ensemble=EnsembleConfig(members=("emotion-xception",)))

    with pytest.raises(ReleaseError, match="none can learn"):
        champion_of(configs, tmp_path, store)
