"""The whole pipeline on a real video with exact truth: who is where in each of 500 frames.

Four real people walk, cross and cover each other, leave and return; hands cross faces. Three of them are
enrolled from the first two seconds; the fourth comes later and must stay a stranger.
"""

import csv
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from visaged.kernels.boxes import iou
from visaged.pipelines.assembly import StageConfigs, Stages, assemble
from visaged.pipelines.frame import Frame
from visaged.pipelines.message import Face

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

FPS = 25
ENROL_FRAMES = range(0, 2 * FPS, 6)
SEEN_FROM = 0.6  # visible fraction from which a face must be found


@dataclass(frozen=True, slots=True)
class Truth:
    """Where a person is in a frame."""

    name: str
    box: F32
    visible: float


@dataclass(slots=True)
class Score:
    """What was counted over the video."""

    expected: int = 0
    found: int = 0
    named_right: int = 0
    switches: int = 0
    ghosts: int = 0
    tracks: dict[str, int] = field(default_factory=dict)
    stranger_names: set[str] = field(default_factory=set)


def frames_of(path: Path) -> Iterator[U8]:
    video = cv2.VideoCapture(str(path))
    while True:
        ok, bgr = video.read()
        if not ok:
            return
        yield np.ascontiguousarray(bgr[..., ::-1]).astype(np.uint8)


def truths_of(path: Path) -> dict[int, list[Truth]]:
    truths = defaultdict(list)
    with path.open() as file:
        for row in csv.DictReader(file):
            x, y, w, h = (float(row[side]) for side in "xywh")
            box = np.array([x, y, x + w, y + h], np.float32)
            truths[int(row["frame"])].append(Truth(row["name"], box, float(row["visible"])))
    return truths


def enrol(stages: Stages, video: Path, truths: dict[int, list[Truth]]) -> set[str]:
    """Enrol whoever is seen in the first two seconds; return their names."""
    reader, templates = stages.photo_reader(), defaultdict(list)
    for number, rgb in zip(range(ENROL_FRAMES.stop), frames_of(video), strict=False):
        if number not in ENROL_FRAMES:
            continue
        for face in reader.read(rgb):
            for truth in truths[number]:
                if truth.visible >= SEEN_FROM and iou(face.box[None], truth.box[None])[0, 0] >= 0.3:
                    templates[truth.name].append(face.embedding)
    for name, embeddings in templates.items():
        stages.identifier.enrol(name, np.stack(embeddings), source="dev video")
    return set(templates)


def best_match(truth: Truth, faces: list[Face]) -> int | None:
    """Return the index of the face on this person, by overlap, or by its centre inside the person."""
    overlaps = {}
    for i, face in enumerate(faces):
        box = np.array(face.box, np.float32)
        x, y = (box[:2] + box[2:]) / 2
        is_inside = truth.box[0] <= x < truth.box[2] and truth.box[1] <= y < truth.box[3]
        overlap = float(iou(box[None], truth.box[None])[0, 0])
        if is_inside or overlap >= 0.3:
            overlaps[i] = overlap
    return max(overlaps, key=lambda i: overlaps[i]) if overlaps else None


def count(score: Score, faces: list[Face], truths: list[Truth], enrolled: set[str]) -> None:
    matches = {truth.name: best_match(truth, faces) for truth in truths}
    visible = {i for i, face in enumerate(faces) if face.is_visible}
    score.ghosts += len(visible - set(matches.values()))
    for truth in truths:
        if truth.visible < SEEN_FROM:
            continue
        score.expected += 1
        match = matches[truth.name]
        if match is None:
            continue
        score.found += 1
        face = faces[match]
        score.switches += score.tracks.get(truth.name, face.track) != face.track
        score.tracks[truth.name] = face.track
        if truth.name in enrolled:
            score.named_right += face.identity.state == "known" and face.identity.person == truth.name
        else:
            score.named_right += face.identity.state == "unknown"
            score.stranger_names.add(face.identity.person)


def test_faces_are_found_named_and_followed_on_real_video(
    shared_data: Path, cache: Path, tmp_path: Path
) -> None:
    video = shared_data / "video" / "dev_a.mp4"
    truths = truths_of(shared_data / "video" / "dev_a_gt.csv")
    score = Score()
    with assemble(StageConfigs(), state=tmp_path, cache=cache) as stages:
        enrolled = enrol(stages, video, truths)
        pipeline = stages.pipeline()
        pipeline.add_camera("dev")
        for number, rgb in enumerate(frames_of(video)):
            frame = Frame("dev", number + 1, (number + 1) * 10**9 // FPS, rgb)
            scan = None
            if pipeline.is_scan_due(frame):
                pipeline.begin_scan(frame)
                scan = pipeline.scan(frame)
            (answer,) = pipeline.run([(frame, scan)])
            count(score, answer.faces, truths[number], enrolled)

    assert enrolled == {"signerA", "signerC", "cap12"}
    assert score.found >= 0.95 * score.expected, score
    assert score.named_right >= 0.95 * score.found, score
    assert score.switches <= 2, score
    assert len(score.stranger_names) == 1, score
    assert score.ghosts <= 0.01 * score.expected, score
