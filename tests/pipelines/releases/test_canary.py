"""Two releases in one pipeline: who answers for which track, and who stands in when one fails."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from visaged.pipelines.detector import DetectorConfig
from visaged.pipelines.engines.engine import Inputs
from visaged.pipelines.engines.engine_loader import EngineInfo
from visaged.pipelines.engines.plan import Backend, Precision
from visaged.pipelines.ensemble import Ensemble, EnsembleConfig, Member
from visaged.pipelines.errors import ModelError
from visaged.pipelines.frame import Detection, Frame
from visaged.pipelines.fuser import DecisionFusion, Fuser
from visaged.pipelines.inference import InferencePipeline
from visaged.pipelines.message import EMOTIONS, Face
from visaged.pipelines.registry import ChipRecipe, Colour, Network, Output
from visaged.pipelines.releases.canary import Canary
from visaged.pipelines.releases.release import LoadedRelease, factory_release
from visaged.pipelines.releases.side_by_side import SideBySide
from visaged.pipelines.tracker import TrackerConfig

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

RECIPE = ChipRecipe(size=2, padding=0.0, colour=Colour.GREY, mean=(0.0,), scale=1.0)
N_FACES = 6
NAN = float("nan")


class Says:
    """An engine that always says one emotion, or fails, or says what is no number."""

    def __init__(self, emotion: str, *, broken: bool = False, value: float = 5.0) -> None:
        self.emotion, self.broken, self.value, self.n_faces = emotion, broken, value, 0

    def infer(self, inputs: Inputs) -> Mapping[str, F32]:
        if self.broken:
            raise ModelError("the engine is gone")
        n = len(inputs)
        self.n_faces += n
        logits = np.zeros((n, 8), np.float32)
        logits[:, EMOTIONS.index(self.emotion)] = self.value
        return {"e": np.eye(N_FACES, dtype=np.float32)[np.arange(n) % N_FACES], "l": logits}

    def close(self) -> None:
        """Nothing to free."""


class Row:
    """Finds faces in a row, and cuts chips of nothing."""

    def detect(self, rgb: U8) -> list[Detection]:
        boxes = [np.array([100 * i, 10, 100 * i + 60, 70], np.float32) for i in range(N_FACES)]
        return [Detection(box, 1.0, np.full((5, 2), box[0], np.float32)) for box in boxes]

    def detect_near(self, rgb: U8, boxes: F32, reach: F32 | None = None) -> list[Detection | None]:
        return [None] * len(boxes)

    def crop_all(
        self, faces: Sequence[tuple[U8, F32]], recipes: Sequence[ChipRecipe]
    ) -> Mapping[ChipRecipe, F32]:
        n = sum(len(marks) for _, marks in faces)
        return {recipe: np.zeros((n, 1, 2, 2), np.float32) for recipe in recipes}

    def quality(self, rgb: U8, landmarks: F32) -> F32:
        return np.ones(len(landmarks), np.float32)


def loaded(key: str, engine: Says) -> LoadedRelease:
    outputs = (
        Output(name="e", kind="embedding", dim=N_FACES),
        Output(name="l", kind="logits", dim=8, classes=EMOTIONS),
    )
    row = Network(
        name="one", recipe=RECIPE, outputs=outputs, source="", licence="x", licence_note="", trained_on=""
    )
    info = EngineInfo(backend=Backend.ONNXRUNTIME, precision=Precision.FP32, device="cpu")
    ensemble = Ensemble([Member(row, engine, key, info)])
    release = factory_release(ensemble, "sum")
    return LoadedRelease(key, release, ensemble, Fuser(DecisionFusion()))


def pipeline_of(serving: LoadedRelease, refresh_every: int = 1) -> InferencePipeline:
    row = Row()
    configs = DetectorConfig(every=1), TrackerConfig(), EnsembleConfig(refresh_every=refresh_every)
    pipeline = InferencePipeline(row, row, serving, None, configs)  # type: ignore[arg-type]
    pipeline.add_camera("door", identify=False)
    return pipeline


def faces_of(pipeline: InferencePipeline, seq: int) -> list[Face]:
    frame = Frame("door", seq, seq * 33_000_000, np.zeros((100, 700, 3), np.uint8))
    (answer,) = pipeline.run([(frame, pipeline.scan(frame))])
    return answer.faces


def test_each_track_asks_the_same_release_in_every_frame_and_says_which() -> None:
    serving, candidate = loaded("old", Says("sadness")), loaded("new", Says("happiness"))
    pipeline = pipeline_of(serving)
    pipeline.canary = canary = Canary(candidate, 0.5)

    said: dict[int, set[tuple[str, str]]] = {}
    for seq in range(1, 12):
        for face in faces_of(pipeline, seq):
            said.setdefault(face.track, set()).add((face.emotion.label, face.release))

    assert len(said) == N_FACES
    for track, answers in said.items():
        mine = ("happiness", candidate.name) if canary.takes("door", track) else ("sadness", "")
        assert answers == {mine}
    assert 0 < sum(canary.takes("door", track) for track in said) < N_FACES


@pytest.mark.parametrize("engine", [Says("happiness", broken=True), Says("happiness", value=NAN)])
def test_the_serving_release_stands_in_for_a_canary_that_fails_in_the_same_batch(engine: Says) -> None:
    serving, candidate = loaded("old", Says("sadness")), loaded("new", engine)
    pipeline = pipeline_of(serving)
    pipeline.canary = Canary(candidate, 1.0)

    faces = faces_of(pipeline, 1)

    assert [(f.emotion.label, f.release) for f in faces] == [("sadness", "")] * N_FACES
    assert [fault[0] for fault in pipeline.faults] == [candidate]
    assert "gone" in pipeline.faults[0][1] or "no number" in pipeline.faults[0][1]


def test_the_release_before_stands_in_during_probation_and_nobody_does_without_one() -> None:
    serving, before = loaded("new", Says("happiness", broken=True)), loaded("old", Says("sadness"))
    pipeline = pipeline_of(serving)
    with pytest.raises(ModelError, match="gone"):
        faces_of(pipeline, 1)

    pipeline.spare = before
    faces = faces_of(pipeline, 2)

    assert [(f.emotion.label, f.release) for f in faces] == [("sadness", before.name)] * N_FACES


def test_after_a_swap_every_face_is_analysed_at_once_and_nothing_is_mixed() -> None:
    pipeline = pipeline_of(loaded("old", Says("sadness")), refresh_every=300)
    for seq in range(1, 31):
        before = faces_of(pipeline, seq)
    assert {face.analysed_seq for face in before} != {30}, "all are analysed in every frame"

    pipeline.swap(loaded("new", Says("happiness")))
    faces = faces_of(pipeline, 31)

    assert [(f.emotion.label, f.release) for f in faces] == [("happiness", "")] * N_FACES
    assert min(f.emotion.probability for f in faces) > 0.9, "smoothed with what the other one said"


def test_both_are_shown_the_same_share_of_the_faces() -> None:
    ours, theirs = Says("happiness"), Says("sadness")
    candidate, serving = loaded("new", ours), loaded("old", theirs)
    pipeline = pipeline_of(serving)
    side_by_side = SideBySide(pipeline, 0.25)
    n_compared = 0
    for seq in range(1, 9):
        faces_of(pipeline, seq)
        before = theirs.n_faces
        comparison = side_by_side.compare(pipeline.looks, candidate, serving)
        if comparison is not None:
            n_compared += len(comparison.faces)
            assert theirs.n_faces - before == len(comparison.faces)
            assert comparison.ours.argmax(axis=1).tolist() == [1] * len(comparison.faces)

    assert n_compared == ours.n_faces == 8 * N_FACES // 4


def test_one_that_it_is_held_against_and_that_fails_is_not_held_against_it() -> None:
    candidate, before = loaded("new", Says("happiness")), loaded("old", Says("sadness", broken=True))
    pipeline = pipeline_of(candidate)
    faces_of(pipeline, 1)

    assert SideBySide(pipeline, 1.0).compare(pipeline.looks, candidate, before) is None
    with pytest.raises(ModelError, match="gone"):
        SideBySide(pipeline, 1.0).compare(pipeline.looks, before, candidate)
