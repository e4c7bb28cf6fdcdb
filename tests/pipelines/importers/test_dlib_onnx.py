from pathlib import Path
from typing import Any

import cv2
import dlib
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from visaged.pipelines.errors import ModelError
from visaged.pipelines.importers.dlib_dat import read_face_resnet, read_mmod
from visaged.pipelines.importers.dlib_onnx import face_resnet_onnx, mmod_onnx
from visaged.pipelines.importers.emotion_head import EmotionHead, Tap
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.registry import FACE_RESNET, FERPLUS_CLASSES

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

RESNET, MMOD = "dlib_face_recognition_resnet_model_v1.dat", "mmod_human_face_detector.dat"


def run(model: onnx.ModelProto, inputs: F32) -> dict[str, F32]:
    session: Any = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {session.get_inputs()[0].name: inputs}), strict=True))


def normalise(chips: list[U8]) -> F32:
    """The recipe, written out independently of kernels.chips."""
    values = (np.stack(chips).astype(np.float64) - FACE_RESNET.recipe.mean) / FACE_RESNET.recipe.scale
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2), np.float32)


def dlib_chips(rgb: U8, store: ModelStore) -> list[U8]:
    detector: Any = dlib.get_frontal_face_detector()
    predictor: Any = dlib.shape_predictor(str(store.weights_file("shape_predictor_5_face_landmarks.dat")))
    return [dlib.get_face_chip(rgb, predictor(rgb, box), 150, 0.25) for box in detector(rgb, 0)]


def dlib_embeddings(chips: list[U8], store: ModelStore) -> F32:
    encoder: Any = dlib.face_recognition_model_v1(str(store.weights_file(RESNET)))
    return np.array([encoder.compute_face_descriptor(chip) for chip in chips], np.float32)


def test_embeddings_equal_dlibs_on_a_real_chip_and_on_hard_ones(astronaut: U8, store: ModelStore) -> None:
    chips = dlib_chips(astronaut, store)
    assert len(chips) == 1
    noise = np.random.default_rng(0).integers(0, 256, (150, 150, 3)).astype(np.uint8)
    chips += [chips[0][:, ::-1].copy(), 255 - chips[0], noise, np.zeros_like(noise), np.full_like(noise, 255)]

    ours = run(face_resnet_onnx(read_face_resnet(store.weights_file(RESNET))), normalise(chips))

    assert ours["embedding"] == pytest.approx(dlib_embeddings(chips, store), abs=1e-5)


def test_embeddings_equal_dlibs_on_many_real_chips(shared_data: Path, store: ModelStore) -> None:
    chips: list[U8] = []
    for path in sorted((shared_data / "detect").glob("*.jpg"))[:6]:
        bgr = cv2.imread(str(path))
        assert bgr is not None
        chips += dlib_chips(np.ascontiguousarray(bgr[..., ::-1]).astype(np.uint8), store)
    assert len(chips) >= 5

    ours = run(face_resnet_onnx(read_face_resnet(store.weights_file(RESNET))), normalise(chips))

    assert ours["embedding"] == pytest.approx(dlib_embeddings(chips, store), abs=1e-5)


def test_a_batch_gives_the_same_as_one_by_one(astronaut: U8, store: ModelStore) -> None:
    chip = dlib_chips(astronaut, store)[0]
    inputs = normalise([chip, chip[::-1].copy(), 255 - chip])
    model = face_resnet_onnx(read_face_resnet(store.weights_file(RESNET)))

    together = run(model, inputs)["embedding"]
    alone = np.concatenate([run(model, inputs[i : i + 1])["embedding"] for i in range(3)])

    assert together == pytest.approx(alone, abs=1e-5)


def test_the_head_in_the_graph_computes_what_its_reference_computes(store: ModelStore) -> None:
    random = np.random.default_rng(0)
    taps = (Tap(6, 2), Tap(12, 4))
    n_features = 64 * 4 + 256 * 16
    head = EmotionHead(
        taps,
        (
            (random.normal(0, 0.02, (n_features, 16)).astype(np.float32), np.ones(16, np.float32)),
            (random.normal(0, 0.3, (16, 8)).astype(np.float32), np.arange(8, dtype=np.float32)),
        ),
        FERPLUS_CLASSES,
    )
    net = read_face_resnet(store.weights_file(RESNET))
    chips = random.integers(0, 256, (2, 150, 150, 3)).astype(np.uint8)

    outputs = run(face_resnet_onnx(net, head, with_features=True), normalise(list(chips)))
    without = run(face_resnet_onnx(net), normalise(list(chips)))

    assert outputs["features"].shape == (2, n_features)
    assert outputs["logits"] == pytest.approx(head.logits(outputs["features"]), abs=1e-3)
    assert outputs["embedding"] == pytest.approx(without["embedding"], abs=1e-6)


def test_a_head_for_another_trunk_is_refused(store: ModelStore) -> None:
    layer = (np.zeros((10, 8), np.float32), np.zeros(8, np.float32))
    net = read_face_resnet(store.weights_file(RESNET))

    for tap in (Tap(99, 1), Tap(12, 5), Tap(12, 1)):
        with pytest.raises(ModelError):
            face_resnet_onnx(net, EmotionHead((tap,), (layer,), FERPLUS_CLASSES))


def convolve(x: F32, weights: F32, stride: int, padding: int) -> F32:
    """Valid cross-correlation over windows: slow, and obviously right."""
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weights.shape[2:], axis=(1, 2))
    result: F32 = np.einsum("chwij,ocij->ohw", windows[:, ::stride, ::stride], weights, optimize=True)
    return result


def test_detector_scores_equal_a_plain_forward_pass(store: ModelStore) -> None:
    net = read_mmod(store.weights_file(MMOD))
    canvas = np.random.default_rng(0).normal(0, 0.3, (1, 3, 150, 134)).astype(np.float32)

    x = canvas[0]
    for index, conv in enumerate(net.convs):
        x = convolve(x, conv.weights, conv.stride[0], conv.padding[0]) + conv.bias[:, None, None]
        x = x if index == len(net.convs) - 1 else np.maximum(x, 0)

    assert run(mmod_onnx(net), canvas)["scores"][0] == pytest.approx(x, abs=1e-4)
