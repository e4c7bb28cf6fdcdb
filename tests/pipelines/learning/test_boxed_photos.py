"""Boxes of faces in dlib's XML: read, counted, and refused with a sentence where they cannot be."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner
from visaged.kernels.boxes import iou
from visaged.pipelines.errors import ConfigError, PhotoError, SourceError
from visaged.pipelines.learning.boxed_photos import aspect_of, check_boxes, is_within_reach, read_boxes
from visaged.pipelines.learning.task import describe, read_task
from visaged.tools.cli import build_app

from tests.pipelines.learning.test_task import drawn, put
from tests.turned_astronaut import TASK, image_line, write_boxes


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """Four photos in two folders to learn from, one to choose with and one to test on."""
    for index in range(6):
        put(tmp_path / f"walk-{index // 2}" / f"{index}.png", drawn(index, 100))
    write_boxes(
        tmp_path / "train.xml",
        [
            image_line("walk-0/0.png", [(10, 10, 40, 40), (60, 10, 12, 12)], " width='100' height='100'"),
            image_line("walk-0/1.png", [(20, 20, 50, 50)]),
            image_line("walk-1/2.png", []),
            "<image file='walk-1/3.png'><box left='1' top='2' width='30' height='90'/>"
            "<box left='50' top='60' width='20' height='20' ignore='1'/></image>",
        ],
    )
    write_boxes(tmp_path / "tune.xml", [image_line("walk-2/4.png", [(0, 0, 50, 50)])])
    write_boxes(tmp_path / "test.xml", [image_line("walk-2/5.png", [(0, 0, 60, 60)])])
    (tmp_path / "task.toml").write_text(TASK)
    return tmp_path / "task.toml"


def test_boxes_have_their_right_and_bottom_beyond_the_last_pixel(task: Path) -> None:
    boxes = read_boxes(task.parent / "train.xml")

    assert [photo.name for photo in boxes] == ["0.png", "1.png", "2.png", "3.png"]
    first, *_, last = boxes.values()
    assert first.faces.tolist() == [[10, 10, 50, 50], [60, 10, 72, 22]]
    assert first.size == (100, 100)
    assert last.faces.tolist() == [[1, 2, 31, 92]]
    assert last.ignored.tolist() == [[50, 60, 70, 80]]


def test_faces_are_counted_and_those_that_no_window_can_find_are_said(task: Path) -> None:
    put(task.parent / "walk-2" / "5.png", drawn(0, 100))  # is learned from, too

    found = describe(read_task(task))

    assert found.faces is not None
    assert found.faces.n_faces == {"train": 4, "tune": 1, "test": 1}
    assert found.faces.n_ignored == {"train": 1, "tune": 0, "test": 0}
    assert found.faces.n_faceless == {"train": 1, "tune": 0, "test": 0}
    assert found.faces.sides_px == (12, 50, 60)
    assert (found.faces.n_small, found.faces.n_odd) == (1, 1)
    assert {(leak.why, leak.second.name) for leak in found.leaks} == {("same", "5.png"), ("group", "5.png")}
    assert found.advice.startswith("4 faces to learn from")


def test_the_command_prints_it(task: Path) -> None:
    put(task.parent / "walk-1" / "3.png", drawn(3, 40))  # the boxes were drawn on a larger one

    said = (
        CliRunner().invoke(build_app("data"), ["data", "describe", str(task)], catch_exceptions=False).output
    )

    assert "frame in, box out" in said
    assert "under 20 px: 1" in said
    assert "not read:" in said and "3.png has 40x40 px, and a box" in said
    assert "quantity: 3 faces" in said


@pytest.mark.parametrize("ratio", [0.4, 0.5, 0.8, 1.0, 1.7, 2.2, 2.4])
def test_reach_is_the_best_overlap_of_any_window_of_that_shape(ratio: float) -> None:
    box = np.array([[-50 * ratio, -50, 50 * ratio, 50]], np.float32)
    sizes = np.linspace(10, 200, 4000)
    windows = (np.stack([-sizes, -sizes, sizes, sizes], axis=1) / 2).astype(np.float32)

    assert bool(is_within_reach(box, 1.0)[0]) == bool(iou(box, windows).max() >= 0.5)
    assert aspect_of(box) == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("<image file='a.png'><box left='1' top='1' width='x' height='9'/></image>", r"width = 'x'"),
        ("<image file='a.png'><box left='nan' top='1' width='9' height='9'/></image>", r"left = 'nan'"),
        ("<image file='a.png'><box left='1e300' top='1' width='9' height='9'/></image>", r"left = '1e300'"),
        ("<image file='a.png'><box left='1' top='1' width='9'/></image>", r"height = ''"),
        ("<image file='a.png'><box left='1' top='1' width='0' height='9'/></image>", r"a box of 0x9 px"),
        ("<image file='a.png' width='9'/>", r"height = ''"),
        ("<box left='1' top='1' width='9' height='9'/>", r"a box before any photo"),
        ("<image/>", r"names the photo ''"),
        ("<image file='/etc/passwd'/>", r"the photo '/etc/passwd'"),
        ("<image file='../a.png'/>", r"the photo '../a.png'"),
        ("<image file='a.png'/><image file='a.png'/>", r"names a.png again"),
        ("<image file='a.png'>", r"is no XML .*mismatched tag"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(tmp_path: Path, body: str, sentence: str) -> None:
    write_boxes(tmp_path / "b.xml", [body])

    with pytest.raises(SourceError, match=sentence) as caught:
        read_boxes(tmp_path / "b.xml")

    assert "b.xml" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("coding", ["utf-8", "utf-16"])
def test_entities_are_refused_before_they_grow(tmp_path: Path, coding: str) -> None:
    bomb = '<!DOCTYPE d [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><dataset>&b;</dataset>'
    (tmp_path / "b.xml").write_bytes(f'<?xml version="1.0" encoding="{coding}"?>{bomb}'.encode(coding))

    with pytest.raises(SourceError, match="defines a document type"):
        read_boxes(tmp_path / "b.xml")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"<?xml version='1.0' encoding='klingon'?><a/>"])
def test_what_is_no_xml_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "b.xml").write_bytes(content)

    with pytest.raises(SourceError, match="is no XML"):
        read_boxes(tmp_path / "b.xml")


def test_boxes_of_another_picture_are_refused(task: Path) -> None:
    first, second, *_ = read_boxes(task.parent / "train.xml").values()

    check_boxes(Path("a.png"), first, (100, 100, 3))
    with pytest.raises(PhotoError, match=r"drawn on 100x100"):
        check_boxes(Path("a.png"), first, (100, 120, 3))
    with pytest.raises(PhotoError, match=r"left 20, top 20, width 50, height 50 lies outside"):
        check_boxes(Path("a.png"), second, (100, 40, 3))


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('"frame"', '"face"', r'say input = "frame"'),
        ("[folders]", 'classes = ["a", "b"]\n[folders]', r"leave classes out"),
        ("test.xml", "gone.xml", r"the XML file of test, .*gone\.xml, is not there"),
    ],
)
def test_a_task_of_boxes_has_frames_and_no_classes(task: Path, old: str, new: str, sentence: str) -> None:
    task.write_text(TASK.replace(old, new))

    with pytest.raises(ConfigError, match=sentence):
        read_task(task)


def test_a_missing_photo_is_not_read(task: Path) -> None:
    (task.parent / "walk-0" / "1.png").unlink()

    (sentence,) = describe(read_task(task)).unreadable

    assert "1.png cannot be read" in sentence


def test_a_picture_is_what_the_xml_names(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "ä b.png"), drawn(1))
    text = "<?xml version='1.0' encoding='ISO-8859-1'?><dataset><image file='ä b.png'/></dataset>"
    (tmp_path / "b.xml").write_bytes(text.encode("latin-1"))

    (photo,) = read_boxes(tmp_path / "b.xml")

    assert photo.is_file()
