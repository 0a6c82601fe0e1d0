"""The paper's metric against independent derivatives and against Monte Carlo over the noise."""

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
