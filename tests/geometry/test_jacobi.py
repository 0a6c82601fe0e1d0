"""Jacobi fields: closed forms, rates, the differential of exp by differences, conjugate points, and failures."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import oddity
from oddity import Conformal, Euclidean, Hyperbolic, Manifold, Pullback, Sphere
from oddity.geometry.jacobi import exponential_spread

from .cases import decoder, embedded_sphere

Profile = Callable[[Tensor], Tensor]


def rays(M: Manifold, d: int, lengths: tuple[float, ...] = (0.5, 1.0, 2.0, 2.5)) -> tuple[Tensor, Tensor]:
    """Points and vectors of given lengths."""
    z, v = torch.randn(2, len(lengths), d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = 0.3 * z / (1 + torch.linalg.vector_norm(z, dim=-1, keepdim=True))
    return z, v * torch.tensor(lengths, dtype=torch.float64)[:, None] / M.norm(z, v)[:, None]


def radii(M: Manifold, z: Tensor, v: Tensor, n: int) -> Tensor:
    return M.norm(z, v)[:, None] * torch.linspace(0, 1, n + 1, dtype=z.dtype)


def ratio(f: Profile, r: Tensor) -> Tensor:
    return torch.where(r > 0, f(r) / torch.where(r > 0, r, 1.0), 1.0)


CLOSED = [(Sphere, torch.sin, lambda r: r / r.tan()), (Hyperbolic, torch.sinh, lambda r: r / r.tanh())]


@pytest.mark.parametrize("d", [1, 2, 3, 4])
@pytest.mark.parametrize(("space", "f", "bend"), CLOSED)
def test_constant_curvature(space: type[Manifold], f: Profile, bend: Profile, d: int) -> None:
    """The determinant is (sin r / r)^(d-1); across, the Hessian of half the squared distance is r cot r, along it 1."""
    M = space(d)
    z, v = rays(M, d)
    spread = exponential_spread(M, z, v, 48, tolerance=1e-9)
    assert spread.converged.all()
    assert spread.regular.all()
    r = radii(M, z, v, 48)
    torch.testing.assert_close(spread.determinant, ratio(f, r) ** (d - 1), rtol=1e-4, atol=1e-6)
    G, length = M.metric(z), M.norm(z, v)[:, None, None]
    along = (G @ v[..., None] / length) @ (G @ v[..., None] / length).mT
    torch.testing.assert_close(spread.hessian[:, -1], along + bend(length) * (G - along), rtol=0, atol=1e-5)
    torch.testing.assert_close(spread.hessian[:, 0], G)


def test_strong_negative_curvature_makes_no_conjugate_points() -> None:
    """On the metric dx^2 + f(x)^2 dy^2 both f and f int 1 / f^2 solve Jacobi's equation along the x axis."""
    c = 3000.0

    class Throat(Manifold):
        dim = 2

        def push(self, z: Tensor, v: Tensor) -> Tensor:
            return torch.stack([v[..., 0], (1 + c * z[..., 0] ** 2) * v[..., 1]], -1)

    v = torch.tensor([1.0, 0.0], dtype=torch.float64)
    spread = exponential_spread(Throat(), torch.zeros_like(v), v, 16)
    assert spread.converged
    assert spread.regular.all()
    x = torch.linspace(0, 1, 17, dtype=torch.float64)[1:]
    f = 1 + c * x**2
    field = f * (x / (2 * f) + (c**0.5 * x).atan() / (2 * c**0.5))
    torch.testing.assert_close(spread.determinant[1:], field / x, rtol=0.03, atol=0)


def test_a_pull_back_has_the_fields_of_what_it_is() -> None:
    """The sphere as the image of a map: curvature by other formulae."""
    z, v = rays(Sphere(2), 2)
    found, expected = (exponential_spread(M, z, v, 16, tolerance=1e-6) for M in (Pullback(embedded_sphere), Sphere(2)))
    torch.testing.assert_close(found.determinant, expected.determinant, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.hessian, expected.hessian, rtol=0, atol=1e-4)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_flat_space_is_not_spread(d: int) -> None:
    z, v = rays(Euclidean(d), d)
    spread = exponential_spread(Euclidean(d), z, v)
    torch.testing.assert_close(spread.determinant, torch.ones(4, 33, dtype=z.dtype), rtol=0, atol=1e-12)
    torch.testing.assert_close(spread.hessian, torch.eye(d, dtype=z.dtype).expand(4, 33, d, d), rtol=0, atol=1e-12)


@pytest.mark.parametrize("d", [2, 3])
def test_fourth_order(d: int) -> None:
    M = Sphere(d)
    z, v = rays(M, d)
    r = radii(M, z, v, 8)[:, -1]
    exact = ratio(torch.sin, r) ** (d - 1)
    bend = r / r.tan()
    errors, bends = [], []
    for n in (16, 32, 64):
        spread = exponential_spread(M, z, v, n, tolerance=1e-10)
        errors.append(float((spread.determinant[:, -1] - exact).abs().max()))
        whole = torch.linalg.solve(M.metric(z), spread.hessian[:, -1]).diagonal(dim1=-2, dim2=-1).sum(-1)
        bends.append(float((whole - 1 - (d - 1) * bend).abs().max()))
    assert all(x / y > 11 for x, y in pairwise(errors)), errors
    assert all(x / y > 11 for x, y in pairwise(bends)), bends


@pytest.mark.parametrize("d", [2, 3])
def test_determinant_is_that_of_the_differential_of_exp(d: int) -> None:
    M = oddity.expected_metric(decoder(d).double().requires_grad_(False))
    z, v = rays(M, d, (0.8,))
    spread = exponential_spread(M, z, v, 64, tolerance=1e-7)
    assert spread.regular.all()
    h, columns = 1e-3, []
    for e in torch.eye(d, dtype=z.dtype):
        ends = [M.shoot(z, v + s * h * e, tolerance=1e-9).points for s in (1, -1)]
        columns.append((ends[0] - ends[1]) / (2 * h))
    jacobian = torch.linalg.det(torch.stack(columns, -1))
    expected = jacobian * (M.log_volume(spread.points[:, -1]) - M.log_volume(z)).exp()
    torch.testing.assert_close(spread.determinant[:, -1], expected, rtol=1e-4, atol=0)
    assert float((expected - 1).abs().max()) > 0.01  # the test could fail


def test_hessian_is_that_of_half_the_squared_distance() -> None:
    """Along a geodesic through z, by second differences of the distance to the end."""
    M = oddity.expected_metric(decoder().double().requires_grad_(False))
    z, v = rays(M, 2, (0.4, 0.7))
    spread = exponential_spread(M, z, v, 64, tolerance=1e-7)
    w, h = torch.tensor([0.3, -0.4], dtype=z.dtype), 0.02
    solver = oddity.ChainSolver(segments=64)
    ends = [M.shoot(z, s * h * w).points for s in (-1, 0, 1)]
    half = [M.geodesic(e, spread.points[:, -1], solver=solver).length.square() / 2 for e in ends]
    expected = (half[0] - 2 * half[1] + half[2]) / h**2
    torch.testing.assert_close(w @ spread.hessian[:, -1] @ w, expected, rtol=5e-3, atol=0)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_conjugate_points_are_seen(d: int, dtype: torch.dtype) -> None:
    """At r = pi on the sphere: in three dimensions a double one, where the determinant does not change its sign."""
    z, v = (x.to(dtype) for x in rays(Sphere(d), d, (3.0, 3.3, 6.0)))
    spread = exponential_spread(Sphere(d), z, v, 40, tolerance=1e-5)
    assert torch.equal(spread.regular, radii(Sphere(d), z, v, 40) < torch.pi)
    far = tuple(12.0 if dtype == torch.float64 else 5.0 for _ in range(3))
    z, v = (x.to(dtype) for x in rays(Hyperbolic(d), d, far))
    assert exponential_spread(Hyperbolic(d), z, v, 40, tolerance=1e-5).regular.all()


def test_a_ray_into_the_pole_is_seen_to_meet_its_neighbours() -> None:
    """All rays from the chart's origin leave it at r = pi, at their conjugate point."""
    z = torch.zeros(2, dtype=torch.float64)
    spread = exponential_spread(Sphere(2), z, torch.tensor([2.0, 0.0], dtype=torch.float64), 40, tolerance=1e-5)
    r = torch.linspace(0, 4, 41)  # at the origin lengths are twice those in the chart
    assert not spread.converged
    assert torch.equal(spread.determinant.isfinite(), r < torch.pi)
    assert torch.equal(spread.regular, r < torch.pi)


def test_a_ray_that_leaves_the_chart_is_known_as_far_as_it_goes() -> None:
    M = Conformal(lambda z: torch.where(z[..., 0] > 1, torch.nan, 1 + z[..., 1] ** 2))
    v = torch.tensor([[2.0, 0.0], [-2.0, 0.0]], dtype=torch.float64)
    spread = exponential_spread(M, torch.zeros(2, dtype=torch.float64), v, 8)
    assert spread.converged.tolist() == [False, True]
    assert spread.why[0].startswith("the acceleration is not finite at t = 0.5")
    assert spread.determinant[0].isfinite().tolist() == [True] * 5 + [False] * 4
    assert torch.equal(spread.hessian.isfinite().all(-1).all(-1), spread.determinant.isfinite())
    assert spread.determinant[1].isfinite().all()
    assert spread.regular.all()
    assert repr(spread) == "Spread(2 geodesics, 1 converged)"


def test_shapes_and_companions() -> None:
    z, v = rays(Sphere(2), 2)
    many = exponential_spread(Sphere(2), z[:, None], v[:3], 8)
    assert many.determinant.shape == many.regular.shape == (4, 3, 9)
    assert many.hessian.shape == (4, 3, 9, 2, 2)
    assert many.converged.shape == (4, 3)
    one = exponential_spread(Sphere(2), z[1], v[2], 8)
    torch.testing.assert_close(one.determinant, many.determinant[1, 2], rtol=1e-12, atol=0)
    still = exponential_spread(Sphere(2), z[0], torch.zeros_like(z[0]), 8)
    assert still.converged
    assert still.regular.all()
    assert torch.equal(still.determinant, torch.ones(9, dtype=z.dtype))


def test_misuse_is_refused() -> None:
    z = torch.zeros(2)
    with pytest.raises(ValueError, match="steps is 7; Jacobi fields need an even number of them"):
        exponential_spread(Sphere(2), z, z, 7)
    with pytest.raises(ValueError, match="v holds nan"):
        exponential_spread(Sphere(2), z, torch.tensor([torch.nan, 0.0]))
    blind = Pullback(lambda z: torch.cat([z[:, :1].sin(), z[:, :1].cos()], 1))
    with pytest.raises(ValueError, match=r"the metric at point .* is singular; add a ridge"):
        exponential_spread(blind, z, torch.ones(2))
