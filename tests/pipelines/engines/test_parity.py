"""Parity: numbers a person can check, and mistakes of conversion that must not hide in a tolerance."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from visaged.kernels.pyramid import MIN_CANVAS_PX
from visaged.pipelines.engines import parity_inputs as shipped_face
from visaged.pipelines.engines.engine import Inputs
from visaged.pipelines.engines.ort_engine import OrtEngine
from visaged.pipelines.engines.parity import OutputParity, ParityReport, Tolerance, compare
from visaged.pipelines.engines.parity_inputs import N_CHIPS, parity_inputs
from visaged.pipelines.engines.plan import Precision
from visaged.pipelines.errors import ModelError
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.registry import (
    DETECTORS,
    DLIB_MEAN,
    DLIB_SCALE,
    FACE_RESNET,
    NETWORKS,
    row_of,
    tolerances,
)

F32 = npt.NDArray[np.float32]
Rows = Sequence[Sequence[float]]
EVERY_NETWORK = (*NETWORKS, *DETECTORS)
MEAN = np.array(DLIB_MEAN, np.float32)[:, None, None]


class Table:
    """Answers with the rows it was given, in turn; counts what it was asked."""

    def __init__(self, name: str, *batches: Rows) -> None:
        self.name, self.batches = name, [np.array(batch, np.float32) for batch in batches]

    def infer(self, inputs: Inputs) -> Mapping[str, F32]:
        return {self.name: self.batches.pop(0), "another": np.zeros((len(inputs), 1), np.float32)}

    def close(self) -> None:
        """Nothing to free."""


class Misfed:
    """An engine whose input is prepared in another way than the network was trained with."""

    def __init__(self, engine: OrtEngine, prepare: Callable[[F32], F32]) -> None:
        self.engine, self.prepare = engine, prepare

    def infer(self, inputs: Inputs) -> Mapping[str, F32]:
        return self.engine.infer(np.ascontiguousarray(self.prepare(np.asarray(inputs, np.float32))))

    def close(self) -> None:
        """The engine is the test's."""


@pytest.fixture(scope="module")
def face_resnet(store: ModelStore) -> OrtEngine:
    return OrtEngine(store.ensure("face-resnet"))


def inputs_for(*sizes: int) -> list[F32]:
    return [np.zeros((n, 1, 2, 2), np.float32) for n in sizes]


def difference(ours: Rows, truth: Rows, allowed: Tolerance) -> OutputParity:
    report = compare(Table("y", ours), Table("y", truth), inputs_for(len(ours)), {"y": allowed})
    return report.outputs[0]


LOOSE = Tolerance(max_abs=1e9, l2=1e9, top1=0.1)


def test_known_differences_give_known_numbers() -> None:
    found = difference([[0, 3, 4], [1, 1, 2]], [[0, 0, 0], [1, 1, 1]], LOOSE)

    assert (found.max_abs, found.l2_max, found.l2_mean) == (4.0, 5.0, 3.0)
    assert found.top1 == 0.0


def test_the_numbers_are_over_all_batches_also_of_other_shapes() -> None:
    ours = Table("y", [[0, 1]], [[5, 0, 0], [0, 1, 0]])
    truth = Table("y", [[0, 1]], [[0, 0, 0], [0, 2, 0]])

    report = compare(ours, truth, inputs_for(1, 2), {"y": LOOSE}, ran="a table")

    found = report.outputs[0]
    assert (found.max_abs, found.l2_max, found.l2_mean) == (5.0, 5.0, 2.0)
    assert found.top1 == 1.0
    assert (report.ran, report.n_inputs) == ("a table", 3)


def test_maps_are_compared_as_one_row_a_frame() -> None:
    flat = [[[3.0, 0.0], [0.0, 4.0]]]
    ours, truth = Table("y"), Table("y")
    ours.batches = [np.array(flat, np.float32)[None]]
    truth.batches = [np.zeros((1, 1, 2, 2), np.float32)]

    found = compare(ours, truth, inputs_for(1), {"y": LOOSE}).outputs[0]

    assert (found.max_abs, found.l2_max) == (4.0, 5.0)


def test_the_share_of_equal_classes_is_that_of_the_rows() -> None:
    ours, truth = [[2, 1], [1, 2], [1, 2], [1, 2]], [[2, 1], [1, 2], [2, 1], [1, 3]]

    assert difference(ours, truth, LOOSE).top1 == 0.75
    assert difference(ours, truth, Tolerance(max_abs=9, l2=9, top1=0.75)).is_within
    assert not difference(ours, truth, Tolerance(max_abs=9, l2=9, top1=0.76)).is_within


def test_classes_do_not_count_for_an_embedding() -> None:
    assert difference([[2, 1]], [[1, 2]], Tolerance(max_abs=9, l2=9)).top1 == 1.0


@pytest.mark.parametrize(
    ("allowed", "is_within"),
    [
        (Tolerance(max_abs=4.0, l2=5.0), True),
        (Tolerance(max_abs=3.9, l2=5.0), False),
        (Tolerance(max_abs=4.0, l2=4.9), False),
    ],
)
def test_each_bound_counts_and_may_just_be_reached(allowed: Tolerance, is_within: bool) -> None:
    assert difference([[3, 4]], [[0, 0]], allowed).is_within == is_within


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("truth", [1.0, np.nan, np.inf])
def test_what_is_no_number_is_never_within_a_tolerance(wrong: float, truth: float) -> None:
    found = difference([[wrong, 0.0], [1.0, 0.0]], [[truth, 0.0], [1.0, 0.0]], LOOSE)

    assert found.max_abs == found.l2_max == np.inf
    assert not found.is_within


def test_one_output_too_far_is_enough_and_is_marked() -> None:
    good = difference([[1.0, 0.5]], [[1.0, 0.0]], Tolerance(max_abs=1, l2=1, top1=0.9))
    bad = difference([[3.0, 4.0]], [[0.0, 0.0]], Tolerance(max_abs=1, l2=2))
    report = ParityReport(ran="the plan", n_inputs=1, outputs=(good, bad))

    assert not report.is_within
    assert ParityReport(ran="the plan", n_inputs=1, outputs=(good,)).is_within
    first, second = str(report).split("; ")
    assert first == "y: max abs 0.5, L2 0.5, same top-1 100%"
    assert second == "y: max abs 4, L2 5 (allowed 1, 2, 0%)"


def test_an_engine_agrees_with_itself(face_resnet: OrtEngine) -> None:
    allowed = tolerances(FACE_RESNET, Precision.FP32)

    report = compare(face_resnet, face_resnet, parity_inputs(FACE_RESNET), allowed)

    assert report.is_within and report.n_inputs == N_CHIPS
    assert [(o.name, o.max_abs, o.l2_max, o.top1) for o in report.outputs] == [
        ("embedding", 0.0, 0.0, 1.0),
        ("logits", 0.0, 0.0, 1.0),
        ("hidden", 0.0, 0.0, 1.0),
    ]


def pixels_of(chips: F32) -> F32:
    return chips * np.float32(DLIB_SCALE) + MEAN


GROSS: dict[str, Callable[[F32], F32]] = {
    "BGR": lambda chips: chips[:, ::-1],
    "BGR, mean in RGB": lambda chips: (pixels_of(chips)[:, ::-1] - MEAN) / np.float32(DLIB_SCALE),
    "pixels in 0..1": lambda chips: pixels_of(chips) / np.float32(255),
    "scaled twice": lambda chips: chips / np.float32(255),
    "not scaled": pixels_of,
    "-1..1": lambda chips: pixels_of(chips) / np.float32(127.5) - 1,
    "rows and columns exchanged": lambda chips: chips.swapaxes(2, 3),
    "NHWC": lambda chips: chips.transpose(0, 2, 3, 1).reshape(chips.shape),
    "mirrored": lambda chips: chips[..., ::-1],
}
FINE: dict[str, Callable[[F32], F32]] = {
    "scale 255 for 256": lambda chips: chips * np.float32(DLIB_SCALE / 255),
    "mean in BGR": lambda chips: (pixels_of(chips) - MEAN[::-1]) / np.float32(DLIB_SCALE),
    "one pixel aside": lambda chips: np.roll(chips, 1, axis=3),
}


@pytest.mark.parametrize("precision", Precision, ids=lambda precision: precision.value)
@pytest.mark.parametrize("mistake", GROSS)
def test_a_gross_mistake_is_out_of_every_tolerance(
    mistake: str, precision: Precision, face_resnet: OrtEngine
) -> None:
    wrong = Misfed(face_resnet, GROSS[mistake])

    report = compare(
        wrong,
        face_resnet,
        parity_inputs(FACE_RESNET)[:1],
        tolerances(FACE_RESNET, precision),
    )

    embedding = report.outputs[0]
    assert not report.is_within and not embedding.is_within, str(report)


@pytest.mark.parametrize("mistake", FINE)
def test_a_fine_mistake_is_out_of_the_tolerance_of_fp32(mistake: str, face_resnet: OrtEngine) -> None:
    wrong = Misfed(face_resnet, FINE[mistake])

    report = compare(
        wrong,
        face_resnet,
        parity_inputs(FACE_RESNET),
        tolerances(FACE_RESNET, Precision.FP32),
    )

    assert not report.is_within, str(report)


@pytest.mark.parametrize("network", EVERY_NETWORK)
def test_tolerances_are_of_outputs_that_the_network_has(network: str, store: ModelStore) -> None:
    answered = OrtEngine(store.ensure(network)).infer(parity_inputs(row_of(network))[0])

    for precision in Precision:
        assert set(tolerances(row_of(network), precision)) == set(answered)


@pytest.mark.parametrize(
    ("network", "shapes"),
    [
        ("face-resnet", [(8, 3, 150, 150), (8, 3, 150, 150)]),
        ("emotion-xception", [(8, 1, 64, 64), (8, 1, 64, 64)]),
    ],
)
def test_faces_come_in_batches_of_the_networks_chips(network: str, shapes: list[tuple[int, ...]]) -> None:
    batches = parity_inputs(row_of(network))

    assert [batch.shape for batch in batches] == shapes
    assert {batch.dtype for batch in batches} == {np.dtype(np.float32)}
    chips = np.concatenate(batches)
    assert len(np.unique(chips.reshape(len(chips), -1), axis=0)) == N_CHIPS, "two chips are the same"
    assert not any(batch.flags.writeable for batch in batches), "one caller could change another's"


def test_a_detector_sees_the_photo_in_two_sizes() -> None:
    small, large = parity_inputs(row_of("mmod"))

    for canvas in (small, large):
        assert canvas.ndim == 4 and canvas.shape[:2] == (1, 3) and canvas.dtype == np.float32
        assert min(canvas.shape[2:]) >= MIN_CANVAS_PX and np.abs(canvas).max() > 0.3
    assert large.shape[2] > small.shape[2] and large.shape[3] > small.shape[3]


def test_the_detector_finds_the_face_in_both(store: ModelStore) -> None:
    engine = OrtEngine(store.ensure("mmod"))

    assert all(engine.infer(canvas)["scores"].max() > 0 for canvas in parity_inputs(row_of("mmod")))


@pytest.mark.parametrize("network", EVERY_NETWORK)
def test_inputs_are_the_same_at_every_call(network: str) -> None:
    first = [batch.copy() for batch in parity_inputs(row_of(network))]
    shipped_face.face_chips.cache_clear()

    again = parity_inputs(row_of(network))

    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_the_face_that_is_shipped_is_a_smiling_one(face_resnet: OrtEngine) -> None:
    logits = np.concatenate(
        [face_resnet.infer(chips)["logits"] for chips in parity_inputs(FACE_RESNET)]
    ).mean(axis=0)

    assert NETWORKS["face-resnet"].outputs[1].classes[int(logits.argmax())] == "happiness"


def test_every_variation_of_it_is_the_same_person_in_skin_colour(face_resnet: OrtEngine) -> None:
    chips = np.concatenate(parity_inputs(FACE_RESNET))

    embeddings = face_resnet.infer(chips)["embedding"]
    apart = np.linalg.norm(embeddings[:, None] - embeddings, axis=2)
    assert 0.1 < apart.max() < 0.5, "landmarks do not follow what was done to the photo"
    red, _, blue = pixels_of(chips)[:, :, 50:100, 50:100].mean(axis=(0, 2, 3))
    assert red > blue + 20, "the photo is in BGR"


def test_an_unknown_network_is_named_with_what_is_known() -> None:
    with pytest.raises(
        ModelError,
        match=r"'face-net'; known are face-resnet, emotion-vgg13, emotion-resnet, emotion-xception, mmod$",
    ):
        parity_inputs(row_of("face-net"))
