"""`visaged learn` as an operator types it: how it stands, the base memory, the threshold."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner
from visaged.pipelines.identity.gallery import Gallery
from visaged.pipelines.loop.replay_memory import base_path
from visaged.pipelines.loop.report import Estimate, Evidence, Report, save_report
from visaged.pipelines.loop.sample import Label, Source
from visaged.pipelines.loop.sample_store import SampleStore
from visaged.pipelines.loop.sighting import Sighting
from visaged.tools.cli import build_app

MakeSighting = Callable[..., Sighting]


@pytest.fixture
def state(tmp_path: Path, make_sighting: MakeSighting, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two labelled samples, and a configuration that names their folder."""
    monkeypatch.setenv("COLUMNS", "200")
    with SampleStore(tmp_path / "state") as store:
        for n in (1, 2):
            store.add(make_sighting(n, seed=n), Source.USER, Label(emotion="fear", is_face=True))
    config = tmp_path / "visaged.toml"
    config.write_text(f'[paths]\nstate = "{tmp_path}/state"\nruntime = "{tmp_path}"\n')
    monkeypatch.setenv("VISAGED_CONFIG", str(config))
    return tmp_path / "state"


def run(*words: object) -> str:
    result = CliRunner().invoke(build_app("learn"), ["learn", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_how_it_stands_names_the_last_round_its_evidence_and_what_is_new(state: Path) -> None:
    with SampleStore(state) as store:
        first, _ = store.samples()
    gain = Estimate(0.12, 0.03, None)
    evidence = Evidence(
        part="site", metric="accuracy", n_faces=40, n_groups=9, before=gain, after=gain, change=gain
    )
    save_report(
        Report(
            run="abc", parent="f00", outcome="a candidate", finished_at=5.0, seconds=7.0, release="cafe",
            labels={first.id: "fear"}, suspects=("0123",), counts={"new": 12}, evidence=(evidence,),
        ),
        state / "learning",
    )  # fmt: skip

    shown = run()

    assert "learning by itself is off" in shown and "1 labels are new since" in shown
    assert "candidate release cafe" in shown and "site" in shown and "0.120" in shown
    assert "labels in doubt, not learned from: 0123" in shown


def test_the_base_memory_is_made_of_features_without_pictures(state: Path, tmp_path: Path) -> None:
    random, ferplus = np.random.default_rng(0), tmp_path / "ferplus"
    ferplus.mkdir()
    for name, n in (("Training", 40), ("PublicTest", 6)):
        pictures, votes = random.integers(0, 255, (n, 48, 48)).astype(np.uint8), np.zeros((n, 10), np.uint8)
        votes[np.arange(n), np.arange(n) % 8] = 10
        np.savez(ferplus / f"{name}.npz", x=pictures, votes=votes)

    said = run("base", ferplus)

    with np.load(base_path(state), allow_pickle=False) as file:
        sizes = {name: len(file[f"{name}_targets"]) for name in ("train", "tune", "hold_out")}
        seen = [file[f"train_features_{index}"] for index in range(len(file["trunks"]))]
        assert [features.shape[1:] for features in seen] == [(7168,), (864,), (80,)]
        assert {features.dtype for features in seen} == {np.dtype(np.float16)}
        kinds = [f"features_{index}" for index in range(3)] + ["targets", "groups"]
        assert set(file.files) == {
            "trunks",
            "shares",
            *(f"{part}_{kind}" for part in sizes for kind in kinds),
        }
    assert sizes["hold_out"] == 6 and sizes["train"] + sizes["tune"] == 40
    assert (
        f"{sizes['train']} to train" in said
        and "emotion-vgg13" in said
        and base_path(state).stat().st_mode & 0o077 == 0
    )


def test_a_threshold_is_suggested_with_its_evidence_or_not_at_all(
    state: Path, make_sighting: MakeSighting
) -> None:
    too_few = run("identity")
    random = np.random.default_rng(0)
    with Gallery(state) as gallery, SampleStore(state) as store:
        for n in range(12):
            centre = random.normal(0, 0.06, 128)
            near = (centre + random.normal(0, 0.012, (10, 128))).astype(np.float32)
            gallery.enrol(f"person {n}", near[:9], space="face-resnet", sources=["photo"] * 9)
            seen = make_sighting(100 + n, seed=100 + n, embedding=near[9])
            store.add(seen, Source.USER, Label(person=f"person {n}", is_face=True))

    shown = run("identity")

    assert "too few to say more" in too_few and "known_distance = 0.5" in too_few
    assert "configured" in shown and "suggested" in shown
    assert "0 of 120" in shown, "108 templates and 12 samples"
