"""The Fisher-Rao metric of a decoder's likelihood, for every family of distributions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, final

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from oddity.geometry.families import Family, family_of
from oddity.geometry.manifold import _POINTS_AT_A_TIME, Curving, Manifold
from oddity.geometry.pullback import Pullback, StochasticDecoder
from oddity.geometry.spaces import TensorField
from oddity.numerics.ambient import door
from oddity.numerics.autodiff import Differential
from oddity.numerics.chain import ChainModel
from oddity.numerics.likelihood import Likelihood, parameters, refuse_invalid, rows
from oddity.numerics.networks import plain

__all__ = ["FisherMetric", "fisher_metric"]

Decoder = Callable[..., Any] | StochasticDecoder


@door
def fisher_metric(decoder: Decoder, **given: Any) -> Manifold:
    """Fisher-Rao metric of a decoder's likelihood: how fast p(x | z) changes as z moves.

    G(z) = E[s s'] with s = d log p(x | z) / dz, the second-order expansion of the divergence:
    KL(p(. | z), p(. | z + v)) = v'Gv / 2 + O(|v|^3). It is the metric for decoders whose noise is not mean + std eps.

    Parameters
    ----------
    decoder
        z ``(N, d) ->`` a ``torch.distributions.Distribution`` whose batch, or batch and event, begins with N; in
        ``Independent`` or not. Or ``(mean, std)`` of a Normal law, or an object with ``mean(z)`` and ``std(z)``.
    **given
        What a conditional decoder takes beside z: label, batch, library size. A tensor of one row is repeated for
        every point.

    Returns
    -------
    Manifold
        Flat pullbacks, with all of their speed, for Bernoulli, Binomial, Categorical, OneHotCategorical, Multinomial,
        Poisson, Geometric, NegativeBinomial of fixed dispersion, and Exponential laws; pullbacks of a curved space in
        closed form for Normal, LogNormal, Laplace, MultivariateNormal, Gamma, Beta, Dirichlet, ContinuousBernoulli,
        VonMises and :class:`~oddity.VonMisesFisher` laws. For any other family the second derivative of its KL
        divergence, several times slower, which must be regular: it needs at least as many outputs as latent dimensions.

    Raises
    ------
    ValueError
        At once if the decoder cannot be called, is in training mode, quantised, or a whole autoencoder. At the first
        points if it gives no distribution, or one with invalid parameters, a dispersion that varies with z, or a family
        without a twice differentiable KL divergence.

    Notes
    -----
    Arvanitidis, Gonzalez-Duque, Pouplin, Kalatzis, Hauberg, "Pulling back information geometry", AISTATS 2022. Like
    every pullback it is only as good as the decoder away from the data: see :class:`~oddity.EntropyBlend`.

    Examples
    --------
    A biased coin: the metric of its logit is p (1 - p), and all coins together are half a circle of radius 1:

    >>> from torch.distributions import Bernoulli
    >>> coin = fisher_metric(lambda z: Bernoulli(logits=z))
    >>> coin.metric(torch.zeros(1)).tolist()
    [[0.25]]
    >>> round(float(coin.dist(torch.tensor([-20.0]), torch.tensor([20.0]))), 2)
    3.14
    >>> fisher_metric(lambda z, bias: Bernoulli(logits=z + bias), bias=torch.ones(1, 1)).metric(-torch.ones(1)).tolist()
    [[0.25]]
    """
    return FisherMetric(decoder, given)


@final
class FisherMetric(Manifold, rows=False):
    """What :func:`fisher_metric` returns: a pullback whose space is known once the decoder has shown its family."""

    def __init__(self, decoder: Decoder, given: Mapping[str, Any]) -> None:
        self._likelihood = Likelihood(decoder, given)
        self._likelihood.refuse()
        self._parameters = Differential(self._likelihood.of(_parameters))
        self._parameters.look()
        self._found: Manifold | None = None

    def at(self, z: Tensor) -> Manifold:
        """The pullback itself, found at the first points seen."""
        if self._found is None:
            self._parameters.check(z)
            first = z.reshape(-1, z.shape[-1])[:2].detach()
            law = plain(self._likelihood(first))
            family = family_of(law)
            found = self._kl_field(first) if family is None else self._pullback(family, law, first)
            if len(first) == 0:  # nothing could be held against it
                return found
            self._found = found
        return self._found

    def _pullback(self, family: Family, law: Distribution, z: Tensor) -> Manifold:
        for name in family.fixed:
            varying = Differential(self._likelihood.of(attrgetter(name))).frame(z)
            if bool((varying != 0).any()):
                raise ValueError(
                    f"{self._likelihood.name} gives a {type(law).__name__} law whose {name} varies with z, for which "
                    f"no Fisher metric is known; keep {name} fixed, e.g. one value an output"
                )
        return Pullback(self._likelihood.of(family.coordinates), family.space(law))

    def _kl_field(self, first: Tensor) -> Manifold:
        """The metric as the Hessian of the divergence by its second argument, held once against the divergence."""

        def divergence(pair: Tensor) -> Tensor:
            a, b = (plain(self._likelihood(x)) for x in pair.chunk(2, -1))
            return rows(kl_divergence(a, b)).sum(1, keepdim=True)

        differential = Differential(divergence)

        def metric(z: Tensor) -> Tensor:
            twice, d = z.repeat(1, 2), z.shape[-1]
            return differential.curvature(twice, twice.new_ones(len(twice), 1))[:, d:, d:]

        _refuse_rough(divergence, metric, first, type(plain(self._likelihood(first))).__name__)
        return TensorField(metric)

    def admit(self, z: Tensor, name: str = "z") -> None:
        """Refuse points that the decoder cannot map to a proper law, and a decoder in training mode."""
        super().admit(z, name)
        self._likelihood.refuse()
        self._parameters.check(z)
        self.at(z).admit(z, name)
        with torch.no_grad():
            for part in z.detach().reshape(-1, z.shape[-1]).split(_POINTS_AT_A_TIME):
                refuse_invalid(plain(self._likelihood(part)), self._likelihood.name)

    def _frames_in_memory(self, d: int) -> int:
        return super()._frames_in_memory(d) if self._found is None else self._found._frames_in_memory(d)

    def _gram(self, z: Tensor, dtype: torch.dtype) -> Tensor:
        return self.at(z)._gram(z, dtype)

    def push(self, z: Tensor, v: Tensor) -> Tensor:
        """Push of the pullback."""
        return self.at(z).push(z, v)

    def secant(self, a: Tensor, b: Tensor) -> Tensor:
        """Secant of the pullback."""
        return self.at(a).secant(a, b)

    def secants(self, c: Tensor) -> Tensor:
        """Secants of the pullback."""
        return self.at(c).secants(c)

    def _squares(self, c: Tensor, strides: tuple[int, ...]) -> list[Tensor]:
        return self.at(c)._squares(c, strides)

    def _rounding(self, z: Tensor) -> Tensor:
        return self.at(z)._rounding(z)

    def frame(self, z: Tensor) -> Tensor:
        """Frame of the pullback."""
        return self.at(z).frame(z)

    def chain_model(self, c: Tensor, widths: Tensor, *, exact: bool = False) -> ChainModel:
        """Model of the pullback."""
        return self.at(c).chain_model(c, widths, exact=exact)

    def _momentum(self, c: Tensor, widths: Tensor) -> tuple[Tensor, int]:
        return self.at(c)._momentum(c, widths)

    def force(self, z: Tensor, v: Tensor) -> Tensor:
        """Force of the pullback."""
        return self.at(z).force(z, v)

    def linear_curvature(self, z: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Linear curvature of the pullback."""
        return self.at(z).linear_curvature(z, u, v)

    def _metric_and_force(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.at(z)._metric_and_force(z, v)

    def _curving(self, z: Tensor, u: Tensor, v: Tensor) -> Curving:
        return self.at(z)._curving(z, u, v)

    @property
    def _is_dear(self) -> bool:
        return True

    def _sketch(self, z: Tensor, whiten: Tensor, tolerance: float) -> Manifold:
        return self.at(z)._sketch(z, whiten, tolerance)

    def __repr__(self) -> str:
        read = f", read as {self._likelihood.form}" if self._likelihood.form else ""
        return f"fisher_metric({self._likelihood.name}{read})"


def _parameters(law: Distribution) -> Tensor:
    numbers = [rows(value) for value in parameters(law).values()]
    return torch.cat(numbers, 1) if numbers else torch.zeros(law.batch_shape)[:, None]


def _refuse_rough(
    divergence: Callable[[Tensor], Tensor], metric: Callable[[Tensor], Tensor], z: Tensor, family: str
) -> None:
    """Hold the second derivative of the divergence against its second differences, once.

    A family without a KL divergence has none; where the support moves with the parameters, or a formula has a kink that
    automatic derivatives do not see, the two disagree.
    """
    advice = "give a family with a smooth divergence, or register one by torch.distributions.kl.register_kl"
    v = torch.linspace(1.0, 2.0, z.shape[-1], dtype=z.dtype, device=z.device).expand_as(z)
    try:
        expected = torch.einsum("nij,ni,nj->n", metric(z), v, v)
        for h in (0.1, 0.03, 0.01, 1e-3):
            ahead, behind = (divergence(torch.cat([z, z + s * h * v], -1))[:, 0] for s in (1, -1))
            if bool(((ahead + behind) / h**2 - expected).abs().le(0.1 * expected).all()):
                return
    except NotImplementedError:
        raise ValueError(f"PyTorch knows no KL divergence between two {family} laws; {advice}") from None
    raise ValueError(
        f"the KL divergence between two {family} laws is not twice differentiable where they meet, as a Fisher metric "
        f"needs; {advice}"
    )
