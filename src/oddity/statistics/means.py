"""Means of points in a curved space."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils.validation import validate_data
from torch import Tensor

from oddity.geometry.connect import ChainSolver, Init
from oddity.geometry.curve import nested
from oddity.geometry.manifold import Manifold, in_chart
from oddity.geometry.roadmap import Roadmap
from oddity.numerics.ambient import door, doors
from oddity.statistics.legs import Legs, Taylor, covariant_hessian, has_formula, legs_along, where

__all__ = ["Descent", "FrechetMean", "admit_codes", "frechet_mean", "total", "warn_of_failures"]


@doors
@dataclass(frozen=True, eq=False, repr=False)
class FrechetMean:
    """Frechet means of a batch of point sets, each with its own certificate.

    Attributes
    ----------
    point : Tensor
        ``(*, d)``, the means.
    variance : Tensor
        ``(*,)``, the weighted mean of the squared distances from the mean, over the points that count; infinite where
        none does.
    converged : Tensor
        ``(*,)`` bool: a strict local minimum, stationary, reached by certified geodesics from all points with weight.
        Where some of these failed, it is the mean of the others alone, and ``why`` says what share of the weight is
        lost. No local method can promise that the minimum is global.
    why
        A sentence for each mean that did not converge, ``""`` for the others; a string for a single mean, otherwise
        nested lists in the shape of the batch.
    iterations : Tensor
        ``(*,)``, steps tried.
    failed : Tensor
        ``(*, n)`` bool: points with weight whose geodesic from the mean did not converge. They do not count.
    log : Tensor
        ``(*, n, d)``, logarithms at the mean of the points; zero where a point does not count, and where the metric at
        the mean is singular. Not differentiable.

    Examples
    --------
    >>> import oddity
    >>> frechet_mean(oddity.Sphere(2), torch.eye(2))
    FrechetMean(variance=0.6169, converged=True)
    """

    point: Tensor
    variance: Tensor
    converged: Tensor
    why: Any
    iterations: Tensor
    failed: Tensor
    log: Tensor

    def require(self) -> FrechetMean:
        """Return self, or raise if any mean did not converge.

        Raises
        ------
        RuntimeError
            Naming how many failed, and the reason of the first.
        """
        failed = (~self.converged).nonzero().tolist()
        if not failed:
            return self
        why = self.why
        for i in failed[0]:
            why = why[i]
        raise RuntimeError(f"{len(failed)} of {self.converged.numel()} means did not converge; the first: {why}")

    def __repr__(self) -> str:
        if self.variance.ndim == 0:
            return f"FrechetMean(variance={float(self.variance):.4g}, converged={bool(self.converged)})"
        return f"FrechetMean({self.variance.numel()} means, {int(self.converged.sum())} converged)"


@door
def frechet_mean(
    M: Manifold,
    z: Tensor,
    weights: Tensor | None = None,
    *,
    start: Tensor | None = None,
    init: Roadmap | None = None,
    solver: ChainSolver | None = None,
    tolerance: float | None = None,
    max_iterations: int = 50,
) -> FrechetMean:
    """Points of least mean squared distance, differentiably: ``(*, n, d) -> (*, d)``.

    Newton's method along geodesics, with the covariant Hessian of the squared distances; where that is not positive
    definite, no direction counts as less curved than in flat space, where a step is the mean of the logarithms. A step
    that would ascend is shortened.

    The result is differentiable once with respect to z and the weights: ``point`` by the implicit function theorem,
    ``variance`` by the envelope theorem. Not with respect to the decoder. Where geodesics are numerical, values and
    derivatives are those of chains of n segments and of the order of their energy, the fourth for maps into flat
    space; the derivatives of ``point`` neglect a term of the Hessian for a decoder without a second derivative.

    Parameters
    ----------
    M
        The manifold.
    z
        ``(*, n, d)``, n >= 1 points of each set.
    weights
        ``(*, n)``, not negative and not all zero; their scale does not matter. Default: all equal. Leading shapes
        broadcast.
    start
        ``(*, d)``, where the search begins: it decides between several local means. By default the point of each set
        that is nearest, in the chart, to the weighted mean in the chart.
    init
        Where the first geodesics begin: None for straight lines, or a :class:`~oddity.Roadmap`.
    solver
        Settings of the geodesics.
    tolerance
        A mean is stationary when the next step promises to lower the variance by less than this share; default
        ``eps ** 0.75`` of the dtype. The mean is then known up to the root of that share of the standard deviation.
    max_iterations
        Steps tried for each mean.

    Returns
    -------
    FrechetMean
        With ``converged`` and ``why`` for each mean. A mean that fails never raises, and is never replaced.

    Raises
    ------
    ValueError
        If points, weights or settings are unusable: NaN, wrong dimension, mixed dtype, no point, no positive weight.

    Warns
    -----
    RuntimeWarning
        Counting the points whose geodesic from the mean did not converge; they do not count, and ``failed`` marks them.

    Notes
    -----
    Karcher, "Riemannian center of mass and mollifier smoothing", Comm. Pure Appl. Math. 1977. The Hessian of a
    numerical geodesic's energy in its first node is the Schur complement that remains when its inner nodes are
    eliminated; their response to it is the Jacobi field that vanishes at the last node.

    Examples
    --------
    The mean of three points of the plane, and how it follows the first:

    >>> import oddity
    >>> z = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]], requires_grad=True)
    >>> mean = frechet_mean(oddity.Euclidean(), z)
    >>> mean.point[0].backward()
    >>> [round(x, 4) for x in mean.point.tolist()], [round(x, 4) for x in z.grad[0].tolist()]
    ([1.0, 1.0], [0.3333, 0.0])
    """
    if max_iterations < 1 or (tolerance is not None and not tolerance > 0):
        raise ValueError(f"max_iterations and tolerance must be positive, got {max_iterations} and {tolerance}")
    if not isinstance(init, Roadmap | None):
        raise ValueError(f"init is a {type(init).__name__}; give None or a Roadmap, and a point as start")
    z, weights = _admit(M, z, weights)
    shape, n, d = z.shape[:-2], z.shape[-2], z.shape[-1]
    sets, w = z.reshape(-1, n, d), weights.reshape(-1, n)
    first = _central(sets.detach(), w.detach()) if start is None else _admit_start(M, start, z).reshape(-1, d)
    owner, place = ((w > 0) | w.requires_grad).nonzero(as_tuple=True)  # a derivative can be without a weight
    points, w = sets[owner, place], w[owner, place]
    tolerance = tolerance or torch.finfo(z.dtype).eps ** 0.75
    with torch.no_grad():
        search = _Search(M, points.detach(), owner, w.detach(), first.detach(), tolerance)
        search.run(init, solver, max_iterations)
    point, variance = search.differentiable(points, w)
    failed = torch.zeros(sets.shape[:-1], dtype=torch.bool, device=z.device)
    failed[owner, place] = ~search.sound & (w > 0)
    log = torch.zeros_like(sets)
    log[owner, place] = search.logs()
    warn_of_failures(int(failed.sum()), int((w > 0).sum()), "their points do not count in the mean")
    return FrechetMean(
        point=point.reshape(*shape, d),
        variance=variance.reshape(shape),
        converged=search.converged.reshape(shape),
        why=nested(search.why, shape),
        iterations=search.iterations.reshape(shape),
        failed=failed.reshape(*shape, n),
        log=log.reshape(*shape, n, d),
    )


def warn_of_failures(failed: int, total: int, treatment: str) -> None:
    """Warn, on behalf of the caller, of geodesics that did not converge, and say what becomes of them."""
    if failed:
        message = f"{failed} of {total} geodesics did not converge: {treatment}"
        warnings.warn(message, RuntimeWarning, stacklevel=4)


# -- at the door ------------------------------------------------------------------------------------------------------


def _admit(M: Manifold, z: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    M.admit(z)
    if z.ndim < 2 or z.shape[-2] == 0:
        raise ValueError(f"z has shape {tuple(z.shape)}; a mean needs points in rows, (*, n, d) with n >= 1")
    if weights is None:
        return z, z.new_ones(z.shape[:-1])
    if not isinstance(weights, Tensor) or weights.dtype != z.dtype or weights.device != z.device:
        found = f"{weights.dtype} on {weights.device}" if isinstance(weights, Tensor) else type(weights).__name__
        raise ValueError(f"z is {z.dtype} on {z.device} but weights are {found}; bring them together")
    if weights.ndim == 0 or weights.shape[-1] != z.shape[-2]:
        raise ValueError(f"weights have shape {tuple(weights.shape)}, but a set has {z.shape[-2]} points: give (*, n)")
    try:
        shape = torch.broadcast_shapes(weights.shape, z.shape[:-1])
    except RuntimeError:
        shapes = f"z {tuple(z.shape)}, weights {tuple(weights.shape)}"
        raise ValueError(f"the shapes do not broadcast: {shapes}") from None
    good = weights.isfinite() & (weights >= 0)
    if not bool(good.all()):
        raise ValueError(f"weights hold {weights[~good][0].item():.4g}; they are finite and not negative")
    if not bool((weights > 0).any(-1).all()):
        raise ValueError("all weights of a set are zero; leave the set out, or weigh one of its points")
    return z.expand(*shape, z.shape[-1]), weights.expand(shape)


def _admit_start(M: Manifold, start: Tensor, z: Tensor) -> Tensor:
    M.admit(start, "start")
    if start.dtype != z.dtype or start.device != z.device:
        raise ValueError(f"z is {z.dtype} on {z.device} but start is {start.dtype} on {start.device}")
    wanted = (*z.shape[:-2], z.shape[-1])
    try:
        return start.expand(wanted)
    except RuntimeError:
        raise ValueError(f"start has shape {tuple(start.shape)}, but the means have {wanted}") from None


def _central(z: Tensor, w: Tensor) -> Tensor:
    """The point with weight that is nearest to the weighted mean in the chart: ``(B, n, d), (B, n) -> (B, d)``."""
    middle = (w[..., None] * z).sum(1) / w.sum(1)[:, None]
    gap = torch.where(w > 0, (z - middle[:, None]).square().sum(-1), torch.inf)
    return z[torch.arange(len(z), device=z.device), gap.argmin(1)]


# -- the search -------------------------------------------------------------------------------------------------------

_ROUNDS = 8  # of certificates; two are the rule, at the start and near the mean
_CLOSE = 1e-4  # share of the variance that a mean may gain without another certificate


class _Search:
    """B means of N points: the geodesics are certified, the means descend along them, until every mean rests."""

    def __init__(self, M: Manifold, z: Tensor, owner: Tensor, weights: Tensor, start: Tensor, tolerance: float) -> None:
        self.M, self.z, self.owner, self.weights, self.mu, self.tolerance = M, z, owner, weights, start, tolerance

    def run(self, init: Init, solver: ChainSolver | None, max_iterations: int) -> None:
        """Search until every mean rests near a place of certified geodesics, or has spent its steps."""
        self.iterations = torch.zeros(len(self.mu), dtype=torch.long, device=self.mu.device)
        for _ in range(_ROUNDS):
            self._certify(init, solver)
            descent = self.descent
            self.close = descent.definite & (descent.promised <= _CLOSE * descent.total.value)
            descent.run(max_iterations - self.iterations)
            self.mu, self.iterations = descent.mu, self.iterations + descent.tried
            if bool((self.close | (descent.tried == 0)).all()):
                break
            init = self._resumed()
        self._judge()

    def _certify(self, init: Init, solver: ChainSolver | None) -> None:
        """Solve the geodesics from the means; those that fail do not count until the next certificate."""
        g = self.M.geodesic(self.mu[self.owner], self.z, init=init, solver=solver)
        self.sound = g.converged
        owner, shares = self.owner[g.converged], self._shares(self.weights)
        legs = legs_along(self.M, self.z[g.converged], g.points[g.converged], g.length[g.converged], solver)
        self.descent = Descent(self.M, legs, self.mu, owner, shares, self.tolerance)

    def _shares(self, weights: Tensor) -> Tensor:
        """Weights of the points that count, summing to one for each mean."""
        owner, counting = self.owner[self.sound], weights[self.sound]
        sums = total(torch.ones_like(counting), owner, counting, len(self.mu))
        return counting / torch.where(sums > 0, sums, 1.0)[owner]

    def _counting(self) -> Tensor:
        """Whether any point counts, for each mean: ``(B,)`` bool."""
        return torch.bincount(self.owner[self.sound & (self.weights > 0)], minlength=len(self.mu)) > 0

    def _resumed(self) -> Init:
        """Where the next geodesics begin: along the legs; those that failed get another chance from the line."""
        moved = self.descent.legs.curves()
        if moved is None:
            return None
        t = torch.linspace(0, 1, moved.shape[1], dtype=moved.dtype, device=moved.device)[:, None]
        a, b = self.mu[self.owner][:, None], self.z[:, None]
        curves = a + t * (b - a)
        curves[self.sound] = moved
        return curves

    def _lost(self) -> Tensor:
        """Share of each mean's weight whose points do not count: ``(B,)``."""
        counting = self.sound.to(self.weights)
        lost, every = (
            total(x, self.owner, self.weights, len(self.mu)) for x in (1 - counting, torch.ones_like(counting))
        )
        return lost / every

    def _judge(self) -> None:
        counting, lost = self._counting(), self._lost()
        rests = self.descent.stationary & (self.close | (self.descent.tried == 0))
        self.converged = rests & counting & (lost == 0)
        self.why = [""] * len(self.mu)
        for i in (~self.converged).nonzero()[:, 0].tolist():
            if not counting[i]:
                self.why[i] = "no geodesic from the mean converged"
            elif rests[i]:
                self.why[i] = f"geodesics to points with {float(lost[i]):.3g} of the weight failed: they do not count"
            elif self.descent.stationary[i]:
                self.why[i] = f"after {_ROUNDS} certificates the geodesics still change"
            else:
                self.why[i] = self.descent.reason(i, int(self.iterations[i]))

    def differentiable(self, z: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Means ``(B, d)`` and variances ``(B,)``, with their derivatives by z ``(N, d)`` and the weights ``(N,)``.

        At the mean the slopes sum to zero, and stay so when points and weights change: that is the derivative of the
        mean. The derivative of the variance is the one with the mean held still.
        """
        t, owner, B = self.descent.legs.taylor, self.owner[self.sound], len(self.mu)
        shares, change = self._shares(weights), (z - z.detach())[self.sound]
        slope = total(t.slope + (t.cross @ change[..., None])[..., 0], owner, shares, B).nan_to_num(0.0)
        inverse = torch.linalg.pinv(self.descent.total.hessian.nan_to_num(0.0), hermitian=True)
        point = self.mu - (inverse @ (slope - slope.detach())[..., None])[..., 0]
        variance = 2 * total(t.value + (t.slope_b * change).sum(-1), owner, shares, B)
        return point, torch.where(self._counting(), variance, torch.inf)

    @torch.no_grad()
    def logs(self) -> Tensor:
        """Logarithm at its mean of every point, zero where there is none: ``(N, d)``."""
        logs = torch.zeros_like(self.z)
        logs[self.sound] = -self.M._sharp(self.mu[self.owner[self.sound]], self.descent.legs.taylor.slope)
        return logs.nan_to_num(0.0)


class _Total(NamedTuple):
    """Half the variance of each mean, and its derivatives."""

    value: Tensor  # (B,)
    slope: Tensor  # (B, d)
    hessian: Tensor  # (B, d, d)


def total(x: Tensor, owner: Tensor, shares: Tensor, B: int) -> Tensor:
    """Weighted sum over the rows of each owner: ``(N, *) -> (B, *)``."""
    return x.new_zeros(B, *x.shape[1:]).index_add(0, owner, shares.reshape(-1, *[1] * (x.ndim - 1)) * x)


_SHORTEST = 1e-6  # share of a step, below which none is tried
_LOOSE = 1e-3  # tolerance of the geodesics along which steps lead


class Descent:
    """Newton's method for B means over N legs, each of which counts with its share for its owner.

    Parameters
    ----------
    M
        The manifold.
    legs
        Legs from ``mu[owner]``.
    mu
        ``(B, d)``, the means.
    owner, shares
        ``(N,)``; the shares of each mean sum to one.
    tolerance
        A mean is stationary when the next step promises less than this share of the variance.

    Attributes
    ----------
    tried : Tensor
        ``(B,)``, steps so far.
    promised : Tensor
        ``(B,)``, the decrease of half the variance that the next step promises.
    stationary : Tensor
        ``(B,)`` bool.
    """

    def __init__(self, M: Manifold, legs: Legs, mu: Tensor, owner: Tensor, shares: Tensor, tolerance: float) -> None:
        self.M, self.legs, self.mu, self.owner, self.shares, self.tolerance = M, legs, mu, owner, shares, tolerance
        self.total = self._totals(legs.taylor)
        self.reach = mu.new_ones(len(mu))  # share of the step that is tried next
        self.tried = torch.zeros(len(mu), dtype=torch.long, device=mu.device)
        self._aim()

    def run(self, tries: Tensor | int) -> None:
        """Try up to so many steps for each mean."""
        while bool((now := self.running & (self.tried < tries)).any()):
            self._try(now)

    def _totals(self, t: Taylor) -> _Total:
        return _Total(*(total(x, self.owner, self.shares, len(self.mu)) for x in (t.value, t.slope, t.hessian)))

    @torch.no_grad()
    def _aim(self) -> None:
        """Find the next step, what it promises, and which means are at rest."""
        value, slope, _ = self.total
        frame, H = self._hessian()
        finite = H.isfinite().all(-1).all(-1)
        bend, axes = torch.linalg.eigh(torch.where(finite[:, None, None], H, 0.0))
        self.definite = finite & (bend[:, 0] > torch.finfo(H.dtype).eps ** 0.5)
        axes = axes.mT @ frame  # (B, d, d)   in rows, orthonormal, along which the Hessian is diagonal
        bend = torch.where(self.definite[:, None], bend, bend.abs().clamp(min=1.0))
        along = (axes @ slope[..., None])[..., 0]
        step = -(axes.mT @ (along / bend)[..., None])[..., 0]
        self.step = torch.where(finite[:, None], step, torch.nan)
        self.promised = 0.5 * (along.square() / bend).sum(-1)
        small = self.promised <= self.tolerance * value
        self.stationary = self.definite & small
        self.running = ~small & (self.reach > _SHORTEST) & self.step.isfinite().all(-1)

    def _hessian(self) -> tuple[Tensor, Tensor]:
        """Orthonormal tangent vectors at the means in rows, and the covariant Hessian in them: ``(B, d, d)`` twice."""
        _, slope, H = self.total
        L, info = torch.linalg.cholesky_ex(self.M.metric(self.mu))
        frame = torch.where((info > 0)[:, None, None], torch.nan, torch.linalg.inv_ex(L).inverse)
        H = frame @ covariant_hessian(self.M, self.mu, slope, H) @ frame.mT
        return frame, (H + H.mT) / 2

    @torch.no_grad()
    def _try(self, now: Tensor) -> None:
        step = torch.where(now[:, None], self.reach[:, None] * self.step, 0.0)
        ahead = self._ahead(step)
        inside = in_chart(self.M, ahead)
        mu = torch.where((now & inside)[:, None], ahead, self.mu)
        legs = self.legs.moved(mu[self.owner])
        found = self._totals(legs.taylor)
        finite = torch.stack([x.flatten(1).isfinite().all(1) for x in (found.slope, found.hessian)]).all(0)
        goal = self.total.value * (1 + self.tolerance) - 1e-4 * self.reach * self.promised
        better = now & inside & finite & (found.value <= goal)
        self.mu = torch.where(better[:, None], mu, self.mu)
        self.legs = legs.where(better[self.owner], self.legs)
        self.total = where(better, found, self.total)
        longer, shorter = (2 * self.reach).clamp(max=1.0), self.reach / 4
        self.reach = torch.where(better, longer, torch.where(now, shorter, self.reach))
        self.tried += now
        self._aim()

    def _ahead(self, step: Tensor) -> Tensor:
        """End of the geodesics with the steps for velocities, as well as a step needs it."""
        if has_formula(self.M):
            return self.M.exp(self.mu, step)
        return self.M.shoot(self.mu, step, tolerance=_LOOSE).points

    def reason(self, i: int, tried: int) -> str:
        """Why a mean is not stationary after so many steps."""
        promised, value = float(self.promised[i]), float(self.total.value[i])
        if not bool(self.step[i].isfinite().all()):
            return "the metric at the mean is singular"
        if promised <= self.tolerance * value:
            return "no minimum: the Hessian of the mean squared distance is not positive definite"
        if not bool(self.running[i]):
            return f"no step lowers the variance although the model promises {promised / value:.1e} of it"
        return f"still moving after {tried} steps: one more promises {promised / value:.1e} of it"


def admit_codes(estimator: Any, X: ArrayLike | Tensor, *, like: Tensor | None = None, at_least: int = 1) -> Tensor:
    """Codes at an estimator's door, in the way of scikit-learn: ``(n, d)``, an array or a tensor.

    They are brought to the dtype and device of ``like``, a tensor of the fitted estimator; None on fitting.
    """
    if not isinstance(estimator.M, Manifold):
        raise ValueError(f"M is a {type(estimator.M).__name__}; give a Manifold, e.g. oddity.expected_metric(decoder)")
    array = X.detach().cpu().numpy() if isinstance(X, Tensor) else X
    array = validate_data(
        estimator, array, dtype=[np.float64, np.float32], reset=like is None, ensure_min_samples=at_least
    )
    z = torch.tensor(array, device=X.device if isinstance(X, Tensor) else None)
    z = z if like is None else z.to(like)
    estimator.M.admit(z, "X")
    return z
