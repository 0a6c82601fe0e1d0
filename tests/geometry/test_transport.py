"""Parallel transport: holonomy, flatness in a bent chart, and rates."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import oddity
from oddity import ChainSolver, Euclidean, Manifold, Pullback, Sphere

from .cases import decoder, embedded_sphere


def circle(n: int, r: float = 0.5) -> Tensor:
    """A parallel of the sphere in its stereographic chart."""
    t = torch.linspace(0, 2 * math.pi, n + 1, dtype=torch.float64)
    return r * torch.stack([t.cos(), t.sin()], -1)


def spiral(n: int) -> Tensor:
    t = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    return torch.stack([0.8 * (2 * t).cos() * (1 - 0.5 * t), (3 * t).sin() * 0.6], -1)


@pytest.mark.parametrize("M", [Sphere(2), Pullback(embedded_sphere)], ids=str)
def test_holonomy_on_the_sphere_is_the_enclosed_area(M: Manifold) -> None:
    area = 2 * math.pi * (1 - math.cos(2 * math.atan(0.5)))
    errors = []
    for n in (32, 64, 128):
        end = M.transport(circle(n), torch.tensor([1.0, 0.0], dtype=torch.float64))[-1]
        errors.append(abs(math.atan2(end[1], end[0]) - area))
    assert all(14 < a / b < 18 for a, b in pairwise(errors))
    assert errors[-1] < 1e-7


def test_inner_products_are_kept_to_fourth_order() -> None:
    M = oddity.expected_metric(decoder().double().requires_grad_(False))
    u, v = torch.eye(2, dtype=torch.float64)
    errors = []
    for n in (16, 32, 64):
        c = spiral(n)
        moved_u, moved_v = M.transport(c, u)[-1], M.transport(c, v)[-1]
        errors.append(float((M.inner(c[-1], moved_u, moved_v) - M.inner(c[0], u, v)).abs()))
        assert float((M.norm(c[-1], moved_u) - M.norm(c[0], u)).abs()) < 40 / n**4
    assert all(a / b > 12 for a, b in pairwise(errors))


def test_in_a_bent_chart_of_the_plane_nothing_turns() -> None:
    """Polar coordinates: the transported vector is the same in Cartesian ones."""
    polar = Pullback(lambda z: torch.stack([z[:, 0] * z[:, 1].cos(), z[:, 0] * z[:, 1].sin()], 1))
    t = torch.linspace(0, 1, 65, dtype=torch.float64)
    c = torch.stack([1 + t + 0.3 * (4 * t).sin(), 5 * t], -1)
    moved = polar.transport(c, torch.tensor([0.3, -0.7], dtype=torch.float64))
    cartesian = polar.push(c, moved)
    torch.testing.assert_close(cartesian, cartesian[:1].expand_as(cartesian), rtol=0, atol=1e-5)


def test_a_geodesic_carries_its_own_velocity() -> None:
    M = oddity.expected_metric(decoder().double())
    a, b = 0.4 * torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    solver = ChainSolver(segments=128)
    g = M.geodesic(a, b, solver=solver)
    end = M.transport(g.points, M.log(a, b, solver=solver))[:, -1]
    torch.testing.assert_close(end, -M.log(b, a, solver=solver), rtol=1e-3, atol=1e-3)


def test_there_and_back() -> None:
    M, v = Sphere(2), torch.tensor([0.3, -1.0], dtype=torch.float64)
    there = M.transport(spiral(64), v)
    torch.testing.assert_close(M.transport(spiral(64).flip(0), there[-1])[-1], v, rtol=0, atol=1e-6)


def test_shapes_and_trivial_curves() -> None:
    M, v = Pullback(embedded_sphere), torch.randn(3, 1, 2, generator=torch.Generator().manual_seed(0))
    c = spiral(8).float().expand(5, 9, 2)
    assert M.transport(c, v).shape == (3, 5, 9, 2)
    torch.testing.assert_close(M.transport(c, v)[..., 0, :], v.expand(3, 5, 2))
    still = torch.zeros(4, 2)
    torch.testing.assert_close(M.transport(still, v[:, 0]), v.expand(3, 4, 2))
    torch.testing.assert_close(Euclidean().transport(c[0], v[0, 0]), v[0].expand(9, 2))
    assert M.transport(c[:0], v[0, 0]).shape == (0, 9, 2)


def test_failures_and_misuse() -> None:
    M, c = Pullback(lambda z: torch.cat([z, z[:, :1].clamp(max=0.5).sqrt()], 1)), spiral(8)
    moved = M.transport(torch.stack([c + 2, c - 2]), torch.ones(2, dtype=torch.float64))
    assert moved[0].isfinite().all()
    assert moved[1, 1:].isnan().all()
    with pytest.raises(ValueError, match="at least two nodes"):
        M.transport(c[0], c[0])
    with pytest.raises(ValueError, match="bring them together"):
        M.transport(c, c[0].float())
    with pytest.raises(ValueError, match="v has 3"):
        M.transport(c, torch.ones(3, dtype=torch.float64))
