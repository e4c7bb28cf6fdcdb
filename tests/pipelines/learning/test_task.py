"""Task files, and what is found out about their data: drawn pictures with known mistakes."""

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from typer.testing import CliRunner
from visaged.pipelines.errors import ConfigError, SourceError
from visaged.pipelines.learning.task import advice, describe, photos_of, read_task
from visaged.tools.cli import build_app

U8 = npt.NDArray[np.uint8]
TASK = """
name = "moods"
classes = ["glad", "sad"]
[folders]
train = "train"
test = "test"
"""


def drawn(seed: int, side: int = 64) -> U8:
    """A smooth picture, another for every seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC), np.uint8)


def put(folder: Path, picture: U8) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder), picture)


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """Six glad and three sad photos to learn from, two of each to test on."""
    (tmp_path / "task.toml").write_text(TASK)
    for index in range(6):
        put(tmp_path / "train" / "glad" / f"g{index}.png", drawn(index, 64 + 8 * index))
    for index in range(3):
        put(tmp_path / "train" / "sad" / "ann" / f"s{index}.png", drawn(20 + index))
    for index in range(2):
        put(tmp_path / "test" / "glad" / f"t{index}.png", drawn(40 + index))
        put(tmp_path / "test" / "sad" / "bob" / f"t{index}.png", drawn(60 + index))
    return tmp_path / "task.toml"


def test_clean_data_are_counted(task: Path) -> None:
    found = describe(read_task(task))

    assert found.counts == {"train": {"glad": 6, "sad": 3}, "test": {"glad": 2, "sad": 2}}
    assert found.imbalance == 2
    assert found.sides_px == (64, 64, 104)
    assert found.n_groups == 6 + 1 + 2 + 1
    assert (found.n_duplicates, found.leaks, found.unreadable, found.unknown) == (0, (), (), ())


def test_a_photo_that_is_learned_from_and_tested_on_is_found(task: Path) -> None:
    put(task.parent / "test" / "glad" / "copy.png", drawn(0))
    smaller = cv2.resize(drawn(1, 72), (50, 50), interpolation=cv2.INTER_AREA)
    put(task.parent / "test" / "glad" / "again.jpg", np.asarray(smaller, np.uint8))

    leaks = {(leak.why, leak.first.name, leak.second.name) for leak in describe(read_task(task)).leaks}

    assert leaks == {("same", "g0.png", "copy.png"), ("alike", "g1.png", "again.jpg")}


def test_a_person_in_two_parts_is_found(task: Path) -> None:
    put(task.parent / "test" / "sad" / "ann" / "other.png", drawn(80))

    (leak,) = describe(read_task(task)).leaks

    assert (leak.why, leak.second.name) == ("group", "other.png")


def test_duplicates_broken_files_and_foreign_folders_are_said(task: Path) -> None:
    put(task.parent / "train" / "glad" / "twice.png", drawn(2, 80))
    (task.parent / "train" / "glad" / "broken.jpg").write_bytes(b"no picture")
    put(task.parent / "train" / "angry" / "a.png", drawn(90))

    found = describe(read_task(task))

    assert found.n_duplicates == 1
    assert "broken.jpg" in found.unreadable[0]
    assert found.unknown[0].endswith("train/angry")


@pytest.mark.parametrize(
    ("counts", "word"),
    [
        ({"a": 0, "b": 9}, "no photo"),
        ({"a": 20, "b": 900}, "only a head"),
        ({"a": 200, "b": 900}, "end part"),
        ({"a": 900, "b": 900}, "1 M parameters"),
        ({"a": 15_000, "b": 9_000}, "vgg13"),
    ],
)
def test_few_photos_support_little_depth(counts: dict[str, int], word: str) -> None:
    assert word in advice(counts)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name = 3", "is no task"),
        ('name = "x"\nclasses = ["a"]\n[folders]\n', "two at least, not 1"),
        ('name = "x"\n[folders]\n', "two at least, not 0"),
        ('name = "x"\noutput = "embedding"\n[folders]\ntrain = "."\n', "hold 0 people"),
        ('output = "box"\n' + TASK, "boxes are of faces in frames"),
        ('name = "x"\nclasses = ["a", "b"]\n[folders]\n', "names none"),
        ('name = "x"\nclasses = ["a", "b"]\n[folders]\ntrain = "gone"\n', "is not there"),
        ('input = "smell"\n' + TASK, "input"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "task.toml").write_text(text)

    with pytest.raises(ConfigError, match=sentence):
        read_task(tmp_path / "task.toml")


def test_the_classes_of_an_embedding_are_its_people_and_each_is_a_group(task: Path) -> None:
    task.write_text('output = "embedding"\n' + TASK.replace('classes = ["glad", "sad"]', ""))
    put(task.parent / "test" / "eve" / "photo.png", drawn(90))

    people = read_task(task)

    assert people.classes == ("eve", "glad", "sad")  # of all parts
    assert {photo.group for photo in photos_of(people)} == set(people.classes)
    leaks = {(leak.why, leak.first.parts[-2]) for leak in describe(people).leaks}
    assert ("group", "glad") in leaks  # somebody is learned from and tested on


def test_empty_folders_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "task.toml").write_text(TASK)
    for part in ("train", "test"):
        (tmp_path / part).mkdir()

    with pytest.raises(SourceError, match="has no photo"):
        describe(read_task(tmp_path / "task.toml"))


def test_the_command_prints_it_and_fails_on_leaks_when_asked(task: Path) -> None:
    put(task.parent / "test" / "glad" / "copy.png", drawn(0))
    words = ["data", "describe", str(task)]

    plain = CliRunner().invoke(build_app("data"), words)
    strict = CliRunner().invoke(build_app("data"), [*words, "--strict"])

    assert plain.exit_code == 0
    assert "leaks between parts: 1" in plain.output and "depth: " in plain.output
    assert isinstance(strict.exception, SourceError)
