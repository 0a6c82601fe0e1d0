"""Noise that knows where the data end: a standard deviation that grows with the distance from the ways between data.

A precision that is a sum of bumps, as the paper's, is flat for two or three reaches around each bump and then falls off
a cliff: wide bumps fill the gaps between strands of data, narrow ones put walls between neighbours. Here the bumps
overlap along the ways between neighbouring data, with weights that make their sum even there, and the standard
deviation is about linear in the distance that the logarithm of the sum tells.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import numpy as np
import torch
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from oddity.models.checks import check_positive, check_seed
from oddity.models.rbf import (
    DEFAULT_MIN_STD,
    DEFAULT_ZETA,
    PrecisionNetwork,
    Wall,
    check_bumps,
    check_codes,
    full_zeta,
    placed,
)
from oddity.models.skeleton import Bumps, Skeleton, bumps_along, shortcuts, skeleton
from oddity.numerics.ambient import doors
from oddity.numerics.expansion import Expansion, PulledValue, gram
from oddity.numerics.stages import Stage, largest_exponent

__all__ = ["DistanceScale"]

_ONSET, _RATE = 1.0, 6.0  # depth at which the distance begins, and how soon
_FAR, _FAR_RATE = 22.0, 3.0  # depth at which the last rise begins
_BOTTOM = 30.0  # no place is deeper
_FAINT = math.exp(-12.0)  # the weight of wide bumps: what is left of a narrow one five reaches away
_WIDE, _WIDE_REACH = 16, 2.0  # how many of them, and their reach in radii of their cluster
_NODES = 500  # of the skeleton
_BUMPS = 1000  # along it, at most
_REACHES = 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6  # in spacings: the first one that keeps held-out codes inside
_INSIDE = 0.98  # so many of them
_HELD_OUT = 5  # every so many codes are
_DEARER = 1.75  # times the way around, a shortcut across a gap
_MOST = 0.75  # of the shortcuts at least
_LEAST_GROWTH, _GREATEST_GROWTH = 100.0, 4000.0
_NUMBERS = 1 << 24  # in one block of ways from bumps


@doors
class DistanceScale(PrecisionNetwork):
    r"""A standard deviation that is even along the data and grows about linearly with the distance from them.

    With the depth ``y(z) = -log(sum_k w_k exp(-lambda_k |z - c_k|^2) + e^-30)``, zero along the data and about
    ``|z - c|^2 / (2 reach^2)`` off them, and ``s(y; r) = log(1 + e^(r y)) / r``,

    ``beta(z) = W v(z) + zeta``, ``v(z) = 1 / (1 + growth s(y - 1; 6) + last s(y - 22; 3))``, ``std = beta^{-1/2}``:

    ``W^{-1/2}`` along the data, ``(growth y / W)^{1/2}`` off them, linear in the distance, ``zeta^{-1/2}`` far away.

    Parameters
    ----------
    centres : Tensor
        (K, d), a buffer.
    bandwidths, mixture : Tensor
        The lambda_k and w_k, (K,), positive, buffers.
    out_features : int
        The number of outputs D. The weight W is a parameter (D, 1), at first all ones.
    growth, last : float
        How fast the variance grows, and grows in the end, positive.
    zeta : float or Tensor
        Positive, scalar or (D,): the precision far away, so that ``zeta ** -0.5`` is the largest standard deviation.

    Raises
    ------
    ValueError
        When shapes disagree or a constant is not positive and finite.

    References
    ----------
    The place of the RBF network of Arvanitidis et al. 2018, section 4. A variance that depends on a soft distance to
    the data: Detlefsen, Jorgensen, Hauberg, "Reliable training and estimation of variance networks", 2019, section 3.3.

    Examples
    --------
    >>> one = torch.ones(1)
    >>> scale = DistanceScale(torch.zeros(1, 2), one / 2, one, out_features=3, growth=100.0, zeta=0.01)
    >>> [round(float(scale.std(torch.tensor([r, 0.0]))[0].detach()), 1) for r in (0.0, 2.0, 4.0, 99.0)]
    [1.0, 7.1, 9.4, 10.0]
    """

    bandwidths: Tensor
    mixture: Tensor
    profile: Tensor

    def __init__(
        self,
        centres: Tensor,
        bandwidths: Tensor,
        mixture: Tensor,
        out_features: int,
        *,
        growth: float = _LEAST_GROWTH,
        last: float = 1e6,
        zeta: float | Tensor = DEFAULT_ZETA,
    ) -> None:
        super().__init__()
        check_bumps(centres, bandwidths, out_features)
        check_positive(growth=growth, last=last)
        self.register_buffer("centres", centres.detach().clone())
        self.register_buffer("bandwidths", bandwidths.detach().to(centres.dtype).clone())
        self.register_buffer("mixture", mixture.detach().to(centres.dtype).clone())
        self.register_buffer("zeta", full_zeta(zeta, out_features).to(centres))
        rises = (_ONSET, _RATE, growth), (_FAR, _FAR_RATE, last)
        self.register_buffer("profile", torch.tensor(rises, dtype=torch.float64, device="cpu").to(centres))
        self.weight = nn.Parameter(centres.new_ones(out_features, 1))
        self.check()

    def check(self) -> None:
        """Check what was loaded as the constructor checks what it is given.

        Raises
        ------
        ValueError
            When a constant is not positive and finite, or a weight is negative.
        """
        check_bumps(self.centres, self.bandwidths, self.out_features)
        if self.mixture.shape != self.bandwidths.shape:
            raise ValueError(f"mixture of shape {tuple(self.mixture.shape)}: pass one weight for each bump")
        for name, values in {"mixture": self.mixture, "profile": self.profile}.items():
            if not bool(((values > 0) & values.isfinite()).all()):
                raise ValueError(f"{name} holds {values.min().item():g}: its numbers must be positive and finite")
        super().check()

    def depth(self, z: Tensor) -> Tensor:
        """How deep in the unknown a code is: 0 along the data, half the square of the distance in reaches off them.

        ``(*, d) -> (*,)``.
        """
        return self._depth(z).reshape(z.shape[:-1])

    def _depth(self, z: Tensor) -> Tensor:
        """The same of all rows: (*, d) -> (N,)."""
        rows = z.reshape(-1, z.shape[-1])
        blocks = rows.split(max(1, _NUMBERS // self.centres.numel()))
        return torch.cat([self._mixed(self._away(some))[0] for some in blocks])

    def _mixed(self, away: Tensor) -> tuple[Tensor, Tensor]:
        """Depth (N,), and each bump's share 2 lambda q of what makes its gradient, (N, K), by the ways (d, N, K)."""
        exponent = self.bandwidths * away.square().sum(0)
        bound = largest_exponent(exponent.dtype)
        bumps = (-exponent.clamp(max=bound)).exp() * self.mixture
        total = bumps.sum(1) + math.exp(-_BOTTOM)
        return -total.log(), 2 * self.bandwidths * bumps * (exponent <= bound) / total[:, None]

    def activations(self, z: Tensor) -> Tensor:
        """Return v(z), how much the data are there: (*, d) -> (*, 1)."""
        return self._activation(self._depth(z))[0].reshape(*z.shape[:-1], 1)

    def precision(self, z: Tensor) -> Tensor:
        """Return ``beta(z) = W v(z) + zeta``: (*, d) -> (*, D)."""
        return self.activations(z) * self.weight[:, 0] + self.zeta

    def overlap(self) -> Tensor:
        """How many activations there are where each one is highest: one."""
        return self.bandwidths.new_ones(1)

    @property
    def growth(self) -> float:
        """How fast the variance grows with the depth, in units of the variance along the data."""
        return float(self.profile[0, 2])

    @torch.no_grad()
    def wall(self) -> Wall:
        """Measure the wall on the way out: from the bump that is farthest from their mean, straight away from it.

        Between strands of data the wall is lower.

        Examples
        --------
        >>> one = torch.ones(1)
        >>> scale = DistanceScale(torch.zeros(1, 2), one / 2, one, out_features=784, growth=100.0, zeta=0.01)
        >>> round(scale.wall().crossing_cost)
        252
        """
        centres = self.centres
        away = centres - centres.mean(0)
        start = int(away.norm(dim=1).argmax())
        way = away[start] if bool(away[start].any()) else torch.ones_like(away[start])
        way = nn.functional.normalize(way, dim=0)
        farthest = float((2 * _BOTTOM / self.bandwidths.min()).sqrt() + (centres - centres[start]).norm(dim=1).max())
        share = torch.cat([torch.zeros(1, device="cpu"), torch.logspace(-4, 0, 4000, device="cpu")])
        r = (farthest * share).to(centres)
        depth, gradient, _, _ = self._depth_derived(centres[start] + r[:, None] * way)
        std, first, _ = self._profiled(depth)
        speed = first.double().square().sum(1).sqrt() * (gradient @ way).double().abs()
        top = int(speed.argmax())
        return Wall(
            radius=float(r[top]),
            height=float(speed[top].square()),
            crossing_cost=float((std[1:] - std[:-1]).double().norm(dim=1).sum()),
        )

    def _activation(self, depth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return v and its first two derivatives by the depth: (N,) -> (N,) three times."""
        x, first, second = torch.ones_like(depth), torch.zeros_like(depth), torch.zeros_like(depth)
        for onset, rate, growth in self.profile.tolist():
            t = rate * (depth - onset)
            small = (-t.abs()).exp()  # functions that take one number as they take many: no softplus, no sigmoid
            slope = torch.where(t > 0, 1.0, small) / (1 + small)
            x = x + growth * (t.clamp(min=0) + small.log1p()) / rate
            first = first + growth * slope
            second = second + growth * rate * slope * (1 - slope)
        v = 1 / x
        return v, -first * v * v, v * v * (2 * first * first * v - second)

    def _profiled(self, depth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Standard deviations and their first two derivatives by the depth: (N,) -> (N, D) three times."""
        v, first, second = (x[:, None] for x in self._activation(depth))
        weight = self.weight[:, 0]
        std = (v * weight + self.zeta).rsqrt()
        variance = std.square()
        slope = -0.5 * std * variance * weight  # of std by v
        return std, slope * first, slope * second - 1.5 * variance * weight * slope * first * first

    def _depth_derived(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Depth (N,), its gradient (N, d), the bumps' shares 2 lambda q (N, K), and the way from them (d, N, K)."""
        away = self._away(z)
        depth, shares = self._mixed(away)
        return depth, (shares * away).sum(-1).mT, shares, away

    def _expand_std(self, z: Tensor) -> Expansion:
        """Value, frame, bend and second derivatives: (N, d).

        With u = z - c_k and q_k a bump's share of the sum, the depth has the gradient ``g = sum 2 lambda q u`` and the
        Hessian ``g g' + sum 2 lambda q (I - 2 lambda u u')``; all outputs are functions of it.
        """
        depth, gradient, shares, away = self._depth_derived(z)
        std, first, second = self._profiled(depth)
        outer = gradient[:, :, None] * gradient[:, None]  # (N, d, d)
        hessian = outer - gram((2 * self.bandwidths * shares) * away, away)
        hessian = hessian + torch.diag_embed(shares.sum(1, keepdim=True).expand(-1, len(away)))

        def bend(w: Tensor) -> Tensor:
            return (w * second).sum(1)[:, None, None] * outer + (w * first).sum(1)[:, None, None] * hessian

        def twice(p: Tensor, q: Tensor) -> Tensor:
            p_along, q_along = ((x * gradient).sum(-1, keepdim=True) for x in (p, q))
            curved = torch.einsum("kni,nij,knj->kn", p, hessian, q)[..., None]
            return second * p_along * q_along + first * curved

        return Expansion(std, gradient.mT[:, :, None] * first, bend, twice)

    def _pulling_std(self, z: Tensor) -> PulledValue:
        """The standard deviation (N, D), and the map w -> J'w: (N, D) -> (N, d)."""
        depth, gradient, _, _ = self._depth_derived(z)
        std, first, _ = self._profiled(depth)
        return std, lambda w: (w * first).sum(1, keepdim=True) * gradient

    def _std_stages(self) -> list[Stage]:
        onset, rate, growth = self.profile.T
        one = self.zeta.new_ones(1, 1)
        bottom = self.zeta.new_full((1,), math.exp(-_BOTTOM))
        return [
            Stage(self.centres.mT, activation="bump", rate=self.bandwidths),
            Stage(self.mixture[:, None], bottom, "depth"),
            Stage(one.expand(1, 2), -onset, "softplus", rate=rate),
            Stage(growth[:, None], one[0], "inverse"),
            Stage(self.weight.mT, self.zeta, "root"),
        ]

    def _bare(self, zeta: Tensor) -> PrecisionNetwork:
        part = DistanceScale(self.centres, self.bandwidths, self.mixture, len(zeta), zeta=zeta)
        part.profile.copy_(self.profile)
        return part

    @classmethod
    def from_codes(
        cls,
        z: Tensor,
        decode: Callable[[Tensor], Tensor],
        residual: float,
        *,
        zeta: float | Tensor = DEFAULT_ZETA,
        min_std: float = DEFAULT_MIN_STD,
        seed: int = 0,
    ) -> Self:
        """Lay bumps along the codes, with the reach and the growth that the codes and their images ask for.

        The reach is the least, in spacings of neighbours, that keeps 49 of 50 held-out codes inside; the growth is
        what makes three quarters of the shortcuts across gaps dearer than the way around, from 100 to 4,000. W stays
        all ones.

        Parameters
        ----------
        z : Tensor
            The codes (n, d), usually the encoder's means.
        decode : callable
            The decoder's mean, (N, d) -> (N, D): whose images are neighbours decides what is joined.
        residual : float
            Root mean square distance of the data from the decoder's mean, over rows: sqrt(D) times the standard
            deviation along the data.
        zeta : float or Tensor
            See :class:`DistanceScale`.
        min_std : float
            No output's standard deviation will be smaller.
        seed : int
            Chooses among the codes where there are more than 500; the global random state is left alone.

        Raises
        ------
        ValueError
            When the codes are not a finite (n, d) tensor with n >= 1, or a number is unfit.

        Examples
        --------
        Two strands 0.8 apart, joined at one end only:

        >>> t = torch.linspace(0, 3, 60)
        >>> z = torch.cat([torch.stack([3 - t, 0 * t - 0.4], 1), torch.stack([t, 0 * t + 0.4], 1)])
        >>> place = lambda z: torch.where(z[:, 1] < 0, -z[:, 0], z[:, 0])[:, None]
        >>> scale = DistanceScale.from_codes(z, place, residual=0.01)
        >>> depth = scale.depth(torch.tensor([[1.5, 0.4], [1.5, 0.0]]))
        >>> bool(depth[0] < 0.5), bool(depth[1] > 10)
        (True, True)
        """
        check_codes(z)
        check_positive(residual=residual, min_std=min_std)
        check_seed(seed)

        def images(points: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                places = torch.from_numpy(points).to(z).split(1 << 12)
                return torch.cat([decode(some).flatten(1).double().cpu() for some in places]).numpy()

        rows = _covering(np.unique(z.detach().double().cpu().numpy(), axis=0), seed)
        nodes = rows[:_NODES]
        decoded = images(nodes)
        bones = skeleton(nodes, decoded)
        narrow = bumps_along(bones, _reach(bones, rows, images), _BUMPS)
        clusters, wide = placed(torch.from_numpy(nodes), min(_WIDE, max(1, len(rows) // 4)), _WIDE_REACH, seed)
        parts = (clusters.numpy(), wide.numpy(), np.full(len(wide), _FAINT))
        bumps = Bumps(*(np.concatenate(both) for both in zip(narrow, parts, strict=True)))
        outputs = decoded.shape[1]
        least = float(full_zeta(zeta, outputs).min())
        centres, bandwidths, mixture = (torch.from_numpy(x).to(z) for x in bumps)
        return cls(
            centres,
            bandwidths,
            mixture,
            outputs,
            growth=_growth(bumps, bones, images, residual),
            last=min(1e3 / (min_std**2 * least * (_BOTTOM - _FAR)), 1e15),  # beyond, W v is a thousandth of zeta
            zeta=zeta,
        )


def _covering(rows: np.ndarray, seed: int) -> np.ndarray:
    """The same rows, the nodes of a skeleton first: half of them drawn, then always the row farthest from all nodes."""
    if len(rows) <= _NODES:
        return rows
    rows = rows[np.random.default_rng(seed).permutation(len(rows))]
    chosen = list(range(_NODES // 2))
    distance = cdist(rows, rows[chosen], "sqeuclidean").min(1)
    while len(chosen) < _NODES:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.square(rows - rows[chosen[-1]]).sum(1))
    return np.concatenate([rows[chosen], np.delete(rows, chosen, 0)])


def _reach(bones: Skeleton, rows: np.ndarray, images: Callable[[np.ndarray], np.ndarray]) -> float:
    """The least reach, in spacings, by which codes that the bumps do not know are inside all the same."""
    unknown = rows[_NODES : 2 * _NODES]
    if len(rows) <= _NODES:
        if len(rows) < 2 * _HELD_OUT:
            return 1.0
        unknown, known = rows[::_HELD_OUT], np.delete(rows, np.s_[::_HELD_OUT], 0)
        bones = skeleton(known, images(known))
    for reach in _REACHES:
        if np.quantile(_depth(bumps_along(bones, reach, _BUMPS), unknown), _INSIDE) <= _ONSET:
            break
    return reach


def _depth(bumps: Bumps, points: np.ndarray) -> np.ndarray:
    """The depth of points before there is a network of the bumps: (n, d) -> (n,)."""
    values = np.exp(-bumps.bandwidths * cdist(points, bumps.centres, "sqeuclidean")) @ bumps.weights
    found: np.ndarray = -np.log(values + math.exp(-_BOTTOM))
    return found


def _growth(bumps: Bumps, bones: Skeleton, images: Callable[[np.ndarray], np.ndarray], residual: float) -> float:
    """The growth by which most of the shortcuts across gaps cost more than the way around.

    A line across a gap costs its decoded length, and twice the rise of sqrt(D) std: ``2 residual (sqrt(1 + growth h) -
    1)`` with h the distance's square, s(y - 1), at its deepest place.
    """
    lines, around = shortcuts(bones)
    if not len(lines):
        return _LEAST_GROWTH
    count, places, d = lines.shape
    deepest = _depth(bumps, lines.reshape(-1, d)).reshape(count, places).max(1)
    gap = deepest > _ONSET + 1 / _RATE
    if not gap.any():
        return _LEAST_GROWTH
    away = np.logaddexp(0, _RATE * (deepest[gap] - _ONSET)) / _RATE
    steps = np.diff(images(lines[gap].reshape(-1, d)).reshape(int(gap.sum()), places, -1), axis=1)
    wanted = _DEARER * around[gap] - np.linalg.norm(steps, axis=-1).sum(1)
    if not (wanted > 0).any():
        return _LEAST_GROWTH
    rise = ((1 + wanted / (2 * residual)) ** 2)[wanted > 0]  # of the variance
    onset = np.logaddexp(0, -_RATE * _ONSET) / _RATE  # the same along the data
    room = away[wanted > 0] - rise * onset
    needed = np.where(room > 0, (rise - 1) / np.where(room > 0, room, 1), _GREATEST_GROWTH)
    return float(np.quantile(needed, _MOST).clip(_LEAST_GROWTH, _GREATEST_GROWTH))
