"""The chain solver on chains that are no geodesics: springs in a potential landscape."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from oddity.numerics import chain
from oddity.numerics.autodiff import Differential
from oddity.numerics.chain import (
    ChainModel,
    energy_of_values,
    interpolate_chain,
    model_from_expansion,
    node_slopes,
    solve_chain,
    squared_steps,
)


class Surface:
    """A chain stretched over the graph of a function."""

    def __init__(self, f=None) -> None:
        self.calls: list[int] = []
        self.differential = Differential(f or (lambda z: torch.cat([z, z[:, :1].sin() * z[:, 1:].cos()], 1)))

    def chain_model(self, c: Tensor, widths: Tensor, *, exact: bool = False) -> ChainModel:
        self.calls.append(len(c))
        return model_from_expansion(self.differential.expand(c.flatten(0, 1)), widths, exact)


def lines(a: Tensor, b: Tensor, n: int = 16) -> Tensor:
    return a[:, None] + torch.linspace(0, 1, n + 1, dtype=a.dtype)[:, None] * (b - a)[:, None]


def some_lines(B: int = 6) -> Tensor:
    g = torch.Generator().manual_seed(0)
    a, b = 3 * torch.randn(2, B, 2, generator=g, dtype=torch.float64)
    return lines(a, b)


def test_a_flat_chain_is_solved_in_one_step() -> None:
    start = some_lines() + 0.1 * torch.randn(6, 17, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = solve_chain(Surface(lambda z: 2 * z), start)
    assert found.stationary.all()
    assert found.iterations.max() == 1
    torch.testing.assert_close(found.points, lines(start[:, 0], start[:, -1]))


def test_minimum_is_stationary_for_an_independent_optimiser() -> None:
    surface, start = Surface(), some_lines()
    found = solve_chain(surface, start)
    assert found.stationary.all()
    inner = found.points[:, 1:-1].clone().requires_grad_()
    optimiser = torch.optim.LBFGS([inner], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

    def energy() -> Tensor:
        c = torch.cat([start[:, :1], inner, start[:, -1:]], 1)
        z = surface.differential(c)
        single, double = 8 * z.diff(dim=1).square().sum(), 4 * z[:, ::2].diff(dim=1).square().sum()
        return (4 * single - double) / 3

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = energy()
        value.backward()
        return value

    optimiser.step(closure)
    assert found.energy.sum() <= energy() * (1 + 1e-10)


def test_energy_never_rises_and_ends_stay() -> None:
    start = some_lines()
    surface = Surface()
    found = solve_chain(surface, start, max_iterations=2)
    assert (found.energy <= surface.chain_model(start, torch.full((6, 16), 1 / 16)).energy).all()
    assert torch.equal(found.points[:, [0, -1]], start[:, [0, -1]])


def test_solved_chains_leave_the_batch() -> None:
    start = some_lines()
    start[0] = start[0, :1]  # a chain that is solved before it starts
    surface = Surface()
    solve_chain(surface, start)
    assert surface.calls[0] == 6
    assert max(surface.calls[1:]) <= 5


@pytest.mark.parametrize("bad", [0, 3])
def test_one_bad_chain_leaves_the_others_alone(bad: int) -> None:
    def hole(z: Tensor) -> Tensor:
        return torch.cat([z, torch.where(z[:, :1] > 100, torch.nan, z[:, :1].sin())], 1)

    start = some_lines()
    clean = solve_chain(Surface(hole), start)
    spoiled = start.clone()
    spoiled[bad] += 200
    found = solve_chain(Surface(hole), spoiled)
    others = [i for i in range(6) if i != bad]
    assert not found.stationary[bad]
    assert found.why[bad] == "the energy of the starting curve is not finite"
    assert torch.equal(found.points[bad], spoiled[bad])
    assert found.stationary[others].all()
    torch.testing.assert_close(found.points[others], clean.points[others])


def test_running_out_of_iterations_is_said() -> None:
    found = solve_chain(Surface(), some_lines(), max_iterations=1)
    late = ~found.stationary
    assert late.any()
    assert all("still moving after 1 iterations" in found.why[i] for i in late.nonzero().flatten().tolist())


def test_newton_finishes_where_gauss_newton_crawls() -> None:
    """Near-conjugate ends of a sphere: Gauss-Newton alone contracts by (L / pi)^2 a step."""

    def sphere(z: Tensor) -> Tensor:
        return torch.cat([2 * z, z.square().sum(-1, keepdim=True) - 1], -1) / (1 + z.square().sum(-1, keepdim=True))

    class GaussNewtonOnly(Surface):
        def chain_model(self, c: Tensor, widths: Tensor, *, exact: bool = False) -> ChainModel:
            return super().chain_model(c, widths)

    a, b = torch.tensor([[0.0, -1.0]], dtype=torch.float64), torch.tensor([[0.3, 0.95]], dtype=torch.float64)
    with_newton, without = (solve_chain(kind(sphere), lines(a, b, 32)) for kind in (Surface, GaussNewtonOnly))
    assert with_newton.stationary.all()
    assert with_newton.iterations[0] * 3 < without.iterations[0]


def test_the_interpolant_is_of_fourth_order_at_least() -> None:
    def curve(t: Tensor) -> Tensor:
        return torch.stack([(3 * t).sin(), (2 * t).exp()], -1)

    t = torch.linspace(0, 1, 333, dtype=torch.float64)
    errors = [
        (interpolate_chain(curve(torch.linspace(0, 1, n + 1, dtype=torch.float64)), t) - curve(t)).abs().max()
        for n in (16, 32, 64)
    ]
    assert all(a / b > 14 for a, b in itertools.pairwise(errors))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
def test_short_chains_interpolate_lines_exactly(n: int) -> None:
    nodes = torch.linspace(0, 1, n + 1, dtype=torch.float64)[:, None] * torch.tensor([1.0, -2.0], dtype=torch.float64)
    t = torch.tensor([0.0, 0.1, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(interpolate_chain(nodes, t), t[:, None] * torch.tensor([1.0, -2.0], dtype=torch.float64))
    torch.testing.assert_close(n * node_slopes(nodes), nodes[-1].expand(n + 1, 2))


def test_tolerance_follows_the_dtype() -> None:
    start = some_lines()
    double, single = solve_chain(Surface(), start), solve_chain(Surface(), start.float())
    assert single.stationary.all()
    assert double.decrement.max() < 1e-11
    assert single.points.dtype == torch.float32
    assert math.isclose(float(single.energy.sum()), float(double.energy.sum()), rel_tol=1e-4)


def test_a_promise_that_is_no_number_is_not_quoted() -> None:
    for left in (torch.inf, torch.nan):
        found = chain.sentences(torch.tensor([chain.Status.SPENT, chain.Status.STUCK]), torch.full((2,), left), 200)
        assert found[0].startswith("still moving after 200 iterations, and the matrix of the energy is singular")
        assert found[1].startswith("no step lowers the energy, and the matrix of the energy is singular")


def test_no_segment_swings_out_beside_a_leap() -> None:
    x = torch.cat([torch.linspace(0, 0.01, 8), torch.linspace(1, 1.01, 8)])  # short steps, one long, short steps
    c = torch.stack([x, x.square()], -1).double()
    curve = interpolate_chain(c, torch.linspace(0, 1, 151, dtype=torch.float64))
    assert (curve[:, 0].diff() >= 0).all()
    assert curve.diff(dim=0).norm(dim=1).sum() < 1.05 * c.diff(dim=0).norm(dim=1).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("B", "n", "m"), [(0, 4, 3), (3, 2, 5), (4, 4, 1), (2, 16, 100)])
def test_the_energy_of_values_and_its_derivative_compiled_and_not(B: int, n: int, m: int, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    value, widths = torch.randn(B, n + 1, m, generator=g, dtype=dtype), 1 + torch.rand(B, n, generator=g, dtype=dtype)
    found, known = torch.full_like(value, 7), torch.full_like(value, 7)
    with torch.no_grad():
        energy = energy_of_values(value, widths, found)
    torch.testing.assert_close(energy, energy_of_values(value, widths, known))
    torch.testing.assert_close(found, known, atol=100 * torch.finfo(dtype).eps, rtol=1e-5)
    inner = value.clone().requires_grad_()
    single, double = inner.diff(dim=1).square().sum(-1), inner[:, ::2].diff(dim=1).square().sum(-1)
    total = (4 * single / widths).sum() - (double / (widths[:, ::2] + widths[:, 1::2])).sum()
    (slope,) = torch.autograd.grad(total / 6, inner)
    torch.testing.assert_close(found[:, 1:-1], slope[:, 1:-1], atol=100 * torch.finfo(dtype).eps, rtol=1e-4)
    assert not found[:, [0, -1]].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [4, 5, 8, 64])
@pytest.mark.parametrize("d", [1, 2, 7])
def test_interpolants_and_steps_compiled_or_not_are_the_same(dtype: torch.dtype, n: int, d: int) -> None:
    g = torch.Generator().manual_seed(n)
    c = torch.randn(6, n + 1, d, generator=g, dtype=dtype)
    c[0] *= torch.rand(n + 1, 1, generator=g, dtype=dtype) ** 4  # leaps
    c[1, 2], c[2] = c[1, 1], c[2, 0]  # stands still for a while, and all the time
    own = torch.rand(6, 9, generator=g, dtype=dtype)
    for t in (torch.linspace(0, 1, 2 * n + 1, dtype=dtype), own, own[:1].float()):
        with torch.no_grad():
            compiled = interpolate_chain(c, t)
        torch.testing.assert_close(compiled, interpolate_chain(c.requires_grad_(), t).detach(), rtol=1e-5, atol=1e-5)
        c = c.detach()
    with torch.no_grad():
        compiled = squared_steps(c, (1, 2))
    for found, expected in zip(compiled, squared_steps(c.requires_grad_(), (1, 2)), strict=True):
        torch.testing.assert_close(found, expected.detach())
