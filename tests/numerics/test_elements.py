"""The energy of chains by parabolas: its model against autograd, its order against formulae."""

import pytest
import torch
from torch import Tensor

from oddity.geometry.spaces import Sphere
from oddity.geometry.tabulated import Tabulated
from oddity.numerics import elements

S = Sphere(2)


@pytest.fixture(scope="module")
def table() -> Tabulated:
    x = torch.linspace(-1, 1, 161, dtype=torch.float64)
    low = -torch.ones(2, dtype=torch.float64)
    return Tabulated(S.metric(torch.stack(torch.meshgrid(x, x, indexing="ij"), -1)), low, -low)


def chains(n: int, count: int = 3) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(n)
    a, b = 0.3 * torch.randn(2, count, 1, 2, generator=g, dtype=torch.float64)
    t = torch.linspace(0, 1, n + 1, dtype=torch.float64)[:, None]
    widths = 1 + 0.3 * torch.rand(count, n, generator=g, dtype=torch.float64)
    c = a + t * (b - a) + 0.05 * torch.randn(count, n + 1, 2, generator=g, dtype=torch.float64)
    return c, widths / widths.sum(1, keepdim=True)


def dense(model: object, item: int) -> Tensor:
    """The exact Hessian of a chain as one matrix, from the blocks of its model."""
    diagonal, upper, skip = (blocks[item] for blocks in model.hessian())  # type: ignore[attr-defined]
    n, d = diagonal.shape[:2]
    H = torch.zeros(n, d, n, d, dtype=diagonal.dtype)
    for i in range(n):
        H[i, :, i] = diagonal[i]
    for i in range(n - 1):
        H[i, :, i + 1], H[i + 1, :, i] = upper[i], upper[i].mT
    for i in range(len(skip)):
        H[2 * i + 1, :, 2 * i + 3], H[2 * i + 3, :, 2 * i + 1] = skip[i], skip[i].mT
    return H


@pytest.mark.parametrize("n", [2, 4, 6, 10])
def test_gradient_and_hessian_are_those_of_the_energy(table: Tabulated, n: int) -> None:
    c, widths = chains(n)

    def energy(inner: Tensor) -> Tensor:
        return table.chain_model(torch.cat([c[:, :1], inner, c[:, -1:]], 1), widths).energy.sum()

    inner = c[:, 1:-1].clone().requires_grad_()
    model = table.chain_model(c, widths, exact=True)
    (gradient,) = torch.autograd.grad(energy(inner), inner)
    torch.testing.assert_close(model.gradient, gradient)
    hessian = torch.autograd.functional.hessian(energy, inner.detach())
    for item in range(len(c)):
        torch.testing.assert_close(dense(model, item), hessian[item, :, :, item])


def test_the_model_without_the_bend_is_positive_semi_definite(table: Tabulated) -> None:
    c, widths = chains(10)
    model = table.chain_model(c, widths).without_bend()
    for item in range(len(c)):
        assert torch.linalg.eigvalsh(dense(model, item).reshape(18, 18)).min() > -1e-9


def test_the_momentum_is_minus_the_slope_by_the_first_node(table: Tabulated) -> None:
    c, widths = chains(8)
    c.requires_grad_()
    (slope,) = torch.autograd.grad(table.chain_model(c, widths).energy.sum(), c)
    covector, order = table._momentum(c.detach(), widths)
    assert order == 4
    torch.testing.assert_close(covector, -slope[:, 0])


def test_the_energy_of_a_smooth_curve_is_of_fourth_order(table: Tabulated) -> None:
    def error(n: int) -> float:
        t = torch.linspace(0, 1, n + 1, dtype=torch.float64)
        curve = torch.stack([0.5 * t - 0.2, 0.3 * (2 * t).sin()], -1)[None]
        fine = torch.linspace(0, 1, 4001, dtype=torch.float64)
        exact = S.energy(torch.stack([0.5 * fine - 0.2, 0.3 * (2 * fine).sin()], -1))
        return float((table.chain_model(curve, curve.new_full((1, n), 1 / n)).energy - exact).abs())

    assert 12 < error(8) / error(16) < 20


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("n", [2, 4, 6, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_compiled_model_is_the_one_in_pytorch(table: Tabulated, dtype: torch.dtype, n: int, order: int) -> None:
    c, widths = chains(n)
    widths[0, 0] *= 100  # held, where time would stand still
    with torch.no_grad():
        S, c, widths = (x.to(dtype) for x in (table._roots(c, order), c, widths))
        models = elements._natively(S, c, widths), elements._in_torch(S, c, widths)
    for compiled, known in zip(*models, strict=True):
        assert (compiled is None) == (known is None)
        if known is not None and known.numel():
            assert compiled.dtype == dtype
            assert (compiled - known).abs().max() <= 20 * torch.finfo(dtype).eps * known.abs().max()
