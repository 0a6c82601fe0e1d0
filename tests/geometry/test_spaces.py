"""Words of the algebra, and what spaces refuse at their doors."""

import numpy as np
import pytest
import torch
from torch import Tensor

import oddity
from oddity import Conformal, Euclidean, Hyperbolic, Manifold, Sphere, TensorField

Z = torch.tensor([[0.1, 0.2], [-0.3, 0.4]])
M = Sphere(2)


def test_sums_begin_at_zero() -> None:
    assert torch.equal(sum([M, M]).metric(Z), (M + M).metric(Z))
    assert sum([M]) is M
    with pytest.raises(TypeError):
        1 + M


@pytest.mark.parametrize(
    "scaled",
    [M / 2, 0.5 * M, torch.tensor(0.5) * M, M * torch.tensor(0.5), np.float32(0.5) * M, M / np.int64(2)],
    ids=str,
)
def test_a_number_is_a_number_on_either_side(scaled: Manifold) -> None:
    torch.testing.assert_close(scaled.metric(Z), M.metric(Z) / 2)
    assert str(scaled) == "0.5 * Sphere(2)"


@pytest.mark.parametrize("factor", [torch.ones(2), np.ones(2), torch.tensor(2.0, requires_grad=True), True, "2", M])
def test_what_is_no_number_scales_nothing(factor: object) -> None:
    with pytest.raises(TypeError):
        factor * M  # type: ignore[operator]
    with pytest.raises(TypeError):
        M / factor  # type: ignore[operator]


@pytest.mark.parametrize("divisor", [0, -1, float("inf"), float("nan")])
def test_a_metric_is_divided_by_positive_numbers_only(divisor: float) -> None:
    with pytest.raises(ValueError, match="by a positive number only"):
        M / divisor


def lopsided(z: Tensor) -> Tensor:
    return torch.tensor([[1.0, 2.0], [0.0, 1.0]]).expand(*z.shape, 2)


def test_a_field_that_is_not_symmetric_is_refused_and_its_push_is_nan() -> None:
    field = TensorField(lopsided)
    assert field.push(Z, Z).isnan().all()
    with pytest.raises(
        ValueError, match=r"G is \[\[1.0, 2.0\], \[0.0, 1.0\]\] at z\[\(0,\)\], not symmetric; give \(G"
    ):
        field.metric(Z)
    with pytest.raises(ValueError, match="not symmetric"):
        (Euclidean() + field).geodesic(Z[0], Z[1])
    with pytest.raises(ValueError, match=r"G gives \(3, 3\) for points of shape \(3, 2\); it must give \(N, d, d\)"):
        TensorField(lambda z: torch.eye(3)).metric(Z)


def test_rounding_is_no_asymmetry() -> None:
    G = torch.tensor([[2.0, 1.0], [1.0 + 8 * torch.finfo(torch.float32).eps, 2.0]])
    assert not torch.equal(G, G.mT)
    assert TensorField(lambda z: G.expand(*z.shape, 2)).metric(Z).isfinite().all()


@pytest.mark.parametrize("dim", [2.5, 0, True, "2", torch.tensor(2)])
@pytest.mark.parametrize("space", [Sphere, Hyperbolic, Euclidean, lambda d: Conformal(torch.ones_like, d)])
def test_a_dimension_is_a_whole_number(space, dim: object) -> None:
    with pytest.raises(ValueError, match="the dimension must be a whole number, and at least 1"):
        space(dim)


def test_a_dimension_of_numpy_is_one() -> None:
    assert oddity.Sphere(np.int64(2)).dim == 2
