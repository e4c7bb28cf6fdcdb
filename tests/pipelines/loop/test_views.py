"""Altered copies of learned faces: other pictures, the same label and the same group."""

import numpy as np
import numpy.typing as npt
import pytest
from visaged.pipelines.detector import build_photo_detector
from visaged.pipelines.engines.ort_engine import OrtEngine
from visaged.pipelines.loop.replay_memory import Remembered
from visaged.pipelines.loop.schedule import LearningConfig
from visaged.pipelines.loop.sealed_face import StoredFace
from visaged.pipelines.loop.sighting import cut_sample_chip
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.registry import FACE_RESNET

pytest.importorskip("torch", reason="torch is not installed (extra `learn`)")
pytestmark = pytest.mark.torch

from visaged.pipelines.loop.views import views_of  # noqa: E402
from visaged.pipelines.synthesis.admission import build_admission  # noqa: E402
from visaged.pipelines.synthesis.synthesiser import Synthesiser  # noqa: E402

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

RECIPE = FACE_RESNET.recipe
N_FACES = 6


@pytest.fixture(scope="module")
def faces(astronaut: U8, store: ModelStore) -> list[StoredFace]:
    (found,) = build_photo_detector(store).detect(astronaut)
    random = np.random.default_rng(0)
    cut = [
        cut_sample_chip(astronaut, found.landmarks + random.normal(0, 1, (5, 2)).astype("f4"))
        for _ in range(N_FACES)
    ]
    return [StoredFace(chip, marks, None, None, {}) for chip, marks in cut]


def test_copies_keep_label_and_group_and_are_not_the_face_again(
    faces: list[StoredFace], store: ModelStore
) -> None:
    engine = OrtEngine(store.ensure(FACE_RESNET.name))
    look = lambda chips: engine.infer(chips)["embedding"]  # noqa: E731
    targets = np.eye(8, dtype=np.float32)[np.arange(N_FACES)]
    learned = Remembered(
        np.zeros((N_FACES, 128), np.float32), targets, np.array([f"person {n}" for n in range(N_FACES)])
    )
    synthesiser = Synthesiser(build_admission(store), RECIPE.padding)
    config = LearningConfig(augmented_views=2, rendered_view=True)

    rendered = views_of(faces, learned, LearningConfig(rendered_view=True), RECIPE, look, synthesiser)
    both = views_of(faces, learned, config, RECIPE, look, synthesiser)
    again = views_of(faces, learned, config, RECIPE, look, synthesiser)
    nothing = views_of(faces, learned, LearningConfig(), RECIPE, look, None)

    assert 1 <= len(rendered) <= N_FACES and len(nothing) == 0
    assert len(both) == len(rendered) + 2 * N_FACES
    person_of_class = {int(t.argmax()): str(g) for t, g in zip(targets, learned.groups, strict=True)}
    assert all(person_of_class[label] == group for label, group in zip(both.labels, both.groups, strict=True))
    np.testing.assert_array_equal(both.features, again.features)  # after a kill the same are made
    distances = np.linalg.norm(both.features[:, None] - both.features[None], axis=2)
    assert distances[~np.eye(len(both), dtype=bool)].min() > 0.01, "two copies are the same picture"
    assert distances[: len(rendered), len(rendered) :].min() < 0.6, "rendered as somebody else"
