"""What a plan depends on: every field of its key counts; shapes that contradict each other are refused."""

from typing import Any

import msgspec
import pytest
from visaged.pipelines.engines.plan import Backend, Hardware, PlanKey, Precision, Profile, Shape
from visaged.pipelines.errors import ModelError

PROFILE = Profile(minimum=(1, 3, 150, 150), optimum=(8, 3, 150, 150), maximum=(16, 3, 150, 150))
KEY = PlanKey(
    network="face-resnet",
    onnx_sha256="a" * 64,
    backend=Backend.ONNXRUNTIME,
    backend_version="1.32.0",
    precision=Precision.FP32,
    profiles=(PROFILE,),
    hardware=Hardware(cpu="Some CPU avx2"),
)
OTHERS: dict[str, Any] = {  # another value for every field
    "network": "mmod",
    "onnx_sha256": "b" * 64,
    "backend": Backend.OPENVINO,
    "backend_version": "1.32.1",
    "precision": Precision.FP16,
    "profiles": (Profile(minimum=(1, 3, 150, 150), optimum=(8, 3, 150, 150), maximum=(17, 3, 150, 150)),),
    "hardware": Hardware(cpu="Some CPU avx2 avx512f"),
    "flags": ("no TF32",),
    "ranges_sha256": "c" * 64,
}


@pytest.mark.parametrize("field", PlanKey.__struct_fields__)
def test_the_fingerprint_depends_on_every_field_of_the_key(field: str) -> None:
    other = msgspec.structs.replace(KEY, **{field: OTHERS[field]})

    assert other != KEY
    assert other.fingerprint != KEY.fingerprint


@pytest.mark.parametrize("field", Hardware.__struct_fields__)
def test_the_fingerprint_depends_on_every_part_of_the_machine(field: str) -> None:
    hardware = msgspec.structs.replace(KEY.hardware, **{field: "another"})

    assert msgspec.structs.replace(KEY, hardware=hardware).fingerprint != KEY.fingerprint


@pytest.mark.parametrize("field", Profile.__struct_fields__)
def test_the_fingerprint_depends_on_every_shape_of_the_profile(field: str) -> None:
    shape: Shape = {"minimum": (2, 3, 150, 150), "optimum": (9, 3, 150, 150), "maximum": (32, 3, 150, 150)}[
        field
    ]
    profile = msgspec.structs.replace(PROFILE, **{field: shape})

    assert msgspec.structs.replace(KEY, profiles=(profile,)).fingerprint != KEY.fingerprint


def test_no_two_of_these_keys_share_a_fingerprint() -> None:
    keys = [msgspec.structs.replace(KEY, **{field: value}) for field, value in OTHERS.items()]

    fingerprints = {key.fingerprint for key in [KEY, *keys]}
    assert len(fingerprints) == len(keys) + 1
    assert all(len(name) == 16 and set(name) <= set("0123456789abcdef") for name in fingerprints)


def test_equal_keys_have_one_fingerprint_also_when_read_from_a_file() -> None:
    again = msgspec.json.decode(msgspec.json.encode(KEY), type=PlanKey)

    assert again == KEY and again is not KEY
    assert again.fingerprint == KEY.fingerprint


def test_a_key_names_network_precision_backend_and_fingerprint() -> None:
    assert str(KEY) == f"face-resnet fp32 on onnxruntime ({KEY.fingerprint})"


@pytest.mark.parametrize(
    ("minimum", "optimum", "maximum"),
    [
        ((9, 3, 64, 64), (8, 3, 64, 64), (16, 3, 64, 64)),
        ((1, 3, 64, 64), (17, 3, 64, 64), (16, 3, 64, 64)),
        ((0, 3, 64, 64), (8, 3, 64, 64), (16, 3, 64, 64)),
        ((1, 3, 64, 65), (8, 3, 64, 64), (16, 3, 64, 64)),
        ((-1, 3, 64, 64), (-1, 3, 64, 64), (-1, 3, 64, 64)),
    ],
    ids=["minimum above optimum", "optimum above maximum", "no face", "one side only", "negative"],
)
def test_a_profile_that_contradicts_itself_is_one_sentence(
    minimum: Shape, optimum: Shape, maximum: Shape
) -> None:
    with pytest.raises(ModelError) as refused:
        Profile(minimum=minimum, optimum=optimum, maximum=maximum)

    sentence = str(refused.value)
    assert "\n" not in sentence
    assert "x".join(map(str, optimum)) in sentence, "the sentence does not show the shapes"
    assert "1 <= minimum <= optimum <= maximum" in sentence and "--opt-batch" in sentence


def test_a_profile_of_one_shape_is_fine() -> None:
    shape = (1, 3, 64, 64)

    assert str(Profile(minimum=shape, optimum=shape, maximum=shape)) == "1x3x64x64 / 1x3x64x64 / 1x3x64x64"


@pytest.mark.parametrize("backend", Backend)
def test_only_nvidias_libraries_need_a_gpu(backend: Backend) -> None:
    assert backend.needs_gpu == backend.value.startswith("tensorrt")
