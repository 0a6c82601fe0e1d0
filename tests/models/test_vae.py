import math

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from oddity.models.layers import MLP, Encoder
from oddity.models.rbf import RBFPrecision
from oddity.models.vae import VAE, Architecture, ConstantScale, GaussianDecoder, SigmaNetwork

PLANS = {
    "constant": Architecture(6, 2, (8, 4), "sigmoid"),
    "network": Architecture(6, 2, (8, 4), "tanh", scale="network", scale_hidden=(4, 8)),
    "rbf": Architecture(6, 2, (8, 4), scale="rbf", n_centres=3),
    "conv": Architecture(
        6, 2, (8, 4), "sigmoid", "rbf", n_centres=3, image_shape=(1, 2, 3), channels=(4, 2), scale_channels=(3, 2)
    ),
}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=sorted(PLANS))
def vae(request):
    return PLANS[request.param].build(seed=1).double().eval().requires_grad_(False)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 1, 3)])
def test_leading_shapes(vae, shape):
    x = torch.rand(*shape, 6, generator=rng(), dtype=torch.float64)
    z = vae.encode(x)
    mean, std = vae.decoder(z)
    assert z.shape == (*shape, 2)
    assert mean.shape == std.shape == vae(x).shape == (*shape, 6)
    assert vae.elbo(x, rng()).shape == vae.log_likelihood(x, 10, rng()).shape == shape
    assert {z.dtype, mean.dtype, std.dtype, vae.log_likelihood(x, 10).dtype} == {torch.float64}


def test_encode_is_the_posterior_mean_at_every_call(vae):
    x = torch.rand(5, 6, generator=rng(), dtype=torch.float64)
    mean, std = vae.posterior(x)
    assert torch.equal(vae.encode(x), mean)
    assert torch.equal(vae.encode(x), vae.encode(x))
    assert bool((std > 0).all())


def test_elbo_equals_torch_distributions(vae):
    x = torch.rand(5, 6, generator=rng(), dtype=torch.float64)
    posterior = Independent(Normal(*vae.posterior(x)), 1)
    z = posterior.mean + posterior.stddev * torch.randn(5, 2, generator=rng(4), dtype=torch.float64)
    likelihood = Independent(Normal(*vae.decoder(z)), 1).log_prob(x)
    prior = Independent(Normal(torch.zeros(2).double(), torch.ones(2).double()), 1)
    expected = likelihood - 0.3 * kl_divergence(posterior, prior)
    torch.testing.assert_close(vae.elbo(x, rng(4), kl_weight=0.3), expected)


def test_elbo_is_a_lower_bound_of_the_likelihood(vae):
    x = vae.sample(4, generator=rng(1))
    bounds = torch.stack([vae.elbo(x, rng(seed)) for seed in range(400)])
    slack = 4 * bounds.std(0) / math.sqrt(400) + 0.05
    assert bool((bounds.mean(0) <= vae.log_likelihood(x, 20_000, rng()) + slack).all())


def test_log_likelihood_of_a_linear_gaussian_model():
    # x = A z + s eps has the marginal N(0, A A' + s^2 I)
    mean_net = MLP(2, (), 3).double()
    mean_net[0].weight.data = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, -1.0]]).double()
    mean_net[0].bias.data.zero_()
    scale = ConstantScale(3, min_std=0.5).double()
    scale.log_std.data.fill_(-20.0)
    vae = VAE(Encoder(3, 2, (4,)).double(), GaussianDecoder(mean_net, scale)).requires_grad_(False)
    x = torch.tensor([[0.3, -0.2, 0.7], [0.0, 0.0, 0.0]]).double()
    A = mean_net[0].weight.data
    exact = torch.distributions.MultivariateNormal(torch.zeros(3).double(), A @ A.T + 0.25 * torch.eye(3).double())
    torch.testing.assert_close(vae.log_likelihood(x, 100_000, rng()), exact.log_prob(x), atol=0.02, rtol=0)


def test_log_likelihood_does_not_depend_on_its_blocks(vae, monkeypatch):
    x = torch.rand(5, 6, generator=rng(), dtype=torch.float64)
    whole = vae.log_likelihood(x, 64, rng())
    monkeypatch.setattr("oddity.models.vae._BLOCK", 6 * 10)
    torch.testing.assert_close(vae.log_likelihood(x, 64, rng()), whole)


def test_log_likelihood_keeps_digits_in_float32_with_small_noise():
    vae = PLANS["constant"].build().requires_grad_(False)
    vae.decoder.scale.log_std.fill_(-6.0)
    x = torch.rand(3, 6, generator=rng())
    single, double = vae.log_likelihood(x, 50, rng()), vae.double().log_likelihood(x.double(), 50, rng())
    assert single.dtype == torch.float32
    assert bool(single.isfinite().all())
    assert bool(double.isfinite().all())


def test_sample_has_the_decoders_noise(vae):
    draws = vae.sample(50_000, generator=rng())
    z = torch.randn(50_000, 2, generator=rng(9), dtype=torch.float64)
    mean, std = vae.decoder(z)
    expected = mean.var(0) + std.square().mean(0)
    torch.testing.assert_close(draws.var(0), expected, rtol=0.1, atol=0)
    assert torch.equal(vae.sample(3, generator=rng()), vae.sample(3, generator=rng()))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 6)), "ndarray: pass torch.as_tensor"),
        (torch.zeros(2, 5).double(), r"shape \(2, 5\).*\(\*, 6\)"),
        (torch.zeros(2, 6), "pass x.to\\(torch.float64\\)"),
        (torch.tensor([[0, 0, math.nan, 0, math.inf, 0]]).double(), "2 values that are not finite"),
    ],
)
def test_bad_input_at_every_door(vae, x, message):
    for door in (vae.encode, vae.posterior, vae.elbo, vae.log_likelihood, vae):
        with pytest.raises(ValueError, match=message):
            door(x)


def test_log_likelihood_needs_draws(vae):
    with pytest.raises(ValueError, match="n_samples=0"):
        vae.log_likelihood(torch.zeros(1, 6).double(), n_samples=0)


def test_constant_scale():
    scale = ConstantScale(3, min_std=0.3)
    scale.log_std.data.fill_(math.log(0.4))
    z = torch.randn(2, 4, 2, requires_grad=True)
    torch.testing.assert_close(scale(z), torch.full((2, 4, 3), 0.5))
    (grad,) = torch.autograd.grad(scale(z).sum(), z)
    assert torch.equal(grad, torch.zeros_like(z))
    scale.log_std.data.fill_(-30.0)
    assert scale(z).min().item() == pytest.approx(0.3)


def test_sigma_network_is_floored():
    scale = SigmaNetwork(2, (4,), 3, min_std=0.3)
    assert bool((scale(1e3 * torch.randn(100, 2, generator=rng())) >= 0.3).all())


@pytest.mark.parametrize("name", sorted(PLANS))
def test_architecture_round_trip_and_seed(name):
    plan = PLANS[name]
    one, two, other = plan.build(seed=1), plan.build(seed=1), plan.build(seed=2)
    assert Architecture.of(one) == plan
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(next(one.encoder.parameters()), next(other.encoder.parameters()))


def test_building_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    PLANS["network"].build()
    assert torch.equal(torch.get_rng_state(), before)


def test_architecture_of_foreign_parts():
    vae = PLANS["constant"].build()
    vae.decoder.scale = torch.nn.Softplus()
    with pytest.raises(ValueError, match="Softplus has no description"):
        Architecture.of(vae)
    vae.decoder.mean_net = torch.nn.Linear(2, 6)
    with pytest.raises(ValueError, match="Linear has no description"):
        Architecture.of(vae)
    vae = PLANS["constant"].build()
    vae.decoder.mean_net = MLP(2, (5,), 6)
    with pytest.raises(ValueError, match="do not mirror"):
        Architecture.of(vae)


def test_encoder_shares_its_first_layer():
    encoder = Encoder(6, 2)
    assert encoder.shared[0].out_features == 64
    assert encoder.mean_net.hidden == encoder.std_net.hidden == (32,)
    assert isinstance(PLANS["rbf"].build().decoder.scale, RBFPrecision)


@pytest.mark.parametrize("n", [-1, 2.0, True])
def test_a_number_of_samples_is_one(vae, n):
    with pytest.raises(ValueError, match=f"n={n}: it must be a whole number, and at least 0"):
        vae.sample(n)
    assert vae.sample(0).shape == (0, 6)
