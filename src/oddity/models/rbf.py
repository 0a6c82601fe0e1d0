"""The RBF precision network: a decoder's noise that is small at the codes and grows away from them.

The paper's second ingredient. An ordinary network extrapolates its standard deviation arbitrarily; here the
*precision* is a sum of positive bumps, so it can only fall off the data, and the standard deviation can
only grow, up to ``zeta ** -0.5``. Its gradient is the wall that keeps geodesics near the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

from oddity.models.checks import check_positive, check_seed, check_whole
from oddity.numerics.ambient import doors
from oddity.numerics.expansion import ClosedForm, Expansion, PulledValue, along, gram, scaled
from oddity.numerics.stages import Stage, largest_exponent

#: The precision infinitely far from the data: a largest standard deviation of 10, an order of magnitude
#: above any error on data in [0, 1]. A smaller value makes a higher wall and a stiffer metric.
DEFAULT_ZETA = 1e-2

#: Standard deviation of the observation noise: no decoder of this library promises more than two digits of
#: data of unit size, which also keeps the precision of a constant pixel finite.
DEFAULT_MIN_STD = 1e-2

#: Centres and their reach, where one of the two is given and not the other.
DEFAULT_CENTRES, DEFAULT_A = 64, 2.0

_TOO_SMALL = 0.1  # a cluster radius below this share of the median radius is raised to it
_BLOCK = 1 << 20  # numbers in one (rows, outputs) block of the likelihood: 4 MB in float32


@dataclass(frozen=True)
class Wall:
    """The ring of high metric around a bump of precision.

    Attributes
    ----------
    radius : float
        Distance from the centre at which the metric is highest.
    height : float
        The radial metric there.
    crossing_cost : float
        Length of a radial path from the centre to infinity: what one crossing costs.
    """

    radius: float
    height: float
    crossing_cost: float


def predict_wall(
    zeta: float, weight: float, bandwidth: float, out_features: int, sigma_data: float | None = None
) -> Wall:
    r"""Predict the wall around one centre with equal outputs, in closed form.

    With ``beta(r) = weight exp(-bandwidth r^2) + zeta`` in each of the D outputs, the radial metric is
    ``D (d sigma / dr)^2 = D bandwidth^2 r^2 t^2 / ((1 + t)^3 zeta)``, ``t = (beta - zeta) / zeta``. The factor
    in t peaks at t = 2 with value 4/27, which gives ``r* = sqrt(ln(weight / (2 zeta)) / bandwidth)`` and the
    height ``4/27 bandwidth^2 r*^2 D / zeta``. The cost ``sqrt(D) (zeta^-1/2 - sigma_data)`` is exact.

    Parameters
    ----------
    zeta, weight, bandwidth : float
        The network's constants, positive, with ``weight > 2 zeta`` (below that no ring forms).
    out_features : int
        The number of outputs D.
    sigma_data : float, optional
        The standard deviation at the data; by default the one at the centre, ``(weight + zeta) ** -0.5``.

    Returns
    -------
    Wall

    Raises
    ------
    ValueError
        When a constant is not positive, or the weight is too small for a wall.

    References
    ----------
    The wall of Arvanitidis et al. 2018, section 4; beyond it the metric vanishes.

    Examples
    --------
    >>> wall = predict_wall(zeta=1e-2, weight=100.0, bandwidth=2.0, out_features=784)
    >>> round(wall.radius, 2), round(wall.crossing_cost)
    (2.06, 277)
    """
    if min(zeta, weight, bandwidth, out_features) <= 0:
        raise ValueError(
            f"zeta={zeta:g}, weight={weight:g}, bandwidth={bandwidth:g}, out_features={out_features}: "
            "all four must be positive"
        )
    if weight <= 2 * zeta:
        raise ValueError(f"no wall forms with weight={weight:g} at zeta={zeta:g}: choose zeta below weight / 2")
    if sigma_data is None:
        sigma_data = (weight + zeta) ** -0.5
    radius = math.sqrt(math.log(weight / (2 * zeta)) / bandwidth)
    return Wall(
        radius=radius,
        height=4 / 27 * bandwidth**2 * radius**2 * out_features / zeta,
        crossing_cost=math.sqrt(out_features) * (zeta**-0.5 - sigma_data),
    )


def bandwidths(z: Tensor, centres: Tensor, labels: Tensor, a: float) -> Tensor:
    r"""Return one bandwidth per cluster, ``lambda_k = 1/2 (a mean_{j in C_k} |z_j - c_k|)^-2``.

    The mean is of the *distance*, not of its square: lambda has the unit of z^-2. A cluster whose codes all
    coincide (one code, or none) has no radius of its own and takes the median radius of the others, or 1,
    the prior's scale, when no cluster has one. A radius below a tenth of the median is raised to that.

    Parameters
    ----------
    z : Tensor
        Codes (n, d).
    centres : Tensor
        Cluster centres (K, d).
    labels : Tensor
        The cluster of each code (n,), integers in 0..K-1.
    a : float
        How far a bump reaches, in radii of its cluster; larger is flatter.

    Returns
    -------
    Tensor
        (K,), positive and finite, in the dtype of ``z``.

    References
    ----------
    Arvanitidis et al. 2018, section 4 (the RBF variance network).

    Examples
    --------
    >>> z = torch.tensor([[-3.0], [-1.0], [1.0], [3.0]])
    >>> bandwidths(z, torch.tensor([[-2.0], [2.0]]), torch.tensor([0, 0, 1, 1]), a=2.0)
    tensor([0.1250, 0.1250])
    """
    check_positive(a=a)
    wide = z.detach().double()
    distance = (wide - centres.detach().double()[labels]).norm(dim=-1)  # (n,)
    count = torch.bincount(labels, minlength=len(centres))  # (K,)
    total = distance.new_zeros(len(centres)).index_add(0, labels, distance)
    radius = total / count.clamp(min=1)
    rounding = 8 * torch.finfo(z.dtype).eps * wide.abs().max()
    alone = radius <= rounding
    typical = radius[~alone].median() if not alone.all() else radius.new_tensor(1.0)
    radius = torch.where(alone, typical, radius).clamp(min=_TOO_SMALL * float(typical))
    return (0.5 * (a * radius) ** -2).to(z.dtype)


def k_means(z: Tensor, n_centres: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Centres of the codes ``(n, d)`` by k-means, and the centre of each code: ``(K, d), (n,)``.

    There are at most ``n_centres`` centres, and no more than distinct codes. The global random state is left alone.

    Raises
    ------
    ValueError
        When the codes are not a finite (n, d) tensor with n >= 1, ``n_centres`` < 1, or the seed is none.
    """
    check_codes(z)
    check_whole(n_centres=n_centres)
    check_seed(seed)
    rows = z.detach().double().cpu().numpy()
    n_centres = min(n_centres, len(np.unique(rows, axis=0)))
    found = KMeans(n_centres, n_init=4, random_state=seed).fit(rows)
    labels = torch.as_tensor(found.labels_, dtype=torch.long, device=z.device)
    return torch.from_numpy(found.cluster_centers_).to(z), labels


def placed(z: Tensor, n_centres: int, a: float, seed: int) -> tuple[Tensor, Tensor]:
    """Centres by k-means on the codes, and one bandwidth per cluster: (n, d) -> (K, d), (K,)."""
    centres, labels = k_means(z, n_centres, seed=seed)
    return centres, bandwidths(z, centres, labels, a)


@doors
class PrecisionNetwork(nn.Module):
    r"""A standard deviation ``beta(z)^{-1/2}`` whose precision ``beta(z) = W v(z) + zeta`` is linear in activations.

    The activations v(z), each from 0 to 1, say near which data a code is; the weight ``W >= 0``, (D, K), says how
    precise each output is there, and :class:`WeightLikelihood` finds it. Calling the module returns the **standard
    deviation**, never the precision: mistaking one for the other turns the wall into a well.
    """

    centres: Tensor
    zeta: Tensor
    weight: Tensor

    def check(self) -> None:
        """Check what was loaded as the constructor checks what it is given.

        Raises
        ------
        ValueError
            When a constant is not positive and finite, or a weight is negative.
        """
        full_zeta(self.zeta, self.out_features)
        for name, weight in self.named_parameters():
            if (least := float(weight.detach().min())) < 0:
                raise ValueError(f"{name} of the bumps holds {least:g}: weights must not be negative")

    @property
    def out_features(self) -> int:
        """The number of outputs D."""
        return len(self.weight)

    def activations(self, z: Tensor) -> Tensor:
        """Return the activations v(z): (*, d) -> (*, K)."""
        raise NotImplementedError

    def overlap(self) -> Tensor:
        """How many activations there are, in sum, where each one is highest: (K,)."""
        raise NotImplementedError

    def precision(self, z: Tensor) -> Tensor:
        """Return ``beta(z) = W v(z) + zeta``: (*, d) -> (*, D)."""
        return nn.functional.linear(self.activations(z), self.weight, self.zeta)

    def std(self, z: Tensor) -> Tensor:
        """Return the standard deviation ``beta(z)^{-1/2}``: (*, d) -> (*, D)."""
        return self.precision(z).rsqrt()

    def forward(self, z: Tensor) -> Tensor:
        """Return the standard deviation, as :meth:`std`: (*, d) -> (*, D)."""
        return self.std(z)

    @property
    def expand_std(self) -> ClosedForm:
        """The expansion of :meth:`std` to second order in closed form, (N, d)."""
        return _StdForm(self)

    def _expand_std(self, z: Tensor) -> Expansion:
        """Value, frame, bend and second derivatives: (N, d)."""
        raise NotImplementedError

    def _pulling_std(self, z: Tensor) -> PulledValue:
        """The standard deviation (N, D), and the map w -> J'w: (N, D) -> (N, d)."""
        raise NotImplementedError

    def _std_stages(self) -> list[Stage]:
        """The standard deviation as a row of stages."""
        raise NotImplementedError

    def _bare(self, zeta: Tensor) -> PrecisionNetwork:
        """A network with the same activations, for as many outputs as there are in zeta, its weight all ones."""
        raise NotImplementedError

    def _away(self, z: Tensor) -> Tensor:
        """Return ``z - c_k``, the axes first: (N, d) -> (d, N, K)."""
        return z.mT.contiguous()[:, :, None] - self.centres.mT.contiguous()[:, None]

    def std_jacobian(self, z: Tensor) -> Tensor:
        """Return the Jacobian of :meth:`std` in closed form: (*, d) -> (*, D, d)."""
        frame = self.expand_std(z.reshape(-1, z.shape[-1])).frame
        return frame.permute(1, 2, 0).reshape(*z.shape[:-1], self.out_features, z.shape[-1])

    def wall(self) -> Wall:
        """Estimate the wall around the data."""
        raise NotImplementedError

    @torch.no_grad()
    def begin(self, wanted: Tensor) -> None:
        """Set the weight: (D, K)."""
        self.weight.copy_(wanted)

    @torch.no_grad()
    def improve(self, gain: Tensor, loss: Tensor, largest: float) -> None:
        """Multiply the weight by gain / loss, each (D, K), and keep it from 0 to ``largest``."""
        self.weight.copy_(self._without_dust((self.weight.double() * gain / loss).clamp(max=largest)))

    def _without_dust(self, weight: Tensor) -> Tensor:
        """The weight without what is below rounding next to zeta, whose product with a bump could be subnormal."""
        dust = weight < torch.finfo(self.zeta.dtype).eps * self.zeta[:, None]
        return weight.masked_fill(dust, 0)


@doors
class RBFPrecision(PrecisionNetwork):
    r"""A standard deviation whose inverse square is a positive sum of Gaussian bumps.

    ``beta(z) = W v(z) + zeta``, ``v_k(z) = exp(-lambda_k |z - c_k|^2)``, ``W >= 0``, and
    ``std(z) = beta(z)^{-1/2}``. Calling the module returns the **standard deviation**, never the precision.

    Activations are bounded below near 1e-17 in float32 (1e-139 in float64), so that neither they nor their
    squares are subnormal numbers, which would slow a processor down 10 to 100 times. The bound adds at
    most ``K max(W)`` times that to the precision, below rounding for all but the smallest zeta; there the gradient is
    zero.

    Parameters
    ----------
    centres : Tensor
        (K, d), a buffer.
    bandwidths : Tensor
        The lambda_k, (K,), positive, a buffer.
    out_features : int
        The number of outputs D. The weight W is a parameter (D, K), at first all ones.
    zeta : float or Tensor
        Positive, scalar or (D,): the precision far away, so that ``zeta ** -0.5`` is the largest standard
        deviation.

    Raises
    ------
    ValueError
        When shapes disagree or a constant is not positive and finite.

    References
    ----------
    Arvanitidis et al. 2018, section 4 (the RBF variance network).

    Examples
    --------
    >>> rbf = RBFPrecision(torch.zeros(1, 2), torch.tensor([0.5]), out_features=3, zeta=0.25)
    >>> rbf.std(torch.tensor([[0.0, 0.0], [9.0, 0.0]])).detach()
    tensor([[0.8944, 0.8944, 0.8944],
            [2.0000, 2.0000, 2.0000]])
    """

    bandwidths: Tensor

    def __init__(
        self, centres: Tensor, bandwidths: Tensor, out_features: int, *, zeta: float | Tensor = DEFAULT_ZETA
    ) -> None:
        super().__init__()
        check_bumps(centres, bandwidths, out_features)
        self.register_buffer("centres", centres.detach().clone())
        self.register_buffer("bandwidths", bandwidths.detach().to(centres.dtype).clone())
        self.register_buffer("zeta", full_zeta(zeta, out_features).to(centres))
        self.weight = nn.Parameter(centres.new_ones(out_features, len(centres)))

    def check(self) -> None:
        """Check what was loaded as the constructor checks what it is given.

        Raises
        ------
        ValueError
            When a constant is not positive and finite, or a weight is negative.
        """
        check_bumps(self.centres, self.bandwidths, self.out_features)
        super().check()

    def activations(self, z: Tensor) -> Tensor:
        """Return the bumps ``v_k(z) = exp(-lambda_k |z - c_k|^2)``: (*, d) -> (*, K)."""
        return torch.exp(-self._exponent(z).clamp(max=largest_exponent(z.dtype)))

    def overlap(self) -> Tensor:
        """How many bumps there are, in sum, at each centre: (K,)."""
        return self.activations(self.centres).sum(1)

    def _expand_std(self, z: Tensor) -> Expansion:
        r"""Value, frame, bend and second derivatives of the standard deviation: (N, d).

        With ``u = z - c_k``: ``d beta/dz = -2 W diag(lambda v) u'``, ``J = -1/2 beta^{-3/2} o d beta/dz``, and the
        Hessian of ``<w, std>`` is ``3/4 d beta' diag(w beta^{-5/2}) d beta - 1/2 sum_k (W' w beta^{-3/2})_k H_k`` with
        ``H_k = 2 lambda_k v_k (2 lambda_k u u' - I)`` the Hessian of the bump; along p and q the second derivative is
        ``3 beta^{1/2} (J p) (J q) - 1/2 beta^{-3/2} W (p' H q)``.
        """
        away = self._away(z)  # (d, N, K)
        v, slope = self._bumps(self._exponent_of(away))
        precision = nn.functional.linear(v, self.weight, self.zeta)  # (N, D)
        std = precision.rsqrt()
        frame = scaled((slope * away) @ self.weight.mT, std / precision)  # (d, N, D)

        def bend(w: Tensor) -> Tensor:
            outer = gram((3 * w / std) * frame, frame)  # (N, d, d)
            share = (w * std / precision) @ self.weight * slope  # (N, K)
            curved = gram((2 * share * self.bandwidths) * away, away)
            return outer - curved + torch.diag_embed(share.sum(-1, keepdim=True).expand(-1, len(away)))

        def second(p: Tensor, q: Tensor) -> Tensor:
            across = 2 * self.bandwidths * along(away, p) * along(away, q) - (p * q).sum(-1, keepdim=True)  # (k, N, K)
            curved = (slope * across) @ self.weight.mT
            return 3 * along(frame, p) * along(frame, q) / std - curved * (std / precision)

        return Expansion(std, frame, bend, second)

    def _bumps(self, exponent: Tensor) -> tuple[Tensor, Tensor]:
        """The bumps v, and lambda v where they are not cut off: (N, K) -> (N, K) twice."""
        bound = largest_exponent(exponent.dtype)
        v = torch.exp(-exponent.clamp(max=bound))
        return v, self.bandwidths * v * (exponent <= bound)

    def _pulling_std(self, z: Tensor) -> PulledValue:
        """The standard deviation (N, D), and the map w -> J'w: (N, D) -> (N, d)."""
        v, slope = self._bumps(self._exponent(z))
        std = nn.functional.linear(v, self.weight, self.zeta).rsqrt()
        origin = self.centres[0]  # differences of near places: no digits are lost far from zero

        def pulled(w: Tensor) -> Tensor:
            share = (w * std).mul_(std).mul_(std) @ self.weight * slope  # (N, K)
            return share.sum(-1, keepdim=True) * (z - origin) - share @ (self.centres - origin)

        return std, pulled

    def wall(self) -> Wall:
        """Estimate the wall of a typical centre, from the median bandwidth and the mean std at the centres.

        A one-centre picture (:func:`predict_wall`): with overlapping bumps the true wall lies further out.

        Raises
        ------
        ValueError
            When the precision at the centres is too close to zeta for a wall.

        Examples
        --------
        >>> rbf = RBFPrecision(torch.zeros(1, 2), torch.tensor([2.0]), out_features=784, zeta=1e-2)
        >>> round(rbf.wall().radius, 2), round(rbf.wall().crossing_cost)
        (1.4, 252)
        """
        zeta = float(self.zeta.mean())
        sigma = float(self.std(self.centres).detach().mean())
        return predict_wall(
            zeta, sigma**-2 - zeta, float(self.bandwidths.median()), self.out_features, sigma_data=sigma
        )

    def _exponent(self, z: Tensor) -> Tensor:
        """Return ``lambda_k |z - c_k|^2``: (*, d) -> (*, K)."""
        return self._exponent_of(self._away(z.reshape(-1, z.shape[-1]))).reshape(*z.shape[:-1], len(self.centres))

    def _exponent_of(self, away: Tensor) -> Tensor:
        return self.bandwidths * away.square().sum(0)

    def _std_stages(self) -> list[Stage]:
        bumps = Stage(self.centres.mT, activation="bump", rate=self.bandwidths)
        return [bumps, Stage(self.weight.mT, self.zeta, "root")]

    def _bare(self, zeta: Tensor) -> PrecisionNetwork:
        return RBFPrecision(self.centres, self.bandwidths, len(zeta), zeta=zeta)

    @classmethod
    def from_codes(
        cls,
        z: Tensor,
        out_features: int,
        *,
        n_centres: int = 64,
        a: float = 2.0,
        zeta: float | Tensor = DEFAULT_ZETA,
        seed: int = 0,
    ) -> Self:
        """Place the centres by k-means on the codes, with one bandwidth per cluster; W stays all ones.

        Parameters
        ----------
        z : Tensor
            The codes (n, d), usually the encoder's means.
        out_features : int
            The number of outputs D.
        n_centres : int
            At most this many centres; no more than there are distinct codes.
        a, zeta
            See :func:`bandwidths` and :class:`RBFPrecision`.
        seed : int
            For k-means; the global random state is left alone.

        Raises
        ------
        ValueError
            When the codes are not a finite (n, d) tensor with n >= 1, or ``n_centres`` < 1.

        Examples
        --------
        >>> z = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> rbf = RBFPrecision.from_codes(z, out_features=5, n_centres=8)
        >>> rbf.centres.shape, rbf.weight.shape
        (torch.Size([8, 2]), torch.Size([5, 8]))
        """
        return cls(*placed(z, n_centres, a, seed), out_features, zeta=zeta)


class WeightLikelihood:
    r"""The maximum-likelihood problem for W on fixed codes, and its step-size-free update.

    Over codes ``z_n`` with squared residuals ``r_nd^2`` the negative log-likelihood (per output d, constants
    aside) is ``1/2 sum_n (beta_nd r_nd^2 - log beta_nd)`` with ``beta = W v + zeta``: convex in W. The update:

    ``W_dk <- W_dk [sum_n v_nk / beta_nd] / [sum_n v_nk r_nd^2]``.

    It never lowers the likelihood. With ``q_k = W_k v_k / beta`` and ``q_0 = zeta / beta`` at the old W, Jensen
    gives ``log beta' >= sum_k q_k log(W'_k v_k / q_k) + q_0 log(zeta / q_0)``, with equality at ``W' = W``; the
    bound separates over W', and the update is its exact maximum. It also keeps ``W >= 0``: an
    expectation-maximisation step, in which zeta is a component whose weight is held.

    ``W <= min_std^-2`` is kept too, by clipping (the bound that the update maximises is concave in each weight,
    so the clipped update never lowers the likelihood either): no bump alone promises more precision than the
    observation noise allows, even at a centre where no code lies.

    ``r^2`` counts the observation noise: ``r^2 = |x - mean|^2 + min_std^2``, so that an output with no
    residual at all (a constant pixel) ends at the precision ``min_std^-2`` and not at infinity.

    The codes are kept, their activations are computed anew in every pass, and the residuals enter once,
    through their moments: memory is (n, d) + (D, K), whatever n times D.

    Parameters
    ----------
    rbf : PrecisionNetwork
        The network; :meth:`start` and :meth:`step` write its weight.
    min_std : float
        Standard deviation of the observation noise, positive.
    reduce : callable
        Sums a tensor over processes; the identity by default.

    Examples
    --------
    >>> rbf = RBFPrecision(torch.zeros(1, 1), torch.tensor([1.0]), 1, zeta=1e-3)
    >>> problem = WeightLikelihood(rbf, min_std=1e-6)
    >>> problem.add(torch.zeros(4, 1), torch.full((4, 1), 0.25))
    >>> problem.start()
    >>> for _ in range(20):
    ...     value = problem.step()
    >>> round(float(rbf.std(torch.zeros(1, 1)).detach()), 3)  # the residuals' own standard deviation
    0.5
    """

    def __init__(
        self, rbf: PrecisionNetwork, min_std: float, reduce: Callable[[Tensor], Tensor] = lambda total: total
    ) -> None:
        if min_std <= 0:
            raise ValueError(f"min_std={min_std:g}: the observation noise must be positive")
        self._rbf, self._noise, self._reduce = rbf, min_std**2, reduce
        self._one = rbf.weight.shape[1] == 1  # activation of each code, which takes no room
        self._codes: list[Tensor] = []  # or what they activate, if it is one number
        weight = rbf.weight.detach()
        self._moment = torch.zeros_like(weight, dtype=torch.float64)  # sum_n v_nk r_nd^2, (D, K)
        self._residual = torch.zeros_like(weight[:, 0], dtype=torch.float64)  # sum_n r_nd^2, (D,)
        self._mass = torch.zeros_like(weight[0], dtype=torch.float64)  # sum_n v_nk, (K,)
        self._count = self._mass.new_zeros(())
        self._summed = False

    @torch.no_grad()
    def add(self, z: Tensor, squared_residuals: Tensor) -> None:
        """Add codes (n, d) with their squared residuals (n, D), observation noise not included."""
        assert not self._summed, "the sums are closed"
        v = self._rbf.activations(z)  # (n, K)
        r2 = squared_residuals + self._noise  # (n, D)
        self._codes.append(v if self._one else z.detach())
        self._moment += (r2.T @ v).double()
        self._residual += r2.sum(0).double()
        self._mass += v.sum(0).double()
        self._count += len(z)

    @torch.no_grad()
    def start(self) -> None:
        """Set W so that beta at each centre is about the inverse residual variance around that centre."""
        self._sum_over_processes()
        local = self._mass / self._moment  # (D, K)
        self._rbf.begin(local / self._rbf.overlap().double())  # below 1 / noise, as the local variance is above it

    @torch.no_grad()
    def step(self) -> float:
        """Update W once; return the mean log-likelihood per code that W had before."""
        self._sum_over_processes()
        rbf = self._rbf
        gain = torch.zeros_like(self._moment)  # sum_n v_nk / beta_nd, (D, K)
        log_det = torch.zeros_like(self._count)
        for v in self._blocks():
            beta = nn.functional.linear(v, rbf.weight, rbf.zeta)  # (n, D)
            log_det += beta.log().sum(dtype=torch.float64)
            gain += (beta.reciprocal_().T @ v).double()
        gain, log_det = self._reduce(gain), self._reduce(log_det)
        value = self._value(log_det)
        rbf.improve(gain, self._moment, 1 / self._noise)
        return value

    def climb(self, epochs: int, done: int = 0) -> Iterator[tuple[int, float]]:
        """Start, unless epochs are done already, and step; yield each epoch, from 1, with :meth:`step`'s value."""
        if not done:
            self.start()
        for epoch in range(done, epochs):
            yield epoch + 1, self.step()

    def _value(self, log_det: Tensor) -> float:
        weight, zeta = self._rbf.weight.double(), self._rbf.zeta.double()
        square = (weight * self._moment).sum() + zeta @ self._residual
        constant = math.log(2 * math.pi) * self._rbf.out_features
        return float(0.5 * ((log_det - square) / self._count - constant))

    def _blocks(self) -> Iterator[Tensor]:
        """Yield the activations (rows, K) of so many codes that (rows, D) stays small."""
        rows = max(1, _BLOCK // self._rbf.out_features)
        for codes in self._codes:
            for some in codes.split(rows):
                yield some if self._one else self._rbf.activations(some)

    def _sum_over_processes(self) -> None:
        """Sum the moments over processes, once: the first start or step ends the adding."""
        if self._summed:
            return
        self._moment, self._residual = self._reduce(self._moment), self._reduce(self._residual)
        self._mass, self._count = self._reduce(self._mass), self._reduce(self._count)
        self._summed = True


class _StdForm:
    """The closed form of the standard deviation."""

    def __init__(self, network: PrecisionNetwork) -> None:
        self.network = network

    def __call__(self, z: Tensor) -> Expansion:
        return self.network._expand_std(z)

    def values(self, z: Tensor) -> Tensor:
        return self.network.std(z)

    def pulling(self, z: Tensor) -> PulledValue:
        return self.network._pulling_std(z)

    def _stages(self) -> list[Stage]:
        return self.network._std_stages()

    def outputs(self, index: Tensor) -> _StdForm:
        whole = self.network
        part = whole._bare(whole.zeta[index])
        with torch.no_grad():
            part.weight.copy_(whole.weight[index])
        return _StdForm(part)


def check_codes(z: Tensor) -> None:
    """Refuse what are no codes, or not finite."""
    if z.ndim != 2 or len(z) < 1 or not bool(torch.isfinite(z).all()):
        raise ValueError(f"codes of shape {tuple(z.shape)}: pass finite codes of shape (n, d) with n >= 1")


def full_zeta(zeta: float | Tensor, out_features: int) -> Tensor:
    """One zeta for each output, (D,), or say what is wrong with it."""
    full = zeta.double() if isinstance(zeta, Tensor) else torch.as_tensor(zeta, dtype=torch.float64, device="cpu")
    if full.shape not in [(), (out_features,)]:
        raise ValueError(f"zeta of shape {tuple(full.shape)}: pass a number, or one for each of {out_features} outputs")
    if len(bad := full[~((full > 0) & full.isfinite())].flatten()):
        raise ValueError(f"zeta={bad[0].item()}: pass a positive number, or one for each of the {out_features} outputs")
    return full.expand(out_features).clone()


def check_bumps(centres: Tensor, bandwidths: Tensor, out_features: int) -> None:
    """Refuse centres and bandwidths that do not belong together, or no precision can be made of."""
    if centres.ndim != 2 or centres.shape[0] < 1 or bandwidths.shape != centres.shape[:1]:
        raise ValueError(
            f"centres of shape {tuple(centres.shape)} with bandwidths of shape {tuple(bandwidths.shape)}: "
            "pass (K, d) and (K,) with K >= 1"
        )
    if not bool(((bandwidths > 0) & bandwidths.isfinite()).all()) or not bool(centres.isfinite().all()):
        k = int((~(bandwidths > 0) | ~bandwidths.isfinite() | ~centres.isfinite().all(1)).nonzero()[0])
        raise ValueError(
            f"bump {k} has bandwidth {bandwidths[k].item():g} and centre {centres[k].tolist()}: bandwidths must be "
            "positive and finite, and centres finite"
        )
    check_whole(out_features=out_features)
