"""What normalises pixels is fitted on the training part only, and is the same in the engine."""

import io
import warnings
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from visaged.kernels.chips import to_input
from visaged.pipelines.cropper import Cropper
from visaged.pipelines.engines.ort_engine import OrtEngine
from visaged.pipelines.errors import ConfigError, ModelError
from visaged.pipelines.learning.samples import TEST, Samples, split_of
from visaged.pipelines.registry import DLIB_MEAN, DLIB_SCALE, ChipRecipe, Colour

torch = pytest.importorskip("torch", reason="torch is not installed (extra `learn`)")
from visaged.pipelines.learning import normalisation  # noqa: E402
from visaged.pipelines.learning.normalisation import (  # noqa: E402
    Normalisation,
    NormalisationConfig,
    NormalisedNetwork,
    normalisation_preset,
    with_light,
)

pytestmark = pytest.mark.torch
F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

SIDE = 12
GREY = ChipRecipe(size=SIDE, padding=0.25, colour=Colour.GREY, mean=(127.5,), scale=127.5)
RGB = ChipRecipe(size=SIDE, padding=0.25, colour=Colour.RGB, mean=(122.8, 117.0, 104.3), scale=256.0)
RAW = ChipRecipe(size=SIDE, padding=0.25, colour=Colour.RGB, mean=(0.0, 0.0, 0.0), scale=1.0)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def pictures(n: int = 300, n_channels: int = 3, side: int = SIDE) -> U8:
    """Cloudy patterns: neighbours are alike, channels differ in mean and spread, each picture in light."""
    random = np.random.default_rng(0)
    clouds = [cv2.GaussianBlur(random.normal(0, 1, (side, side, n_channels)), (0, 0), 1.2) for _ in range(n)]
    clouds = [cloud.reshape(side, side, n_channels) for cloud in clouds]
    light = random.uniform(0.5, 1.5, (n, 1, 1, 1))
    waves = np.stack(clouds) * np.array([60, 90, 120])[:n_channels] + np.array([90, 120, 140])[:n_channels]
    noisy: U8 = np.clip(waves * light + random.normal(0, 4, waves.shape), 0, 255).astype(np.uint8)
    return noisy


def exported(module: Any, chips: F32) -> bytes:
    """Return `module` as ONNX by the legacy exporter, with a batch of any size."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            module.eval(), (torch.from_numpy(chips[:2]),), buffer, dynamo=False, opset_version=17,
            input_names=["chips"], output_names=["logits"],
            dynamic_axes={"chips": {0: "n"}, "logits": {0: "n"}},
        )  # fmt: skip
    return buffer.getvalue()


def small_network(n_channels: int) -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(n_channels, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(),
        torch.nn.Linear(4 * SIDE * SIDE, 5),
    ).eval()  # fmt: skip


@pytest.mark.parametrize(
    "name", ["none", "slides", "samplewise", "gcn", "zca", "tan_triggs", "samplewise, then slides"]
)
@pytest.mark.parametrize("recipe", [GREY, RGB, RAW], ids=["grey", "rgb", "raw"])
def test_trainer_and_engine_agree_on_what_the_cropper_delivers(name: str, recipe: ChipRecipe) -> None:
    config = (
        NormalisationConfig(samplewise_std_normalization=True, featurewise_std_normalization=True)
        if "," in name
        else normalisation_preset(name)
    )
    rgb = pictures(n_channels=3)
    chips = to_input(rgb, recipe.mean, recipe.scale, grey=recipe.colour is Colour.GREY)
    raw = to_input(rgb, (0.0,) * len(recipe.mean), 1.0, grey=recipe.colour is Colour.GREY)
    fitted = Normalisation.fit(config, raw.transpose(0, 2, 3, 1).astype(np.uint8))
    network = small_network(len(recipe.mean))
    network[3].weight.data *= 1e-2 if name == "none" else 1  # raw pixels are large

    deployed = NormalisedNetwork(fitted, network, recipe)
    with torch.no_grad():
        in_trainer = NormalisedNetwork(fitted, network)(torch.from_numpy(raw)).numpy()
        in_torch = deployed(torch.from_numpy(chips)).numpy()
    in_engine = OrtEngine(exported(deployed, chips)).infer(chips)["logits"]

    assert np.abs(in_engine - in_torch).max() < 1e-5
    assert np.abs(in_engine - in_trainer).max() < 2e-5


def test_featurewise_is_what_keras_says() -> None:
    x = pictures()

    fitted = Normalisation.fit(normalisation.SLIDES, x)

    wide = x.astype(np.float64)
    wanted = (wide - wide.mean(axis=(0, 1, 2))) / (wide.std(axis=(0, 1, 2)) + 1e-6)
    assert np.allclose(fitted.apply(x), wanted.transpose(0, 3, 1, 2), atol=1e-4)


def test_samplewise_is_what_keras_says_over_all_channels_of_a_picture() -> None:
    x = pictures(5)

    centred = Normalisation.fit(NormalisationConfig(samplewise_center=True), x).apply(x)
    scaled = Normalisation.fit(NormalisationConfig(samplewise_std_normalization=True), x).apply(x)

    wide = x.astype(np.float64)
    away = wide - wide.mean(axis=(1, 2, 3), keepdims=True)
    assert np.allclose(centred, away.transpose(0, 3, 1, 2), atol=1e-4)
    spread = wide.std(axis=(1, 2, 3), keepdims=True) + 1e-6
    assert np.allclose(scaled, (away / spread).transpose(0, 3, 1, 2), atol=1e-5)


def test_whitening_is_what_keras_says_and_leaves_nothing_correlated() -> None:
    x = pictures(900, n_channels=1)
    epsilon = 1e-6

    white = Normalisation.fit(NormalisationConfig(zca_whitening=True, zca_epsilon=epsilon), x).apply(x)

    flat = x.reshape(len(x), -1) / 255
    flat = flat - flat.mean()
    u, s, _ = np.linalg.svd(flat.T @ flat / len(flat))
    wanted = flat @ ((u / np.sqrt(s + epsilon)) @ u.T)
    assert np.allclose(white.reshape(len(x), -1), wanted, atol=2e-3)
    covariance = white.reshape(len(x), -1).T @ white.reshape(len(x), -1) / len(x)
    assert np.allclose(covariance, np.eye(SIDE * SIDE), atol=0.02)


def test_a_dark_and_a_bright_picture_are_alike_after_tan_triggs_and_a_flat_one_stays_flat() -> None:
    face = cv2.GaussianBlur(pictures(1, 1, 48)[0], (0, 0), 1.5)[..., None]
    slope = np.linspace(0.35, 1, 48)[None, :, None]
    lit = np.stack([face, np.rint(face * slope).astype(np.uint8), np.full_like(face, 90)])

    out = Normalisation.fit(normalisation_preset("tan_triggs"), lit).apply(lit)

    before = np.corrcoef(lit[0].ravel(), lit[1].ravel())[0, 1]
    after = np.corrcoef(out[0].ravel(), out[1].ravel())[0, 1]
    assert after > 0.9 and after > before
    assert np.abs(out).max() <= 10
    assert np.abs(out[2]).max() < 0.1


def test_tan_triggs_is_the_papers_formula() -> None:
    x = pictures(3, 1, 40)

    out = Normalisation.fit(normalisation_preset("tan_triggs"), x).apply(x)

    for picture, got in zip(x[..., 0], out[:, 0], strict=True):
        lit = (picture / 255.0) ** 0.2
        inner, outer = (
            cv2.GaussianBlur(lit, (13, 13), sigma, borderType=cv2.BORDER_REPLICATE) for sigma in (1.0, 2.0)
        )
        wanted = inner - outer
        wanted = wanted / np.mean(np.abs(wanted) ** 0.1) ** 10
        wanted = wanted / np.mean(np.minimum(10, np.abs(wanted)) ** 0.1) ** 10
        assert np.corrcoef(got.ravel(), (10 * np.tanh(wanted / 10)).ravel())[0, 1] > 0.9999
        assert np.abs(got - 10 * np.tanh(wanted / 10)).max() < 0.05


@pytest.mark.parametrize("name", ["tan_triggs", "samplewise", "gcn", "slides"])
def test_a_black_picture_gives_finite_numbers_and_gradients(name: str) -> None:
    black = torch.zeros(1, 1, SIDE, SIDE, requires_grad=True)
    fitted = Normalisation.fit(normalisation_preset(name), pictures(2, 1))

    out = normalisation.Normaliser(fitted)(black)
    out.sum().backward()

    assert torch.isfinite(out).all() and torch.isfinite(black.grad).all()


def test_global_contrast_normalisation_does_not_blow_up_the_noise_of_a_flat_picture() -> None:
    flat = (100 + np.random.default_rng(0).integers(0, 2, (1, SIDE, SIDE, 1))).astype(np.uint8)

    def spread(name: str, x: U8) -> float:
        return float(Normalisation.fit(normalisation_preset(name), x).apply(x).std())

    assert spread("gcn", flat) < 0.2 < 0.9 < spread("samplewise", flat)
    assert spread("gcn", pictures(1, 1)) == pytest.approx(1, abs=0.05)


def test_only_the_train_part_decides() -> None:
    groups = np.array([f"person {i}" for i in range(300)])
    targets = np.ones((300, 1), np.float32)
    is_held = split_of(groups) != "train"
    x = pictures()
    spoilt = x.copy()
    spoilt[is_held] = 255

    config = normalisation_preset("zca")
    fitted = Normalisation.fit_train_part(config, Samples(x, targets, groups, ("face",)))
    again = Normalisation.fit_train_part(config, Samples(spoilt, targets, groups, ("face",)))

    assert is_held.sum() > 30 and TEST in split_of(groups)
    assert np.array_equal(fitted.mean, again.mean) and np.array_equal(fitted.whitening, again.whitening)
    assert not np.allclose(Normalisation.fit(config, spoilt).mean, fitted.mean)


@pytest.mark.parametrize("name", ["slides", "zca", "clahe", "none"])
def test_a_normalisation_survives_its_file(name: str, tmp_path: Path) -> None:
    fitted = Normalisation.fit(normalisation_preset(name), pictures())

    fitted.save(tmp_path / "normalisation.npz")
    read = Normalisation.load(tmp_path / "normalisation.npz")

    assert read.config == fitted.config
    assert np.array_equal(read.apply(pictures(4)), fitted.apply(pictures(4)))


def test_a_file_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "normalisation.npz"
    with pytest.raises(ModelError, match="fit it again"):
        Normalisation.load(path)
    path.write_bytes(b"PK\x03\x04 no")
    with pytest.raises(ModelError, match="fit it again"):
        Normalisation.load(path)
    np.savez(path, config="{}", mean=np.zeros(3), spread=np.zeros(1), whitening=np.zeros((0, 0)))
    with pytest.raises(ModelError, match="fit it again"):
        Normalisation.load(path)


@pytest.mark.parametrize("name", ["clahe", "he_blend"])
@pytest.mark.parametrize("colour", list(Colour))
def test_the_light_of_training_pictures_is_the_light_of_chips(
    name: str, colour: Colour, astronaut: U8
) -> None:
    landmarks = np.array([[[272, 110], [250, 112], [200, 112], [222, 110], [235, 140]]], np.float32)
    config = normalisation_preset(name)
    frame = astronaut if colour is Colour.RGB else astronaut[..., :1].repeat(3, axis=2)
    mean = (0.0,) * (3 if colour is Colour.RGB else 1)
    plain = ChipRecipe(size=64, padding=0.25, colour=colour, mean=mean, scale=1.0)
    lit = msgspec.structs.replace(plain, light=config.light)
    chip = Cropper().crop(frame, landmarks, plain).transpose(0, 2, 3, 1).astype(np.uint8)

    trained_on = with_light(chip, config)

    assert np.array_equal(trained_on.transpose(0, 3, 1, 2), Cropper().crop(frame, landmarks, lit))
    assert np.abs(trained_on.astype(int) - chip).mean() > 3
    assert with_light(chip, NormalisationConfig()) is chip


def test_dlibs_mean_and_scale_leave_nothing_to_do_on_dlibs_chips() -> None:
    fitted = Normalisation.fit(normalisation_preset("dlib"), pictures(3, 3))
    chips = torch.randn(2, 3, 8, 8)

    assert torch.equal(normalisation.Normaliser(fitted, DLIB_MEAN, DLIB_SCALE)(chips), chips)
    pixels = pictures(4, 3)
    wanted = to_input(pixels, DLIB_MEAN, DLIB_SCALE, grey=False)
    assert np.abs(fitted.apply(pixels) - wanted).max() < 1e-6


def test_chips_of_another_kind_are_refused_in_a_sentence() -> None:
    network = small_network(3)

    def fitted(name: str) -> Normalisation:
        return Normalisation.fit(normalisation_preset(name), pictures(20))

    with pytest.raises(ConfigError, match="1 channels, the normalisation 3"):
        NormalisedNetwork(fitted("slides"), network, GREY)
    with pytest.raises(ConfigError, match="light is none, the normalisation's clahe"):
        NormalisedNetwork(fitted("clahe"), network, RGB)
    with pytest.raises(ConfigError, match="light is none, the normalisation's he_blend"):
        NormalisedNetwork(fitted("he_blend"), network, RGB)
    with pytest.raises(ConfigError, match="the whitening 432"):
        NormalisedNetwork(fitted("zca"), network, msgspec.structs.replace(RGB, size=16))


def test_what_cannot_be_fitted_or_configured_is_refused() -> None:
    with pytest.raises(ConfigError, match="no pictures"):
        Normalisation.fit(normalisation.SLIDES, pictures(1)[:0])
    with pytest.raises(ConfigError, match="at most 4096"):
        Normalisation.fit(normalisation_preset("zca"), np.zeros((2, 48, 48, 3), np.uint8))
    with pytest.raises(ConfigError, match="'keras'; choose one of none, slides"):
        normalisation_preset("keras")
    for wrong in (
        {"zca_whitening": True, "featurewise_std_normalization": True},
        {"dlib": True, "gcn": True},
        {"tan_triggs": True, "gcn": True},
        {"featurewise_centre": True},
        {"zca_epsilon": 0},
    ):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, NormalisationConfig)


def test_the_slides_preset_is_the_courses() -> None:
    config, rest = normalisation_preset("slides"), NormalisationConfig()

    changed = {f for f in rest.__struct_fields__ if getattr(config, f) != getattr(rest, f)}
    assert changed == {"featurewise_center", "featurewise_std_normalization"}


def test_the_trainer_reaches_the_stages_through_the_normalisation() -> None:
    from visaged.pipelines.learning.networks import NetworkConfig, build_network

    network = build_network(NetworkConfig(width=4, units=8, size=32), 3)
    whole = NormalisedNetwork(Normalisation.fit(normalisation.SLIDES, pictures(20, 1, 32)), network)

    whole.train()
    whole.freeze(1)

    assert whole.stages is network.stages
    assert not any(parameter.requires_grad for parameter in network.stages[0].parameters())
    assert whole(torch.zeros(2, 1, 32, 32)).logits.shape == (2, 3)
    assert "normaliser.to_pixels.gain" in whole.state_dict()
