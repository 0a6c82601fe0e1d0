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
from oddity.numerics.likelihood import rows
from oddity.numerics.spherical import VonMisesFisher, moments

__all__ = [
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
        small, inverse = alpha.clamp(max=_LARGE), 1 / alpha.clamp(min=_LARGE)
        exact = 1 + small.square() * torch.polygamma(1, 1 + small) - small
        series = 0.5 + inverse / 6 - inverse**3 / 30 + inverse**5 / 42  # where the terms above cancel
        return torch.cat([alpha.sqrt() * (b - a), torch.where(alpha < _LARGE, exact, series).sqrt() * a], -1)


_LARGE = 64.0


@final
class DirichletSpace(Manifold, rows=False):
    """Dirichlet laws: G = diag(psi'(alpha)) - psi'(sum alpha) 11', in the coordinates log alpha.

    Points are ``(*, D K)``, D laws of K concentrations; Beta laws have K = 2. With D = diag(psi'(alpha))^1/2 and
    w = D^-1 1 the square root of the metric is (I - k w w') D, k = c / (1 + sqrt(1 - c |w|^2)), c = psi'(sum alpha).

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
        """(I - k w w') D v: ``(*, D K), (*, D K) -> (*, D K)``."""
        alpha, v = (x.unflatten(-1, (-1, self.classes)) for x in (z.exp(), v))
        root = (1 + alpha.square() * torch.polygamma(1, 1 + alpha)).sqrt()  # alpha psi'(alpha)^1/2
        w, stretched = alpha / root, root * v
        c = torch.polygamma(1, alpha.sum(-1, keepdim=True))
        left = (1 - c * w.square().sum(-1, keepdim=True)).clamp(min=torch.finfo(z.dtype).eps ** 2)
        k = c / (1 + left.sqrt())
        root_times_v: Tensor = stretched - k * w * (w * stretched).sum(-1, keepdim=True)
        return root_times_v.flatten(-2)


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
        """Symmetric square root of the covariance times v: ``(*, D p), (*, D p) -> (*, D p)``."""
        eta, v = (x.unflatten(-1, (-1, self.p)) for x in (z, v))
        kappa = eta.square().sum(-1).clamp(min=torch.finfo(z.dtype).tiny).sqrt()
        about = moments(kappa, self.p)
        along, across = (x.sqrt()[..., None] for x in (about.variance, about.across))
        r = eta / kappa[..., None]
        root_times_v: Tensor = across * v + (along - across) * (r * v).sum(-1, keepdim=True) * r
        return root_times_v.flatten(-2)


class Family(NamedTuple):
    """How a family of distributions is mapped to a space in which its Fisher metric is known."""

    coordinates: Callable[[Any], Tensor]  # of a law whose batch is (N, ...): (N, ...)
    space: Callable[[Any], Manifold | None] = lambda law: None  # noqa: ARG005 -- None where it is flat
    fixed: tuple[str, ...] = ()  # parameters that must not depend on z


def _angle(logits: Tensor) -> Tensor:
    """2 arcsin(sqrt(p)), the arc length of Bernoulli laws; by the logits its slope keeps all digits at both ends."""
    bound = _bound(logits)
    return 2 * torch.atan(torch.exp(logits.clamp(-bound, bound) / 2))


def _roots(logits: Tensor) -> Tensor:
    """2 sqrt(p) of classes: on the sphere of radius 2."""
    return 2 * torch.exp(logits.clamp(min=-_bound(logits)) / 2)


def _bound(logits: Tensor) -> float:
    """Beyond it metrics underflow, and subnormal numbers would slow a processor down 100 times."""
    return 1.8 * math.log(torch.finfo(logits.dtype).max)


def _arc(logits: Tensor) -> Tensor:
    """2 arsinh(sqrt(p / (1 - p))), the arc length of geometric laws, for failures of logits -logit(p)."""
    x = logits / 2
    large = x.clamp(min=0)
    large = large + torch.log(1 + torch.sqrt(1 + torch.exp(-2 * large)))
    return 2 * torch.where(x > 0, large, torch.asinh(torch.exp(x.clamp(max=0))))


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
    laws.Bernoulli: Family(lambda law: _angle(law.logits)),
    laws.Binomial: Family(lambda law: law.total_count.sqrt() * _angle(law.logits), fixed=("total_count",)),
    laws.Categorical: Family(lambda law: _roots(law.logits)),
    laws.OneHotCategorical: Family(lambda law: _roots(law.logits)),
    laws.Multinomial: Family(lambda law: math.sqrt(law.total_count) * _roots(law.logits)),
    laws.Poisson: Family(lambda law: 2 * _root(law.rate)),
    laws.Geometric: Family(lambda law: _arc(-law.logits)),
    laws.NegativeBinomial: Family(lambda law: law.total_count.sqrt() * _arc(law.logits), fixed=("total_count",)),
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
