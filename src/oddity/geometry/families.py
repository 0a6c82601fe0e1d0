"""The Fisher metric of each family of distributions, as a space that parameters are mapped into.

For one parameter the Fisher metric is flat: a formula of the parameter, its arc length, maps the family into flat space
with no distortion. So do the square roots of probabilities for several classes, onto a sphere of radius 2. Other
families are curved spaces of their own, each with its linear square root of the Fisher information.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch import distributions as laws
from torch.distributions import Distribution

from oddity.geometry.manifold import Manifold, _root
from oddity.geometry.spaces import _series, _sine
from oddity.numerics.likelihood import rows
from oddity.numerics.spherical import VonMisesFisher, moments

__all__ = [
    "ContinuousBernoulliSpace",
    "DirectionSpace",
    "DirichletSpace",
    "Family",
    "GammaSpace",
    "GaussianSpace",
    "LocationScaleSpace",
    "family_of",
]


@final
class LocationScaleSpace(Manifold, rows=False):
    """Location-scale families, output by output: G = d loc^2 / scale^2 + c (d log scale)^2.

    Points are ``(*, 2 D)``: D locations, then the logarithms of D scales. Normal laws have c = 2 and constant curvature
    -1/2; Laplace laws have c = 1 and curvature -1. The secant is the chord of the hyperboloid, with
    |secant| = 2 sqrt(c) sinh(dist / (2 sqrt(c))) for each output.

    Parameters
    ----------
    c
        Fisher information of the logarithm of the scale.

    References
    ----------
    Costa, Santos, Strapasson, "Fisher information distance: a geometrical reading", 2015.

    Examples
    --------
    >>> M = LocationScaleSpace(2.0)
    >>> M.metric(torch.tensor([5.0, math.log(2.0)])).round(decimals=2).tolist()
    [[0.25, 0.0], [0.0, 2.0]]
    """

    def __init__(self, c: float) -> None:
        self._stretch = math.sqrt(c)

    def push(self, z: Tensor, v: Tensor) -> Tensor:
        """(d loc / scale, sqrt(c) d log scale)."""
        (_, log_scale), (shift, growth) = z.chunk(2, -1), v.chunk(2, -1)
        return torch.cat([shift * torch.exp(-log_scale), self._stretch * growth], -1)

    def secant(self, a: Tensor, b: Tensor) -> Tensor:
        """Chord of the hyperboloid: the difference of the locations by the geometric mean of the scales."""
        (m, s), (n, t) = a.chunk(2, -1), b.chunk(2, -1)
        return torch.cat([(n - m) * torch.exp(-(s + t) / 2), 2 * self._stretch * torch.sinh((t - s) / 2)], -1)

    def force(self, z: Tensor, v: Tensor) -> Tensor:
        """(2 d loc d log scale, -d loc^2) / scale^2."""
        (_, log_scale), (shift, growth) = z.chunk(2, -1), v.chunk(2, -1)
        pull = shift * torch.exp(-2 * log_scale)
        return torch.cat([2 * pull * growth, -pull * shift], -1)


@final
class GaussianSpace(Manifold, rows=False):
    """Normal laws with full covariance L L': G = |L^-1 d loc|^2 + |A + A'|^2 / 2 with A = L^-1 dL.

    Points are ``(*, D (p + p^2))``: D times the location, then the lower triangular L row by row.

    Parameters
    ----------
    p
        Dimension of one event.

    Examples
    --------
    In one dimension the metric of a normal law by its scale, 2 / scale^2:

    >>> GaussianSpace(1).metric(torch.tensor([0.0, 2.0])).round(decimals=2).tolist()
    [[0.25, 0.0], [0.0, 0.5]]
    """

    def __init__(self, p: int) -> None:
        self.p = p

    def push(self, z: Tensor, v: Tensor) -> Tensor:
        """(L^-1 d loc, (A + A') / sqrt(2)): ``(*, D (p + p^2))`` twice ``-> (*, D (p + p^2))``."""
        z, v = (x.unflatten(-1, (-1, self.p + 1, self.p)) for x in (z, v))
        columns = torch.cat([v[..., :1, :].mT, v[..., 1:, :]], -1)  # (*, D, p, 1 + p): d loc and dL
        solved = torch.linalg.solve_triangular(z[..., 1:, :], columns, upper=False)
        shift, A = solved[..., :1], solved[..., 1:]
        return torch.cat([shift, (A + A.mT) / math.sqrt(2)], -1).flatten(-3)


@final
class GammaSpace(Manifold, rows=False):
    """Gamma laws: G = alpha (d log rate - d log alpha)^2 + (alpha^2 psi'(alpha) - alpha) (d log alpha)^2.

    Points are ``(*, 2 D)``: D times log alpha, then the logarithms of D rates.

    Examples
    --------
    Exponential laws, of one unit of information in the logarithm of the rate:

    >>> GammaSpace().metric(torch.zeros(2, dtype=torch.float64)).round(decimals=4).tolist()
    [[1.6449, -1.0], [-1.0, 1.0]]
    """

    def push(self, z: Tensor, v: Tensor) -> Tensor:
        """(sqrt(alpha) (d log rate - d log alpha), (alpha^2 psi'(alpha) - alpha)^1/2 d log alpha)."""
        (log_alpha, _), (a, b) = z.chunk(2, -1), v.chunk(2, -1)
        alpha = log_alpha.exp()
        return torch.cat([alpha.sqrt() * (b - a), _excess(alpha).sqrt() * a], -1)


_LARGE = 10.0
_BERNOULLI = [1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510, 43867 / 798]


def _excess(alpha: Tensor) -> Tensor:
    """alpha^2 psi'(alpha) - alpha, which falls from 1 to 1/2; by its asymptotic series where these terms cancel.

    psi' is the zeta function in double precision, where ``torch.polygamma(1, x)`` is off by up to 1e-9.
    """
    small, inverse = alpha.clamp(max=_LARGE), 1 / alpha.clamp(min=_LARGE)
    double = alpha.dtype == torch.float64
    trigamma = torch.special.zeta(2.0, 1 + small) if double else torch.polygamma(1, 1 + small)
    exact = 1 + small.square() * trigamma - small
    series = 0.5 + inverse * _series(inverse.square(), _BERNOULLI)
    return torch.where(alpha < _LARGE, exact, series)


@final
class DirichletSpace(Manifold, rows=False):
    """Dirichlet laws: G = diag(psi'(alpha)) - psi'(sum alpha) 11', in the coordinates log alpha.

    Points are ``(*, D K)``, D laws of K concentrations; Beta laws have K = 2. With the shares p = alpha / sum alpha,
    the mean m = sum p v, and g(alpha) = alpha^2 psi'(alpha) - alpha, which falls, it is a sum of squares in which
    nothing large cancels: v'Gv = sum (alpha + g(sum alpha) p) (v - m)^2 + sum (g(alpha) - g(sum alpha) p) v^2.

    Parameters
    ----------
    classes
        K.

    Examples
    --------
    The uniform law on [0, 1], whose information in its two concentrations is psi'(1) - psi'(2) = 1 on the diagonal:

    >>> DirichletSpace(2).metric(torch.zeros(2, dtype=torch.float64)).round(decimals=4).tolist()
    [[1.0, -0.6449], [-0.6449, 1.0]]
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def push(self, z: Tensor, v: Tensor) -> Tensor:
        """Roots of those squares: ``(*, D K), (*, D K) -> (*, 2 D K)``."""
        alpha, v = (x.unflatten(-1, (-1, self.classes)) for x in (z.exp(), v))
        total = alpha.sum(-1, keepdim=True)
        share, common = alpha / total, _excess(total)
        off = v - v.gather(-1, alpha.argmax(-1, keepdim=True))  # of equal numbers exactly zero
        off = off - (share * off).sum(-1, keepdim=True)
        own = (_excess(alpha) - common * share).clamp(min=torch.finfo(z.dtype).tiny)  # below it only by rounding
        return torch.cat([(alpha + common * share).sqrt() * off, own.sqrt() * v], -1).flatten(-2)


@final
class DirectionSpace(Manifold, rows=False):
    """Von Mises-Fisher laws by their natural parameter eta = kappa loc: G is the covariance of the direction.

    Points are ``(*, D p)``, D laws on the sphere of R^p. Along loc G is A_p'(kappa), across it A_p(kappa) / kappa, with
    A_p the Bessel ratio of :func:`oddity.numerics.spherical.moments`.

    Parameters
    ----------
    p
        Dimension of the space that holds the sphere.

    Examples
    --------
    The uniform law, whose covariance is I / p:

    >>> DirectionSpace(2).metric(torch.zeros(2)).round(decimals=4).tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """

    def __init__(self, p: int) -> None:
        self.p = p

    def push(self, z: Tensor, v: Tensor) -> Tensor:
        """Along and across the direction, by the deviations there: ``(*, D p), (*, D p) -> (*, D (1 + p))``."""
        eta, v = (x.unflatten(-1, (-1, self.p)) for x in (z, v))
        kappa = eta.square().sum(-1).clamp(min=torch.finfo(z.dtype).tiny).sqrt()
        about = moments(kappa, self.p)
        along, across = (x.sqrt()[..., None] for x in (about.variance, about.across))
        r = eta / kappa[..., None]
        forth = (r * v).sum(-1, keepdim=True)
        # in numbers of their own, since where the law is narrow the second is many times the first
        return torch.cat([along * forth, across * (v - forth * r)], -1).flatten(-2)


@final
class ContinuousBernoulliSpace(Manifold, rows=False):
    """Continuous Bernoulli laws by their logits: G = 1 / x^2 - 1 / (4 sinh^2(x / 2)), the variance of the law.

    Points are ``(*, D)``, D logits.

    References
    ----------
    Loaiza-Ganem and Cunningham, "The continuous Bernoulli: fixing a pervasive error in variational autoencoders",
    NeurIPS 2019.

    Examples
    --------
    The uniform law, whose variance is 1/12:

    >>> ContinuousBernoulliSpace().metric(torch.zeros(1, dtype=torch.float64)).round(decimals=4).tolist()
    [[0.0833]]
    """

    def push(self, z: Tensor, v: Tensor) -> Tensor:
        """Standard deviation times v."""
        near = z.abs() < 2
        q = torch.where(near, z / 2, 0.0).square()
        s, cubic = _sine(-1, q), _series(q, [1 / math.factorial(2 * n + 3) for n in range(10)])
        small = cubic * (s + 1) / (2 * s).square()  # (sinh u - u) (sinh u + u) / (2 u sinh u)^2 with u = x / 2
        x = torch.where(near, 2.0, z.abs())
        large = 1 / x / x - torch.exp(-x) / torch.expm1(-x).square()
        return torch.where(near, small, large).sqrt() * v


class Family(NamedTuple):
    """How a family of distributions is mapped to a space in which its Fisher metric is known."""

    coordinates: Callable[[Any], Tensor]  # of a law whose batch is (N, ...): (N, ...)
    space: Callable[[Any], Manifold | None] = lambda law: None  # noqa: ARG005 -- None where it is flat
    fixed: tuple[str, ...] = ()  # parameters that must not depend on z


def _by_probability(law: Any) -> bool:
    """Whether a law was made by its probabilities: the other form, derived from them, is clamped and loses digits."""
    return next((name for name in vars(law) if name in ("probs", "logits")), "logits") == "probs"


def _angle(law: Any) -> Tensor:
    """2 arcsin(sqrt(p)), the arc length of Bernoulli laws; by the logits its slope keeps all digits at both ends."""
    if _by_probability(law):
        return 2 * torch.atan2(_root(law.probs), _root(1 - law.probs))
    bound = _bound(law.logits)
    return 2 * torch.atan(torch.exp(law.logits.clamp(-bound, bound) / 2))


def _roots(law: Any) -> Tensor:
    """2 sqrt(p) of classes: on the sphere of radius 2."""
    law = vars(law).get("_categorical", law)
    if _by_probability(law):
        return 2 * _root(law.probs)
    return 2 * torch.exp(law.logits.clamp(min=-_bound(law.logits)) / 2)


def _bound(logits: Tensor) -> float:
    """Beyond it metrics underflow, and subnormal numbers would slow a processor down 100 times."""
    return 1.8 * math.log(torch.finfo(logits.dtype).max)


def _geometric(law: laws.Geometric) -> Tensor:
    return _arc_by_probability(1 - law.probs, law.probs) if _by_probability(law) else _arc(-law.logits)


def _negative_binomial(law: laws.NegativeBinomial) -> Tensor:
    return _arc_by_probability(law.probs, 1 - law.probs) if _by_probability(law) else _arc(law.logits)


def _arc(logits: Tensor) -> Tensor:
    """2 arsinh(sqrt(q / (1 - q))), the arc length of geometric laws of the failure q, by its logits."""
    x = logits / 2
    large = x.clamp(min=0)
    large = large + torch.log(1 + torch.sqrt(1 + torch.exp(-2 * large)))
    return 2 * torch.where(x > 0, large, torch.asinh(torch.exp(x.clamp(max=0))))


def _arc_by_probability(failure: Tensor, success: Tensor) -> Tensor:
    """The same by the probabilities."""
    return 2 * torch.log1p(_root(failure)) - success.log()


def _continuous(law: laws.ContinuousBernoulli) -> Tensor:
    return law.probs.log() - torch.log1p(-law.probs) if _by_probability(law) else law.logits


def _location_scale(law: Any) -> Tensor:
    return torch.cat([rows(law.loc), rows(law.scale).log()], 1)


def _gaussian(law: laws.MultivariateNormal) -> Tensor:
    return torch.cat([law.loc[..., None, :], law.scale_tril], -2)


def _gamma(law: laws.Gamma) -> Tensor:
    return torch.cat([rows(law.concentration).log(), rows(law.rate).log()], 1)


def _concentrations(law: laws.Beta) -> Tensor:
    return torch.stack([law.concentration1, law.concentration0], -1).log()


def _circular(law: laws.VonMises) -> Tensor:
    return law.concentration[..., None] * torch.stack([law.loc.cos(), law.loc.sin()], -1)


FAMILIES: dict[type[Distribution], Family] = {
    laws.Bernoulli: Family(_angle),
    laws.Binomial: Family(lambda law: law.total_count.sqrt() * _angle(law), fixed=("total_count",)),
    laws.Categorical: Family(_roots),
    laws.OneHotCategorical: Family(_roots),
    laws.Multinomial: Family(lambda law: math.sqrt(law.total_count) * _roots(law)),
    laws.Poisson: Family(lambda law: 2 * _root(law.rate)),
    laws.Geometric: Family(_geometric),
    laws.NegativeBinomial: Family(lambda law: law.total_count.sqrt() * _negative_binomial(law), fixed=("total_count",)),
    laws.ContinuousBernoulli: Family(_continuous, lambda law: ContinuousBernoulliSpace()),  # noqa: ARG005
    laws.Exponential: Family(lambda law: law.rate.log()),
    laws.Normal: Family(_location_scale, lambda law: LocationScaleSpace(2.0)),  # noqa: ARG005
    laws.LogNormal: Family(_location_scale, lambda law: LocationScaleSpace(2.0)),  # noqa: ARG005
    laws.Laplace: Family(_location_scale, lambda law: LocationScaleSpace(1.0)),  # noqa: ARG005
    laws.MultivariateNormal: Family(_gaussian, lambda law: GaussianSpace(law.event_shape[-1])),
    laws.Gamma: Family(_gamma, lambda law: GammaSpace()),  # noqa: ARG005
    laws.Beta: Family(_concentrations, lambda law: DirichletSpace(2)),  # noqa: ARG005
    laws.Dirichlet: Family(lambda law: law.concentration.log(), lambda law: DirichletSpace(law.event_shape[-1])),
    laws.VonMises: Family(_circular, lambda law: DirectionSpace(2)),  # noqa: ARG005
    VonMisesFisher: Family(
        lambda law: law.concentration[..., None] * law.loc, lambda law: DirectionSpace(law.event_shape[-1])
    ),
}
"""Families whose Fisher metric is known in closed form."""


def family_of(law: Distribution) -> Family | None:
    """The closed form of a law's family, or of the nearest family that it is derived from; None where there is none."""
    return next((FAMILIES[kind] for kind in type(law).__mro__ if kind in FAMILIES), None)
