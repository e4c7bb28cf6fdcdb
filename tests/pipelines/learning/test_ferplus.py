from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from visaged.pipelines.errors import SourceError
from visaged.pipelines.importers.dlib_dat import read_face_resnet
from visaged.pipelines.importers.dlib_onnx import face_resnet_onnx
from visaged.pipelines.learning.ferplus import Aligner, Faces, Trunk, load_faces, see, tuning_part
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.registry import EMOTION_VGG13

U8 = npt.NDArray[np.uint8]


def votes(*rows: list[int]) -> U8:
    return np.array([row + [0] * (10 - len(row)) for row in rows], np.uint8)


def write(folder: Path, name: str, pictures: U8, given: U8) -> None:
    np.savez(folder / name, x=pictures, votes=given)


def test_a_picture_counts_once_and_test_pictures_are_not_trained_on(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (5, 48, 48)).astype(np.uint8)
    happy, unknown = [0, 10], [0, 2, 0, 0, 0, 0, 0, 0, 8]
    write(tmp_path, "PublicTest.npz", pictures[:2], votes(happy, happy))
    write(tmp_path, "Training.npz", pictures[[1, 2, 2, 3, 4]], votes(happy, happy, happy, unknown, happy))

    training, test = load_faces(tmp_path)

    assert (training.pictures == pictures[[2, 4]]).all()
    assert (test.pictures == pictures[:2]).all()


def test_votes_become_shares_and_a_lone_vote_does_not_count() -> None:
    faces = Faces(np.zeros((2, 48, 48), np.uint8), votes([6, 3, 1], [1, 1]))

    assert faces.targets()[:, :3] == pytest.approx(np.array([[2 / 3, 1 / 3, 0], [0.5, 0.5, 0]]))
    assert faces.has_majority().tolist() == [True, False]


def test_the_tuning_part_follows_the_picture_not_its_place() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (1000, 48, 48)).astype(np.uint8)
    faces = Faces(pictures, np.ones((1000, 10), np.uint8))
    turned = Faces(pictures[::-1], faces.votes)

    chosen = tuning_part(faces)
    assert 60 < chosen.sum() < 140
    assert (tuning_part(turned)[::-1] == chosen).all()


def test_what_is_not_ferplus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"PublicTest\.npz cannot be read"):
        load_faces(tmp_path)
    write(tmp_path, "PublicTest.npz", np.zeros((1, 8, 8), np.uint8), votes([1]))
    with pytest.raises(SourceError, match="is it FER"):
        load_faces(tmp_path)


def test_a_small_picture_of_a_face_is_aligned_like_a_live_one(astronaut: U8, store: ModelStore) -> None:
    import cv2

    picture = cv2.resize(cv2.cvtColor(astronaut[65:245, 135:315], cv2.COLOR_RGB2GRAY), (48, 48))
    aligner = Aligner(store.weights_file("shape_predictor_5_face_landmarks.dat"))

    left_eye, right_eye = aligner.landmarks(np.asarray(picture, np.uint8))[[2, 0]]

    assert 0.3 < right_eye[0] - left_eye[0] < 0.7  # outer corners, shares of the picture
    assert 0.1 < left_eye[1] < 0.6


def test_features_of_every_trunk_are_kept_and_taken_again(store: ModelStore, tmp_path: Path) -> None:
    net = read_face_resnet(store.weights_file("dlib_face_recognition_resnet_model_v1.dat"))
    path = tmp_path / "trunk.onnx"
    path.write_bytes(face_resnet_onnx(net, with_features=True).SerializeToString())
    predictor = store.weights_file("shape_predictor_5_face_landmarks.dat")
    trunks = [Trunk(path), Trunk(store.ensure("emotion-vgg13"), recipe=EMOTION_VGG13.recipe)]
    pictures = np.random.default_rng(0).integers(0, 256, (3, 48, 48)).astype(np.uint8)

    first = see(pictures, 2, predictor, trunks, tmp_path / "kept")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.npy")}
    again = see(pictures, 2, predictor, trunks, tmp_path / "kept")

    assert [seen.shape for seen in first] == [(3, 2, 7168), (3, 2, 256)]
    assert all((one == other).all() for one, other in zip(first, again, strict=True))
    assert len(kept) == 2 and {path: path.stat().st_mtime_ns for path in kept} == kept
