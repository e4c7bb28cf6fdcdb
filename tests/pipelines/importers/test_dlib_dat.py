from pathlib import Path

import numpy as np
import pytest
from visaged.pipelines.errors import ModelError
from visaged.pipelines.importers.dlib_dat import read_face_resnet, read_mmod
from visaged.pipelines.importers.dlib_onnx import mmod_onnx
from visaged.pipelines.model_store import ModelStore

RESNET, MMOD = "dlib_face_recognition_resnet_model_v1.dat", "mmod_human_face_detector.dat"


def test_the_face_resnet_has_the_blocks_of_its_definition(store: ModelStore) -> None:
    net = read_face_resnet(store.weights_file(RESNET))

    channels = [block.second.weights.shape[0] for block in net.blocks]
    assert channels == [32] * 3 + [64] * 4 + [128] * 3 + [256] * 4
    assert [index for index, block in enumerate(net.blocks) if block.is_down] == [3, 7, 10, 13]
    assert net.projection.shape == (256, 128)
    assert net.size == 150
    assert net.mean == pytest.approx((122.782, 117.001, 104.298))


def test_the_detector_has_the_layers_of_its_definition(store: ModelStore) -> None:
    net = read_mmod(store.weights_file(MMOD))

    assert [conv.weights.shape[0] for conv in net.convs] == [16, 32, 32, 45, 45, 45, 1]
    assert net.window == (80, 80)
    assert (net.nms_iou, net.nms_covered) == pytest.approx((0.3382761351109955, 1.0))


def test_each_file_is_refused_as_the_other_network(store: ModelStore) -> None:
    with pytest.raises(ModelError, match="loss_metric_2"):
        read_face_resnet(store.weights_file(MMOD))
    with pytest.raises(ModelError, match="loss_mmod_"):
        read_mmod(store.weights_file(RESNET))


@pytest.mark.parametrize("data", [b"", b"\x00" * 100, b"\x89PNG\r\n", b"\x01\x01", b"\xff" * 4096])
def test_foreign_bytes_are_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "foreign.dat"
    path.write_bytes(data)

    for read in (read_face_resnet, read_mmod):
        with pytest.raises(ModelError, match=r"foreign\.dat"):
            read(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.dat", tmp_path):
        with pytest.raises(ModelError, match="cannot be read"):
            read_mmod(path)


def test_a_file_cut_anywhere_is_refused(store: ModelStore, tmp_path: Path) -> None:
    whole = store.weights_file(MMOD).read_bytes()
    random = np.random.default_rng(0)
    path = tmp_path / "cut.dat"

    for length in [*range(0, 400, 7), *random.integers(400, len(whole), 60), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            read_mmod(path)
    path.write_bytes(whole + b"\x00")
    with pytest.raises(ModelError, match="left over"):
        read_mmod(path)


def test_an_overwritten_file_is_refused_or_gives_a_network_that_builds(
    store: ModelStore, tmp_path: Path
) -> None:
    whole = store.weights_file(MMOD).read_bytes()
    random = np.random.default_rng(1)
    path = tmp_path / "overwritten.dat"
    n_refused = 0

    for _ in range(200):
        data = bytearray(whole)
        for at in random.integers(0, 400 if random.random() < 0.7 else len(data), 3):
            data[at] = random.integers(0, 256)
        path.write_bytes(data)
        try:
            mmod_onnx(read_mmod(path))
        except ModelError:
            n_refused += 1

    assert n_refused > 50  # most hits in the first 400 bytes are structure, not weights


def test_a_cut_resnet_is_refused(store: ModelStore, tmp_path: Path) -> None:
    whole = store.weights_file(RESNET).read_bytes()
    path = tmp_path / "cut.dat"

    for length in (100, 1000, 10_000_000, len(whole) - 4):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            read_face_resnet(path)
