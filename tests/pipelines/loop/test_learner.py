"""A whole round on real networks: from a sample store to a candidate that is served, with its lineage."""

from collections.abc import Callable
from dataclasses import dataclass, replace
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
from visaged.pipelines.errors import ReleaseError, SampleError
from visaged.pipelines.importers.onnx_end import End, ends_of, trunk_of
from visaged.pipelines.loop.progress import Progress
from visaged.pipelines.loop.replay_memory import (
    Parts,
    Remembered,
    base_path,
    read_base,
    trunk_digest,
    write_base,
)
from visaged.pipelines.loop.report import FUSED, Report, last_report
from visaged.pipelines.loop.sample import Label, Source
from visaged.pipelines.loop.sample_store import SampleStore
from visaged.pipelines.loop.schedule import LearningConfig
from visaged.pipelines.loop.sighting import Sighting, cut_sample_chip
from visaged.pipelines.message import EMOTIONS, Identity
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.releases.release_store import ReleaseStore

pytest.importorskip("torch", reason="torch is not installed (extra `learn`)")
pytestmark = pytest.mark.torch

from visaged.pipelines.loop import pupil as pupil_module  # noqa: E402
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
    remember(champion_of(StageConfigs(), folder, store), CONFIG, folder)
    return folder


def remember(champion: Champion, config: LearningConfig, state: Path) -> None:
    """Write a base memory of features made up, for every network."""
    random, of_trunk = np.random.default_rng(0), {}
    classes = np.concatenate(
        [[EMOTIONS.index("anger"), EMOTIONS.index("sadness")] * 5, random.integers(0, 8, 90)]
    )
    targets, groups = np.eye(len(EMOTIONS), dtype=np.float32)[classes], np.arange(100).astype(str)
    for pupil in champion.pupils(None, config):
        shape = pupil.look(blank_chips(pupil.files.row.recipe, 1)).shape[1:]
        everybody = Remembered(random.uniform(0, 0.2, (100, *shape)).astype("f4"), targets, groups)
        parts = [everybody.take(np.arange(at, at + n)) for at, n in ((0, 50), (50, 30), (80, 20))]
        of_trunk[trunk_digest(pupil.trunk)] = Parts(*parts)
    write_base(of_trunk, np.full(len(EMOTIONS), 1 / len(EMOTIONS), np.float32), state)


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


def learned(champion: Champion, state: Path, config: LearningConfig) -> Whole:
    """A whole round, which ended with a candidate."""
    told: list[Progress] = []
    with SampleStore(state) as samples:
        report = learn(champion, samples, state, config, lambda now: not told.append(now))  # type: ignore[func-returns-value]
    assert report is not None and report.release, report
    return Whole(report, told)


@pytest.fixture(scope="module")
def whole(state: Path, champion: Champion) -> Whole:
    return learned(champion, state, CONFIG)


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
    site = {(e.network, e.metric): e for e in report.evidence if e.part == "site"}

    assert stored.about.parent == champion.release.id == report.parent
    names = [m.network.name for m in stored.release.members]
    assert names == [m.network.name for m in champion.release.members]
    assert stored.release.fusion == champion.release.fusion
    assert outputs.logits.shape == (len(names), 2, 8)
    assert {p.stage for p in whole.told} == {"looking", "learning", "measuring"}
    assert report.networks == dict.fromkeys(names, "its head learned")
    assert [p.network for p in whole.told if p.stage == "learning" and p.step == 1] == names
    for member in stored.release.members:  # from 30 tuning faces on
        temperature = next(o.temperature for o in member.network.outputs if o.kind == "logits")
        assert temperature != 1.0, f"{member.network.name} is as sure as before"
    digests = [{m.onnx for m in r.members} for r in (stored.release, champion.release)]
    assert len(digests[0]) == 3 and not digests[0] & digests[1], "a member is the same as before"
    for name in (*names, FUSED):
        found = site[name, "log loss"]
        assert found.n_faces == report.counts["hold-out"] > 4
        assert found.change.value is not None and found.change.value < -0.2, f"{name} learned nothing"
    assert {(e.part, e.network) for e in report.evidence} == {
        (part, name) for part in ("site", "base") for name in (*names, FUSED)
    }
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

    def note(end: End, begin: Any, curriculum: Curriculum, *rest: Any) -> Taught | None:
        taught_from.append(curriculum)
        return rehearse(end, begin, curriculum, *rest)

    monkeypatch.setattr(pupil_module, "rehearse", note)
    with SampleStore(state) as samples:
        report = learn(champion, samples, state, config, go_on)

    assert report is not None and report.release and report.run != whole.report.run
    assert report.release != whole.report.release
    n_new = report.counts["new"]
    assert [len(curriculum.new) for curriculum in taught_from] == [3 * n_new] * 3
    assert report.counts["altered copies"] == 2 * n_new
    assert len(ReleaseStore(state).get(report.release).about.samples) == len(
        ReleaseStore(state).get(whole.report.release).about.samples
    ), "copies are not samples"
    assert {len(curriculum.restyled) for curriculum in taught_from} == {report.counts["base"]}


def test_labels_in_doubt_are_the_mistaken_ones_and_are_not_learned_from(state: Path, whole: Whole) -> None:
    with SampleStore(state) as samples:
        seq_of = {sample.id: sample.seq for sample in samples.samples()}
    learned = {seq_of[id] for id in ReleaseStore(state).get(whole.report.release).about.samples}
    doubted = {seq_of[id] for id in whole.report.suspects}

    assert doubted & set(MISTAKEN), "no mistake was found"
    assert len(doubted - set(MISTAKEN)) <= 2
    assert not learned & doubted
    assert len(seq_of) == N_SAMPLES, "a sample in doubt was deleted"


def test_only_the_end_of_each_network_changes(state: Path, champion: Champion, whole: Whole) -> None:
    new = ReleaseStore(state).get(whole.report.release).networks()
    for pupil in champion.pupils(None, CONFIG):
        data = new[pupil.name].onnx.read_bytes()
        chips = np.random.default_rng(0).normal(
            0, 0.2, (2, *blank_chips(pupil.files.row.recipe, 1).shape[1:])
        )

        said = [OrtEngine(d).infer(chips.astype("f4"))["logits"] for d in (pupil.onnx, data)]

        (end,) = pupil.ends
        assert trunk_of(data, end.entry) == pupil.trunk
        after = ends_of(data)[0]
        assert after.nodes == end.nodes and after.weights.keys() == end.weights.keys()
        assert np.abs(said[0] - said[1]).max() > 0.01


def test_the_embedder_embeds_as_before_and_int8_still_fits(
    state: Path, champion: Champion, whole: Whole
) -> None:
    new = ReleaseStore(state).get(whole.report.release).networks()["face-resnet"]
    old = champion.networks["face-resnet"]
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
    steps: list[tuple[str, int]] = []

    def until_45(now: Progress) -> bool:
        return now.network != "emotion-vgg13" or now.step < 45

    def count(now: Progress) -> bool:
        if now.stage == "learning":
            steps.append((now.network, now.step))
        return True

    with SampleStore(state) as samples:
        stopped = learn(champion, samples, state, CONFIG, until_45)
        kept = sorted(path.name[24:] for path in (state / "learning").glob("checkpoint-*.pt"))
        again = learn(champion, samples, state, CONFIG, count)

    assert stopped is None and kept == ["emotion-vgg13-head.pt", "face-resnet-head.pt"]
    assert steps[0] == ("emotion-vgg13", 46), "the first network was taught twice, or the second anew"
    assert steps[-1] == ("emotion-resnet", 60) and len(steps) == 15 + 60
    assert list((state / "learning").glob("*.pt")) == []
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


def test_a_member_that_is_given_up_stays_as_it_is(
    state: Path, champion: Champion, whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_one(end: End, begin: Any, *rest: Any) -> Taught | None:
        taught = rehearse(end, begin, *rest)
        assert taught is not None
        is_one = end.entry == "features" and "w64" in end.weights  # of face-resnet
        return Taught(end.weights, taught.n_steps, "on purpose") if is_one else taught

    monkeypatch.setattr(pupil_module, "rehearse", refuse_one)
    with SampleStore(state) as samples:
        report = learn(champion, samples, state, CONFIG, go_on)

    assert report is not None
    old, new = champion.release, ReleaseStore(state).get(report.release).release
    assert [a == b for a, b in zip(old.members, new.members, strict=True)] == [False, False, False]
    assert old.members[0].onnx == new.members[0].onnx
    assert report.networks["face-resnet"] == "its head was given up: on purpose"
    assert {e.network for e in report.evidence} == {"emotion-vgg13", "emotion-resnet", FUSED}


def test_a_base_memory_that_is_damaged_is_refused(tmp_path: Path) -> None:
    one = Remembered(np.ones((1, 4), np.float32), np.full((1, 8), 0.125, np.float32), np.array(["a"]))
    path = write_base({"trunk": Parts(one, one, one)}, np.full(8, 0.125, np.float32), tmp_path)

    kept = read_base(tmp_path)

    assert kept is not None and len(kept.digest) == 64 and path.stat().st_mode & 0o077 == 0
    assert kept.of_trunk["trunk"].tune.features.dtype == np.float16
    np.testing.assert_array_equal(kept.shares, np.full(8, 0.125, np.float32))
    whole = path.read_bytes()
    for damaged in (whole[:100], whole[:-40], whole.replace(b"trunks", b"trunky")):
        path.write_bytes(damaged)
        with pytest.raises(SampleError, match="no base memory"):
            read_base(tmp_path)
    assert read_base(tmp_path / "none") is None


def test_a_base_memory_of_one_network_teaches_that_one_and_of_none_nobody(
    state: Path, champion: Champion, tmp_path: Path
) -> None:
    """As an older daemon made it: `trunk`, and features without a number."""
    with np.load(base_path(state)) as file:
        arrays = {name.removesuffix("_0"): file[name] for name in file.files if name[-2:] not in ("_1", "_2")}
    arrays["trunk"] = arrays.pop("trunks")[0]
    del arrays["shares"]
    base_path(tmp_path).parent.mkdir()
    np.savez(base_path(tmp_path), **arrays)
    older = read_base(tmp_path)
    np.savez(base_path(tmp_path), **{**arrays, "trunk": np.array("0" * 64)})
    strange = read_base(tmp_path)

    face, *others = champion.pupils(older, CONFIG)

    assert face.ends and face.base is not None and not face.note
    for pupil in others:
        assert not pupil.ends and pupil.base is None
        assert "no features for this network; make it again with `visaged learn base" in str(pupil)
    with pytest.raises(SampleError, match="of other networks"):
        champion.pupils(strange, CONFIG)


def test_a_release_of_which_nothing_can_learn_says_so(store: ModelStore, tmp_path: Path) -> None:
    configs = StageConfigs(ensemble=EnsembleConfig(members=("face-resnet", "emotion-xception")))
    champion = champion_of(configs, tmp_path, store)
    only = replace(champion, networks={"emotion-xception": store.files_of("emotion-xception")})

    face, xception = champion.pupils(None, CONFIG)

    assert face.ends and not xception.ends and "no dense layers" in str(xception)
    with pytest.raises(ReleaseError, match="can learn"):
        only.pupils(None, CONFIG)
