"""Uncertainty after the fact: small at the codes, large off them, the decoder untouched."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli

import oddity
from oddity.models.rbf import WeightLikelihood


def dense() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 6))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return net.eval()


NET = dense()


def circle(n: int = 400) -> Tensor:
    t = torch.linspace(0, 6.28, n)
    return 2 * torch.stack([t.cos(), t.sin()], 1)


def data(z: Tensor, noise: float = 0.1) -> Tensor:
    return NET(z).detach() + noise * torch.randn(len(z), 6, generator=torch.Generator().manual_seed(1))


def test_noise_is_found_on_the_data_and_grows_off_it() -> None:
    z = circle()
    u = oddity.add_uncertainty(NET, z, data(z), n_centres=16)
    assert 0.09 < u.std_on_data < 0.15  # the noise is 0.1, and the floor adds to it
    assert u.std_off_data > 50 * u.std_on_data
    assert u.std_off_data <= u.largest_std
    assert 0.9 < u.explained < 1
    assert float(u.std(torch.zeros(1, 2)).mean()) > 3 * u.std_on_data  # the hole of the circle
    assert "0.1" in repr(u)
    mean, std = u(z)
    torch.testing.assert_close(mean, NET(z))
    torch.testing.assert_close(std, u.std(z))


def test_the_wall_turns_a_geodesic_round_the_hole() -> None:
    z = circle()
    a, b = z[0], z[100]
    bare, walled = (
        oddity.expected_metric(NET),
        oddity.expected_metric(oddity.add_uncertainty(NET, z, data(z), n_centres=32)),
    )
    straight, round_ = bare.geodesic(a, b).require(), walled.geodesic(a, b, init=oddity.Roadmap(walled, z)).require()
    assert float(round_.points.norm(dim=-1).min()) > float(straight.points.norm(dim=-1).min()) + 0.2


def test_the_fit_is_the_likelihoods_own() -> None:
    z = circle()
    u = oddity.add_uncertainty(NET, z, data(z), n_centres=8, zeta=1e-2, min_std=0.01, epochs=5)
    rbf = oddity.RBFPrecision.from_codes(z, 6, n_centres=8, zeta=1e-2)
    problem = WeightLikelihood(rbf, 0.01)
    problem.add(z, (data(z) - NET(z)).square())
    problem.start()
    for _ in range(5):
        problem.step()
    torch.testing.assert_close(u.scale.weight, rbf.weight.detach())


def test_the_decoder_is_left_alone_and_viewed() -> None:
    z, net = circle(), dense()
    before = copy.deepcopy(net.state_dict())
    state = torch.get_rng_state()
    u = oddity.add_uncertainty(net, z, data(z), n_centres=4)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert not net.training
    assert torch.equal(state, torch.get_rng_state())
    with torch.no_grad():
        net[2].bias.add_(1)
    torch.testing.assert_close(u.mean(z), net(z))


def test_closed_forms_stay() -> None:
    z = circle()
    for decoder in (NET, oddity.GaussianDecoder(NET, nn.Identity()).eval()):
        M = oddity.expected_metric(oddity.add_uncertainty(decoder, z, data(z), n_centres=4))
        assert [part.differential.mode for part in M.parts] == ["closed form"] * 2  # type: ignore[attr-defined]
    hidden = oddity.add_uncertainty(lambda z: NET(z), z, data(z), n_centres=4)
    closed = oddity.add_uncertainty(NET, z, data(z), n_centres=4)
    torch.testing.assert_close(
        oddity.expected_metric(hidden).metric(z[:5]), oddity.expected_metric(closed).metric(z[:5]), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_decoders_and_image_data(dtype: torch.dtype) -> None:
    z, half = circle(), nn.Sequential(*copy.deepcopy(NET), nn.Unflatten(1, (1, 2, 3))).to(dtype).eval()
    u = oddity.add_uncertainty(half, z, data(z).reshape(-1, 1, 2, 3).numpy(), n_centres=16)
    assert u.mean(z).shape == (400, 1, 2, 3)
    assert u.scale.weight.dtype == torch.float32
    assert 0.09 < u.std_on_data < 0.15
    assert oddity.expected_metric(u).metric(z[:3]).isfinite().all()


def test_defaults_follow_the_scale_of_the_data() -> None:
    z = circle()
    one = oddity.add_uncertainty(NET, z, data(z), n_centres=8)
    large = oddity.add_uncertainty(lambda z: 100 * NET(z), z, 100 * data(z), n_centres=8)
    torch.testing.assert_close(large.std(z), 100 * one.std(z), rtol=1e-3, atol=0)
    assert large.largest_std == pytest.approx(100 * one.largest_std)


def test_conditions_are_given_by_keyword() -> None:
    z = circle()
    u = oddity.add_uncertainty(
        lambda z, shift: NET(z) + shift, z, data(z) + 2, n_centres=8, shift=torch.full((1, 6), 2.0)
    )
    assert 0.09 < u.std_on_data < 0.15


Z = circle(20)
X = data(Z)


@pytest.mark.parametrize(
    ("decoder", "z", "x", "message"),
    [
        (nn.Sequential(dense(), nn.Dropout()).train(), Z, X, "in training mode"),
        (NET, Z.numpy(), X, "z is a ndarray; give codes"),
        (NET, Z.half(), X, r"z is torch.float16 \(20, 2\); give codes"),
        (NET, Z[:1], X[:1], r"give codes \(n, d\), n >= 2"),
        (NET, Z, X[:5], r"x is torch.float32 \(5, 6\) for 20 codes"),
        (NET, Z, X[:, :5], "gives 6 outputs and x has 5 columns"),
        (NET, Z, X.index_fill(1, torch.tensor([2]), torch.nan), r"x holds nan at index \(0, 2\)"),
        (NET, Z * torch.inf, X, "z holds (nan|inf)"),
        (lambda z: 300 * NET(z), Z, X, "is off by .* scale x as the decoder's output"),
        (lambda z: Bernoulli(logits=NET(z)), Z, X, r"oddity\.fisher_metric"),
        (3, Z, X, "int is no decoder"),
    ],
)
def test_misuse(decoder, z, x, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        oddity.add_uncertainty(decoder, z, x, n_centres=2)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="epochs=0"):
        oddity.add_uncertainty(NET, Z, X, epochs=0)
    with pytest.raises(ValueError, match="n_centres=0"):
        oddity.add_uncertainty(NET, Z, X, n_centres=0)
    with pytest.raises(ValueError, match="min_std=-1"):
        oddity.add_uncertainty(NET, Z, X, min_std=-1.0)
    with pytest.raises(ValueError, match="zeta=-1"):
        oddity.add_uncertainty(NET, Z, X, zeta=-1.0)
