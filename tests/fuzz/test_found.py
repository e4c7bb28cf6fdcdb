"""What fuzzing found, each as the smallest input that once came out as somebody else's error."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from visaged.daemon import keys
from visaged.daemon.config import load_config
from visaged.daemon.control import OrderError, decode_order
from visaged.daemon.curve import ClientKey, new_pair
from visaged.daemon.ring import decode_descriptor
from visaged.pipelines.errors import ConfigError, MessageError, ModelError, ReleaseError
from visaged.pipelines.fuser import CascadeHead
from visaged.pipelines.importers import emotion_head
from visaged.pipelines.importers.dlib_dat import read_mmod
from visaged.pipelines.importers.dlib_stream import DlibStream
from visaged.pipelines.importers.halved import widen_weights
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.releases.promotion import PromotionJournal
from visaged.pipelines.releases.release_store import ReleaseStore, read_head, write_head

from tests.pipelines.releases.test_release_store import save

KEY_THAT_IS_NO_TEXT, BOTTOMLESS = b"\x81\xa2\xff\xfe\x01", b"\x81\xa1x" + b"\x91" * 5000
HEAD = CascadeHead(np.ones((4, 8), np.float32), np.zeros(8, np.float32), np.ones(2, np.float32))


@pytest.mark.parametrize("body", [KEY_THAT_IS_NO_TEXT, BOTTOMLESS])
def test_a_request_that_is_no_text_or_has_no_bottom_is_refused(body: bytes) -> None:
    with pytest.raises(OrderError) as refused:
        decode_order(body)

    assert refused.value.reason == "malformed"


def test_a_descriptor_that_is_no_text_or_has_no_bottom_is_refused() -> None:
    for data in (b"\x9c\xa5\xff\xfe\xff\xff\xff", b"\x91" * 5000):
        with pytest.raises(MessageError):
            decode_descriptor(data)


@pytest.mark.parametrize("text", [b'{"states": {"\xff": "active"}, "\xff": 1}', b'{"x": ' + b"[" * 5000])
def test_manifests_and_journals_that_are_no_text_or_have_no_bottom_are_refused(
    tmp_path: Path, text: bytes
) -> None:
    stored = save(ReleaseStore(tmp_path), tmp_path / "files")
    journal = tmp_path / "releases" / "promotion.json"
    journal.write_bytes(text)
    (stored.folder / "release.json").write_bytes(text)

    with pytest.raises(ReleaseError):
        ReleaseStore(tmp_path).get(stored.release.id)
    with pytest.raises(ReleaseError):
        PromotionJournal(tmp_path).read()


@pytest.mark.parametrize(
    "key", ["x = " + "[" * 5000, "x = " + "9" * 5000, '[paths]\nstate = "~no-such-user/x"']
)
def test_nesting_numbers_and_homes_that_toml_cannot_have_are_refused(tmp_path: Path, key: str) -> None:
    file = tmp_path / "v.toml"
    file.write_text(key)

    with pytest.raises(ConfigError):
        load_config(file)


@pytest.mark.parametrize(("read", "error"), [(read_head, ReleaseError), (emotion_head.read_head, ModelError)])
def test_arrays_whose_compression_is_damaged_are_refused(
    tmp_path: Path, read: Callable[[Path], object], error: type[Exception]
) -> None:
    head = tmp_path / "head.npz"
    with zipfile.ZipFile(head, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("weights", "taps"):
            buffer = io.BytesIO()
            np.save(buffer, np.ones((4, 2), np.float32))
            archive.writestr(f"{name}.npy", buffer.getvalue())
    data = bytearray(head.read_bytes())
    for at in (index for index in range(len(data)) if data[index : index + 4] == b"PK\x03\x04"):
        start = at + 30 + int.from_bytes(data[at + 26 : at + 28], "little")
        data[start : start + 8] = b"\xff" * 8
    head.write_bytes(data)

    with pytest.raises(error, match="decompressing"):
        read(head)


def test_a_head_that_is_no_archive_is_closed_again(tmp_path: Path) -> None:
    head = tmp_path / "head.npz"
    head.write_bytes(write_head(HEAD)[:100])

    with pytest.raises(ReleaseError):  # a file left open is a warning, and warnings are errors
        read_head(head)


@pytest.mark.parametrize("spoiled", ["secret", "server"])
def test_a_key_whose_letters_spell_more_than_a_key_holds_is_refused(tmp_path: Path, spoiled: str) -> None:
    pair, server = new_pair(), new_pair()
    lines = keys.client_key_lines(ClientKey("desk", pair, server.public))
    file = tmp_path / "desk.key"
    file.touch(mode=0o600)
    file.write_text(lines)
    keys.read_client(file)

    file.write_text(lines.replace({"secret": pair.secret, "server": server.public}[spoiled], "#" * 40))

    with pytest.raises(ConfigError):
        keys.read_client(file)


def test_weights_of_another_length_than_their_shape_are_refused() -> None:
    halves = TensorProto(name="w16", data_type=TensorProto.FLOAT16, dims=[2, 2], int32_data=[0] * 5)
    cast = helper.make_node("Cast", ["w16"], ["w"], to=TensorProto.FLOAT)
    w = helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 2])
    model = helper.make_model(helper.make_graph([cast], "g", [], [w], [halves]), ir_version=10)

    with pytest.raises(ModelError, match="'w16'"):
        widen_weights(model.SerializeToString())


def test_weights_whose_products_overflow_are_refused(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, path, places = store.weights_file("mmod_human_face_detector.dat"), tmp_path / "net.dat", []
    read_tensor = DlibStream.tensor

    def remember(stream: DlibStream) -> np.ndarray[Any, np.dtype[np.float32]]:
        values = read_tensor(stream)
        places.append((stream.position - values.nbytes, values.nbytes))
        return values

    monkeypatch.setattr(DlibStream, "tensor", remember)
    read_mmod(source)
    spoiled = bytearray(source.read_bytes())
    for start, n_bytes in places:
        spoiled[start : start + n_bytes] = np.full(n_bytes // 4, 3e38, "<f4").tobytes()
    path.write_bytes(spoiled)

    with pytest.raises(ModelError, match="out of range"):
        read_mmod(path)
