"""The von Mises-Fisher law against SciPy's Bessel functions and its own samples."""

import numpy as np
import pytest
import torch
from scipy.special import ive
from torch.distributions import kl_divergence

from oddity import VonMisesFisher
from oddity.numerics.spherical import moments

KAPPA = torch.tensor([1e-6, 1e-2, 0.3, 1.0, 5.0, 30.0, 300.0, 1e4, 1e6], dtype=torch.float64)


@pytest.mark.parametrize("p", [2, 3, 4, 10, 26])
def test_agrees_with_bessel_functions(p: int) -> None:
    found, kappa, order = moments(KAPPA, p), KAPPA.numpy(), p / 2 - 1
    np.testing.assert_allclose(found.mean, ive(order + 1, kappa) / ive(order, kappa), rtol=1e-11)
    log_partition = np.log(ive(order, kappa)) + p / 2 * np.log(2 * np.pi) - order * np.log(kappa)
    np.testing.assert_allclose(found.log_partition, log_partition, rtol=0, atol=1e-11)


@pytest.mark.parametrize("p", [2, 3, 10])
def test_the_variance_is_the_slope_of_the_mean_and_keeps_its_digits(p: int) -> None:
    kappa = KAPPA[1:7].clone().requires_grad_()
    found = moments(kappa, p)
    (slope,) = torch.autograd.grad(found.mean.sum(), kappa)
    torch.testing.assert_close(slope, found.variance.detach(), rtol=1e-7, atol=0)
    large = moments(KAPPA[-2:], p)
    limit = torch.full_like(large.variance, (p - 1) / 2)
    torch.testing.assert_close(large.variance * KAPPA[-2:] ** 2, limit, rtol=3e-3, atol=0)
    single, double = (moments(KAPPA.to(t), p) for t in (torch.float32, torch.float64))
    torch.testing.assert_close(single.variance.double(), double.variance, rtol=1e-5, atol=0)


@pytest.mark.parametrize("p", [2, 3, 6])
def test_samples_have_the_moments_the_entropy_and_the_divergence(p: int) -> None:
    loc = torch.nn.functional.normalize(torch.eye(2, p, dtype=torch.float64) + 0.3, dim=-1)
    law, other = (VonMisesFisher(x, torch.tensor([0.5, 20.0], dtype=torch.float64)) for x in (loc, loc.flip(0)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = law.sample((20_000,))
    assert x.shape == (20_000, 2, p)
    torch.testing.assert_close(torch.linalg.vector_norm(x, dim=-1), torch.ones(20_000, 2).double())
    surprise = -law.log_prob(x)
    for values, expected in (
        (x, law.mean),
        (surprise, law.entropy()),
        (-other.log_prob(x) - surprise, kl_divergence(law, other)),
    ):
        error = values.std(0) / len(x) ** 0.5
        assert ((values.mean(0) - expected).abs() <= 4 * error).all()


def test_bad_parameters_are_refused() -> None:
    checked = {"validate_args": True}  # torch.compile turns PyTorch's default off for good
    with pytest.raises(ValueError, match=r"norm off one by 0.41; normalise it"):
        VonMisesFisher(torch.ones(1, 2), torch.ones(1), **checked)
    with pytest.raises(ValueError, match="concentration"):
        VonMisesFisher(torch.eye(2), -torch.ones(2), **checked)
    with pytest.raises(ValueError, match="p >= 2"):
        VonMisesFisher(torch.ones(3, 1), torch.ones(3))


def test_expands() -> None:
    law = VonMisesFisher(torch.eye(2), torch.ones(2)).expand((3, 2))
    assert law.batch_shape == (3, 2)
    assert law.log_prob(torch.tensor([1.0, 0.0])).shape == (3, 2)
