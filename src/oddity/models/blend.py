"""Decoders that are sure of themselves near the codes only: blended to the most uncertain law away from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributions as laws
from torch.distributions import Distribution

from oddity.models.rbf import k_means
from oddity.numerics.ambient import doors
from oddity.numerics.likelihood import Likelihood, parameters
from oddity.numerics.networks import plain
from oddity.numerics.spherical import VonMisesFisher

__all__ = ["EntropyBlend"]

_FAR = 10.0  # how many times more uncertain than at the centres, where a family's entropy has no bound
_SURE = 1000.0  # a centre's own law weighs so many times more than the most uncertain one

_NEGLIGIBLE = 60.0  # log odds below which nothing counts: subnormal numbers would slow a processor down 100 times

_Ceiling = Callable[[Tensor], float]

_HALF: dict[str, _Ceiling] = {"probs": lambda _: 0.5}
_UNIFORM: dict[str, _Ceiling] = {"probs": lambda probs: 1 / probs.shape[-1]}
_WIDE: dict[str, _Ceiling] = {"scale": lambda scale: _FAR * float(scale.max())}

#: The most uncertain law of each family: the parameters to blend and their value, by those at the centres.
_CEILINGS: dict[type[Distribution], dict[str, _Ceiling]] = {
    laws.Bernoulli: _HALF,
    laws.Binomial: _HALF,
    laws.ContinuousBernoulli: {"logits": lambda _: 0.0},  # the uniform law
    laws.Categorical: _UNIFORM,
    laws.OneHotCategorical: _UNIFORM,
    laws.Multinomial: _UNIFORM,
    laws.Beta: {"concentration1": lambda _: 1.0, "concentration0": lambda _: 1.0},
    laws.Dirichlet: {"concentration": lambda _: 1.0},
    laws.VonMises: {"concentration": lambda _: 1e-3},  # positive by its constraint
    VonMisesFisher: {"concentration": lambda _: 0.0},
    laws.Normal: _WIDE,
    laws.LogNormal: _WIDE,
    laws.Laplace: _WIDE,
    laws.Poisson: {"rate": lambda rate: _FAR * float(rate.max())},
    laws.NegativeBinomial: {"logits": lambda logits: float(logits.max()) + math.log(_FAR)},
    laws.Geometric: {"probs": lambda probs: float(probs.min()) / _FAR},
    laws.Exponential: {"rate": lambda rate: float(rate.min()) / _FAR},
}


@doors
class EntropyBlend(nn.Module):
    """A decoder whose law goes over to the most uncertain one of its family away from the codes.

    Each parameter becomes w(z) theta(z) + (1 - w(z)) theta_max with 1 / w = 1 + 1 / (1000 sum_k exp(-b |z - c_k|^2)),
    b = log(1000) / radius^2: the odds are 1000 to 1 at a centre c_k and even at one radius. The blend is smooth, keeps
    parameters within their range, and gives ``fisher_metric`` the wall around the data that a decoder alone lacks.

    Parameters
    ----------
    decoder
        z ``(N, d) ->`` a distribution, or in any other way of :func:`~oddity.fisher_metric`. It is left untouched.
    codes
        ``(n, d)``, the encoder's means: their k-means centres are where the decoder is trusted.
    n_centres
        At most so many.
    reach
        The radius in mean distances of a code to its centre.
    ceiling
        theta_max by name, e.g. ``{"scale": 5.0}``; other parameters stay as the decoder has them. Default by the
        family: probabilities 1/2 or 1/K, concentrations of Beta and Dirichlet laws 1, of directions 0. Where entropy
        has no bound: scales, Poisson rates and negative binomial means ten times the largest at the centres; geometric
        probabilities and exponential rates a tenth of the smallest.
    seed
        For k-means.
    **given
        What a conditional decoder takes beside z, as for :func:`~oddity.fisher_metric`.

    Raises
    ------
    ValueError
        If the codes are unusable, the family has no known ceiling and none is given, or it names no parameter.

    Notes
    -----
    Far away the law no longer changes and its metric vanishes: a curve that has paid for the wall travels there for
    free, and solvers crawl. Start from a ``Roadmap``, and add a ridge in plain sight, ``+ 0.1 * Euclidean()``. The wall
    of laws with bounded entropy is low: a Bernoulli output costs at most pi to switch, through one half or not.

    Detlefsen, Hauberg, Boomsma, "Learning meaningful representations of protein sequences", 2022, and Arvanitidis et
    al., "Pulling back information geometry", AISTATS 2022, blend by a sigmoid of the distance to the nearest centre;
    here its square and a smooth minimum, since geodesics need two derivatives.

    Examples
    --------
    >>> from torch.distributions import Bernoulli
    >>> codes = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    >>> blend = EntropyBlend(lambda z: Bernoulli(logits=torch.full((len(z), 1), 4.0)), codes, n_centres=10)
    >>> blend(torch.tensor([[0.0, 0.0], [9.0, 0.0]])).probs.detach()
    tensor([[0.9815],
            [0.5000]])
    """

    centres: Tensor
    radius: Tensor

    def __init__(
        self,
        decoder: Any,
        codes: Tensor,
        *,
        n_centres: int = 64,
        reach: float = 3.0,
        ceiling: Mapping[str, float] | None = None,
        seed: int = 0,
        **given: Any,
    ) -> None:
        super().__init__()
        if reach <= 0:
            raise ValueError(f"reach={reach:g}: it must be positive; it counts mean distances to the centres")
        centres, labels = k_means(codes, n_centres, seed=seed)
        radius = reach * torch.linalg.vector_norm(codes.detach() - centres[labels], dim=-1).mean()
        self.register_buffer("centres", centres)
        self.register_buffer("radius", radius if float(radius) > 0 else torch.ones_like(radius))
        self.decoder = decoder
        self._likelihood = Likelihood(decoder, given)
        networks = self._likelihood.modules
        self.behind = nn.ModuleList(x for x in networks if x is not decoder)  # of a method or a partial function
        # set, since train() would change the decoder's parts
        self.training = self.behind.training = any(network.training for network in networks)
        with torch.no_grad():
            law = plain(self._likelihood(centres))
        self.ceiling = _ceiling(law) if ceiling is None else dict(ceiling)
        unknown = [name for name in self.ceiling if name not in law.arg_constraints]
        if unknown:
            known = ", ".join(law.arg_constraints)
            raise ValueError(f"a {type(law).__name__} law has no parameter {unknown[0]!r} to blend; it has {known}")

    def weight(self, z: Tensor) -> Tensor:
        """w(z), how far the decoder is trusted: ``(*, d) -> (*,)``, near 1 at the codes, 0 far away."""
        odds = -math.log(_SURE) * (z[..., None, :] - self.centres).square().sum(-1) / self.radius.square()  # (*, K)
        near = odds.detach().amax(-1, keepdim=True)
        total = torch.logsumexp(odds.clamp(min=near - _NEGLIGIBLE), -1)
        return torch.sigmoid(math.log(_SURE) + total.clamp(min=-_NEGLIGIBLE))

    def forward(self, z: Tensor) -> Distribution:
        """The blended law: ``(N, d)``."""
        return self._blended(self._likelihood(z), self.weight(z))

    def _blended(self, law: Distribution, w: Tensor) -> Distribution:
        if isinstance(law, laws.Independent):
            return laws.Independent(self._blended(law.base_dist, w), law.reinterpreted_batch_ndims)
        by_probability = bool({"probs", "logits"} & set(self.ceiling))
        made = {} if by_probability else dict(parameters(law))
        if hasattr(law, "total_count"):
            made["total_count"] = law.total_count
        for name, highest in self.ceiling.items():
            value = getattr(law, name)
            share = w.reshape(-1, *[1] * (value.ndim - 1))
            made[name] = share * value + (1 - share) * highest
        kind: Callable[..., Distribution] = type(law)
        return kind(**made)


def _ceiling(law: Distribution) -> dict[str, float]:
    """Parameters of the most uncertain law of a family, by the law at the centres."""
    known = next((_CEILINGS[kind] for kind in type(law).__mro__ if kind in _CEILINGS), None)
    if known is None:
        raise ValueError(
            f"no most uncertain {type(law).__name__} law is known; say which parameters to blend to what, e.g. "
            f"ceiling={{{next(iter(parameters(law)))!r}: 10.0}}"
        )
    return {name: value(getattr(law, name)) for name, value in known.items()}
