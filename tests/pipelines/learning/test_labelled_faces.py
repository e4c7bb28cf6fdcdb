"""Parts of a task: evaluation looks at the photos that training keeps for it."""

from pathlib import Path

from visaged.pipelines.learning.labelled_faces import photos_of_part
from visaged.pipelines.learning.task import read_task
from visaged.pipelines.learning.task_faces import parted


def task_file(folder: Path, *parts: str) -> Path:
    """A task with 40 people in each of `parts`, and no picture worth opening."""
    for part in parts:
        for label in ("happiness", "neutral"):
            for person in range(20):
                photo = folder / part / label / f"{part}-{label}-{person}" / "a.png"
                photo.parent.mkdir(parents=True)
                photo.write_bytes(b"")
    lines = [f'{part} = "{part}"' for part in parts]
    path = folder / "task.toml"
    path.write_text("\n".join(['name = "t"', 'classes = ["happiness", "neutral"]', "[folders]", *lines]))
    return path


def test_a_part_with_a_folder_is_that_folder(tmp_path: Path) -> None:
    task = read_task(task_file(tmp_path, "test"))

    assert len(photos_of_part(task, "test")) == 40


def test_a_part_without_a_folder_is_what_training_does_not_learn_from(tmp_path: Path) -> None:
    task = read_task(task_file(tmp_path, "train", "test"))

    chosen = photos_of_part(task, "tune")

    assert chosen and chosen == [photo for photo in parted(task) if photo.part == "tune"]
    assert {photo.group for photo in chosen}.isdisjoint(
        photo.group for photo in parted(task) if photo.part == "train"
    )
