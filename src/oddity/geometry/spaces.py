"""Spaces with a formula: flat, conformal, constantly curved, or any positive-definite field."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import ClassVar, final

import torch
from torch import Tensor

from oddity.geometry.connect import ChainSolver, Init, admit_pair
from oddity.geometry.curve import Geodesic, nested
from oddity.geometry.manifold import Manifold
from oddity.numerics.autodiff import gradient

__all__ = ["Conformal", "Euclidean", "Hyperbolic", "Sphere", "TensorField"]


class _ClosedForm(Manifold):
    """A space whose exponential and logarithm have a formula: subclasses give ``_exp`` and ``_log``."""

    def _exp(self, z: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError

    def _log(self, a: Tensor, b: Tensor) -> Tensor:
        raise NotImplementedError

    def _dist(self, a: Tensor, b: Tensor) -> Tensor:
        raise NotImplementedError

    @final
    def exp(self, z: Tensor, v: Tensor) -> Tensor:
        """End of the geodesic from z with velocity v, exactly and differentiably: ``(*, d), (*, d) -> (*, d)``."""
        return self._exp(*self._admit_tangents(z, v=v))

    @final
    def log(self, a: Tensor, b: Tensor, *, init: Init = None, solver: ChainSolver | None = None) -> Tensor:  # noqa: ARG002
        """Initial velocity of the shortest geodesic, exactly and differentiably: ``(*, d), (*, d) -> (*, d)``."""
        admit_pair(self, a, b, init)
        return self._log(a, b)

    @final
    def dist(self, a: Tensor, b: Tensor, *, init: Init = None, solver: ChainSolver | None = None) -> Tensor:  # noqa: ARG002
        """Distance, exactly and differentiably: ``(*, d), (*, d) -> (*,)``; init and solver are not needed."""
        admit_pair(self, a, b, init)
        return self._dist(a, b)

    @final
    def geodesic(self, a: Tensor, b: Tensor, *, init: Init = None, solver: ChainSolver | None = None) -> Geodesic:
        """Shortest geodesics, exactly, at the solver's number of segments; init is not needed."""
        a, b = admit_pair(self, a, b, init)
        n = (solver or ChainSolver()).segments
        t = torch.linspace(0, 1, n + 1, dtype=a.dtype, device=a.device)[:, None]
        points = self._exp(a[..., None, :].expand(*a.shape[:-1], n + 1, -1), t * self._log(a, b)[..., None, :])
        points = torch.cat([a[..., None, :], points[..., 1:-1, :], b[..., None, :]], -2)
        length = self._dist(a, b)
        converged = points.isfinite().all(-1).all(-1)
        leaves = "the ends are antipodal, or the geodesic leaves the chart through its point at infinity"
        return Geodesic(
            points=points,
            length=length,
            length_error=torch.zeros_like(length),
            converged=converged,
            why=nested(["" if done else leaves for done in converged.flatten().tolist()], converged.shape),
            iterations=torch.zeros(converged.shape, dtype=torch.long, device=a.device),
            decrement=torch.zeros_like(length),
            speed_residual=torch.zeros_like(length),
            start=nested(["closed form"] * converged.numel(), converged.shape),
            manifold=self,
        )


class Euclidean(_ClosedForm):
    """Flat space: G = I, exact in every method.

    Parameters
    ----------
    dim
        Dimension; None fits every chart, as in ``M + 1e-3 * Euclidean()``.

    Raises
    ------
    ValueError
        If the dimension is not a whole number from 1; from every method, when points are unusable.

    Examples
    --------
    >>> float(Euclidean().dist(torch.zeros(2), torch.tensor([3.0, 4.0])))
    5.0
    """

    def __init__(self, dim: int | None = None) -> None:
        self.dim = None if dim is None else _dimension(dim)

    def push(self, z: Tensor, v: Tensor) -> Tensor:
        """Return v itself, in the common shape of z and v."""
        return v.expand(torch.broadcast_shapes(z.shape, v.shape))

    def force(self, z: Tensor, v: Tensor) -> Tensor:
        """Zero: geodesics are straight."""
        return torch.zeros_like(self.push(z, v))

    def linear_curvature(self, z: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Zero."""
        return (0 * (self.push(z, u) + v)).sum(-1)

    def _exp(self, z: Tensor, v: Tensor) -> Tensor:
        return z + v

    def _log(self, a: Tensor, b: Tensor) -> Tensor:
        return b - a

    def _dist(self, a: Tensor, b: Tensor) -> Tensor:
        distance: Tensor = torch.linalg.vector_norm(b - a, dim=-1)
        return distance


class Conformal(Manifold):
    """A metric that scales all directions alike, G(z) = s(z)^2 I.

    Parameters
    ----------
    scale
        s: ``(*, d) -> (*,)``, positive.
    dim
        Dimension of the chart, where it matters.

    Raises
    ------
    ValueError
        If the dimension is not a whole number from 1; from every method, when points are unusable.

    References
    ----------
    Lee, "Introduction to Riemannian Manifolds", 2018, chapter 3, on conformally flat metrics.

    Examples
    --------
    >>> half_plane = Conformal(lambda z: 1 / z[..., 1])
    >>> half_plane.geodesic(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0])).require()
    Geodesic(length=0.6931, converged=True)
    """

    def __init__(self, scale: Callable[[Tensor], Tensor], dim: int | None = None) -> None:
        self.scale, self.dim = scale, None if dim is None else _dimension(dim)

    def push(self, z: Tensor, v: Tensor) -> Tensor:
        """s(z) v."""
        return self.scale(z)[..., None] * v

    def force(self, z: Tensor, v: Tensor) -> Tensor:
        """|v|^2 grad(s^2) / 2 - <grad(s^2), v> v, by one gradient of the scale."""
        z, v = torch.broadcast_tensors(z, v)
        return _conformal_force(gradient(lambda x: self.scale(x).square())(z), v)


def _dimension(dim: int) -> int:
    if isinstance(dim, bool) or not isinstance(dim, Integral) or dim < 1:
        raise ValueError(f"dim={dim!r}: the dimension must be a whole number, and at least 1")
    return int(dim)


def _conformal_force(slope: Tensor, v: Tensor) -> Tensor:
    """Force of the metric s^2 I from the gradient of s^2."""
    return v.square().sum(-1, keepdim=True) * slope / 2 - (slope * v).sum(-1, keepdim=True) * v


class _ConstantCurvature(_ClosedForm):
    """Stereographic chart of constant curvature k = +1 or -1: G = (2 / (1 + k |z|^2))^2 I.

    The formulae for exp, log and dist are those of gyrovector spaces: Ungar, "Analytic Hyperbolic Geometry and
    Einstein's Special Theory of Relativity", 2008; Bachmann, Becigneul, Ganea, "Constant Curvature Graph
    Convolutional Networks", ICML 2020.
    """

    curvature: ClassVar[float]

    def __init__(self, dim: int) -> None:
        self.dim = _dimension(dim)

    def push(self, z: Tensor, v: Tensor) -> Tensor:
        """2 v / (1 + k |z|^2)."""
        return self._scale(z) * v

    def force(self, z: Tensor, v: Tensor) -> Tensor:
        """As for any conformal metric, with grad(s^2) = -2 k s^3 z."""
        return _conformal_force(-2 * self.curvature * self._scale(z) ** 3 * z, v)

    def _scale(self, z: Tensor) -> Tensor:
        return 2 / (1 + self.curvature * z.square().sum(-1, keepdim=True))  # (*, 1)

    def _between(self, a: Tensor, b: Tensor) -> Tensor:
        """1 + 2 k <a, b> + |a|^2 |b|^2, zero for antipodal points: ``(*, 1)``."""
        ab, aa, bb = ((u * v).sum(-1, keepdim=True) for u, v in ((a, b), (a, a), (b, b)))
        return 1 + 2 * self.curvature * ab + aa * bb

    def _add(self, a: Tensor, b: Tensor) -> Tensor:
        """Gyrovector addition of a and b."""
        k = self.curvature
        ab, aa, bb = ((u * v).sum(-1, keepdim=True) for u, v in ((a, b), (a, a), (b, b)))
        return ((1 - 2 * k * ab - k * bb) * a + (1 + k * aa) * b) / self._between(-a, b)

    def _dist(self, a: Tensor, b: Tensor) -> Tensor:
        chord, root = torch.linalg.vector_norm(b - a, dim=-1), self._between(a, b)[..., 0].clamp(min=0).sqrt()
        return 2 * (torch.atan2(chord, root) if self.curvature > 0 else torch.atanh(chord / root))

    def _exp(self, z: Tensor, v: Tensor) -> Tensor:
        half = self._scale(z) * torch.linalg.vector_norm(v, dim=-1, keepdim=True) / 2
        tangent = torch.tan(half) if self.curvature > 0 else torch.tanh(half)
        return self._add(z, tangent * _unit(v))

    def _log(self, a: Tensor, b: Tensor) -> Tensor:
        length = self._dist(a, b)[..., None]
        direction = _unit(self._add(-a, b))
        direction = torch.where((length > 0) & (direction == 0).all(-1, keepdim=True), torch.nan, direction)
        return length / self._scale(a) * direction


def _unit(v: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    return v / torch.where(norm > 0, norm, 1.0)


class Sphere(_ConstantCurvature):
    """The unit sphere S^d in its stereographic chart, G = (2 / (1 + |z|^2))^2 I; exp, log and dist are exact.

    The chart covers all but one point, the pole at infinity. Between antipodal points ``log`` is NaN, since every
    direction is a shortest one.

    Parameters
    ----------
    dim
        Dimension d.

    Raises
    ------
    ValueError
        If the dimension is not a whole number from 1; from every method, when points are unusable.

    References
    ----------
    Bachmann, Becigneul, Ganea, "Constant Curvature Graph Convolutional Networks", ICML 2020, for exp, log and dist.

    Examples
    --------
    >>> S = Sphere(2)
    >>> equator = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> round(float(S.dist(equator[0], equator[1])), 4)
    1.5708
    """

    curvature = 1.0


class Hyperbolic(_ConstantCurvature):
    """Hyperbolic space H^d as the Poincare ball, G = (2 / (1 - |z|^2))^2 I; exp, log and dist are exact.

    Parameters
    ----------
    dim
        Dimension d.

    Raises
    ------
    ValueError
        If the dimension is not a whole number from 1; from every method, when points are unusable or not inside the
        unit ball.

    References
    ----------
    Ungar, "Analytic Hyperbolic Geometry and Einstein's Special Theory of Relativity", 2008.

    Examples
    --------
    >>> H = Hyperbolic(2)
    >>> round(float(H.dist(torch.zeros(2), torch.tensor([0.5, 0.0]))), 4)
    1.0986
    """

    curvature = -1.0

    def admit(self, z: Tensor, name: str = "z") -> None:
        """Refuse points outside the open unit ball."""
        super().admit(z, name)
        radius = torch.linalg.vector_norm(z, dim=-1)
        if bool((radius >= 1).any()):
            raise ValueError(f"{name} holds a point of norm {float(radius.max()):.4g}; the Poincare ball is |z| < 1")


class TensorField(Manifold):
    """Any smooth field of symmetric positive-definite matrices: push = chol(G(z))' v.

    Parameters
    ----------
    G
        ``(*, d) -> (*, d, d)``, symmetric positive definite. Where it is not, the push is NaN, and a geodesic
        that meets such a point reports it. Asymmetry counts from the square root of the rounding error.
    dim
        Dimension of the chart, where it matters.

    Raises
    ------
    ValueError
        Where points enter, if G is no (d, d) matrix or not symmetric there: that is no property of a space.

    References
    ----------
    Hauberg, Freifeld, Black, "A geometric take on metric learning", NIPS 2012, for a field learned from data.

    Examples
    --------
    >>> stretched = TensorField(lambda z: torch.diag_embed(torch.tensor([1.0, 9.0]).expand(z.shape)))
    >>> float(stretched.norm(torch.zeros(2), torch.tensor([0.0, 1.0])))
    3.0
    """

    def __init__(self, G: Callable[[Tensor], Tensor], dim: int | None = None) -> None:
        self.G, self.dim = G, None if dim is None else _dimension(dim)

    def push(self, z: Tensor, v: Tensor) -> Tensor:
        """chol(G(z))' v."""
        G = self.G(z)
        L, info = torch.linalg.cholesky_ex(G)
        wrong = (info > 0) | _asymmetric(G)
        return torch.where(wrong[..., None], torch.nan, (L.mT @ v[..., None])[..., 0])

    @torch.no_grad()
    def admit(self, z: Tensor, name: str = "z") -> None:
        """Refuse points at which G is no symmetric matrix of the chart's size."""
        super().admit(z, name)
        G, d = self.G(z), z.shape[-1]
        if G.shape[-2:] != (d, d):
            raise ValueError(
                f"G gives {tuple(G.shape)} at {name} of shape {tuple(z.shape)}; give matrices (*, {d}, {d})"
            )
        if bool(_asymmetric(G).any()):
            at = tuple(_asymmetric(G).nonzero()[0].tolist())
            raise ValueError(
                f"G is {G[at].tolist()} at {name}[{at}], not symmetric; give (G + G.mT) / 2 if that is meant"
            )


def _asymmetric(G: Tensor) -> Tensor:
    """Where matrices differ from their transposes by more than rounding: ``(*, d, d) -> (*,)`` bool."""
    size = (-2, -1)
    wrong: Tensor = (G - G.mT).abs().amax(size) > torch.finfo(G.dtype).eps ** 0.5 * G.abs().amax(size)
    return wrong
