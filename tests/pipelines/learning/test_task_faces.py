"""The faces of a task: cut as live ones, split by group, and nothing twice. One photo in many tints."""

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from visaged.pipelines.detector import build_photo_detector
from visaged.pipelines.errors import ConfigError, SourceError
from visaged.pipelines.learning.samples import PARTS, TEST, TRAIN, split_of
from visaged.pipelines.learning.task import TaskConfig, read_task
from visaged.pipelines.learning.task_faces import FaceFinder, TaskFaces, load_faces, parted
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.registry import ChipRecipe, Colour

U8 = npt.NDArray[np.uint8]
RECIPE = ChipRecipe(size=48, padding=0.25, colour=Colour.RGB, mean=(0.0,) * 3, scale=1.0)
FACE = np.s_[65:245, 135:315]  # of the astronaut


def put(path: Path, rgb: U8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.ascontiguousarray(rgb[..., ::-1]))


def tinted(rgb: U8, index: int) -> U8:
    tints = np.array([index % 7, index // 7 % 7, index // 49]) * 9
    return np.asarray(np.clip(rgb.astype(int) - tints, 0, 255), np.uint8)


def task_in(folder: Path, *parts: str, kind: str = "box") -> TaskConfig:
    folders = "\n".join(f'{part} = "{part}"' for part in parts)
    for part in parts:
        (folder / part).mkdir(exist_ok=True)
    (folder / "task.toml").write_text(
        f'name = "moods"\ninput = "{kind}"\nclasses = ["glad", "sad"]\n[folders]\n{folders}\n'
    )
    return read_task(folder / "task.toml")


def faces_of(task: TaskConfig, store: ModelStore, recipe: ChipRecipe = RECIPE) -> TaskFaces:
    return load_faces(task, recipe, FaceFinder(task.input, store))


def people(part: str, n: int) -> list[str]:
    """Return names whose hash puts them into `part`."""
    return [name for name in (f"p{i}" for i in range(900)) if split_of([name])[0] == part][:n]


def test_a_group_is_in_one_part_whatever_its_classes(
    tmp_path: Path, astronaut: U8, store: ModelStore
) -> None:
    crop = astronaut[FACE]
    names = [name for part in PARTS for name in people(part, 3)]
    for index, name in enumerate(names):
        put(tmp_path / "train" / "glad" / name / "a.png", tinted(crop, 2 * index))
        put(tmp_path / "train" / "sad" / name / "b.png", tinted(crop, 2 * index + 1))

    parts = faces_of(task_in(tmp_path, "train"), store).parts

    groups = {part: set(samples.groups) for part, samples in parts.items()}
    assert groups == {part: set(people(part, 3)) for part in PARTS}
    assert all(len(samples) == 6 and set(samples.labels) == {0, 1} for samples in parts.values())
    assert parts[TRAIN].pictures.shape == (6, 48, 48, 3)


def test_the_people_of_an_embedding_are_in_one_part_and_each_part_knows_its_own(
    tmp_path: Path, astronaut: U8, store: ModelStore
) -> None:
    crop = astronaut[FACE]
    for index, name in enumerate(name for part in PARTS for name in people(part, 3)):
        put(tmp_path / "train" / name / "a.png", tinted(crop, 2 * index))
        put(tmp_path / "train" / name / "b.png", tinted(crop, 2 * index + 1))
    text = 'name = "who"\ninput = "box"\noutput = "embedding"\n[folders]\ntrain = "train"\n'
    (tmp_path / "task.toml").write_text(text)

    parts = faces_of(read_task(tmp_path / "task.toml"), store).parts

    for part, samples in parts.items():
        assert samples.classes == tuple(sorted(people(part, 3))) and len(samples) == 6
        assert samples.groups.tolist() == [samples.classes[label] for label in samples.labels]


def test_pixels_that_are_tested_on_are_not_learned_from(
    tmp_path: Path, astronaut: U8, store: ModelStore
) -> None:
    crop = astronaut[FACE]
    for part, first in (("train", 0), ("tune", 10), ("test", 20)):
        for index in range(first, first + 2):
            put(tmp_path / part / "glad" / f"{part}{index}.png", tinted(crop, index))
    put(tmp_path / "train" / "sad" / "copy-of-tune.png", tinted(crop, 10))
    put(tmp_path / "train" / "glad" / "copy-of-test.bmp", tinted(crop, 20))
    (tmp_path / "train" / "sad" / "broken.png").write_bytes(b"no picture")

    found = faces_of(task_in(tmp_path, "train", "tune", "test"), store)

    assert {part: len(samples) for part, samples in found.parts.items()} == dict.fromkeys(PARTS, 2)
    assert (found.n_repeated, found.n_unreadable, found.n_faceless) == (2, 1, 0)
    assert not any("copy" in group for samples in found.parts.values() for group in samples.groups)


def test_a_part_that_is_missing_is_split_off_the_training_groups(tmp_path: Path, astronaut: U8) -> None:
    names = [name for part in PARTS for name in people(part, 2)]
    for name in names:
        put(tmp_path / "train" / "glad" / name / "a.png", astronaut[:8, :8])
    put(tmp_path / "test" / "glad" / "kept" / "a.png", astronaut[:8, :8])

    parts = {photo.group: photo.part for photo in parted(task_in(tmp_path, "train", "test"))}

    assert parts["kept"] == TEST
    assert [group for group, part in parts.items() if part == TEST] == ["kept"]
    assert set(parts.values()) == set(PARTS)


def test_a_group_in_two_given_parts_is_refused(tmp_path: Path, astronaut: U8) -> None:
    for part, label in (("train", "glad"), ("test", "sad")):
        put(tmp_path / part / label / "ann" / "a.png", astronaut[:8, :8])
        put(tmp_path / part / label / "001.png", astronaut[:8, :8])  # of one name, but nobody's

    with pytest.raises(ConfigError, match=r"group 'ann' in train .* and in test"):
        parted(task_in(tmp_path, "train", "test"))
    with pytest.raises(ConfigError, match="names no folder train"):
        parted(task_in(tmp_path, "tune", "test"))


def test_the_chip_of_a_frame_is_the_live_chip_of_its_largest_face(
    tmp_path: Path, astronaut: U8, store: ModelStore
) -> None:
    small = cv2.resize(astronaut, None, fx=0.55, fy=0.55, interpolation=cv2.INTER_AREA)
    pair = np.zeros((512, 512 + small.shape[1], 3), np.uint8)
    pair[: small.shape[0], : small.shape[1]], pair[:, small.shape[1] :] = small, astronaut
    detector = build_photo_detector(store)
    live = max(detector.detect(pair), key=lambda face: float(np.prod(face.box[2:] - face.box[:2])))

    found = FaceFinder("frame", store).find(pair)

    assert found is not None and len(detector.detect(pair)) == 2
    assert np.array_equal(found[1], live.landmarks) and live.box[0] > small.shape[1]
    assert found[0] is pair


def test_photos_without_a_face_are_counted_and_an_empty_part_is_one_sentence(
    tmp_path: Path, astronaut: U8, store: ModelStore
) -> None:
    put(tmp_path / "train" / "glad" / people(TRAIN, 1)[0] / "a.png", astronaut)
    for part in PARTS:
        put(
            tmp_path / "train" / "sad" / people(part, 2)[1] / f"{part}.png",
            tinted(astronaut[300:], len(part)),
        )
    finder = FaceFinder("frame", store)

    assert finder.find(astronaut[300:]) is None
    with pytest.raises(SourceError, match=r"no face in its part (tune|test)"):
        load_faces(task_in(tmp_path, "train", kind="frame"), RECIPE, finder)


def test_a_crop_of_a_face_is_found_or_else_placed_where_faces_usually_are(
    astronaut: U8, store: ModelStore
) -> None:
    finder = FaceFinder("face", store)
    crop = astronaut[FACE]
    tiny = np.asarray(cv2.resize(crop, (40, 40), interpolation=cv2.INTER_AREA), np.uint8)

    found, guessed = finder.find(crop), finder.find(tiny)

    assert found is not None and guessed is not None
    shares = [
        (marks[4] - (min(frame.shape[:2]) // 4)) / (min(frame.shape[:2]) // 2)
        for frame, marks in (found, guessed)
    ]
    assert np.abs(shares[0] - shares[1]).max() < 0.08  # the nose, as a share of the crop
    assert finder.n_guessed == 0
    flat = finder.find(np.full((90, 60, 3), 128, np.uint8))
    assert flat is not None and finder.n_guessed == 1
    assert flat[1].min() > 0 and (flat[1].max(axis=0) < flat[0].shape[1::-1]).all()
