import numpy as np
import pytest
from visaged.pipelines.engines.ort_engine import OrtEngine
from visaged.pipelines.message import EMOTIONS
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.registry import DETECTORS, NETWORKS, Colour, Network

ROWS = [*NETWORKS.values(), *DETECTORS.values()]


@pytest.mark.parametrize("network", ROWS, ids=lambda network: network.name)
def test_every_network_says_where_it_is_from_and_who_may_use_it(network: Network) -> None:
    for text in (network.source, network.licence, network.licence_note, network.trained_on):
        assert text


@pytest.mark.parametrize("network", NETWORKS.values(), ids=lambda network: network.name)
def test_the_imported_graph_gives_what_the_registry_says(network: Network, store: ModelStore) -> None:
    recipe = network.recipe
    channels = 1 if recipe.colour is Colour.GREY else 3
    assert len(recipe.mean) == channels

    engine = OrtEngine(store.ensure(network.name))
    outputs = engine.infer(np.zeros((2, channels, recipe.size, recipe.size), np.float32))

    assert {name: values.shape for name, values in outputs.items()} == {
        output.name: (2, output.dim) for output in network.outputs
    }


def test_classes_are_named_as_they_are_published() -> None:
    for network in NETWORKS.values():
        for output in network.outputs:
            if output.kind == "logits":
                assert len(set(output.classes)) == output.dim
                assert set(output.classes) <= set(EMOTIONS)
                assert output.temperature > 0


def test_a_member_of_the_ensemble_can_read_the_smile_of_the_astronaut(
    store: ModelStore, astronaut: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
) -> None:
    from visaged.pipelines.cropper import Cropper
    from visaged.pipelines.dlib_faces import HogDetector, LandmarkPredictor

    boxes, _ = HogDetector().boxes(astronaut, 1.0)
    predictor = LandmarkPredictor(store.weights_file("shape_predictor_5_face_landmarks.dat"))
    landmarks = predictor.place(astronaut, boxes[:1])

    for network in NETWORKS.values():
        engine = OrtEngine(store.ensure(network.name))
        logits = engine.infer(Cropper().crop(astronaut, landmarks, network.recipe))["logits"]
        classes = next(output.classes for output in network.outputs if output.name == "logits")
        assert classes[int(logits[0].argmax())] == "happiness", network.name
