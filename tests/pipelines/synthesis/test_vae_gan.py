"""The VAE-GAN on drawn faces: it learns, resumes exactly, draws the class asked for, and exports."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from visaged.pipelines.errors import ModelError
from visaged.pipelines.learning.samples import Samples
from visaged.pipelines.synthesis.generator import Generator

torch = pytest.importorskip("torch", reason="torch is not installed (extra `learn`)")
from visaged.pipelines.synthesis.vae_gan import (  # noqa: E402
    GeneratorRun,
    _apart,
    _others,
    export_generator,
)
from visaged.pipelines.synthesis.vae_gan_networks import GeneratorConfig  # noqa: E402

pytestmark = pytest.mark.torch
CLASSES = ("dark", "light")
CONFIG = GeneratorConfig(size=32, width=8, latent=8, epochs=2, batch=8, rate=2e-3, threads=1)


def discs(n: int, seed: int) -> Samples:
    """Discs on a coloured ground: their class is how light they are, their person the ground."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32]
    pictures = np.empty((n, 32, 32, 3), np.uint8)
    for index, picture in enumerate(pictures):
        picture[:] = random.integers(60, 200, 3)
        picture[(x - 16) ** 2 + (y - 16) ** 2 < 80] = 240 if index % 2 else 15
    targets = np.eye(2, dtype=np.float32)[np.arange(n) % 2]
    return Samples(pictures, targets, np.array([f"{seed}-{i}" for i in range(n)]), CLASSES)


TRAIN, TUNE = discs(64, 0), discs(16, 1)


def test_it_learns_to_draw_faces_and_the_class_that_is_asked_for(tmp_path: Path) -> None:
    run = GeneratorRun(msgspec.structs.replace(CONFIG, epochs=16), CLASSES, tmp_path)

    epochs = run.train(TRAIN, TUNE)

    assert epochs[-1].train_l1 < 0.7 * epochs[0].train_l1
    assert epochs[-1].tune_l1 < 0.8 * epochs[0].tune_l1
    (tmp_path / "g.onnx").write_bytes(export_generator(run.network, 32, CLASSES))
    generator = Generator.load(tmp_path / "g.onnx")
    inputs = TUNE.pictures.transpose(0, 3, 1, 2).astype(np.float32)
    middle = np.s_[:, :, 12:20, 12:20]
    dark, light = (generator.run(inputs, label)[middle].mean() for label in CLASSES)
    assert light - dark > 60
    with torch.no_grad():
        wanted = torch.eye(2)[[1] * len(TUNE)]
        expected = run.network.eval().redraw(torch.from_numpy(inputs), wanted).numpy()
    assert generator.run(inputs, "light") == pytest.approx(expected, abs=0.05)


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole = GeneratorRun(CONFIG, CLASSES, tmp_path / "whole")
    expected = whole.train(TRAIN, TUNE)
    GeneratorRun(msgspec.structs.replace(CONFIG, epochs=1), CLASSES, tmp_path / "cut").train(TRAIN, TUNE)

    resumed = GeneratorRun(CONFIG, CLASSES, tmp_path / "cut")
    epochs = resumed.train(TRAIN, TUNE)

    assert epochs == expected
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name


def test_an_encoding_that_hides_the_class_leaves_it_to_what_is_asked_for(tmp_path: Path) -> None:
    inputs = torch.from_numpy(TUNE.pictures.transpose(0, 3, 1, 2).astype(np.float32))
    effects = []
    for hiding in (0.0, 0.05):
        config = msgspec.structs.replace(CONFIG, epochs=10, adversarial=0.0, hiding=hiding)
        run = GeneratorRun(config, CLASSES, tmp_path / str(hiding))
        run.train(TRAIN, TUNE)
        with torch.no_grad():
            dark, light = (run.network.redraw(inputs, torch.eye(2)[[label] * 16]) for label in (0, 1))
        effects.append(float((light - dark)[:, :, 12:20, 12:20].mean()))

    assert effects[1] > 2 * abs(effects[0])


def test_likeness_is_measured_as_a_share() -> None:
    maps = [torch.full((2, 3, 4, 4), 5.0), -torch.ones(2, 6, 2, 2)]

    assert float(_apart([m.clone() for m in maps], maps)) == 0
    assert float(_apart([2 * maps[0], maps[1]], maps)) == pytest.approx(0.5)


def test_what_comes_out_is_the_mean_of_the_last_steps(tmp_path: Path) -> None:
    run = GeneratorRun(msgspec.structs.replace(CONFIG, epochs=1), CLASSES, tmp_path)
    start = run.network.drawer.last.weight.clone()

    run.train(TRAIN, TUNE)

    mean, learned = (network.drawer.last.weight for network in (run.network, run.learner))
    assert 0 < (mean - learned).abs().max() < (start - learned).abs().max()
    assert not run.network.training


def test_a_face_is_also_drawn_as_another_class_never_its_own() -> None:
    classes = torch.eye(4)[[0, 1, 2, 3] * 30]

    others = _others(classes)

    assert (others.sum(1) == 1).all() and not (others * classes).any()
    assert (others.sum(0) > 15).all()  # any of the others


def test_the_discriminator_cannot_outgrow_the_rest(tmp_path: Path) -> None:
    run = GeneratorRun(msgspec.structs.replace(CONFIG, epochs=4, rate=0.05), CLASSES, tmp_path)

    run.train(TRAIN, TUNE)

    judge = run.learner.discriminator
    norms = [
        float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2))
        for layer in (*(stage[0] for stage in judge.maps), judge.last, judge.as_class)  # type: ignore[index]
    ]
    assert max(norms) < 1.5  # 1, but for what the power iteration lags behind


def test_the_checkpoint_of_another_run_and_a_broken_one_are_refused(tmp_path: Path) -> None:
    GeneratorRun(msgspec.structs.replace(CONFIG, epochs=1), CLASSES, tmp_path).train(TRAIN, TUNE)

    with pytest.raises(ModelError, match="another configuration"):
        GeneratorRun(CONFIG, ("a", "b"), tmp_path).train(TRAIN, TUNE)
    (tmp_path / "checkpoint.pt").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="no checkpoint of a generator"):
        GeneratorRun(CONFIG, CLASSES, tmp_path).train(TRAIN, TUNE)


def test_synthetic_faces_do_not_tune_and_pictures_of_another_size_are_refused(tmp_path: Path) -> None:
    run = GeneratorRun(CONFIG, CLASSES, tmp_path)

    with pytest.raises(ValueError, match="2 synthetic samples in the tuning part"):
        run.train(TRAIN, TUNE.with_children(TUNE.pictures[:2], np.arange(2)))
    with pytest.raises(ValueError, match="32 px are needed"):
        run.train(Samples(TRAIN.pictures[:, :16, :16], TRAIN.targets, TRAIN.groups, CLASSES), TUNE)
