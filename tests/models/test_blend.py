"""Blends to the most uncertain law away from the codes, for every family."""

import functools
import math
from collections.abc import Callable

import pytest
import torch
from tests.geometry.likelihoods import CLOSED, likelihood
from torch import Tensor, nn
from torch.distributions import Distribution, Gamma, Independent, Normal, Poisson

import oddity

CODES = 0.3 * torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
FAR = torch.tensor([[30.0, 0.0], [0.0, -40.0]], dtype=torch.float64)
KNOWN = [name for name in CLOSED if name not in ("Gamma", "MultivariateNormal")]


def parameter(law: Distribution, name: str) -> Tensor:
    value: Tensor = getattr(law.base_dist if isinstance(law, Independent) else law, name)
    return value


@pytest.mark.parametrize("name", KNOWN)
def test_is_the_decoder_at_the_codes_and_most_uncertain_far_away(name: str) -> None:
    model = likelihood(name).double()
    blend = oddity.EntropyBlend(model, CODES, n_centres=30)
    near, own, far = blend(blend.centres), model(blend.centres), blend(FAR)
    assert type(near) is type(own)
    assert near.batch_shape == own.batch_shape
    for of, highest in blend.ceiling.items():
        a, b = parameter(near, of), parameter(own, of)
        assert ((a - b).abs() <= 1.01e-3 * (highest - b).abs()).all()  # odds of 1000 to 1
        torch.testing.assert_close(parameter(far, of), torch.full_like(parameter(far, of), highest))
    M = oddity.fisher_metric(blend)
    assert M.metric(torch.cat([CODES[:5], FAR])).isfinite().all()
    if name not in ("Normal", "LogNormal", "Laplace", "VonMises"):  # whose location goes on moving
        assert M.metric(FAR).abs().max() < 1e-30


@pytest.mark.parametrize(
    "name", ["Bernoulli", "Categorical", "Normal", "Beta", "Dirichlet", "Poisson", "VonMisesFisher"]
)
def test_entropy_rises_on_the_way_out(name: str) -> None:
    class Steady(nn.Module):
        """The law of one centre everywhere, so that only the blend changes it."""

        def forward(self, z: Tensor) -> Distribution:
            return model(centre.expand(len(z), 2))

    model, centre = likelihood(name).double().eval(), CODES[:1]
    blend = oddity.EntropyBlend(Steady().eval(), centre)
    out = blend(centre + torch.linspace(0, 3, 30).double()[:, None] * torch.tensor([1.0, 0.0]))
    total = out.entropy().reshape(30, -1).sum(1) if name != "Poisson" else parameter(out, "rate").sum((1, 2))
    assert (total.diff() >= -1e-12).all()
    assert total[-1] > total[0]


def test_the_weight_is_even_at_one_radius() -> None:
    blend = oddity.EntropyBlend(likelihood("Poisson").double(), torch.zeros(1, 2).double())
    assert float(blend.radius) == 1  # a single code has no spread
    at = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    torch.testing.assert_close(blend.weight(at), at.new_tensor([1000 / 1001, 0.5, 0.0]), rtol=1e-9, atol=1e-9)


def test_geodesics_go_round_a_hole() -> None:
    """Codes on a circle of a flat decoder: the straight line is shortest, unless what lies between is unknown."""
    angle = torch.linspace(0, 2 * math.pi, 201, dtype=torch.float64)[:-1]
    codes = torch.stack([angle.cos(), angle.sin()], -1)
    weight = torch.randn(2, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def decoder(z: Tensor) -> Distribution:
        return Normal(z @ weight, torch.ones_like(z[:, :1]))

    a, b = codes[0], codes[80]
    line = a + torch.linspace(0, 1, 129).double()[:, None] * (b - a)
    plain = oddity.fisher_metric(decoder).geodesic(a, b).require()
    assert float(torch.linalg.vector_norm(plain.points, dim=-1).min()) < 0.35
    M = oddity.fisher_metric(oddity.EntropyBlend(decoder, codes, n_centres=20, reach=8))
    g = M.geodesic(a, b, init=oddity.Roadmap(M, codes)).require()
    assert float(torch.linalg.vector_norm(g.points, dim=-1).min()) > 0.45
    assert float(g.length) < 0.5 * float(M.length(line))


def test_other_families_need_their_ceiling_said() -> None:
    model = likelihood("Gamma").double()
    with pytest.raises(ValueError, match=r"no most uncertain Gamma law is known.*ceiling=\{'concentration': 10.0\}"):
        oddity.EntropyBlend(model, CODES)
    blend = oddity.EntropyBlend(model, CODES, ceiling={"concentration": 1.0, "rate": 0.1})
    far = blend(FAR)
    assert isinstance(far, Gamma)
    torch.testing.assert_close(far.mean, torch.full_like(far.mean, 10.0))
    with pytest.raises(ValueError, match="no parameter 'scale' to blend; it has concentration, rate"):
        oddity.EntropyBlend(model, CODES, ceiling={"scale": 1.0})


def test_follows_the_mode_dtype_and_kind_of_its_decoder() -> None:
    model = likelihood("Poisson")
    assert not oddity.EntropyBlend(model, CODES.float()).training
    assert oddity.EntropyBlend(likelihood("Poisson").train(), CODES.float()).training
    assert oddity.EntropyBlend(model, CODES.float()).double()(FAR).mean.dtype == torch.float64
    pair = oddity.EntropyBlend(lambda z: (z, torch.ones_like(z)), CODES, ceiling={"scale": 3.0})
    assert isinstance(pair(FAR), Normal)
    torch.testing.assert_close(pair(FAR).stddev, torch.full_like(FAR, 3.0))
    torch.testing.assert_close(pair(FAR).mean, FAR)


class Hidden(nn.Module):
    """A network that a blend is given through a function only."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 4), nn.Dropout(), nn.Linear(4, 3)).double()

    def law(self, z: Tensor, bias: float = 0.0) -> Distribution:
        return Poisson((self.net(z) + bias).exp())


@pytest.mark.parametrize("way", [lambda net: net.law, lambda net: functools.partial(net.law, bias=1.0)])
def test_a_network_behind_a_function_is_seen(way: Callable[[Hidden], Callable[[Tensor], Distribution]]) -> None:
    net = Hidden().eval()
    blend = oddity.EntropyBlend(way(net), CODES)
    assert set(net.parameters()) <= set(blend.parameters())
    M = oddity.fisher_metric(blend)
    assert M.metric(CODES).isfinite().all()
    with pytest.raises(ValueError, match=r"the points are torch.float32 but the weights of .* are torch.float64"):
        M.metric(CODES.float())
    net.net[1].train()
    for call in (lambda: M.metric(CODES), lambda: oddity.fisher_metric(blend)):
        with pytest.raises(ValueError, match=r"Dropout, a part of EntropyBlend, is in training mode.*call \.eval\(\)"):
            call()
    assert oddity.EntropyBlend(way(net.train()), CODES).training
    elsewhere = oddity.fisher_metric(oddity.EntropyBlend(way(net.eval()), CODES))
    net.to("meta")
    with pytest.raises(ValueError, match=r"the points are on cpu but the weights of .* are on meta"):
        elsewhere.metric(CODES)


def test_bad_settings_are_refused() -> None:
    model = likelihood("Poisson").double()
    with pytest.raises(ValueError, match="reach=0"):
        oddity.EntropyBlend(model, CODES, reach=0)
    with pytest.raises(ValueError, match="n_centres=0: it must be a whole number, and at least 1"):
        oddity.EntropyBlend(model, CODES, n_centres=0)
    with pytest.raises(ValueError, match="finite codes"):
        oddity.EntropyBlend(model, CODES / 0)
    with pytest.raises(ValueError, match="returned Tensor"):
        oddity.EntropyBlend(lambda z: z, CODES)
