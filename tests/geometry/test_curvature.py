"""Curvature against surfaces whose curvature everybody knows."""

import pytest
import torch
from torch import Tensor

import oddity
from oddity import Conformal, Euclidean, Hyperbolic, Manifold, Pullback, Sphere, TensorField

from .cases import decoder, embedded_sphere


def points(d: int = 2, B: int = 6, scale: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    z, u, v = torch.randn(3, B, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return scale * z, u, v


@pytest.mark.parametrize("d", [2, 3, 4])
@pytest.mark.parametrize(
    ("kind", "k"), [(Sphere, 1), (lambda d: Pullback(embedded_sphere), 1), (Hyperbolic, -1)], ids=["S", "in R", "H"]
)
def test_constant_curvature(kind, k: float, d: int) -> None:
    M, (z, u, v) = kind(d), points(d, scale=0.2)
    torch.testing.assert_close(M.sectional_curvature(z, u, v), torch.full((6,), float(k), dtype=z.dtype))
    torch.testing.assert_close(M.scalar_curvature(z), torch.full((6,), float(k * d * (d - 1)), dtype=z.dtype))
    torch.testing.assert_close((4 * M).scalar_curvature(z), M.scalar_curvature(z) / 4)


def test_torus_of_revolution() -> None:
    R, r = 2.0, 0.7

    def torus(z: Tensor) -> Tensor:
        around, tube = z.unbind(-1)
        axis = R + r * tube.cos()
        return torch.stack([axis * around.cos(), axis * around.sin(), r * tube.sin()], -1)

    z, u, v = points(scale=2.0)
    expected = z[:, 1].cos() / (r * (R + r * z[:, 1].cos()))
    torch.testing.assert_close(Pullback(torus).sectional_curvature(z, u, v), expected)


def test_graph_of_a_function() -> None:
    """K = (f_xx f_yy - f_xy^2) / (1 + |grad f|^2)^2 for f = sin x cos y + x y."""
    z, u, v = points(scale=1.0)
    x, y = z.unbind(-1)
    fx, fy = x.cos() * y.cos() + y, -x.sin() * y.sin() + x
    fxx, fxy = -x.sin() * y.cos(), 1 - x.cos() * y.sin()
    expected = (fxx * fxx - fxy**2) / (1 + fx**2 + fy**2) ** 2
    M = Pullback(lambda z: torch.cat([z, (z[:, :1].sin() * z[:, 1:].cos() + z[:, :1] * z[:, 1:])], 1))
    torch.testing.assert_close(M.sectional_curvature(z, u, v), expected)
    torch.testing.assert_close(M.scalar_curvature(z), 2 * expected)


def test_conformal_plane() -> None:
    """K = -(laplacian of phi) / e^(2 phi) for the metric e^(2 phi) I, phi = sin x cos y."""
    z, u, v = points(scale=1.0)
    phi = z[:, 0].sin() * z[:, 1].cos()
    M = Conformal(lambda z: (z[..., 0].sin() * z[..., 1].cos()).exp())
    torch.testing.assert_close(M.sectional_curvature(z, u, v), 2 * phi * (-2 * phi).exp())


def test_product_of_a_sphere_and_a_plane() -> None:
    M = Pullback(lambda z: torch.cat([embedded_sphere(z[:, :2]), z[:, 2:]], 1))
    z, _, _ = points(4)
    basis = torch.eye(4, dtype=z.dtype)
    K = M.sectional_curvature(z[:, None, None], basis[:, None], basis)  # (6, 4, 4)
    expected = torch.zeros(4, 4, dtype=z.dtype)
    expected[0, 1] = expected[1, 0] = 1
    off = ~torch.eye(4, dtype=torch.bool)
    torch.testing.assert_close(K[:, off], expected[off].expand(6, -1))
    assert K[:, ~off].isnan().all()
    torch.testing.assert_close(M.scalar_curvature(z), torch.full((6,), 2.0, dtype=z.dtype))


def both(f: oddity.GaussianDecoder) -> Manifold:
    return Pullback(lambda z: torch.cat([f.mean(z), f.std(z)], -1))


@pytest.mark.parametrize("d", [2, 3])
def test_three_ways_to_the_expected_metric(d: int) -> None:
    """The sum, the pull-back of both maps at once, and the tensor field that knows no decoder."""
    f, (z, u, v) = decoder(d).double(), points(d)
    M = oddity.expected_metric(f)
    field = TensorField(M.metric)
    K, S = M.sectional_curvature(z, u, v), M.scalar_curvature(z)
    for other in (both(f), field):
        torch.testing.assert_close(other.sectional_curvature(z, u, v), K)
        torch.testing.assert_close(other.scalar_curvature(z), S)


def test_into_a_curved_space_curvature_is_that_of_the_image() -> None:
    """A change of chart of the sphere leaves its curvature; a slice of S^3 by a plane through 0 is an S^2."""

    def warp(w: Tensor) -> Tensor:
        return torch.stack([w[..., 0] + 0.3 * w[..., 1].sin(), w[..., 1] + 0.2 * w[..., 0] ** 3], -1)

    z, u, v = points()
    one = torch.ones(6, dtype=z.dtype)
    torch.testing.assert_close(Pullback(warp, Sphere(2)).sectional_curvature(z, u, v), one)
    slice_ = Pullback(lambda w: torch.cat([warp(w), torch.zeros_like(w[:, :1])], 1), Sphere(3))
    torch.testing.assert_close(slice_.sectional_curvature(z, u, v), one)


def test_where_there_is_no_curvature() -> None:
    z, u, v = points()
    assert Pullback(lambda z: z[:, :1].sin()).sectional_curvature(z, u, v).isnan().all()
    assert Pullback(lambda z: z[:, :1].sin()).scalar_curvature(z).isnan().all()
    assert Pullback(lambda z: z[:, :1].sin()).sectional_curvature(z, u, torch.tensor([0.0, 1.0]).double()).isnan().all()
    assert Sphere(2).sectional_curvature(z, u, 3 * u).isnan().all()
    assert Sphere(2).sectional_curvature(z, u, 0 * u).isnan().all()
    assert float(Pullback(torch.sin).scalar_curvature(z[:, :1]).abs().max()) == 0
    assert float(Euclidean().scalar_curvature(z).abs().max()) == 0
    assert Sphere(2).scalar_curvature(z[:0]).shape == (0,)
    assert Sphere(2).scalar_curvature(z[0]).shape == ()
    with pytest.raises(ValueError, match="u holds nan"):
        Sphere(2).sectional_curvature(z, u * torch.nan, v)


def test_single_precision() -> None:
    z, u, v = (x.float() for x in points())
    torch.testing.assert_close(Pullback(embedded_sphere).sectional_curvature(z, u, v), torch.ones(6), rtol=0, atol=1e-4)
