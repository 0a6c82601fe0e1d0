"""Networks of convolutions: their closed form against automatic derivatives, in chunks and whole."""

import pytest
import torch
from torch import nn

from oddity.numerics import expansion
from oddity.numerics.autodiff import Differential
from oddity.numerics.expansion import ClosedForm, layered_expansion


def random(*layers: nn.Module) -> nn.Sequential:
    """A network in double precision with weights of its own."""
    g = torch.Generator().manual_seed(0)
    net = nn.Sequential(*layers).double().eval().requires_grad_(False)
    for p in net.parameters():
        p.copy_(0.5 * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return net


def growing() -> nn.Sequential:
    first = nn.ConvTranspose2d(4, 6, 4, 2, (1, 2), (0, 1), groups=2)
    last = nn.ConvTranspose2d(6, 2, (3, 2), 2, 1, (1, 0), bias=False)
    start = [nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 24), nn.Softplus(2.0), nn.Unflatten(1, (4, 3, 2))]
    return random(*start, first, nn.Tanh(), last, nn.Flatten(), nn.Sigmoid())


def shrinking() -> nn.Sequential:
    """The codes are images themselves; the last outputs are images too."""
    layers = [nn.Conv2d(1, 4, 3, 2, 1), nn.Tanh(), nn.Conv2d(4, 4, 2, dilation=2, padding=1, groups=2), nn.Softplus()]
    return random(nn.Unflatten(-1, (1, 6, 5)), *layers, nn.Identity(), nn.Conv2d(4, 3, (2, 1)))


def linear() -> nn.Sequential:
    return random(nn.Unflatten(1, (2, 3, 2)), nn.ConvTranspose2d(2, 3, 2, 2), nn.Flatten(-3))


CASES = [(growing, 3), (shrinking, 30), (linear, 12)]


def points(d: int, n: int = 5) -> torch.Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("build", "d"), CASES)
def test_the_closed_form_and_automatic_derivatives_agree(build, d: int) -> None:
    net, z = build(), points(d)
    form, auto = layered_expansion(net), Differential(net, mode="jvp")
    assert form is not None
    assert Differential(net).mode == "closed form"
    closed, other = form(z), auto.expand(z)
    w = torch.randn(other.value.shape, dtype=z.dtype, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(closed.value, other.value)
    torch.testing.assert_close(closed.frame, other.frame)
    torch.testing.assert_close(closed.bend(w), other.bend(w))
    u, v = torch.randn(2, *z.shape, dtype=z.dtype, generator=torch.Generator().manual_seed(3))
    assert closed.second is not None
    torch.testing.assert_close(closed.second(u[None], v[None])[0], auto.second(z, u, v))


def test_chunks_change_nothing(monkeypatch) -> None:
    form, z = layered_expansion(growing()), points(3, 11)
    assert form is not None
    whole = form(z)
    monkeypatch.setattr(expansion, "_NUMBERS_AT_A_TIME", 1)
    parts = form(z)
    torch.testing.assert_close(parts.value, whole.value)
    torch.testing.assert_close(parts.frame, whole.frame)
    torch.testing.assert_close(parts.bend(whole.value), whole.bend(whole.value))
    assert parts.second is not None
    assert whole.second is not None
    u, v = z[None], z.flip(0)[None]
    torch.testing.assert_close(parts.second(u, v), whole.second(u, v))


def test_no_points_no_rows() -> None:
    form = layered_expansion(growing())
    assert form is not None
    value, frame, bend, second = form(points(3, 0))
    assert value.shape == (0, 96)
    assert frame.shape == (3, 0, 96)
    assert bend(value).shape == (0, 3, 3)
    assert second is not None
    assert second(points(3, 0)[None], points(3, 0)[None]).shape == (1, 0, 96)


def test_gradients_pass_through_the_frame() -> None:
    net = growing().requires_grad_(True)
    form = layered_expansion(net)
    assert form is not None
    form(points(3)).frame.square().sum().backward()
    (slope,) = [p.grad for name, p in net.named_parameters() if name == "7.weight"]
    h = 1e-6
    with torch.no_grad():
        totals = []
        for step in (h, -h):
            net[7].weight[0, 0, 0, 0] += step
            totals.append(form(points(3)).frame.square().sum())
            net[7].weight[0, 0, 0, 0] -= step
    torch.testing.assert_close(slope[0, 0, 0, 0], (totals[0] - totals[1]) / (2 * h), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), nn.Conv2d(1, 1, 3, padding="same"), nn.ReLU()],
)
def test_what_is_not_known_has_no_closed_form(layer: nn.Module) -> None:
    assert layered_expansion(nn.Sequential(nn.Unflatten(1, (1, 3, 3)), layer)) is None
    assert layered_expansion(nn.Sequential(nn.Flatten(0), nn.Linear(3, 3))) is None


def test_only_dense_networks_can_be_cut_output_by_output() -> None:
    assert isinstance(layered_expansion(random(nn.Linear(2, 3), nn.Tanh())), ClosedForm)
    assert not isinstance(layered_expansion(linear()), ClosedForm)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_transposed_derivative_of_a_dense_network(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(3, 9), nn.Tanh(), nn.Identity(), nn.Linear(9, 7, bias=False), nn.Softplus(2.0)]
    net = nn.Sequential(*layers, nn.Linear(7, 11), nn.Sigmoid()).to(dtype)
    z, w = torch.randn(20, 3, dtype=dtype), torch.randn(20, 11, dtype=dtype)
    form = layered_expansion(net)
    assert isinstance(form, expansion.Pulling)
    value, pull_back = form.pulling(z)
    torch.testing.assert_close(value, net(z))
    torch.testing.assert_close(pull_back(w), expansion.pull(form(z).frame, w))
