"""Strangers on real video: 20 clips of 5 people whose hands cross their faces, nobody enrolled."""

import csv
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
from visaged.pipelines.assembly import StageConfigs, assemble

LOOKS = (5, 15, 25, 35)  # frames of each clip


def test_strangers_who_come_back_get_their_number_and_no_two_share_one(
    shared_data: Path, cache: Path, tmp_path: Path
) -> None:
    folder = shared_data / "video"
    with (folder / "asl_signers.csv").open() as file:
        signers = {row["clip"]: row["signer"] for row in csv.DictReader(file)}
    numbers = defaultdict(set)
    with assemble(StageConfigs(), state=tmp_path, cache=cache) as stages:
        reader = stages.photo_reader()
        for clip, signer in sorted(signers.items()):
            video = cv2.VideoCapture(str(folder / "asl_gestures" / clip))
            for look in LOOKS:
                video.set(cv2.CAP_PROP_POS_FRAMES, look)
                ok, bgr = video.read()
                faces = reader.read(np.ascontiguousarray(bgr[..., ::-1]).astype(np.uint8)) if ok else []
                for face in faces[:1]:
                    quality = np.array([face.quality], np.float32)
                    (identity,) = stages.identifier.identify(clip, [1], face.embedding[None], quality, 0)
                    if identity.person:
                        numbers[signer].add(identity.person)

    every_number = [number for own in numbers.values() for number in own]
    assert set(numbers) == set("ABCDE")
    assert len(every_number) == len(set(every_number)), f"two people share a number: {dict(numbers)}"
    assert len(every_number) <= len(numbers) + 1, f"people were split: {dict(numbers)}"
