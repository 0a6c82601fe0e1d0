"""Second directional derivatives, transposed derivatives and gradients, in every mode."""

import pytest
import torch
from torch import nn

from oddity.numerics.autodiff import SECOND_MODES, Differential, gradient

from .test_autodiff import Attention, Recurrent, net, some_points


class Opaque(nn.Module):
    """A network without forward derivatives: its activation knows the reverse direction only."""

    class Sine(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx, w):
            return w * ctx.saved_tensors[0].cos()

    def forward(self, z):
        return Opaque.Sine.apply(z) * z[:, :1]


def vectors(count: int) -> torch.Tensor:
    return torch.randn(count, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


MODULES = [net, Attention, lambda: Recurrent(nn.GRU), lambda: Recurrent(nn.LSTM), Opaque]


@pytest.mark.parametrize("module", MODULES, ids=["dense", "attention", "GRU", "LSTM", "no forward mode"])
def test_second_derivative_is_the_slope_of_the_first(module) -> None:
    f, z, (u, v), h = Differential(module().eval()), some_points(), vectors(2), 1e-5
    with torch.no_grad():
        expected = (f.push(z + h * v, u) - f.push(z - h * v, u)) / (2 * h)
        torch.testing.assert_close(f.second(z, u, v), expected, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(f.second(z, u, v), f.second(z, v, u))
    assert f.second_mode in {*SECOND_MODES, "closed form"}


@pytest.mark.parametrize("mode", list(SECOND_MODES))
@pytest.mark.parametrize("linear", [False, True])
def test_all_modes_agree(mode: str, linear: bool) -> None:
    f = Differential((lambda z: z @ torch.ones(3, 2, dtype=z.dtype)) if linear else net())
    expected = f.second(some_points(), *vectors(2))
    f.second_mode = mode
    torch.testing.assert_close(f.second(some_points(), *vectors(2)), expected)


@pytest.mark.parametrize("module", MODULES, ids=["dense", "attention", "GRU", "LSTM", "no forward mode"])
def test_pull_is_the_transpose_of_push(module) -> None:
    f, z, (v,) = Differential(module().eval()), some_points(), vectors(1)
    Jv = f.push(z, v)
    w = torch.randn(Jv.shape, dtype=Jv.dtype, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close((f.pull(z, w) * v).sum(-1), (w * Jv).sum(-1))


def test_closed_forms_and_automatic_derivatives_agree() -> None:
    closed, auto, z, (u, v) = Differential(net()), Differential(net(), mode="jvp"), some_points(), vectors(2)
    assert closed.mode == "closed form"
    torch.testing.assert_close(closed.pulled_second(z, u, v), auto.pulled_second(z, u, v))
    w = closed(z)
    torch.testing.assert_close(closed.pull(z, w), auto.pull(z, w))


@pytest.mark.parametrize("last", [nn.Identity, nn.Sigmoid, nn.Softplus, nn.Tanh])
def test_second_derivatives_of_a_dense_network_in_closed_form(last: type[nn.Module]) -> None:
    module = nn.Sequential(*net(), nn.Tanh(), nn.Linear(5, 6, dtype=torch.float64), last()).eval()
    z, (u, v) = some_points(), vectors(2)
    closed, auto = Differential(module), Differential(module, mode="jvp")
    expected = auto.second(z, u, v)
    torch.testing.assert_close(closed.second(z, u, v), expected)
    for f in (closed, auto):
        frame, (uv, vv) = f.bends(z, torch.stack([u, v]), torch.stack([v, v]))
        torch.testing.assert_close(frame, auto.value_and_frame(z)[1])
        torch.testing.assert_close(uv, expected)
        torch.testing.assert_close(vv, auto.second(z, v, v))
    assert (closed.second_mode, auto.second_mode) == ("closed form", "nested jvp")


def test_shapes_broadcast() -> None:
    f, z, (u, v) = Differential(net()), some_points(), vectors(2)
    assert f.second(z[:, None], u, v).shape == (4, 4, 5)
    assert f.second(z[:0], u[:0], v[:0]).shape == (0, 5)
    assert f.pull(z[:, None], f(z)).shape == (4, 4, 3)
    assert f.pulled_second(z[:, None], u, v).shape == (4, 4, 3)


def test_gradient_of_rows() -> None:
    z = some_points()
    torch.testing.assert_close(gradient(lambda x: (x**3).sum(-1))(z), 3 * z**2)


def test_a_function_without_a_second_derivative_is_told() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, w):
            return w * 2 * ctx.saved_tensors[0]

    with pytest.raises(ValueError, match="has no derivative"):
        Differential(Once.apply).second(some_points(), *vectors(2))
