"""`visaged samples` and `visaged flag` on samples that are stored, as an operator types them."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
import typer
from typer.testing import CliRunner
from visaged.pipelines.errors import GalleryError, SampleError, VisagedError
from visaged.pipelines.identity.gallery import Gallery
from visaged.pipelines.loop.sample import Label, Source
from visaged.pipelines.loop.sample_store import SampleStore
from visaged.pipelines.loop.sighting import Sighting
from visaged.tools.cli import build_app

MakeSighting = Callable[..., Sighting]


@pytest.fixture
def state(tmp_path: Path, make_sighting: MakeSighting, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with one labelled sample, one of chance, and a configuration that names it."""
    monkeypatch.setenv("COLUMNS", "200")
    with SampleStore(tmp_path / "state") as store:
        store.add(make_sighting(1), Source.USER, Label(emotion="fear", is_face=True))
        store.add(make_sighting(2, camera="yard"), Source.RANDOM)
    config = tmp_path / "visaged.toml"
    config.write_text(f'[paths]\nstate = "{tmp_path}/state"\nruntime = "{tmp_path}"\n')
    monkeypatch.setenv("VISAGED_CONFIG", str(config))
    return tmp_path / "state"


def run(*words: object) -> str:
    app: typer.Typer = build_app(str(words[0]))
    result = CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def listed(*words: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(run("samples", "list", "--json", *words))
    return found


def id_of(camera: str) -> str:
    return str(listed("--camera", camera)[0]["id"])


def test_the_list_says_what_each_is_and_counts(state: Path) -> None:
    shown = run("samples", "list")

    assert re.search(rf"{id_of('door')} .* door:3 +user +neutral, Ada +fear +\d", shown)
    assert re.search(rf"{id_of('yard')} .* yard:3 +random +neutral, Ada +\d", shown)
    assert "state: 1 corrected, 1 review" in shown
    assert "source: 1 user, 1 random" in shown
    assert "said to show: 1 fear" in shown


def test_the_list_can_be_narrowed(state: Path) -> None:
    for words, cameras in (
        (("--state", "review"), ["yard"]),
        (("--source", "user"), ["door"]),
        (("--camera", "yard"), ["yard"]),
        (("--camera", "yard", "--source", "user"), []),
    ):
        assert [sample["camera"] for sample in listed(*words)] == cameras


def test_an_empty_store_says_how_to_begin(state: Path, tmp_path: Path) -> None:
    assert "visaged flag CAMERA:TRACK" in run("samples", "list", "--state-folder", tmp_path / "new")


def test_a_sample_is_shown_as_a_picture_for_its_owner_alone(
    state: Path, tmp_path: Path, make_sighting: MakeSighting
) -> None:
    out = tmp_path / "face.png"
    said = run("samples", "show", id_of("door")[:8], "--out", out)

    assert "door:3 in frame 1, shown as neutral, Ada; fear" in said
    assert "emotion-xception: 0.70 0.30" in said
    picture = cv2.imread(str(out))
    assert picture is not None
    assert (picture[..., ::-1] == make_sighting(1).chip).all()
    assert out.stat().st_mode & 0o777 == 0o600


def test_a_contact_sheet_has_a_tile_for_each(state: Path, tmp_path: Path) -> None:
    run("samples", "sheet", tmp_path / "all.png")
    run("samples", "sheet", tmp_path / "one.png", "--state", "review")

    everything, one = (cv2.imread(str(tmp_path / name)) for name in ("all.png", "one.png"))
    assert everything is not None and one is not None
    assert everything.shape[1] > 1.8 * one.shape[1]
    with pytest.raises(SampleError, match="no such samples to draw"):
        run("samples", "sheet", tmp_path / "none.png", "--source", "flicker")
    assert not (tmp_path / "none.png").exists()


def test_a_stored_sample_is_labelled_and_the_gallery_learns(state: Path) -> None:
    said = run("flag", id_of("yard"), "--person", "Ben", "--emotion", "anger")

    assert "shown as neutral, Ada; anger, Ben" in said
    with Gallery(state) as gallery:
        assert [(p.name, p.templates) for p in gallery.people()] == [("Ben", 1)]


def test_a_stored_sample_names_nobody_without_the_consent_that_is_required(
    state: Path, tmp_path: Path
) -> None:
    with (tmp_path / "visaged.toml").open("a") as config:
        config.write("[identity]\nrequire_consent = true\n")

    with pytest.raises(GalleryError, match="Ben is not enrolled without a consent"):
        run("flag", id_of("yard"), "--person", "Ben")
    with Gallery(state) as gallery:
        assert gallery.people() == []


def test_removing_a_sample_takes_back_what_it_taught(state: Path) -> None:
    run("flag", id_of("yard"), "--person", "Ben")

    said = run("samples", "remove", id_of("yard"))

    assert "and 1 templates" in said
    assert [sample["camera"] for sample in listed()] == ["door"]
    with Gallery(state) as gallery:
        assert [(p.name, p.templates) for p in gallery.people()] == [("Ben", 0)]


def test_forgetting_a_person_removes_their_samples(state: Path, make_sighting: MakeSighting) -> None:
    with Gallery(state) as gallery, SampleStore(state) as store:
        gallery.enrol("Countess", -make_sighting(1).embedding[None], space="face-resnet")  # type: ignore[index]
        gallery.enrol("Ada", make_sighting(1).embedding[None], space="face-resnet")  # type: ignore[index]
        gallery.merge("Countess", "Ada")
        store.add(make_sighting(7), Source.USER, Label(person="Ben", is_face=True))

    said = run("forget", "Countess", "--yes")

    assert "forgot Countess (also Ada): removed 2 templates" in said
    assert "1 merges, 2 samples" in said
    assert [sample["seq"] for sample in listed()] == [7]


def test_samples_of_somebody_who_is_not_in_the_gallery_any_more_go_too(state: Path) -> None:
    assert "0 merges, 2 samples" in run("forget", "ada", "--yes")
    assert listed() == []
    with pytest.raises(GalleryError, match="nobody is called ada"):
        run("forget", "ada", "--yes")


@pytest.mark.parametrize(
    "words",
    [
        ["door:3"],
        ["door:3", "--emotion", "joy"],
        ["door:3", "--confirm", "--not-a-face"],
        ["door:3", "--person", "Ada", "--not-person", "Ben"],
        ["door:x", "--confirm"],
        [":3", "--confirm"],
        ["3fa0", "--confirm", "--emotion", "fear"],
    ],
)
def test_a_muddled_flag_is_a_usage_error(state: Path, words: list[str]) -> None:
    assert CliRunner().invoke(build_app("flag"), ["flag", *words]).exit_code == 2


def test_a_live_flag_without_a_daemon_is_one_sentence(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visaged.tools.flag.PATIENCE_S", 0.1)
    with pytest.raises(VisagedError, match="no answer from the daemon"):
        run("flag", "door:3", "--confirm")


@pytest.mark.parametrize(
    "command", [["flag"], ["samples", "list"], ["samples", "show"], ["samples", "sheet"]]
)
def test_help_has_an_example(command: list[str]) -> None:
    assert f"visaged {' '.join(command)}" in run(*command, "--help")
