"""Jacobi fields along geodesics: how the exponential map spreads volume, and how distances bend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from oddity.geometry.curvature import _riemann
from oddity.geometry.curve import nested
from oddity.geometry.manifold import Manifold, in_chart
from oddity.numerics.ambient import door, doors

__all__ = ["Spread", "exponential_spread"]

_RESOLUTION = 0.15  # difference to a grid of half as many steps, whose error is 16 times as large
_STEEP = 3.0  # curvature times the squared step, beyond which Numerov's method sees conjugate points that are none
_FOLDS = 2, 4, 8, 16  # finer grids


@doors
@dataclass(frozen=True, eq=False, repr=False)
class Spread:
    """Geodesics t -> exp_z(t v), and how far their neighbours spread, at t = 0, 1/n, ..., 1.

    Attributes
    ----------
    points : Tensor
        ``(*, n+1, d)``, NaN where a geodesic did not come.
    determinant : Tensor
        ``(*, n+1)``, det D exp_z at t v between orthonormal bases: 1 at t = 0, negative past a simple conjugate
        point, NaN where a geodesic did not come.
    hessian : Tensor
        ``(*, n+1, d, d)``, covariant Hessian in z of half the squared length of the geodesic to the point, in chart
        coordinates: G(z) at t = 0, and everywhere in flat space; NaN as above.
    regular : Tensor
        ``(*, n+1)`` bool: no conjugate point up to here. A geodesic is no longer a shortest one past its first.
        Where a geodesic did not come, the field is continued with the last curvature known.
    converged : Tensor
        ``(*,)`` bool: the geodesic, as a :class:`~oddity.Trajectory`, and the field up to its first conjugate point.
    why
        A sentence for each geodesic that did not converge, ``""`` for the others; nested like the batch.
    """

    points: Tensor
    determinant: Tensor
    hessian: Tensor
    regular: Tensor
    converged: Tensor
    why: Any

    def __repr__(self) -> str:
        return f"Spread({self.converged.numel()} geodesics, {int(self.converged.sum())} converged)"


@door
def exponential_spread(M: Manifold, z: Tensor, v: Tensor, steps: int = 32, *, tolerance: float | None = None) -> Spread:
    """Determinant of the exponential map's differential along the geodesics that leave z with velocity v.

    D exp_z at t v takes w to Y(t) w / t, where Y solves Jacobi's equation Y'' = -R Y in a parallel orthonormal frame,
    Y(0) = 0, Y'(0) = 1, with R w = R(w, c') c'. Along the geodesic Y is t, so that only the d - 1 directions across are
    solved for, by Numerov's method, of fourth order in 1/n.

    Parameters
    ----------
    M
        The manifold.
    z, v
        ``(*, d)``; leading shapes broadcast.
    steps
        n, even: steps of each geodesic in the result. Where a field needs finer ones to be known to a hundredth, up to
        16 times as many are taken. The work is one curvature for each step and each pair of directions across.
    tolerance
        Of the geodesics, see :func:`oddity.geometry.maps.shoot`.

    Returns
    -------
    Spread
        With a verdict for each geodesic: one that fails never raises, and is never replaced. Detached.

    Raises
    ------
    ValueError
        If z or v is unusable (NaN, wrong dimension, mixed dtype, shapes that do not broadcast), steps is not an even
        number of at least 4, or the metric is singular at z.

    Notes
    -----
    do Carmo, "Riemannian Geometry", 1992, chapter 5; Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations
    I", 1993, section III.10. Conjugate points are told by Y^-1 X, with X another solution, X(0) = 1, X'(0) = 0: it is
    symmetric, and its eigenvalues fall until one of them passes from minus to plus infinity.

    Examples
    --------
    On the unit sphere neighbours spread like sin(r) / r, and meet again at r = pi:

    >>> import oddity
    >>> north, v = torch.zeros(2, dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)  # |v| = 2
    >>> spread = exponential_spread(oddity.Sphere(2), north, v)
    >>> [round(x, 4) for x in spread.determinant[[0, 16, 32]].tolist()]  # at r = 0, 1, 2
    [1.0, 0.8415, 0.4546]
    """
    z, v = M._admit_tangents(z, v=v)
    if steps < 4 or steps % 2:
        raise ValueError(f"steps is {steps}; Jacobi fields need an even number of them, at least 4")
    shape, d = z.shape[:-1], z.shape[-1]
    with torch.no_grad():
        z, v = z.detach().reshape(-1, d), v.detach().reshape(-1, d)
        finest = _FOLDS[-1] * steps
        path = M.shoot(z, v, torch.linspace(0, 1, finest + 1, dtype=z.dtype, device=z.device), tolerance=tolerance)
        fields = _fields(M, path.points[:, :: _FOLDS[-1]], path.velocity[:, :: _FOLDS[-1]])
        last, rows = fields, torch.arange(len(z), device=z.device)  # the finest fields so far, and whose they are
        for fold in _FOLDS:
            rough = (~fields.resolved).nonzero()[:, 0]
            if len(rough) == 0:
                break
            coarse = last.squares[torch.searchsorted(rows, rough)]
            c, u = (x[rough, :: _FOLDS[-1] // fold] for x in (path.points, path.velocity))
            finer = _fields(M, c, u, coarse)
            for whole, part in zip(fields, finer, strict=True):
                whole[rough] = part[:, ::fold] if part.ndim > 1 else part
            last, rows = finer, rough
    converged, why = path.converged, list(path.why)
    for i in (converged & ~fields.resolved).nonzero().flatten().tolist():
        why[i] = f"{_FOLDS[-1] * steps} steps do not resolve the Jacobi field: raise steps"
    return Spread(
        points=path.points[:, :: _FOLDS[-1]].reshape(*shape, steps + 1, d),
        determinant=fields.determinant.reshape(*shape, steps + 1),
        hessian=fields.hessian.reshape(*shape, steps + 1, d, d),
        regular=fields.regular.reshape(*shape, steps + 1),
        converged=(converged & fields.resolved).reshape(shape),
        why=nested(why, shape),
    )


class _Fields(NamedTuple):
    """Jacobi fields along geodesics on one grid."""

    determinant: Tensor  # (B, n+1)
    hessian: Tensor  # (B, n+1, d, d)
    regular: Tensor  # (B, n+1)
    resolved: Tensor  # (B,)   up to a conjugate point the grid and one of half as many steps agree
    squares: Tensor  # (B, n+1, pairs)   <R w, w>, for a finer grid to begin with


def _fields(M: Manifold, c: Tensor, u: Tensor, coarse: Tensor | None = None) -> _Fields:
    """Jacobi fields along geodesics with nodes c and velocities u, ``(B, n+1, d)`` each.

    In the plane the curvatures on a ``coarse`` grid, every so many nodes, need not be computed again: the normal of a
    geodesic is exact on any grid, and a frame that is transported along it is not.
    """
    n = c.shape[1] - 1
    tide, across, known, squares = _tide(M, c, u, coarse if c.shape[-1] == 2 else None)
    fine, bend, sound = _determinant(tide, 1 / n)
    coarse, *rough = _determinant(tide[:, ::2], 2 / n)
    regular, at_half = _regular(bend, sound), known[:, ::2]
    before, apart = regular[:, ::2], regular[:, ::2] != _regular(*rough)  # beside one conjugate point
    gap = (fine[:, ::2] - coarse).abs() <= _RESOLUTION * fine[:, ::2].abs().clamp(min=1.0)
    steep = torch.linalg.matrix_norm(tide) > _STEEP * n * n
    steep[:, 1:] &= regular[:, :-1]  # also where it makes the first conjugate point
    G, t = M.metric(c[:, 0]), torch.linspace(0, 1, n + 1, dtype=c.dtype, device=c.device)
    lowered = across[:, 0] @ G  # (B, d-1, d)
    one = torch.eye(bend.shape[-1], dtype=c.dtype, device=c.device)
    hessian = G[:, None] + lowered.mT[:, None] @ (t[1:, None, None] * bend - one) @ lowered[:, None]
    return _Fields(
        determinant=torch.where(known, fine, torch.nan),
        hessian=torch.where(known[..., None, None], torch.cat([G[:, None], hessian], 1), torch.nan),
        regular=regular,
        resolved=(gap | ~before | apart | ~at_half).all(1) & ((apart & at_half).sum(1) <= 1) & ~steep.any(1),
        squares=squares,
    )


def _determinant(tide: Tensor, h: float) -> tuple[Tensor, Tensor, Tensor]:
    """Determinant of Y / t, ``(B, n+1)``; Y^-1 X and where it is finite, from the first step on."""
    Y, X = _numerov(tide, h)
    t = h * torch.arange(1, Y.shape[1], dtype=Y.dtype, device=Y.device)
    determinant = torch.linalg.det(Y[:, 1:] / t[:, None, None])
    return torch.cat([torch.ones_like(determinant[:, :1]), determinant], 1), *_quotient(Y[:, 1:], X[:, 1:])


def _tide(M: Manifold, c: Tensor, u: Tensor, coarse: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """R in a parallel frame across, the last one known for good; that frame; where R is known; and <R w, w>.

    ``(B, n+1, d-1, d-1)``, ``(B, n+1, d-1, d)``, ``(B, n+1)``, ``(B, n+1, pairs)``.
    """
    d = c.shape[-1]
    known = c.isfinite().all(-1)  # (*, n+1); a curve that grazes the edge of the chart may end past it
    known[known.clone()] = in_chart(M, c[known])
    known &= u.isfinite().all(-1)
    e = _across(M, _to_the_last(c, known), _to_the_last(u, known))  # (*, n+1, d-1, d)
    known = known & e.isfinite().all(-1).all(-1)
    i, j = torch.triu_indices(d - 1, d - 1, device=c.device)
    squares, new = c.new_zeros(*known.shape, len(i)), known.clone()
    if coarse is not None:
        every = (c.shape[1] - 1) // (coarse.shape[1] - 1)
        squares[:, ::every], new[:, ::every] = coarse, False
    w = torch.where((i == j)[:, None], e[..., i, :], e[..., i, :] + e[..., j, :])[new]  # (N, pairs, d)
    where = c[new][:, None].expand(w.shape), w, u[new][:, None].expand(w.shape)
    chunks = zip(*(x.flatten(0, 1).split(M._curvatures_at_a_time()) for x in where), strict=True)
    if w.numel():
        squares[new] = torch.cat([_riemann(M, *chunk) for chunk in chunks]).reshape(w.shape[:-1])
    tide = c.new_zeros(*known.shape, d - 1, d - 1)
    tide[..., i, j] = squares
    own = tide.diagonal(dim1=-2, dim2=-1)
    mixed = (tide - own[..., :, None] - own[..., None, :]).triu(1) / 2  # by polarisation
    return _to_the_last(mixed + mixed.mT + torch.diag_embed(own), known), e, known, squares


def _to_the_last(x: Tensor, known: Tensor) -> Tensor:
    """Entries along an axis up to the last known one, and that one from there on: ``(*, n+1, ...)``, ``(*, n+1)``."""
    last = known.int().cumprod(-1).sum(-1, keepdim=True) - 1
    at = torch.minimum(torch.arange(known.shape[-1], device=x.device), last)
    return x.gather(known.ndim - 1, at.reshape(at.shape + (1,) * (x.ndim - at.ndim)).expand(x.shape))


def _across(M: Manifold, c: Tensor, u: Tensor) -> Tensor:
    """Parallel orthonormal vectors across geodesics with nodes c and velocities u: ``(*, n+1, d-1, d)``.

    In two dimensions, where the normal of a geodesic is parallel, at no cost.
    """
    d = c.shape[-1]
    at = slice(None) if d == 2 else slice(1)
    L, info = torch.linalg.cholesky_ex(M.metric(c[..., at, :]))
    if bool(info[..., 0].any()):
        where = tuple(info[..., 0].nonzero()[0].tolist())
        raise ValueError(f"the metric at point {where} is singular; add a ridge, e.g. M + 1e-3 * Euclidean()")
    along = (L.mT @ u[..., at, :, None])[..., 0]  # (*, nodes, d)   in the orthonormal basis that L gives
    along = torch.where(along.abs().amax(-1, keepdim=True) > 0, along, torch.eye(d, dtype=c.dtype, device=c.device)[0])
    if d == 2:
        normal = torch.stack([-along[..., 1], along[..., 0]], -1)
        basis = (normal / torch.linalg.vector_norm(normal, dim=-1, keepdim=True))[..., None, :]
    else:
        basis = torch.linalg.qr(along[..., None], mode="complete").Q[..., 1:].mT  # (*, 1, d-1, d)
    e: Tensor = torch.linalg.solve_triangular(L.mT, basis.mT, upper=True).mT
    if d == 2:
        return e
    chains = c[..., None, :, :].expand(*c.shape[:-2], d - 1, *c.shape[-2:])
    return M.transport(chains, e[..., 0, :, :]).transpose(-3, -2)


def _numerov(tide: Tensor, h: float) -> tuple[Tensor, Tensor]:
    """Solutions of Y'' = -R Y from (0, 1) and (1, 0): ``(*, n+1, k, k)`` twice."""
    one = torch.eye(tide.shape[-1], dtype=tide.dtype, device=tide.device).expand(tide.shape[:-3] + tide.shape[-2:])
    R = tide.unbind(-3)
    weight = [one + h * h / 12 * r for r in R]
    Y = [torch.zeros_like(one), h * (one - h * h / 12 * (R[0] + R[1]))]  # Taylor's series
    X = [one, one - h * h / 24 * (7 * R[0] + 6 * R[1] - R[2]) + h**4 / 24 * R[0] @ R[0]]
    for i in range(1, len(R) - 1):
        for y in (Y, X):
            ahead = 2 * weight[i] @ y[i] - weight[i - 1] @ y[i - 1] - h * h * R[i] @ y[i]
            y.append(torch.linalg.solve_ex(weight[i + 1], ahead).result)
    return torch.stack(Y, -3), torch.stack(X, -3)


def _quotient(Y: Tensor, X: Tensor) -> tuple[Tensor, Tensor]:
    """Y^-1 X, symmetric, and where it is finite: ``(*, n, k, k)``, ``(*, n)``."""
    quotient, info = torch.linalg.solve_ex(Y, X)
    sound = (info == 0) & quotient.isfinite().all(-1).all(-1)
    quotient = torch.where(sound[..., None, None], quotient, 0.0)
    return (quotient + quotient.mT) / 2, sound


_ROUNDING = 1e-3  # share by which an eigenvalue may seem to rise; past a conjugate point it is another one


def _regular(bend: Tensor, sound: Tensor) -> Tensor:
    """Whether the eigenvalues of Y^-1 X have only fallen so far: ``(*, n, k, k) -> (*, n+1)`` bool."""
    values = torch.linalg.eigvalsh(bend)
    before, after = values[..., :-1, :], values[..., 1:, :]
    fallen = (after - before <= _ROUNDING * (before.abs() + after.abs())).all(-1) & sound[..., 1:] & sound[..., :-1]
    start = torch.ones_like(sound[..., :2])
    return torch.cat([start, fallen], -1).int().cumprod(-1).bool()
