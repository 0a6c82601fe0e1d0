"""Brownian motion on a manifold, and samples of the heat kernel as its end points."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from oddity.geometry.curve import nested
from oddity.geometry.manifold import Manifold, in_chart
from oddity.models.checks import check_whole
from oddity.numerics.ambient import door, doors

__all__ = ["DataSupport", "Walk", "brownian_motion", "heat_kernel_samples", "manifold_samples"]

Domain: TypeAlias = Callable[[Tensor], Tensor]
"""Where a walk may be: ``(N, d) -> (N,)`` bool."""

_GOOD, _NOT_FINITE, _OUT_OF_CHART, _OUT_OF_DOMAIN, _SINGULAR = range(5)
_BECAUSE = {
    _NOT_FINITE: "leads to no finite point",
    _OUT_OF_CHART: "leaves the chart",
    _OUT_OF_DOMAIN: "leaves the domain",
    _SINGULAR: "leads to a point where the metric is singular",
}
_BENT = 1.0  # a step that bends more follows the geodesic equation: parabolas would run away, e.g. at a chart's pole
_SHOTS = (1e-3, 1e-5)  # such a geodesic need not be exact; where coarse steps lose too much speed, finer ones follow
_NEIGHBOUR = 10  # how near the default samples stay to a code: about as near as so many other codes


@doors
@dataclass(frozen=True, eq=False, repr=False)
class Walk:
    """Random walks, each with its own verdict.

    Attributes
    ----------
    points : Tensor
        ``(*, steps + 1, d)``, the start included; always finite. A walk that was stopped stands at its last good
        point from there on.
    completed : Tensor
        ``(*,)`` bool: the walk was not stopped.
    why
        A sentence for each walk that was stopped, ``""`` for the others; a string for a single walk, otherwise nested
        lists in the shape of the batch.
    steps : Tensor
        ``(*,)``, the steps that were made: fewer than asked for where a walk was stopped, or steps were refused at a
        reflecting boundary.
    bend : Tensor
        ``(*,)``, the largest share of itself by which a step was bent, |a| / (2 |v|). Well below one where the steps
        resolve the metric; otherwise choose a smaller ``dt``. Zero without drift.
    """

    points: Tensor
    completed: Tensor
    why: Any
    steps: Tensor
    bend: Tensor

    def inside(self, region: Domain) -> Tensor:
        """Which steps end in a region: ``(*, steps)`` bool; not those that a stopped walk did not make.

        Examples
        --------
        >>> at, one = torch.tensor([[0.0], [1.0], [1.0]]), torch.tensor(1)
        >>> stopped = Walk(at, torch.tensor(False), "step 2 leaves the chart", steps=one, bend=0.1 * one)
        >>> stopped.inside(lambda z: z[..., 0] > 0.5).tolist()
        [True, False]
        """
        number = torch.arange(self.points.shape[-2] - 1, device=self.points.device)
        return region(self.points[..., 1:, :]) & (self.completed[..., None] | (number < self.steps[..., None]))

    def __repr__(self) -> str:
        return (
            f"Walk({self.completed.numel()} walkers, {self.points.shape[-2] - 1} steps, "
            f"{int(self.completed.sum())} completed)"
        )


@door
def brownian_motion(
    M: Manifold,
    z: Tensor,
    steps: int,
    dt: float,
    *,
    drift: bool = True,
    domain: Domain | None = None,
    reflect: bool = False,
    generator: torch.Generator | None = None,
) -> Walk:
    """Brownian motion on M, whose generator is half the Laplace-Beltrami operator.

    In coordinates dz = b dt + G^-1/2 dW with the Ito drift b^i = 1/2 m^-1 d_j (m g^ij), m = sqrt det G. A step goes
    along the geodesic in a random direction, to second order: z + v + a / 2 with v ~ N(0, dt G^-1) and a the
    acceleration of the geodesic through (z, v). Its mean is that of the drift, since E a = 2 b dt, and no derivative
    of the metric's inverse is needed. In law the walk is of first order in dt. The rare step that bends by more than
    itself follows the geodesic equation to the end.

    Parameters
    ----------
    M
        The manifold.
    z
        ``(*, d)``, where the walkers start.
    steps
        Steps of each walker.
    dt
        Time of a step. In d dimensions a step is sqrt(d dt) long in the root mean square.
    drift
        False for the step of "Latent Space Oddity", z + v, whose law depends on the chart: its stationary law is not
        the volume.
    domain
        ``(N, d) -> (N,)`` bool, where the walkers may be, such as a :class:`DataSupport`; by default everywhere.
    reflect
        What becomes of a step to a point outside the chart or the domain, or where the metric is singular. By default
        it stops its walk (an absorbing boundary). With ``reflect`` it is not made and the walk goes on from where it
        was, which in the limit reflects it at the boundary: the volume stays its stationary law.
    generator
        For the noise.

    Returns
    -------
    Walk
        With a verdict for each walker. Detached.

    Raises
    ------
    ValueError
        If a start is unusable (NaN, wrong dimension, outside the chart or the domain, a singular metric), steps is
        less than one, or dt is not positive.

    Notes
    -----
    Jorgensen, "The Central Limit Problem for Geodesic Random Walks", 1975; with such retractions in place of geodesics
    Schwarz, Herrmann, Sturm, Wardetzky, "Efficient Random Walks on Riemannian Manifolds", Foundations of Computational
    Mathematics 2023. For refused steps: Burdzy, Chen, "Discrete Approximations to Reflected Brownian Motion", Annals of
    Probability 2008.

    Examples
    --------
    On the sphere in d dimensions the mean of the cosine from the start decays like exp(-d t / 2):

    >>> import oddity
    >>> rng, pole = torch.Generator().manual_seed(0), torch.zeros(4000, 3)
    >>> walk = brownian_motion(oddity.Sphere(3), pole, 50, 0.01, generator=rng)
    >>> walk
    Walk(4000 walkers, 50 steps, 4000 completed)
    >>> cosine = oddity.Sphere(3).dist(pole, walk.points[:, -1]).cos().mean()
    >>> abs(float(cosine) - math.exp(-0.75)) < 0.03
    True
    """
    walkers = _Walkers(M, z, steps, dt, drift, domain, reflect)
    points = [walkers.z, *walkers.run(generator)]
    shape = z.shape[:-1]
    return Walk(
        points=torch.stack(points, 1).reshape(*shape, steps + 1, z.shape[-1]),
        completed=walkers.alive.reshape(shape),
        why=nested(walkers.why, shape),
        steps=walkers.made.reshape(shape),
        bend=walkers.bend.reshape(shape),
    )


@door
def heat_kernel_samples(
    M: Manifold,
    z: Tensor,
    t: float,
    n: int,
    *,
    steps: int = 100,
    domain: Domain | None = None,
    reflect: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw from the heat kernel p_t(z, .), the law of Brownian motion at time t.

    Parameters
    ----------
    M
        The manifold.
    z
        ``(*, d)``.
    t
        The time; in flat space the kernel is the normal distribution of variance t along each axis.
    n
        Draws for each point.
    steps
        Steps of each walk; the error of the law is of first order in t / steps.
    domain, reflect, generator
        As for :func:`brownian_motion`. A walk that is stopped gives its last good point, and a warning counts them.

    Returns
    -------
    Tensor
        ``(*, n, d)``, finite and detached.

    Raises
    ------
    ValueError
        As for :func:`brownian_motion`, or if n is less than one.

    Examples
    --------
    >>> import oddity
    >>> rng = torch.Generator().manual_seed(0)
    >>> z = heat_kernel_samples(oddity.Hyperbolic(2), torch.zeros(2), 0.5, 2000, generator=rng)
    >>> z.shape, bool((z.norm(dim=-1) < 1).all())
    (torch.Size([2000, 2]), True)
    """
    M.admit(z)
    check_whole(n=n)
    check_whole(steps=steps)
    starts = z[..., None, :].expand(*z.shape[:-1], n, z.shape[-1])
    return _ends(_Walkers(M, starts, steps, t / steps, True, domain, reflect), generator).reshape(starts.shape)


@door
def manifold_samples(
    M: Manifold,
    codes: Tensor,
    n: int,
    *,
    t: float | None = None,
    steps: int = 100,
    domain: Domain | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw new points from where the data are: a random code, and Brownian motion from there.

    This draws from the kernel density estimate of the codes whose kernel is the heat kernel of M, of bandwidth sqrt(t);
    the longer the walk, the more it forgets the codes, and in the end it draws evenly by volume. It is reflected at the
    border of the domain.

    Parameters
    ----------
    M
        The manifold.
    codes
        ``(N, d)``.
    n
        Number of draws.
    t
        Time of each walk. By default such that its root mean square way, sqrt(d t), is the median distance of a code to
        its tenth nearest, measured along the straight line.
    steps
        Steps of each walk.
    domain
        Where the walks may be; by default ``DataSupport(codes)``.
    generator
        For the choice of codes and the walks.

    Returns
    -------
    Tensor
        ``(n, d)``, finite and detached.

    Raises
    ------
    ValueError
        If the codes are unusable or coincide, the metric is singular at one that is drawn, or a setting is not
        positive.

    Examples
    --------
    >>> import oddity
    >>> rng = torch.Generator().manual_seed(0)
    >>> angle = torch.linspace(0, 6, 200)
    >>> codes = torch.stack([angle.cos(), angle.sin()], -1)
    >>> z = manifold_samples(oddity.Euclidean(), codes, 50, generator=rng)
    >>> z.shape, bool(((z.norm(dim=-1) - 1).abs() < 0.1).all())
    (torch.Size([50, 2]), True)
    """
    _admit_codes(M, codes)
    check_whole(n=n)
    check_whole(steps=steps)
    codes = codes.detach()
    t = neighbour_time(M, codes) if t is None else t
    pick = torch.randint(len(codes), (n,), generator=generator, device=codes.device)
    domain = DataSupport(codes) if domain is None else domain
    return _ends(_Walkers(M, codes[pick], steps, t / steps, True, domain, True), generator)


@doors
class DataSupport:
    """The region of the data: the points at most so far from a code as nearly all codes are from the next.

    Parameters
    ----------
    codes
        ``(n, d)``, n >= 2.
    quantile
        Share of the codes that have another code within the radius.

    Attributes
    ----------
    radius : float
        That quantile of the distances in the chart from each code to the nearest that is another point.

    Raises
    ------
    ValueError
        If the codes are unusable, or all coincide.

    Examples
    --------
    >>> support = DataSupport(torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]]))
    >>> support.radius, support(torch.tensor([[0.5, 0.5], [3.5, 0.0]])).tolist()
    (1.0, [True, False])
    """

    def __init__(self, codes: Tensor, quantile: float = 0.99) -> None:
        if codes.ndim != 2 or len(codes) < 2 or not bool(codes.isfinite().all()):
            raise ValueError(f"codes of shape {tuple(codes.shape)}: a support needs finite codes (n, d) with n >= 2")
        if not 0 < quantile <= 1:
            raise ValueError(f"quantile is {quantile}; give a share of the codes, above 0 and at most 1")
        different, copies = np.unique(_array(codes), axis=0, return_counts=True)
        if len(different) == 1:
            raise ValueError(f"all {len(codes)} codes coincide: they have no region")
        self._tree = KDTree(different)
        nearest = self._tree.query(different, k=2)[0][:, 1].repeat(copies)
        self.radius = float(torch.from_numpy(nearest).quantile(quantile))

    def __call__(self, z: Tensor) -> Tensor:
        """Whether each point lies in the region: ``(*, d) -> (*,)`` bool."""
        distance = torch.from_numpy(self._tree.query(_array(z.reshape(-1, z.shape[-1])))[0])
        return (distance <= self.radius).reshape(z.shape[:-1]).to(z.device)

    def __repr__(self) -> str:
        return f"DataSupport({self._tree.n} codes, radius {self.radius:.3g})"


def _array(z: Tensor) -> Any:
    return z.detach().cpu().double().numpy()


class _Walkers:
    """A crowd of walkers: where each stands, the Cholesky factor of the metric there, and how it fares."""

    def __init__(
        self, M: Manifold, z: Tensor, steps: int, dt: float, drift: bool, domain: Domain | None, reflect: bool
    ) -> None:
        M.admit(z)
        check_whole(steps=steps)
        if not 0 < dt < math.inf:
            raise ValueError(f"a step would take the time {dt}; it must be positive and finite")
        self.M, self.steps, self.dt, self.drift, self.domain, self.reflect = M, steps, dt, drift, domain, reflect
        self.z = z.detach().reshape(-1, z.shape[-1])  # (N, d)
        with torch.no_grad():
            verdict, self.L = self._look(self.z)
        if bool(verdict.any()):
            i = int(verdict.nonzero()[0])
            fault = {
                _OUT_OF_DOMAIN: "lies outside the domain: start inside",
                _SINGULAR: "has a singular metric: start elsewhere, or add a ridge, e.g. M + 1e-3 * Euclidean()",
            }
            raise ValueError(f"start {i} of {len(verdict)}, {self.z[i].tolist()}, {fault[int(verdict[i])]}")
        self.alive = torch.ones(len(verdict), dtype=torch.bool, device=z.device)
        self.made = torch.zeros(len(verdict), dtype=torch.long, device=z.device)
        self.bend = self.z.new_zeros(len(verdict))
        self.why = [""] * len(verdict)

    def run(self, generator: torch.Generator | None) -> Iterator[Tensor]:
        """Walk all steps; yield where the walkers stand after each, ``(N, d)``."""
        for number in range(1, self.steps + 1):
            # noise for all, so that a walker's does not depend on who else is still walking
            noise = torch.randn(self.z.shape, dtype=self.z.dtype, device=self.z.device, generator=generator)
            with torch.no_grad():
                self._step(noise, number)
            yield self.z

    def _step(self, noise: Tensor, number: int) -> None:
        going = self.alive.nonzero()[:, 0]
        if len(going) == 0:
            return
        ends, bend = self._ends(self.z[going], self.L[going], noise[going])
        verdict, L = self._look(ends)
        good = verdict == _GOOD
        at = going[good]
        self.z = self.z.index_copy(0, at, ends[good])
        self.L[at], self.bend[at] = L[good], torch.maximum(self.bend[at], bend[good])
        self.made[at] += 1
        if self.reflect or bool(good.all()):
            return
        self.alive[going[~good]] = False
        for i, reason in zip(going[~good].tolist(), verdict[~good].tolist(), strict=True):
            self.why[i] = f"step {number} {_BECAUSE[reason]}: stopped at t = {self.dt * (number - 1):.4g}"

    def _ends(self, z: Tensor, L: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Where random steps lead ``(N, d)``, and by how much of themselves they bend ``(N,)``."""
        v = math.sqrt(self.dt) * torch.linalg.solve_triangular(L.mT, noise[..., None], upper=True)[..., 0]
        if not self.drift:
            return z + v, torch.zeros_like(v[:, 0])
        a = torch.cholesky_solve(self.M._by_rows(self.M.force, z, v)[..., None], L)
        speed = math.sqrt(self.dt) * torch.linalg.vector_norm(noise, dim=-1)
        bend = torch.linalg.vector_norm((L.mT @ a)[..., 0], dim=-1) / (2 * speed.clamp(min=torch.finfo(z.dtype).tiny))
        ends = z + v + a[..., 0] / 2
        far = ((bend > _BENT) & _finite(v)).nonzero()[:, 0]
        for tolerance in _SHOTS:
            if len(far):
                path = self.M.shoot(z[far], v[far], tolerance=tolerance, max_steps=500)
                ends[far] = torch.where(path.converged[:, None], path.points, torch.nan)
                far = far[~path.converged]
        return ends, bend

    def _look(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Verdict on points, ``(N,)``, and the metric's Cholesky factor at the good ones, ``(N, d, d)``."""
        verdict = torch.full((len(z),), _GOOD, device=z.device)
        tests: dict[int, Domain] = {
            _NOT_FINITE: _finite,
            _OUT_OF_CHART: partial(in_chart, self.M),
            _OUT_OF_DOMAIN: self._in_domain,
        }
        for fault, test in tests.items():
            rows = (verdict == _GOOD).nonzero()[:, 0]
            verdict[rows[~test(z[rows])]] = fault
        rows = (verdict == _GOOD).nonzero()[:, 0]
        factor, info = torch.linalg.cholesky_ex(self.M.metric(z[rows]))
        verdict[rows[(info > 0) | ~factor.isfinite().all(-1).all(-1)]] = _SINGULAR
        L = z.new_zeros(*z.shape, z.shape[-1])
        L[rows] = factor
        return verdict, L

    def _in_domain(self, z: Tensor) -> Tensor:
        if self.domain is None or len(z) == 0:
            return torch.ones(len(z), dtype=torch.bool, device=z.device)
        inside = self.domain(z)
        if not isinstance(inside, Tensor) or inside.shape != z.shape[:1] or inside.dtype != torch.bool:
            what = f"{inside.dtype} {tuple(inside.shape)}" if isinstance(inside, Tensor) else type(inside).__name__
            raise ValueError(f"domain returned {what} for {len(z)} points; it must return a bool tensor ({len(z)},)")
        return inside


def _finite(z: Tensor) -> Tensor:
    return z.isfinite().all(-1)


def _ends(walkers: _Walkers, generator: torch.Generator | None) -> Tensor:
    """Where the walks end, ``(N, d)``, with a warning that counts those that were stopped."""
    for _ in walkers.run(generator):
        pass
    if stopped := int((~walkers.alive).sum()):
        first = next(filter(None, walkers.why))
        warnings.warn(
            f"{stopped} of {len(walkers.alive)} walks were stopped before their time and give their last good point; "
            f"the first: {first}",
            RuntimeWarning,
            stacklevel=4,
        )
    return walkers.z


def neighbour_time(M: Manifold, codes: Tensor) -> float:
    """Time in which the root mean square way of Brownian motion, sqrt(d t), is the median one to a tenth neighbour."""
    k = min(_NEIGHBOUR, len(codes) - 1)
    some = codes[:: -(-len(codes) // 1000)]
    near = torch.from_numpy(KDTree(_array(codes)).query(_array(some), k=k + 1)[1][:, -1]).to(codes.device)
    t = torch.linspace(0, 1, 9, dtype=codes.dtype, device=codes.device)[:, None]
    with torch.no_grad():
        ways = M.length(torch.lerp(some[:, None], codes[near][:, None], t))
    ways = ways[ways.isfinite()]
    if not len(ways):
        raise ValueError("no way from a code to its tenth nearest has a finite length; is the metric finite there?")
    way = float(ways.median())
    if way == 0:
        raise ValueError("a typical code has its tenth nearest at the distance 0.0: remove duplicates, or give t")
    return way**2 / codes.shape[1]


def _admit_codes(M: Manifold, codes: Tensor) -> None:
    M.admit(codes, "codes")
    if codes.ndim != 2 or len(codes) < 2:
        raise ValueError(f"codes have shape {tuple(codes.shape)}; give codes in rows, (N, d) with N >= 2")
