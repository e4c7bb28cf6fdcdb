"""Covariance pooling: the root, its gradients, and that ONNX and checkpoints keep to the number of steps."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
from visaged.pipelines.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

torch = pytest.importorskip("torch", reason="torch is not installed (extra `learn`)")
pytestmark = pytest.mark.torch

from visaged.pipelines.learning.covariance import (  # noqa: E402
    CovariancePooling,
    covariance,
    newton_schulz_root,
)

F32 = npt.NDArray[np.float32]


@pytest.fixture(autouse=True)
def _one_core() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def error_of_root(n_steps: int) -> float:
    """Return the relative error for 64 channels of 7 x 7 places, whose covariance has rank 48."""
    matrices = covariance(torch.relu(torch.randn(4, 64, 7, 7, dtype=torch.float64)))
    values, vectors = torch.linalg.eigh(matrices)
    root = vectors @ torch.diag_embed(values.clamp_min(0).sqrt()) @ vectors.transpose(1, 2)
    return float((newton_schulz_root(matrices, n_steps) - root).norm() / root.norm())


def test_one_step_and_many_have_the_values_a_person_computes() -> None:
    matrices = torch.diag(torch.tensor([0.75, 0.25]))[None]  # trace 1: A is the matrix itself

    one = newton_schulz_root(4 * matrices, 1)[0]
    many = newton_schulz_root(4 * matrices, 20)[0]

    # 2 x 1/2 a (3 - a), and sqrt 3 and 1
    assert one.diagonal().tolist() == pytest.approx([0.75 * 2.25, 0.25 * 2.75])
    assert many.flatten().tolist() == pytest.approx([3**0.5, 0, 0, 1], abs=1e-6)


def test_more_steps_come_closer_to_the_true_root_by_what_the_module_says() -> None:
    errors = {n: error_of_root(n) for n in (3, 5, 9, 12)}

    assert list(errors.values()) == sorted(errors.values(), reverse=True)
    assert errors[5] == pytest.approx(0.18, abs=0.02)
    assert errors[12] == pytest.approx(0.004, abs=0.002)


def test_the_covariance_is_that_of_numpy_with_a_little_on_the_diagonal() -> None:
    maps = torch.randn(2, 3, 4, 5, dtype=torch.float64)

    expected = np.stack([np.cov(face.reshape(3, -1), bias=True) for face in maps.numpy()])
    expected += 1e-4 * np.trace(expected, axis1=1, axis2=2)[:, None, None] * np.eye(3)
    assert covariance(maps).numpy() == pytest.approx(expected, rel=1e-9)


def test_the_gradients_are_right() -> None:
    maps = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    layer = CovariancePooling(4, 3, n_steps=5).double().eval()

    def root(maps: "Tensor") -> "Tensor":
        return newton_schulz_root(covariance(maps), 5)

    assert torch.autograd.gradcheck(root, (maps,))
    assert torch.autograd.gradcheck(layer, (maps,))


def test_the_features_are_the_upper_triangle_row_by_row() -> None:
    layer = CovariancePooling(5, 3).eval()
    maps = torch.randn(2, 5, 6, 6)

    with torch.no_grad():
        features = layer(maps)
        root = newton_schulz_root(covariance(layer.reduction(maps)), 5)

    assert features.shape == (2, layer.n_features) == (2, 6)
    assert torch.equal(features, root[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]])


def test_maps_without_any_variation_give_finite_features_and_gradients() -> None:
    maps = torch.zeros(2, 4, 3, 3, requires_grad=True)

    root = newton_schulz_root(covariance(maps), 5)
    (slope,) = torch.autograd.grad(root.sum(), maps)

    assert root.isfinite().all()
    assert slope.isfinite().all()


def test_it_stays_in_float32_under_autocast() -> None:
    layer = CovariancePooling(8, 4).eval()
    maps = torch.randn(2, 8, 7, 7)

    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        reduced, features = layer.reduction(maps), layer(maps)

    assert reduced.dtype == torch.bfloat16
    assert features.dtype == torch.float32
    expected = newton_schulz_root(covariance(reduced.float()), 5)
    assert torch.equal(features, expected.flatten(1)[:, layer.triangle])


def run_exported(layer: CovariancePooling, maps: "Tensor", path: Path) -> F32:
    """Export `layer` with any N and return what ONNX Runtime makes of `maps`."""
    torch.onnx.export(
        layer,
        (maps[:1],),
        str(path),
        input_names=["maps"],
        output_names=["features"],
        dynamic_axes={"maps": {0: "N"}, "features": {0: "N"}},
        dynamo=False,
    )
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    features: F32 = session.run(None, {"maps": maps.numpy()})[0]
    return features


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.onnx, about the exporter we name
def test_the_onnx_graph_agrees_and_another_number_of_steps_does_not(tmp_path: Path) -> None:
    layer, other = CovariancePooling(24, 16, n_steps=5).eval(), CovariancePooling(24, 16, n_steps=9).eval()
    other.reduction.load_state_dict(layer.reduction.state_dict())
    maps = torch.randn(3, 24, 7, 7)

    seen = run_exported(layer, maps, tmp_path / "layer.onnx")
    with torch.no_grad():
        same, different = layer(maps).numpy(), other(maps).numpy()

    assert np.abs(seen - same).max() < 1e-6
    assert np.abs(same).max() > 0.1
    assert np.abs(seen - different).max() > 1e-2


def test_weights_are_refused_where_another_number_of_steps_is_taken() -> None:
    state = CovariancePooling(8, 4, n_steps=5).state_dict()

    CovariancePooling(8, 4, n_steps=5).load_state_dict(state)
    with pytest.raises(ModelError, match="trained with 5 Newton-Schulz steps and this network takes 9"):
        CovariancePooling(8, 4, n_steps=9).load_state_dict(state)
    with pytest.raises(ValueError, match="n_steps=0"):
        CovariancePooling(8, 4, n_steps=0)
