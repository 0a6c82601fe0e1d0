"""Bicubic splines against the functions that they interpolate, and their derivatives against autograd."""

import pytest
import torch
from torch import Tensor

from oddity.numerics.bicubic import BicubicSpline


def waves(z: Tensor) -> Tensor:
    """Two functions whose slopes vanish at the edges of [0, 1] x [0, 2], as the splines' do."""
    x, y = (torch.pi * z[..., 0]).cos(), (torch.pi * z[..., 1] / 2).cos()
    return torch.stack([x * y, (x + y).exp()], -1)


def spline(n: int) -> BicubicSpline:
    x, y = torch.linspace(0, 1, n, dtype=torch.float64), torch.linspace(0, 2, n + 3, dtype=torch.float64)
    nodes = torch.stack(torch.meshgrid(x, y, indexing="ij"), -1)
    return BicubicSpline(waves(nodes), torch.zeros(2), torch.tensor([1.0, 2.0]))


def places(count: int = 500) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.rand(count, 2, generator=g, dtype=torch.float64) * torch.tensor([1.0, 2.0])


def test_the_error_falls_with_the_fourth_power_of_the_step() -> None:
    z = places()
    coarse, fine = ((spline(n)(z)[0, 0].mT - waves(z)).abs().max() for n in (11, 21))
    assert 12 < coarse / fine < 20


def test_it_interpolates() -> None:
    nodes = torch.tensor([[0.0, 0.0], [0.1, 2.0], [1.0, 2.0], [0.3, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(spline(11)(nodes)[0, 0].mT, waves(nodes))


def test_derivatives_are_those_of_the_values() -> None:
    f, z = spline(9), places(40).requires_grad_()
    found = f(z, 2)
    for channel in range(2):
        (first,) = torch.autograd.grad(f(z)[0, 0, channel].sum(), z)
        torch.testing.assert_close(torch.stack([found[1, 0, channel], found[0, 1, channel]], -1), first)
        for k, orders in enumerate([(2, 0), (1, 1)]):
            (second,) = torch.autograd.grad(f(z, 1)[1, 0, channel].sum(), z)
            torch.testing.assert_close(found[(*orders, channel)], second[:, k])


@pytest.mark.parametrize("far", [1e-3, 10.0, float("inf")])
def test_beyond_the_grid_nothing_changes(far: float) -> None:
    f = spline(9)
    outside = torch.tensor([[-far, 0.7], [1 + far, 0.7], [0.3, -far], [0.3, 2 + far]], dtype=torch.float64)
    edge = torch.tensor([[0.0, 0.7], [1.0, 0.7], [0.3, 0.0], [0.3, 2.0]], dtype=torch.float64)
    found = f(outside, 2)
    torch.testing.assert_close(found[0, 0], f(edge)[0, 0])
    across = torch.stack([found[1:, :, :, :2].abs().amax((0, 1, 2)), found[:, 1:, :, 2:].abs().amax((0, 1, 2))])
    assert across.max() < 1e-12


def test_a_place_that_is_no_number_has_no_value() -> None:
    z = torch.tensor([[torch.nan, 0.5], [0.5, 0.5]], dtype=torch.float64)
    value = spline(9)(z)[0, 0]
    assert value[:, 0].isnan().all()
    assert value[:, 1].isfinite().all()


@pytest.mark.parametrize("order", [0, 1, 2])
def test_the_compiled_spline_is_the_one_in_pytorch(order: int) -> None:
    nan, inf = float("nan"), float("inf")
    f, odd = spline(9), [[nan, 0.5], [0.5, nan], [inf, 0.3], [0.2, -inf], [-1.0, 5.0], [0.0, 2.0], [1.0, 0.0]]
    z = torch.cat([2 * places() - 0.5, torch.tensor(odd, dtype=torch.float64)])
    with torch.no_grad():
        torch.testing.assert_close(f(z, order), f._in_torch(z, order), equal_nan=True)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_place_has_the_same_bits_in_any_company(dtype: torch.dtype, compiled: bool) -> None:
    x = torch.linspace(0, 1, 40, dtype=dtype)
    f = BicubicSpline(waves(torch.stack(torch.meshgrid(x, x, indexing="ij"), -1)), x[[0, 0]], x[[-1, -1]])
    z = places(3000).to(dtype) / 2
    with torch.set_grad_enabled(not compiled):
        together = f(z, 2)
        for count in (1, 3, 10, 37, 1000):
            assert torch.equal(f(z[:count], 2), together[..., :count])
