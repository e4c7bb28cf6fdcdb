"""Looking inside: the torch network answers as the engine does, and what is shown means what it should."""

import numpy as np
import pytest
from visaged.pipelines.engines.ort_engine import OrtEngine
from visaged.pipelines.engines.parity_inputs import face_chips
from visaged.pipelines.importers.dlib_dat import read_face_resnet
from visaged.pipelines.importers.emotion_head import read_head
from visaged.pipelines.model_store import HEAD_PATH, ModelStore
from visaged.pipelines.registry import FACE_RESNET

torch = pytest.importorskip("torch", reason="torch is not installed (extra `learn`)")
from visaged.pipelines.learning.explainer import (  # noqa: E402
    EmotionNetwork,
    explain,
    filters_of,
    montage,
)

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def network(store: ModelStore) -> EmotionNetwork:
    torch.set_num_threads(1)
    weights = store.weights_file("dlib_face_recognition_resnet_model_v1.dat")
    network = EmotionNetwork(read_face_resnet(weights), read_head(HEAD_PATH))
    network.eval()
    return network


def test_the_network_that_is_explained_answers_as_the_engine_does(
    network: EmotionNetwork, store: ModelStore
) -> None:
    chips = face_chips(FACE_RESNET.recipe)[:4].copy()

    with torch.no_grad():
        ours = network(torch.from_numpy(chips)).numpy()

    assert np.abs(ours - OrtEngine(store.ensure("face-resnet")).infer(chips)["logits"]).max() < 1e-3


def test_hiding_what_speaks_for_a_smile_hides_the_smile_more_than_hiding_as_much_elsewhere(
    network: EmotionNetwork,
) -> None:
    chip = face_chips(FACE_RESNET.recipe)[0].copy()
    happiness = network.head.classes.index("happiness")
    found = explain(network, chip, happiness)

    def logit_without(chosen: np.ndarray) -> float:
        hidden = chip.copy()
        hidden[:, chosen] = 0  # the mean colour
        with torch.no_grad():
            return float(network(torch.from_numpy(hidden[None]))[0, happiness])

    order = np.argsort(found.pixels.ravel())
    best, worst = np.zeros(found.pixels.size, bool), np.zeros(found.pixels.size, bool)
    best[order[-2000:]], worst[order[:2000]] = True, True
    assert logit_without(best.reshape(150, 150)) < logit_without(worst.reshape(150, 150)) - 1
    assert found.probabilities.argmax() == happiness
    assert found.where.shape == found.pixels.shape == (150, 150)
    assert found.where.min() >= 0 and found.where.max() == 1


def test_another_class_has_another_explanation(network: EmotionNetwork) -> None:
    chip = face_chips(FACE_RESNET.recipe)[0].copy()
    names = network.head.classes

    first, second = (explain(network, chip, names.index(name)) for name in ("happiness", "sadness"))

    assert np.corrcoef(first.pixels.ravel(), second.pixels.ravel())[0, 1] < 0.5


def test_a_montage_shows_the_strongest_maps_first() -> None:
    maps = np.stack([np.eye(3, dtype=np.float32) * strength for strength in (1, 5, 3)])

    shown = montage(maps, a_side=2)

    assert shown.shape == (6, 6)
    assert shown[:3, :3] == pytest.approx(np.eye(3))
    assert shown[3:, 3:].sum() == 0


def test_filters_are_the_first_layers(network: EmotionNetwork) -> None:
    filters = filters_of(network)

    assert filters.shape == (32, 7, 7, 3)
    assert filters.min() == 0 and filters.max() == 1
