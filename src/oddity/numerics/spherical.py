"""The von Mises-Fisher law on the unit sphere, with its moments by one quadrature for all dimensions."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints, register_kl
from torch.distributions.utils import lazy_property

from oddity.numerics.ambient import doors

__all__ = ["Moments", "VonMisesFisher", "moments"]

_NODES = {torch.float32: 64, torch.float64: 160}


class Moments(NamedTuple):
    """Of c = <loc, x> under the von Mises-Fisher law."""

    log_partition: Tensor  # log int exp(kappa (c - 1)) dx over the sphere
    mean: Tensor  # the Bessel ratio A_p(kappa) = I_{p/2}(kappa) / I_{p/2-1}(kappa)
    variance: Tensor  # A_p'(kappa), the variance along loc
    across: Tensor  # A_p(kappa) / kappa, the variance in each direction across loc


def moments(concentration: Tensor, p: int) -> Moments:
    """Moments of the von Mises-Fisher law on the unit sphere of R^p, p >= 2, at each concentration ``(*,)``.

    The law of u = 1 - c has the density exp(-kappa u) (u (2 - u))^((p - 3) / 2). With u = 2 / (1 + e^-x) it is smooth
    on the whole line and falls off on both sides, so that the trapezoidal rule, in a variable that stretches the
    tails, is exact up to rounding. Variances are sums of positive terms: nothing cancels, at any concentration, where
    1 - A^2 - (p - 1) A / kappa loses all digits.

    References
    ----------
    Mardia and Jupp, "Directional Statistics", 2000, section 9.3. The rule: Takahasi and Mori, 1974.

    Examples
    --------
    >>> kappa = torch.tensor(2.0, dtype=torch.float64)
    >>> round(float(moments(kappa, 3).mean), 6), round(float(1 / kappa.tanh() - 1 / kappa), 6)
    (0.537315, 0.537315)
    """
    half, kappa = (p - 1) / 2, concentration[..., None]
    with torch.no_grad():  # where the nodes lie does not change the value
        root = (half**2 + kappa**2).sqrt()
        gap = half * (1 + half / (root + kappa)) / (half + root)  # 1 - c at the mode
        mode = (gap / (2 - gap)).log()
    reach = math.asinh(26 / math.sqrt(half) + 5)
    nodes = _NODES.get(kappa.dtype, 64)
    t = torch.linspace(-reach, reach, nodes, dtype=kappa.dtype, device=kappa.device)
    x = mode + t.sinh() * math.sqrt(2 / half)
    u = 2 * torch.sigmoid(x)
    log_sine = math.log(4) + torch.nn.functional.logsigmoid(x) + torch.nn.functional.logsigmoid(-x)  # of squared sine
    log_weight = half * log_sine - kappa * u + t.cosh().log()
    log_sum = log_weight.logsumexp(-1)
    weight = (log_weight - log_sum[..., None]).exp()
    across = (weight * log_sine.exp()).sum(-1) / (p - 1)
    centred = u - (weight * u).sum(-1, keepdim=True)
    step = 2 * reach / (nodes - 1) * math.sqrt(2 / half)
    log_area = half * math.log(math.pi) - math.lgamma(half)  # half of the sphere of directions across: 2 du = sin^2 dx
    variance = (weight * centred.square()).sum(-1)
    return Moments(log_sum + math.log(step) + log_area, concentration * across, variance, across)


@doors
class VonMisesFisher(Distribution):
    """The von Mises-Fisher law on the unit sphere of R^p: density proportional to exp(concentration <loc, x>).

    Parameters
    ----------
    loc
        ``(*, p)``, unit vectors, p >= 2.
    concentration
        ``(*)``, not negative; zero is the uniform law.

    Raises
    ------
    ValueError
        If loc is no unit vector or the concentration is negative; as in all of ``torch.distributions``, only while
        ``validate_args`` holds.

    References
    ----------
    Mardia and Jupp, "Directional Statistics", 2000, section 9.3; sampling by Wood, 1994.

    Examples
    --------
    >>> law = VonMisesFisher(torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([2.0]))
    >>> law.mean
    tensor([[0.0000, 0.0000, 0.5373]])
    """

    arg_constraints = {"loc": constraints.real_vector, "concentration": constraints.nonnegative}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = False

    def __init__(self, loc: Tensor, concentration: Tensor, validate_args: bool | None = None) -> None:
        if loc.ndim < 1 or loc.shape[-1] < 2:
            raise ValueError(f"loc has shape {tuple(loc.shape)}; directions have shape (*, p) with p >= 2")
        shape = torch.broadcast_shapes(loc.shape[:-1], concentration.shape)
        self.loc, self.concentration = loc.expand(*shape, loc.shape[-1]), concentration.expand(shape)
        super().__init__(shape, loc.shape[-1:], validate_args=validate_args)
        off = (torch.linalg.vector_norm(loc.detach(), dim=-1) - 1).abs()
        if self._validate_args and bool((off > 1e-3).any()):
            raise ValueError(f"loc holds a vector of norm off one by {float(off.max()):.2g}; normalise it")

    def expand(self, batch_shape: Any, _instance: Any = None) -> VonMisesFisher:
        """The same law for a larger batch."""
        loc = self.loc.expand(*batch_shape, *self.event_shape)
        return VonMisesFisher(loc, self.concentration.expand(batch_shape), validate_args=False)

    @lazy_property
    def moments(self) -> Moments:
        """Moments of <loc, x>, each of the batch's shape."""
        return moments(self.concentration, self.event_shape[0])

    @property
    def mean(self) -> Tensor:
        """A_p(concentration) loc, ``(*, p)``: inside the ball."""
        return self.moments.mean[..., None] * self.loc

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density by the area of the sphere."""
        cosine = (self.loc * value).sum(-1)
        return self.concentration * (cosine - 1) - self.moments.log_partition

    def entropy(self) -> Tensor:
        """Entropy by the area of the sphere: highest, the log of the area, at concentration zero."""
        return self.moments.log_partition - self.concentration * (self.moments.mean - 1)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw by rejection: ``(*sample_shape, *, p)``, from PyTorch's global generator as all of its laws do."""
        shape, p = self._extended_shape(torch.Size(sample_shape)), self.event_shape[0]
        kappa, loc = self.concentration.expand(shape[:-1]), self.loc.expand(shape)
        cosine = _cosines(kappa.reshape(-1), p).reshape(kappa.shape)[..., None]
        across = torch.randn(shape, dtype=loc.dtype, device=loc.device)
        across = across - (across * loc).sum(-1, keepdim=True) * loc
        across = across / torch.linalg.vector_norm(across, dim=-1, keepdim=True)
        drawn: Tensor = cosine * loc + (1 - cosine.square()).clamp(min=0).sqrt() * across
        return drawn


def _cosines(kappa: Tensor, p: int) -> Tensor:
    """Draw <loc, x> by Wood's rejection: ``(N,) -> (N,)``."""
    b = (p - 1) / (2 * kappa + (4 * kappa.square() + (p - 1) ** 2).sqrt())
    x0 = (1 - b) / (1 + b)
    bound = kappa * x0 + (p - 1) * (1 - x0.square()).log()
    beta = torch.distributions.Beta(kappa.new_tensor((p - 1) / 2), kappa.new_tensor((p - 1) / 2))
    drawn, open_ = torch.empty_like(kappa), torch.arange(len(kappa), device=kappa.device)
    while len(open_):
        z = beta.sample(open_.shape)
        w = (1 - (1 + b[open_]) * z) / (1 - (1 - b[open_]) * z)
        log_ratio = kappa[open_] * w + (p - 1) * (1 - x0[open_] * w).log() - bound[open_]
        taken = log_ratio >= torch.rand_like(w).log()
        drawn[open_[taken]] = w[taken]
        open_ = open_[~taken]
    return drawn


@register_kl(VonMisesFisher, VonMisesFisher)  # type: ignore[untyped-decorator]
def _kl(p: VonMisesFisher, q: VonMisesFisher) -> Tensor:
    tilt = p.concentration[..., None] * p.loc - q.concentration[..., None] * q.loc
    shift = p.concentration - q.concentration  # the partitions are scaled by exp(-concentration)
    return (tilt * p.mean).sum(-1) - shift - p.moments.log_partition + q.moments.log_partition
