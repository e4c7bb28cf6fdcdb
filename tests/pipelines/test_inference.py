"""The hot path on a photo that moves: real detector, real networks, real gallery."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from visaged.pipelines.answer import Answer
from visaged.pipelines.archives import fetch
from visaged.pipelines.assembly import StageConfigs, Stages, assemble
from visaged.pipelines.ensemble import Ensemble, build_ensemble
from visaged.pipelines.errors import GalleryError, ModelError
from visaged.pipelines.frame import Frame
from visaged.pipelines.inference import InferencePipeline, Scan
from visaged.pipelines.tracker import TrackerConfig

U8 = npt.NDArray[np.uint8]
STEP_NS = 33_000_000


@pytest.fixture
def stages(tmp_path: Path, cache: Path) -> Iterator[Stages]:
    with assemble(StageConfigs(), state=tmp_path, cache=cache) as stages:
        yield stages


@pytest.fixture
def pipeline(stages: Stages) -> InferencePipeline:
    pipeline = stages.pipeline()
    pipeline.add_camera("door")
    return pipeline


def moved(photo: U8, seq: int, camera: str = "door") -> Frame:
    """The photo, 3 px further to the right with every frame."""
    return Frame(camera, seq, seq * STEP_NS, np.ascontiguousarray(np.roll(photo, 3 * seq, axis=1)))


def follow(pipeline: InferencePipeline, photo: U8, n_frames: int, delay: int = 0) -> list[Answer]:
    """Answer `n_frames`; results of whole-frame scans arrive `delay` frames late."""
    late: dict[int, Scan] = {}
    answers = []
    for seq in range(1, n_frames + 1):
        frame = moved(photo, seq)
        if pipeline.is_scan_due(frame):
            pipeline.begin_scan(frame)
            late[seq + delay] = pipeline.scan(frame)
        answers += pipeline.run([(frame, late.pop(seq, None))])
    return answers


@pytest.mark.parametrize("delay", [0, 3])
def test_a_moving_face_keeps_its_track_and_reads_happy(
    pipeline: InferencePipeline, astronaut: U8, delay: int
) -> None:
    answers = follow(pipeline, astronaut, 15, delay)

    seen = [answer.faces for answer in answers[delay + 1 :]]
    assert [len(faces) for faces in seen] == [1] * len(seen)
    assert {faces[0].track for faces in seen} == {seen[0][0].track}
    assert seen[-1][0].emotion.label == "happiness"
    assert seen[-1][0].box[0] - seen[0][0].box[0] == pytest.approx(3 * (len(seen) - 1), abs=8)


def test_a_camera_without_identity_lets_no_embedding_out(stages: Stages, astronaut: U8) -> None:
    pipeline = stages.pipeline()
    pipeline.add_camera("door", identify=False)

    answers = follow(pipeline, astronaut, 12)

    faces = [face for answer in answers for face in answer.faces]
    assert faces and any(answer.analyses for answer in answers), "no face was analysed"
    assert {(face.identity.person, face.embedding_row) for face in faces} == {("", -1)}
    assert not any(answer.embeddings.size for answer in answers)
    assert stages.gallery.people() == [], "a stranger was stored"
    with pytest.raises(GalleryError, match="identity = false"):
        pipeline.embedding_of("door", faces[0].track)


def test_a_face_is_analysed_at_once_and_then_in_turn(pipeline: InferencePipeline, astronaut: U8) -> None:
    answers = follow(pipeline, astronaut, 25)

    analysed = sorted({face.analysed_seq for answer in answers for face in answer.faces})
    assert analysed[0] == 1
    assert 2 <= len(analysed) <= 8


def test_a_face_that_is_not_sure_yet_is_told_of_before_it_is_published(
    tmp_path: Path, cache: Path, astronaut: U8
) -> None:
    unsure = StageConfigs(tracker=TrackerConfig(sure_score=4.0))  # one look is not enough
    with assemble(unsure, state=tmp_path, cache=cache) as stages:
        pipeline = stages.pipeline()
        pipeline.add_camera("door")
        answers = follow(pipeline, astronaut, 12)

    told: set[tuple[int, int]] = set()
    published: list[tuple[int, int]] = []
    for answer in answers:
        told |= {(track, analysis.seq) for track, analysis in answer.analyses.items()}
        published += [(face.track, face.analysed_seq) for face in answer.faces]
    assert not answers[0].faces and answers[0].analyses, "the face was sure at once"
    assert published and set(published) <= told


def test_an_enrolled_person_is_named_and_a_stranger_numbered(stages: Stages, astronaut: U8) -> None:
    stranger, known = stages.pipeline(), stages.pipeline()
    stranger.add_camera("door")
    before = follow(stranger, astronaut, 3)[-1].faces[0].identity
    embedding = stages.photo_reader().read(astronaut)[0].embedding
    stages.identifier.enrol("Eileen Collins", embedding[None], source="a photo")
    known.add_camera("door")

    after = follow(known, astronaut, 3)[-1].faces[0].identity

    assert (before.state, before.person) == ("unknown", "unknown-1")
    assert (after.state, after.person) == ("known", "Eileen Collins")
    assert after.distance < 0.3


def test_embeddings_are_rows_of_the_faces(pipeline: InferencePipeline, astronaut: U8) -> None:
    answer = follow(pipeline, astronaut, 2)[-1]

    assert answer.embeddings.shape == (1, 128)
    assert answer.faces[0].embedding_row == 0
    assert 1.0 < float(np.linalg.norm(answer.embeddings[0])) < 2.0


def test_a_camera_may_keep_identity_and_emotion_to_itself(stages: Stages, astronaut: U8) -> None:
    pipeline = stages.pipeline()
    pipeline.add_camera("door", identify=False, feel=False)

    answer = follow(pipeline, astronaut, 2)[-1]

    face = answer.faces[0]
    assert face.identity.state == "pending"
    assert face.emotion.label == ""
    assert face.embedding_row == -1
    assert answer.embeddings.shape == (0, 128)


def test_two_cameras_share_a_batch_and_not_their_tracks(stages: Stages, astronaut: U8) -> None:
    pipeline = stages.pipeline()
    for camera in ("door", "hall"):
        pipeline.add_camera(camera)
    frames = [moved(astronaut, 1, "door"), moved(astronaut[:, ::-1], 1, "hall")]

    answers = pipeline.run([(frame, pipeline.scan(frame)) for frame in frames])

    assert [answer.frame.camera for answer in answers] == ["door", "hall"]
    assert [len(answer.faces) for answer in answers] == [1, 1]
    assert not np.array_equal(answers[0].embeddings, answers[1].embeddings)


def test_a_face_that_left_is_not_published(pipeline: InferencePipeline, astronaut: U8) -> None:
    follow(pipeline, astronaut, 3)
    empty = np.zeros_like(astronaut)

    for seq in range(4, 60):
        frame = Frame("door", seq, seq * STEP_NS, empty)
        scan = pipeline.scan(frame) if pipeline.is_scan_due(frame) else None
        answer = pipeline.run([(frame, scan)])[0]

    assert answer.faces == []


def test_a_frame_without_faces_has_an_empty_answer(pipeline: InferencePipeline) -> None:
    frame = Frame("door", 1, 0, np.zeros((720, 1280, 3), np.uint8))

    answer = pipeline.run([(frame, pipeline.scan(frame))])[0]

    assert answer.faces == []
    assert "detect" in answer.stages_ms


def test_few_places_are_shared_between_cameras_and_everybody_has_a_turn(stages: Stages, cache: Path) -> None:
    bgr = cv2.imread(str(fetch("demo/five_people.jpg", cache)))
    assert bgr is not None
    crowd = np.ascontiguousarray(bgr[..., ::-1]).astype(np.uint8)
    pipeline = stages.pipeline()
    for camera in ("left", "right"):
        pipeline.add_camera(camera)
    n_shown: list[tuple[int, int]] = []

    for seq in range(1, 7):
        frames = [Frame(camera, seq, seq * STEP_NS, crowd) for camera in ("left", "right")]
        scans = [pipeline.scan(frame) for frame in frames]
        answers = pipeline.run(list(zip(frames, scans, strict=True)), places=4)
        n_shown.append((len(answers[0].faces), len(answers[1].faces)))

    n_faces = len(pipeline.scan(Frame("left", 1, STEP_NS, crowd)).detections)
    assert n_faces >= 4
    assert n_shown[0] == (2, 2)
    assert n_shown[-1] == (n_faces, n_faces)


def test_an_ensemble_takes_over_between_two_batches(stages: Stages, astronaut: U8) -> None:
    pipeline = stages.pipeline()
    pipeline.add_camera("door")
    before = follow(pipeline, astronaut, 3)[-1]
    other = dataclasses.replace(
        stages.serving, ensemble=build_ensemble(stages.configs.ensemble, stages.loader)
    )

    retired = pipeline.swap(other)
    retired.close()
    frame = moved(astronaut, 4)
    after = pipeline.run([(frame, pipeline.scan(frame))])[0]

    assert [face.track for face in after.faces] == [face.track for face in before.faces]
    stages.serving = other  # for the fixture to close


def test_an_ensemble_of_another_space_is_refused(stages: Stages) -> None:
    pipeline = stages.pipeline()
    members = [
        dataclasses.replace(m, network=msgspec.structs.replace(m.network, name=f"other-{m.network.name}"))
        for m in stages.ensemble.members
    ]

    with pytest.raises(ModelError, match="cannot be compared"):
        pipeline.swap(dataclasses.replace(stages.serving, ensemble=Ensemble(members)))
    assert pipeline.ensemble is stages.ensemble
