"""Fisher metrics of every family against their information in many digits, over all that the dtype can hold."""

from collections.abc import Callable
from typing import NamedTuple

import mpmath
import pytest
import torch
from mpmath import mpf
from torch import Tensor
from torch import distributions as laws

import oddity
from oddity.geometry.families import FAMILIES

Point = list[mpf]
Law = Callable[[Tensor], laws.Distribution]


class Kind(NamedTuple):
    """A law by its parameters, its information v'Iv in them, and the range of each, in powers of 1 / eps."""

    law: Law
    information: Callable[[Point, Point], mpf]
    low: tuple[float, ...]
    high: tuple[float, ...]
    signed: tuple[int, ...] = ()  # parameters of either sign
    joint: bool = False  # one log concentration alone may have next to no information beside the others' unit


def sigma(x: mpf) -> mpf:
    return 1 / (1 + mpmath.exp(-x))


def trigamma(x: mpf) -> mpf:
    return mpmath.psi(1, x)


def softmax_variance(x: Point, v: Point) -> mpf:
    """Variance of v under classes of logits x, by differences."""
    top = max(x)
    p = [mpmath.exp(y - top) for y in x]
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    return sum(p[i] * p[j] * (v[i] - v[j]) ** 2 for i, j in pairs) / sum(p) ** 2


def normal(c: int) -> Callable[[Point, Point], mpf]:
    return lambda z, v: (v[0] ** 2 + c * v[1] ** 2) / z[1] ** 2


def dirichlet(z: Point, v: Point) -> mpf:
    return sum(trigamma(x) * y**2 for x, y in zip(z, v, strict=True)) - trigamma(sum(z)) * sum(v) ** 2


def gamma(z: Point, v: Point) -> mpf:
    return trigamma(z[0]) * v[0] ** 2 - 2 * v[0] * v[1] / z[1] + z[0] * v[1] ** 2 / z[1] ** 2


def ratio(kappa: mpf, p: int) -> mpf:
    return mpmath.besseli(mpf(p) / 2, kappa) / mpmath.besseli(mpf(p) / 2 - 1, kappa)


def von_mises(z: Point, v: Point) -> mpf:
    A = ratio(z[1], 2)
    return z[1] * A * v[0] ** 2 + (1 - A**2 - A / z[1]) * v[1] ** 2


def directions(z: Point, v: Point) -> mpf:
    """By the natural parameter in R^3."""
    kappa = mpmath.sqrt(sum(x**2 for x in z))
    along = sum(x * y for x, y in zip(z, v, strict=True)) / kappa
    A = ratio(kappa, 3)
    across = sum(y**2 for y in v) - along**2
    return (1 - A**2 - 2 * A / kappa) * along**2 + A / kappa * across


def continuous(x: mpf) -> mpf:
    """Variance of the continuous Bernoulli law of logits x."""
    return 1 / x**2 - 1 / (4 * mpmath.sinh(x / 2) ** 2)


def gaussian(z: Point, v: Point) -> mpf:
    """By location and triangular root in two dimensions: |L^-1 dm|^2 + |A + A'|^2 / 2, A = L^-1 dL."""
    L, dL = (mpmath.matrix([[x[2], 0], [x[3], x[4]]]) for x in (z, v))
    shift, A = L**-1 * mpmath.matrix(v[:2]), L**-1 * dL
    both = A + A.T
    return sum(x**2 for x in shift) + sum(x**2 for x in both) / 2


def triangular(z: Tensor) -> Tensor:
    zero = torch.zeros_like(z[:, 0])
    return torch.stack([torch.stack([z[:, 2], zero], 1), torch.stack([z[:, 3], z[:, 4]], 1)], 1)


def classes(total: int) -> Callable[[Point, Point], mpf]:
    return lambda z, v: total * softmax_variance(z, v)


def coin(total: int) -> Callable[[Point, Point], mpf]:
    return lambda z, v: total * softmax_variance([mpf(0), *z], [mpf(0), *v])


def one(information: Callable[[mpf], mpf]) -> Callable[[Point, Point], mpf]:
    """Of a single parameter."""
    return lambda z, v: information(z[0]) * v[0] ** 2


def by_share(z: Point, v: Point) -> mpf:
    return softmax_variance([mpmath.log(x) for x in z], [y / x for x, y in zip(z, v, strict=True)])


def by_natural(z: Tensor) -> laws.Distribution:
    loc = torch.nn.functional.normalize(z, dim=1)[:, None]
    return oddity.VonMisesFisher(loc, torch.linalg.vector_norm(z, dim=1, keepdim=True))


def halves(kind: type[laws.Distribution]) -> Law:
    """Two parameters of one output."""
    return lambda z: kind(z[:, :1], z[:, 1:])


LOGIT, PROBABILITY, SCALE = ((-1,), (0.27,), (0,)), ((-2,), (0,)), ((-2, -2), (2, 2), (0,))
THREE = ((-1,) * 3, (0.23,) * 3, (0, 1, 2))

KINDS: dict[str, Kind] = {
    "Bernoulli": Kind(lambda z: laws.Bernoulli(logits=z), coin(1), *LOGIT),
    "Bernoulli, p": Kind(lambda z: laws.Bernoulli(probs=z), one(lambda p: 1 / (p * (1 - p))), *PROBABILITY),
    "Binomial": Kind(lambda z: laws.Binomial(7, logits=z), coin(7), *LOGIT),
    "Binomial, p": Kind(lambda z: laws.Binomial(7, probs=z), one(lambda p: 7 / (p * (1 - p))), *PROBABILITY),
    "Categorical": Kind(lambda z: laws.Categorical(logits=z), classes(1), *THREE),
    "Categorical, p": Kind(lambda z: laws.Categorical(probs=z), by_share, (-1.5,) * 3, (0,) * 3),
    "OneHotCategorical": Kind(lambda z: laws.OneHotCategorical(logits=z), classes(1), *THREE),
    "OneHotCategorical, p": Kind(lambda z: laws.OneHotCategorical(probs=z), by_share, (-1.5,) * 3, (0,) * 3),
    "Multinomial": Kind(lambda z: laws.Multinomial(5, logits=z), classes(5), *THREE),
    "Poisson": Kind(laws.Poisson, one(lambda x: 1 / x), (-3,), (3,)),
    "Geometric": Kind(lambda z: laws.Geometric(logits=z), one(lambda x: sigma(-x)), *LOGIT),
    "Geometric, p": Kind(lambda z: laws.Geometric(probs=z), one(lambda p: 1 / (p**2 * (1 - p))), *PROBABILITY),
    "NegativeBinomial": Kind(lambda z: laws.NegativeBinomial(3.0, logits=z), one(lambda x: 3 * sigma(x)), *LOGIT),
    "NegativeBinomial, p": Kind(
        lambda z: laws.NegativeBinomial(3.0, probs=z), one(lambda p: 3 / (p * (1 - p) ** 2)), *PROBABILITY
    ),
    "Exponential": Kind(laws.Exponential, one(lambda x: 1 / x**2), (-2,), (2,)),
    "Normal": Kind(halves(laws.Normal), normal(2), *SCALE),
    "LogNormal": Kind(halves(laws.LogNormal), normal(2), *SCALE),
    "Laplace": Kind(halves(laws.Laplace), normal(1), *SCALE),
    "MultivariateNormal": Kind(
        lambda z: laws.MultivariateNormal(z[:, None, :2], scale_tril=triangular(z)[:, None]),
        gaussian,
        (-1,) * 5,
        (1,) * 5,
        (0, 1, 3),
    ),
    "Gamma": Kind(halves(laws.Gamma), gamma, (-1, -2), (1.5, 2)),
    "Beta": Kind(halves(laws.Beta), dirichlet, (-1,) * 2, (1.5,) * 2, joint=True),
    "Dirichlet": Kind(laws.Dirichlet, dirichlet, (-1,) * 3, (1.5,) * 3, joint=True),
    "VonMises": Kind(halves(laws.VonMises), von_mises, (-1, -1), (0, 1), (0,)),
    "VonMisesFisher": Kind(by_natural, directions, (-1,) * 3, (1,) * 3, (0, 1, 2)),
    "ContinuousBernoulli": Kind(lambda z: laws.ContinuousBernoulli(logits=z), one(continuous), (-1,), (2,), (0,)),
    "ContinuousBernoulli, p": Kind(
        lambda z: laws.ContinuousBernoulli(probs=z),
        one(lambda p: continuous(mpmath.log(p / (1 - p))) / (p * (1 - p)) ** 2),
        (-0.95,),  # torch clamps at eps
        (0,),
    ),
}


def parameters(kind: Kind, dtype: torch.dtype, count: int = 15) -> tuple[Tensor, Tensor]:
    """Random parameters over the whole range, and vectors of their size: ``(count, d)`` twice."""
    rng = torch.Generator().manual_seed(0)
    bits = -torch.tensor(torch.finfo(dtype).eps, dtype=torch.float64).log2()
    low, high = (torch.tensor(x, dtype=torch.float64) for x in (kind.low, kind.high))
    z = 2 ** (bits * (low + (high - low) * torch.rand(count, len(low), generator=rng, dtype=torch.float64)))
    sign = torch.ones(len(low)).index_fill(0, torch.tensor(kind.signed, dtype=torch.long), -1.0)
    z = torch.where(torch.rand(z.shape, generator=rng) < 0.5, z, sign * z)
    if max(kind.high) == 0 and len(low) == 1:  # probabilities: the other end too
        z[::2] = 1 - z[::2].clamp(min=4 * torch.finfo(dtype).eps)
    v = torch.randn(count, len(low), generator=rng, dtype=torch.float64)
    v[::3] = 1
    v[1::3, 1:] = 0
    return z.to(dtype), (v * z).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", KINDS)
def test_every_digit_at_every_parameter(name: str, dtype: torch.dtype) -> None:
    mpmath.mp.dps = 60 if dtype == torch.float32 else 120
    kind = KINDS[name]
    z, v = parameters(kind, dtype)
    M, eps, limits = oddity.fisher_metric(kind.law), torch.finfo(dtype).eps, torch.finfo(dtype)
    found = M.norm(z, v)
    worst = []
    for x, y, squared in zip(z.double().tolist(), v.double().tolist(), found.double().square().tolist(), strict=True):
        point, vector = [mpf(t) for t in x], [mpf(t) for t in y]
        truth = kind.information(point, vector)
        moved = [
            kind.information([t * (1 + eps * (i == j)) for j, t in enumerate(point)], vector) for i in range(len(point))
        ]
        sway = sum(abs(t - truth) for t in moved)
        sway += eps * kind.joint * sum((s / t) ** 2 for s, t in zip(vector, point, strict=True))
        if limits.tiny < truth < limits.max:
            worst.append((float(abs(mpf(squared) - truth) / (eps * truth + sway)), x, y, squared, float(truth)))
    assert len(worst) > 7
    assert max(worst)[0] < 50, max(worst)


def test_every_family_is_held() -> None:
    held = {name.split(",")[0] for name in KINDS}
    assert {kind.__name__ for kind in FAMILIES} <= held
