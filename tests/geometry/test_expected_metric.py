"""The paper's metric against independent derivatives and against Monte Carlo over the noise."""

import pytest
import torch
from torch.func import jacrev, vmap

import oddity

from .cases import decoder, points


def test_agrees_with_jacrev() -> None:
    model = decoder().double()
    z = points(2, torch.float64)
    J_mu, J_sigma = (vmap(jacrev(lambda x, f=f: f(x[None])[0]))(z) for f in (model.mean, model.std))
    expected = J_mu.mT @ J_mu + J_sigma.mT @ J_sigma
    torch.testing.assert_close(oddity.expected_metric(model).metric(z), expected, rtol=1e-10, atol=0)


def test_is_the_mean_over_the_noise() -> None:
    """x = mu + sigma eps with one eps for the whole space; the mean of its pulled-back metric within four sigma."""
    model = decoder(D=20).double()
    z = points(2, torch.float64)[:2]
    J_mu, J_sigma = (vmap(jacrev(lambda x, f=f: f(x[None])[0]))(z) for f in (model.mean, model.std))
    eps = torch.randn(40_000, 1, 20, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    J = J_mu + eps * J_sigma
    samples = J.mT @ J  # (S, N, d, d)
    error = samples.std(0) / len(samples) ** 0.5
    assert ((samples.mean(0) - oddity.expected_metric(model).metric(z)).abs() <= 4 * error).all()


@pytest.mark.parametrize("away", [0.0, 1000.0])
def test_energy_and_gradient_alone_are_those_of_the_model(away: float) -> None:
    torch.manual_seed(0)
    z = away + torch.randn(30, 3)
    mean = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 20))
    M = 2 * oddity.expected_metric(oddity.GaussianDecoder(mean, oddity.RBFPrecision.from_codes(z, 20)).eval())
    c = z[:8, None] + torch.linspace(0, 1, 7)[:, None] * (z[8:16] - z[:8])[:, None]
    widths = torch.rand(8, 6) + 1
    widths /= widths.sum(1, keepdim=True)
    with torch.no_grad():
        energy, gradient = M._chain_slope(c, widths)
        model = M.chain_model(c, widths)
    torch.testing.assert_close(energy, model.energy)
    torch.testing.assert_close(gradient, model.gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max()))


def test_views_the_decoder() -> None:
    model = decoder()
    M, z = oddity.expected_metric(model), points(2, torch.float32)
    before = M.metric(z)
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    assert not torch.equal(M.metric(z), before)


def test_metric_is_differentiable_in_the_point() -> None:
    M = oddity.expected_metric(decoder().double())
    z = points(2, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(M.log_volume, (z,))
