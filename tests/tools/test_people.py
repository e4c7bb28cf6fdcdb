"""The commands about people, as an operator types them."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner
from visaged.pipelines.errors import GalleryError, PhotoError, StoreError
from visaged.pipelines.identity.enrolment import Enrolment, ReadFace
from visaged.pipelines.identity.gallery import Gallery
from visaged.pipelines.identity.identity import IdentityConfig
from visaged.pipelines.privacy.audit import cut, read_chain
from visaged.tools import audit, people, receipt

SPACE = "dlib-1"
COMMANDS = ("enroll", "people", "forget", "merge", "unmerge", "reject")


def faces(n: int, seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(0, 0.1, (n, 128)).astype(np.float32)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    with Gallery(tmp_path / "state") as gallery:
        gallery.enrol("Ada [1815]", faces(2, 1), space=SPACE, consent="form 7")
        gallery.enrol("Ada Byron", faces(1, 2), space=SPACE)
        gallery.add_stranger(faces(1, 3)[0], space=SPACE, quality=1)
    return tmp_path / "state"


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> typer.Typer:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no-config"))
    app = typer.Typer()
    for command in COMMANDS:
        app.command(command)(getattr(people, command))
    return app


def run(app: typer.Typer, *words: object, answer: str | None = None) -> str:
    result = CliRunner().invoke(app, [str(w) for w in words], input=answer, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(app: typer.Typer, command: str) -> None:
    assert f"visaged {command}" in run(app, command, "--help")


def test_the_list_shows_names_counts_and_strangers(app: typer.Typer, state: Path) -> None:
    shown = run(app, "people", "--state", state)

    assert "Ada [1815]" in shown
    assert "form 7" in shown
    assert "unknown-1" in shown
    assert "unknown-1" not in run(app, "people", "--no-strangers", "--state", state)


def test_the_list_is_json_for_other_programs(app: typer.Typer, state: Path) -> None:
    listed = json.loads(run(app, "people", "--json", "--state", state))

    assert [(p["name"], p["templates"], p["is_stranger"]) for p in listed] == [
        ("Ada [1815]", 2, False),
        ("Ada Byron", 1, False),
        ("unknown-1", 1, True),
    ]


def test_an_expired_consent_is_told(app: typer.Typer, state: Path) -> None:
    assert "expired" not in run(app, "people", "--state", state)
    with Gallery(state) as gallery:
        gallery.enrol("Ada [1815]", faces(1, 9), space=SPACE, consent="form 7, expires 2020-01-01")

    assert "the consent of Ada [1815] has expired" in run(app, "people", "--state", state)


def test_a_stranger_is_not_named_without_the_consent_that_is_required(
    app: typer.Typer, state: Path, tmp_path: Path
) -> None:
    config = tmp_path / "visaged.toml"
    config.write_text(f'[paths]\nstate = "{state}"\n[identity]\nrequire_consent = true\n')
    words = "enroll", "Charles", "--stranger", "unknown-1", "--config", config

    with pytest.raises(GalleryError, match="Charles is not enrolled without a consent"):
        run(app, *words)
    run(app, *words, "--consent", "form 8")
    assert "form 8" in run(app, "people", "--state", state)


def test_an_empty_gallery_says_how_to_begin(app: typer.Typer, tmp_path: Path) -> None:
    assert "visaged enroll NAME PHOTO" in run(app, "people", "--state", tmp_path / "new")


def test_merging_and_unmerging(app: typer.Typer, state: Path) -> None:
    before = run(app, "people", "--json", "--state", state)

    run(app, "merge", "Ada [1815]", "Ada Byron", "--state", state)
    merged = json.loads(run(app, "people", "--json", "--state", state))
    run(app, "unmerge", "Ada Byron", "--state", state)

    assert merged[0]["aliases"] == ["Ada Byron"]
    assert run(app, "people", "--json", "--state", state) == before


def test_forgetting_asks_and_prints_a_receipt(app: typer.Typer, state: Path) -> None:
    result = CliRunner().invoke(app, ["forget", "Ada Byron", "--state", str(state)], input="n\n")
    assert result.exit_code == 1
    assert "Ada Byron" in run(app, "people", "--state", state)

    said = run(app, "forget", "Ada Byron", "--state", state, answer="y\n")
    assert "forgot Ada Byron: removed 1 templates, 0 negatives, 0 merges, 0 samples" in said
    assert "Ada Byron" not in run(app, "people", "--state", state)


def test_a_receipt_is_verified_with_the_code_that_was_printed(app: typer.Typer, state: Path) -> None:
    app.add_typer(receipt.app, name="receipt")
    said = run(app, "forget", "Ada Byron", "--yes", "--state", state)
    (file,) = (state / "receipts").glob("*.json")
    code = said.split("code ")[1].split()[0]

    verified = run(app, "receipt", "verify", file, "--name", "Ada Byron", "--code", code, "--state", state)
    assert "1 templates" in verified and "it is about Ada Byron" in verified
    assert file.stem in run(app, "receipt", "list", "--state", state)
    with pytest.raises(StoreError, match="not about Eve"):
        run(app, "receipt", "verify", file, "--name", "Eve", "--code", code, "--state", state)
    with pytest.raises(StoreError, match="signed with another key"):
        run(app, "receipt", "verify", file, "--key", "00" * 32)
    file.write_text(file.read_text().replace('"templates": 1', '"templates": 2'))
    with pytest.raises(StoreError, match="changed after it was signed"):
        run(app, "receipt", "verify", file, "--state", state)


def test_the_audit_log_knows_people_by_numbers_that_mean_nothing_once_they_are_forgotten(
    app: typer.Typer, state: Path
) -> None:
    app.command("audit")(audit.audit)
    run(app, "merge", "Ada [1815]", "Ada Byron", "--state", state)
    before = run(app, "audit", "--state", state)
    head = run(app, "audit", "--verify", "--state", state).split("head ")[1].strip()
    run(app, "forget", "Ada [1815]", "--yes", "--state", state)
    after = run(app, "audit", "--state", state)

    assert "merge" in before and "Ada [1815]" in before
    assert "forget" in after and "number 1" in after and "Ada" not in after
    assert "Ada" not in (state / "audit.log").read_text()
    assert "2 lines, unbroken" in run(app, "audit", "--head", head, "--state", state)
    log = state / "audit.log"
    log.write_text(log.read_text().splitlines(keepends=True)[1])
    with pytest.raises(StoreError, match=r"changed, taken out.*is gone"):
        run(app, "audit", "--head", head, "--state", state)


def test_an_audit_log_whose_beginning_is_cut_verifies_and_says_what_became_of_a_head(
    app: typer.Typer, state: Path
) -> None:
    app.command("audit")(audit.audit)
    run(app, "merge", "Ada [1815]", "Ada Byron", "--state", state)
    first = run(app, "audit", "--verify", "--state", state).split("head ")[1].strip()
    run(app, "unmerge", "Ada Byron", "--state", state)
    cut(state, read_chain(state).deeds[1].at, time.time())
    run(app, "forget", "Ada Byron", "--yes", "--state", state)

    said = run(app, "audit", "--verify", "--head", first, "--state", state)
    assert "2 lines, unbroken, 1 until" in said and "were cut off before them" in said
    assert "1 lines until" in run(app, "audit", "--state", state)
    cut(state, read_chain(state).deeds[1].at, time.time())
    with pytest.raises(StoreError, match=r"is gone, or was cut off with those until \d{4}-"):
        run(app, "audit", "--head", first, "--state", state)


def test_a_stranger_is_given_a_name(app: typer.Typer, state: Path) -> None:
    run(app, "enroll", "Charles", "--stranger", "unknown-1", "--state", state)

    listed = json.loads(run(app, "people", "--json", "--no-strangers", "--state", state))
    assert listed[-1]["name"] == "Charles"
    assert listed[-1]["aliases"] == ["unknown-1"]


def test_somebody_unknown_is_one_sentence(app: typer.Typer, state: Path) -> None:
    with pytest.raises(GalleryError, match="nobody is called Zoe"):
        run(app, "forget", "Zoe", "--yes", "--state", state)


@pytest.mark.parametrize(
    "words",
    [
        ["enroll"],
        ["enroll", "Ada"],
        ["enroll", "Ada", "--folder", "x"],
        ["enroll", "Ada", "a.jpg", "--track", "door:1"],
        ["enroll", "Ada", "--track", "door"],
        ["enroll", "Ada", "--track", "door:x"],
    ],
)
def test_a_muddled_enrolment_is_a_usage_error(app: typer.Typer, words: list[str]) -> None:
    assert CliRunner().invoke(app, words).exit_code == 2


class OneFace:
    """Sees the same one face in every photo, and none in a black one."""

    def read(self, rgb: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> list[ReadFace]:
        """Return one face or none."""
        if not rgb.any():
            return []
        box = np.array([0, 0, 9, 9], np.float32)
        return [ReadFace(box, np.zeros((5, 2), np.float32), 1.0, faces(1, int(rgb[0, 0, 0]))[0])]


def write_grey(path: Path, level: int) -> Path:
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((9, 9, 3), level, np.uint8))
    return path


def test_many_people_are_enrolled_and_every_failure_is_told(tmp_path: Path, state: Path) -> None:
    people_given = {
        "Grace": [write_grey(tmp_path / "g1.png", 10), write_grey(tmp_path / "g2.png", 20)],
        "Hedy": [write_grey(tmp_path / "wall.png", 0)],
        "unknown-9": [write_grey(tmp_path / "x.png", 30)],
    }
    console = Console(record=True, width=200, force_terminal=False)
    with Gallery(state) as gallery:
        enrolment = Enrolment(gallery, OneFace(), SPACE, IdentityConfig())

        failed = people.enroll_photos(console, enrolment, people_given)

        assert failed == 2
        assert [p.name for p in gallery.people()] == ["Ada [1815]", "Ada Byron", "Grace", "unknown-1"]
    said = console.export_text()
    assert "Grace: 2 templates" in said
    assert "wall.png shows no face" in said
    assert "belong to strangers" in said
    assert "1 of 3 people enrolled, 2 failures" in said


def test_a_folder_without_people_is_refused_before_networks_are_loaded(
    app: typer.Typer, tmp_path: Path
) -> None:
    with pytest.raises(PhotoError, match="expected"):
        run(app, "enroll", "--folder", tmp_path)
