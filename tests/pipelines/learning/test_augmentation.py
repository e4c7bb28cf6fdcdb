"""Augmentation draws what Keras draws, and keeps targets, groups, shapes and seeds."""

import tomllib
from typing import Any, Literal

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage, stats
from visaged.pipelines.errors import ConfigError
from visaged.pipelines.learning.samples import Samples

torch = pytest.importorskip("torch", reason="torch is not installed (extra `learn`)")
from visaged.pipelines.learning import augmentation  # noqa: E402
from visaged.pipelines.learning.augmentation import AugmentationConfig, Augmenter, preset  # noqa: E402

pytestmark = pytest.mark.torch
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]

N, SIDE = 400, 65
DOTS = np.array(
    [[32.0, 32.0], [24.0, 32.0], [32.0, 40.0]]
)  # px (row, column), one per channel, near the middle
RAMP = np.arange(6, dtype=np.float32)[None, None, None] * np.ones((1, 1, 6, 1), np.float32) * 10


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def draw(pictures: npt.NDArray[Any], seed: int = 1, **settings: Any) -> F32:
    """Return `pictures` `(N, C, S, S)` drawn anew under these settings, everything else at rest."""
    config = msgspec.convert(settings, AugmentationConfig)
    drawn: F32 = Augmenter(config, seed).transform(torch.from_numpy(pictures)).numpy()
    return drawn


def dots(n: int = N) -> F32:
    """`(n, 3, S, S)`: in each channel one soft dot."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    away = (rows - DOTS[:, 0, None, None]) ** 2 + (columns - DOTS[:, 1, None, None]) ** 2
    picture = (255 * np.exp(-away / 8)).astype(np.float32)
    return np.tile(picture, (n, 1, 1, 1))


def recover(drawn: F32) -> tuple[F64, F64]:
    """Return `(N, 2, 2)` and `(N, 2)`: Keras' matrix from (row, column) drawn to original, and its shift."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    mass = drawn.astype(np.float64).sum(axis=(2, 3))
    found = (
        np.stack([(drawn * rows).sum(axis=(2, 3)), (drawn * columns).sum(axis=(2, 3))], -1) / mass[..., None]
    )
    centre = (SIDE - 1) / 2
    known = np.concatenate([found - centre, np.ones((len(drawn), 3, 1))], -1)
    matrix = np.linalg.solve(known, np.tile(DOTS - centre, (len(drawn), 1, 1))).transpose(0, 2, 1)
    return matrix[:, :, :2], matrix[:, :, 2]


def is_uniform(values: F64, low: float, high: float, slack: float) -> bool:
    """Whether values lie within [low, high], up to what a centroid is wrong by, and spread evenly there."""
    inside = (values >= low - slack).all() and (values <= high + slack).all()
    return bool(inside and stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3)


def test_nothing_asked_for_gives_the_same_pictures(astronaut: U8) -> None:
    pictures = np.tile(cv2.resize(astronaut, (32, 32)).transpose(2, 0, 1), (3, 1, 1, 1))

    assert np.array_equal(draw(pictures), pictures)


def test_rotation_is_uniform_in_degrees_and_turns_about_the_centre() -> None:
    matrix, shift = recover(draw(dots(), rotation_range=20, fill_mode="constant"))

    angle = np.degrees(np.arctan2(matrix[:, 1, 0], matrix[:, 0, 0]))
    assert is_uniform(angle, -20, 20, 0.3)
    assert np.abs(shift).max() < 0.05
    assert np.linalg.det(matrix) == pytest.approx(1, abs=0.02)


def test_shifts_are_uniform_in_shares_of_the_side_and_independent() -> None:
    settings: dict[str, Any] = {"height_shift_range": 0.2, "width_shift_range": 0.1, "fill_mode": "constant"}
    matrix, shift = recover(draw(dots(), **settings))

    assert is_uniform(shift[:, 0] / SIDE, -0.2, 0.2, 0.001)
    assert is_uniform(shift[:, 1] / SIDE, -0.1, 0.1, 0.001)
    assert abs(np.corrcoef(shift[:, 0], shift[:, 1])[0, 1]) < 0.15
    assert np.allclose(matrix, np.eye(2), atol=0.02)


def test_zoom_divides_height_and_width_by_independent_uniform_factors() -> None:
    matrix, shift = recover(draw(dots(), zoom_range=0.2, fill_mode="constant"))

    assert is_uniform(matrix[:, 0, 0], 0.8, 1.2, 0.01)
    assert is_uniform(matrix[:, 1, 1], 0.8, 1.2, 0.01)
    assert abs(np.corrcoef(matrix[:, 0, 0], matrix[:, 1, 1])[0, 1]) < 0.15
    assert np.abs(matrix[:, [0, 1], [1, 0]]).max() < 0.01
    assert np.abs(shift).max() < 0.05


def test_shear_is_uniform_in_degrees_with_the_columns_shortened_as_in_keras() -> None:
    matrix, _ = recover(draw(dots(), shear_range=15, fill_mode="constant"))

    angle = np.degrees(-np.arcsin(matrix[:, 0, 1].clip(-1, 1)))
    assert is_uniform(angle, -15, 15, 0.3)
    assert matrix[:, 1, 1] == pytest.approx(np.cos(np.radians(angle)), abs=0.01)
    assert np.allclose(matrix[:, :, 0], [1, 0], atol=0.01)


@pytest.mark.parametrize(
    ("mode", "in_scipy"),
    [("nearest", "nearest"), ("constant", "grid-constant"), ("reflect", "reflect"), ("wrap", "grid-wrap")],
)
def test_all_of_it_at_once_is_keras_affine_transform_in_every_fill_mode(
    mode: str, in_scipy: Literal["nearest", "grid-constant", "reflect", "grid-wrap"]
) -> None:
    side = 24
    rows, columns = np.mgrid[:side, :side]
    picture = (4 * rows + 3 * columns + 40 * np.sin(rows / 2) + 40).astype(np.float32)
    settings = {
        "rotation_range": 40, "height_shift_range": 0.4, "width_shift_range": 0.3, "shear_range": 20,
        "zoom_range": 0.4, "fill_mode": mode, "cval": 7,
    }  # fmt: skip

    drawn = draw(np.tile(picture, (5, 1, 1, 1)), seed=3, **settings)

    random = np.random.default_rng(3)  # the same draws in the same order
    angle, shear = np.radians(random.uniform(-40, 40, 5)), np.radians(random.uniform(-20, 20, 5))
    down, right = random.uniform(-0.4, 0.4, 5) * side, random.uniform(-0.3, 0.3, 5) * side
    zoom = random.uniform(0.6, 1.4, (5, 2))
    for index, matrix in enumerate(augmentation.keras_matrix(angle, shear, down, right, zoom)):
        centre = np.full(2, (side - 1) / 2)
        offset: F64 = matrix[:2, 2] + centre - matrix[:2, :2] @ centre
        wanted = ndimage.affine_transform(picture, matrix[:2, :2], offset, order=1, mode=in_scipy, cval=7)
        assert np.abs(drawn[index, 0] - wanted).max() < 0.02


@pytest.mark.parametrize(
    ("mode", "right", "left"),
    [
        ("nearest", [0, 0, 0, 10, 20, 30], [20, 30, 40, 50, 50, 50]),
        ("constant", [99, 99, 0, 10, 20, 30], [20, 30, 40, 50, 99, 99]),
        ("reflect", [10, 0, 0, 10, 20, 30], [20, 30, 40, 50, 50, 40]),
        ("wrap", [40, 50, 0, 10, 20, 30], [20, 30, 40, 50, 0, 10]),
    ],
)
def test_what_comes_in_at_the_edge_is_as_the_fill_mode_says(
    mode: str, right: list[int], left: list[int]
) -> None:
    config = AugmentationConfig(width_shift_range=0.5, fill_mode=mode, cval=99)  # type: ignore[arg-type]

    class Two:
        """Draws that move the first picture 2 px to the right and the second 2 px to the left."""

        def uniform(self, low: float, high: float, size: object) -> F64:
            return np.array([-2 / 6, 2 / 6]) if high == 0.5 else np.full(size, (low + high) / 2)  # type: ignore[call-overload, no-any-return]

    drawn = augmentation._warp(torch.from_numpy(np.tile(RAMP, (2, 1, 1, 1))), config, Two())  # type: ignore[arg-type]

    assert drawn[0, 0, 3].tolist() == pytest.approx(right, abs=1e-3)
    assert drawn[1, 0, 3].tolist() == pytest.approx(left, abs=1e-3)


@pytest.mark.parametrize(("name", "axis"), [("horizontal_flip", 3), ("vertical_flip", 2)])
def test_half_of_the_pictures_are_flipped_exactly(name: str, axis: int) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (N, 1, 5, 5)).astype(np.uint8)

    drawn = draw(pictures, **{name: True})

    is_flipped = (drawn == np.flip(pictures, axis)).all(axis=(1, 2, 3))
    assert (is_flipped | (drawn == pictures).all(axis=(1, 2, 3))).all()
    assert is_flipped.mean() == pytest.approx(0.5, abs=0.08)


def test_brightness_multiplies_and_a_channel_shift_adds_within_the_extremes() -> None:
    pictures = np.zeros((N, 3, 2, 2), np.uint8) + np.array([[50, 100], [100, 150]], np.uint8)

    factor = draw(pictures, brightness_range=(0.5, 1.5))[:, 0, 0, 1] / 100
    shifted = draw(pictures, channel_shift_range=30)

    assert is_uniform(factor.astype(np.float64), 0.5, 1.5, 1e-4)
    assert is_uniform(shifted[:, 0, 0, 1].astype(np.float64) - 100, -30, 30, 1e-3)
    assert np.array_equal(shifted[:, 0], shifted[:, 2])
    assert (shifted.min(), shifted.max()) == (50, 150)


def test_noise_comes_as_often_and_as_strong_as_asked_for() -> None:
    change = draw(np.full((N, 1, 16, 16), 128, np.uint8), noise_p=0.3, noise_std=0.05) - 128

    is_noisy = np.abs(change).max(axis=(1, 2, 3)) > 0
    assert is_noisy.mean() == pytest.approx(0.3, abs=0.07)
    assert change[is_noisy].std() == pytest.approx(0.05 * 255, rel=0.03)


def test_an_erased_rectangle_has_the_area_asked_for_and_is_inside() -> None:
    drawn = draw(np.full((N, 1, 40, 40), 300, np.float32), erasing_p=1, erasing_area=(0.1, 0.3))

    share = (drawn != 300).mean(axis=(1, 2, 3))
    assert share.min() > 0.09 and share.max() < 0.32
    assert share.mean() == pytest.approx(0.2, abs=0.01)
    for picture in drawn[:20, 0]:
        rows, columns = np.nonzero(picture != 300)
        assert (np.ptp(rows) + 1) * (np.ptp(columns) + 1) == len(rows)


@pytest.mark.parametrize("n_channels", [1, 3])
def test_blur_resolution_and_jpeg_lose_detail_but_not_the_face(n_channels: int, astronaut: U8) -> None:
    face = cv2.resize(astronaut[20:220, 130:330], (64, 64), interpolation=cv2.INTER_AREA)
    pictures = np.tile(face.transpose(2, 0, 1)[:n_channels], (12, 1, 1, 1))
    detail = np.abs(np.diff(pictures.astype(np.float32), axis=3)).mean()

    blurred = draw(pictures, blur_p=1, blur_sigma=(1, 2))
    small = draw(pictures, resolution_p=1, resolution_range=(0.25, 0.5))
    coded = draw(pictures, jpeg_p=1, jpeg_quality=(5, 60))

    for drawn in (blurred, small):
        assert np.abs(np.diff(drawn, axis=3)).mean() < 0.8 * detail
    assert len({picture.tobytes() for picture in coded}) > 6  # qualities differ
    for drawn in (blurred, small, coded):
        assert 0 < np.abs(drawn - pictures).mean() < 16
        assert drawn.mean() == pytest.approx(pictures.mean(), abs=1.5)


def test_contrast_saturation_and_hue_leave_a_grey_picture_grey() -> None:
    pictures = np.tile(np.random.default_rng(0).integers(60, 200, (1, 1, 8, 8)), (20, 3, 1, 1)).astype(
        np.uint8
    )

    drawn = draw(pictures, contrast=0.5, saturation=0.5, hue=0.1)

    assert np.allclose(drawn, drawn[:, :1], atol=0.05)
    spread = drawn.std(axis=(2, 3))[:, 0] / pictures[0, 0].std()
    assert spread.min() < 0.7 and spread.max() > 1.2


def test_mixup_mixes_targets_as_it_mixes_pictures_and_the_larger_share_stays_in_place() -> None:
    pictures = (torch.arange(8) * 30.0)[:, None, None, None] + torch.zeros(8, 1, 4, 4)
    targets = torch.eye(8)
    values: list[F32] = []
    for seed in range(40):
        mixed, shares = Augmenter(AugmentationConfig(mixup_alpha=1.0), seed).augment(pictures, targets)
        assert torch.allclose(mixed[:, 0, 0, 0], shares @ (torch.arange(8) * 30.0), atol=1e-3)
        assert torch.allclose(shares.sum(1), torch.ones(8))
        assert (shares.argmax(1) == torch.arange(8)).all()
        values.append(shares.diagonal().numpy())

    kept = np.concatenate(values)
    assert is_uniform(kept[kept < 1].astype(np.float64), 0.5, 1, 1e-6)  # Beta(1, 1), folded


def test_without_mixup_children_keep_targets_group_and_place() -> None:
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (300, 12, 12, 3)).astype(np.uint8)
    targets = random.dirichlet(np.ones(3), 300).astype(np.float32)
    parents = Samples(pictures, targets, np.array([f"g{i % 7}" for i in range(300)]), ("a", "b", "c"))

    children = Augmenter(preset("slides"), 0).children(parents)
    mixed = Augmenter(preset("base"), 0).children(parents)

    assert np.array_equal(children.targets, parents.targets)
    assert children.groups.tolist() == mixed.groups.tolist() == parents.groups.tolist()
    assert children.pictures.shape == parents.pictures.shape
    assert np.abs(mixed.targets - parents.targets).max() > 0.1


def test_the_same_seed_draws_the_same_and_the_next_call_something_else(astronaut: U8) -> None:
    pictures = torch.from_numpy(np.tile(cv2.resize(astronaut, (48, 48)).transpose(2, 0, 1), (8, 1, 1, 1)))
    targets = torch.eye(8)
    one, two = Augmenter(preset("base"), 5), Augmenter(preset("base"), 5)

    torch.manual_seed(1)
    first = one.augment(pictures, targets)
    torch.manual_seed(2)
    again = two.augment(pictures, targets)

    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(one.augment(pictures, targets)[0], first[0])
    assert not torch.equal(Augmenter(preset("base"), 6).augment(pictures, targets)[0], first[0])


def test_without_a_seed_a_run_that_seeds_torch_again_sees_the_same() -> None:
    pictures, augmenter = torch.rand(4, 1, 16, 16) * 255, Augmenter(preset("face"))

    torch.manual_seed(7)
    first, second = augmenter.transform(pictures), augmenter.transform(pictures)
    torch.manual_seed(7)

    assert torch.equal(augmenter.transform(pictures), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", ["none", "slides", "face", "base"])
@pytest.mark.parametrize("shape", [(5, 1, 48, 48), (5, 3, 32, 32), (1, 3, 20, 30), (0, 1, 16, 16)])
def test_a_batch_keeps_its_shape_and_range_and_what_came_in_is_untouched(
    name: str, shape: tuple[int, int, int, int]
) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    given = torch.from_numpy(pictures.copy())
    as_float = given.float()

    from_bytes, _ = Augmenter(preset(name), 1).augment(given, torch.ones(len(pictures), 1))
    from_float, _ = Augmenter(preset(name), 1).augment(as_float, torch.ones(len(pictures), 1))

    assert from_bytes.shape == shape and from_bytes.dtype == torch.float32
    assert torch.equal(from_bytes, from_float)
    assert np.array_equal(given.numpy(), pictures) and np.array_equal(as_float.numpy(), pictures)
    assert len(pictures) == 0 or (from_bytes.min() >= -1e-3 and from_bytes.max() <= 255.001)


def test_the_network_never_sees_the_original_under_the_slides_preset(astronaut: U8) -> None:
    pictures = np.tile(cv2.resize(astronaut, (48, 48)).transpose(2, 0, 1), (200, 1, 1, 1))

    drawn = Augmenter(preset("slides"), 0).transform(torch.from_numpy(pictures)).numpy()

    assert np.abs(drawn - pictures).mean(axis=(1, 2, 3)).min() > 1
    assert len({picture.tobytes() for picture in drawn}) == 200


def test_the_presets_are_what_the_course_and_the_survey_say() -> None:
    def asked(name: str) -> dict[str, object]:
        config, rest = preset(name), AugmentationConfig()
        return {
            f: getattr(config, f) for f in rest.__struct_fields__ if getattr(config, f) != getattr(rest, f)
        }

    slides = {
        "rotation_range": 20,
        "width_shift_range": 0.2,
        "height_shift_range": 0.2,
        "horizontal_flip": True,
    }
    face = {
        "rotation_range": 10, "width_shift_range": 0.06, "height_shift_range": 0.06, "zoom_range": 0.1,
        "horizontal_flip": True, "brightness_range": (0.8, 1.2), "contrast": 0.2, "saturation": 0.2,
        "noise_p": 0.3, "blur_p": 0.1, "jpeg_p": 0.2, "erasing_p": 0.25,
    }  # fmt: skip
    assert asked("none") == {}
    assert asked("slides") == slides
    assert preset("slides").fill_mode == "nearest"  # Keras' own default
    assert asked("face") == face
    assert (preset("face").noise_std, preset("face").jpeg_quality) == (0.03, (50, 95))
    assert preset("face").erasing_area == (0.02, 0.15)
    assert asked("base") == face | {"mixup_alpha": 0.2}


def test_a_configuration_comes_from_toml_and_a_wrong_one_is_refused() -> None:
    table = tomllib.loads("rotation_range = 10\njpeg_p = 0.2\njpeg_quality = [60, 90]\nfill_mode = 'wrap'")

    config = msgspec.convert(table, AugmentationConfig)

    assert (config.rotation_range, config.jpeg_quality, config.fill_mode) == (10, (60, 90), "wrap")
    assert msgspec.json.decode(msgspec.json.encode(preset("base")), type=AugmentationConfig) == preset("base")
    for wrong in ({"rotation": 20}, {"zoom_range": 1.0}, {"jpeg_quality": [90, 50]}, {"fill_mode": "mirror"}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, AugmentationConfig)


def test_an_unknown_preset_is_one_sentence_that_names_the_others() -> None:
    with pytest.raises(ConfigError, match="'slide'; choose one of none, slides, face, base"):
        preset("slide")


def test_a_batch_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="1 or 3"):
        Augmenter(preset("face"), 0).transform(torch.zeros(2, 8, 8, 3))
    with pytest.raises(ValueError, match="one row of targets"):
        Augmenter(preset("face"), 0).augment(torch.zeros(2, 1, 8, 8), torch.zeros(3, 2))
