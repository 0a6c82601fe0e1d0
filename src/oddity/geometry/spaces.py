"""Spaces with a formula: flat, conformal, constantly curved, or any positive-definite field."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral
from typing import ClassVar, final

import torch
from torch import Tensor

from oddity.geometry.connect import ChainSolver, Init, admit_pair
from oddity.geometry.contract import by_rows
from oddity.geometry.curve import Geodesic, nested
from oddity.geometry.manifold import Manifold, _norm
from oddity.numerics.autodiff import gradient

__all__ = ["Conformal", "Euclidean", "Hyperbolic", "Sphere", "TensorField"]


class _ClosedForm(Manifold, rows=False):
    """A space with formulae: subclasses give ``_exp``, ``_log`` and ``_dist``.

    Where two points coincide the distance has a kink: its gradient there is zero, its second derivative NaN. The
    exponential and the logarithm are smooth there, and so is the squared distance ``M.inner(a, v, v)`` of
    ``v = M.log(a, b)``.
    """

    def _exp(self, z: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError

    def _log(self, a: Tensor, b: Tensor) -> Tensor:
        raise NotImplementedError

    def _dist(self, a: Tensor, b: Tensor) -> Tensor:
        raise NotImplementedError

    def _between(self, a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        """Points of the geodesic at times t, each from the nearer end: ``(*, 1, d)`` twice, ``(n, 1) -> (*, n, d)``."""
        out, back = self._exp(a, t * self._log(a, b)), self._exp(b, (1 - t) * self._log(b, a))
        return torch.where(t <= 0.5, out, back)

    @final
    def exp(self, z: Tensor, v: Tensor) -> Tensor:
        """End of the geodesic from z with velocity v, exactly and differentiably: ``(*, d), (*, d) -> (*, d)``.

        NaN where the dtype has no number for it, see :class:`Hyperbolic`.
        """
        return self._exp(*self._admit_tangents(z, v=v))

    @final
    def log(self, a: Tensor, b: Tensor, *, init: Init = None, solver: ChainSolver | None = None) -> Tensor:  # noqa: ARG002
        """Initial velocity of the shortest geodesic, exactly and differentiably: ``(*, d), (*, d) -> (*, d)``."""
        admit_pair(self, a, b, init)
        return self._log(a, b)

    @final
    def dist(self, a: Tensor, b: Tensor, *, init: Init = None, solver: ChainSolver | None = None) -> Tensor:  # noqa: ARG002
        """Distance, exactly and differentiably: ``(*, d), (*, d) -> (*,)``; init and solver are not needed.

        From a point to itself the gradient is zero and the second derivative NaN, for the distance has a kink there;
        ``M.inner(a, v, v)`` of ``v = M.log(a, b)`` is its square, and smooth.
        """
        admit_pair(self, a, b, init)
        return self._dist(a, b)

    @final
    def geodesic(self, a: Tensor, b: Tensor, *, init: Init = None, solver: ChainSolver | None = None) -> Geodesic:
        """Shortest geodesics, exactly, at the solver's number of segments; init is not needed."""
        a, b = admit_pair(self, a, b, init)
        n = (solver or ChainSolver()).segments
        t = torch.linspace(0, 1, n + 1, dtype=a.dtype, device=a.device)[:, None]
        points = self._between(a[..., None, :], b[..., None, :], t)
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


@final
class Euclidean(_ClosedForm, rows=False):
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
        return _norm(b - a)[..., 0]


@final
class Conformal(Manifold, rows=False):
    """A metric that scales all directions alike, G(z) = s(z)^2 I.

    Parameters
    ----------
    scale
        s: ``(N, d) -> (N,)``, or ``(N, 1)`` as a network of one output has it, each row by itself. Positive: where it
        is zero the metric is singular, where it is negative the push is NaN, and a geodesic that meets such a point
        reports it.
    dim
        Dimension of the chart, where it matters.

    Raises
    ------
    ValueError
        If the dimension is not a whole number from 1; from every method, when points are unusable, the scale is
        negative at one of them, or has another shape.

    References
    ----------
    Lee, "Introduction to Riemannian Manifolds", 2018, chapter 3, on conformally flat metrics.

    Examples
    --------
    >>> half_plane = Conformal(lambda z: 1 / z[:, 1])
    >>> half_plane.geodesic(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0])).require()
    Geodesic(length=0.6931, converged=True)
    """

    def __init__(self, scale: Callable[[Tensor], Tensor], dim: int | None = None) -> None:
        self.scale, self.dim = scale, None if dim is None else _dimension(dim)

    def push(self, z: Tensor, v: Tensor) -> Tensor:
        """s(z) v."""
        s = self._scale(z)
        return torch.where(s < 0, torch.nan, s)[..., None] * v

    def force(self, z: Tensor, v: Tensor) -> Tensor:
        """|v|^2 grad(s^2) / 2 - <grad(s^2), v> v, by one gradient of the scale."""
        z, v = torch.broadcast_tensors(z, v)
        return _conformal_force(gradient(lambda x: self._scale(x).square())(z), v)

    def _scale(self, z: Tensor) -> Tensor:
        """The scale at points of any leading shape: ``(*, d) -> (*,)``."""

        def scale(z: Tensor) -> Tensor:
            s = self.scale(z)
            return s[:, 0] if isinstance(s, Tensor) and s.ndim == 2 and s.shape[1] == 1 else s

        return by_rows(scale, "scale", ("N",), z)

    @torch.no_grad()
    def admit(self, z: Tensor, name: str = "z") -> None:
        """Refuse points at which the scale is negative, which a logarithm of a scale would be."""
        super().admit(z, name)
        s = self._scale(z)
        if bool((s < 0).any()):
            at = tuple((s < 0).nonzero()[0].tolist())
            raise ValueError(
                f"scale is {float(s[at]):.4g} at {name}[{at}]; give a positive one, its exp() if it is a logarithm, or "
                "points of the chart"
            )


def _dimension(dim: int) -> int:
    if isinstance(dim, bool) or not isinstance(dim, Integral) or dim < 1:
        raise ValueError(f"dim={dim!r}: the dimension must be a whole number, and at least 1")
    return int(dim)


def _conformal_force(slope: Tensor, v: Tensor) -> Tensor:
    """Force of the metric s^2 I from the gradient of s^2."""
    return v.square().sum(-1, keepdim=True) * slope / 2 - (slope * v).sum(-1, keepdim=True) * v


class _ConstantCurvature(_ClosedForm, rows=False):
    """Stereographic chart of constant curvature k = +1 or -1: G = (2 / (1 + k |z|^2))^2 I.

    Points are taken by w = (1 + k |z|^2)^-1/2 and w z, for which w^2 + k |w z|^2 = 1. So two points at the distance
    2 h have sin_k h = w_a w_b |b - a|, with sin_1 = sin and sin_-1 = sinh. The formulae for exp, log and dist are those
    of gyrovector spaces (Ungar, "Analytic Hyperbolic Geometry and Einstein's Special Theory of Relativity", 2008;
    Bachmann, Becigneul, Ganea, "Constant Curvature Graph Convolutional Networks", ICML 2020), so arranged that nothing
    cancels: neither near the rim or the point at infinity, nor between near or antipodal points. They are functions of
    squared lengths by power series near zero, and so have all derivatives.
    """

    curvature: ClassVar[float]

    def __init__(self, dim: int) -> None:
        self.dim = _dimension(dim)

    def _weight(self, z: Tensor) -> Tensor:
        """(1 + k |z|^2)^-1/2: ``(*, d) -> (*, 1)``."""
        raise NotImplementedError

    def _half(self, sine: Tensor, cosine: Tensor) -> Tensor:
        """The half of a distance, h, by sin_k h and cos_k h."""
        raise NotImplementedError

    def push(self, z: Tensor, v: Tensor) -> Tensor:
        """2 v / (1 + k |z|^2)."""
        w = self._weight(z)
        return 2 * w * (w * v)

    def force(self, z: Tensor, v: Tensor) -> Tensor:
        """As for any conformal metric, with grad(s^2) = -2 k s^3 z."""
        return _conformal_force(-2 * self.curvature * (2 * self._weight(z).square()) ** 3 * z, v)

    def _cosine(self, w: Tensor, x: Tensor, c: Tensor, y: Tensor) -> Tensor:
        """Root of (w c)^2 + 2 k w c <x, y> + |x|^2 |y|^2, which is one square where the middle term is negative."""
        wc, xy = w * c, (x * y).sum(-1, keepdim=True)
        obtuse = self.curvature * wc * xy < 0
        direct = wc.square() + 2 * self.curvature * wc * xy + (_square(x) * _square(y))
        x = torch.where(obtuse, x, 1.0)
        size = _norm(x)
        turned = _norm(size * y + self.curvature * wc * x / size)
        return torch.where(obtuse, turned, torch.where(obtuse, 1.0, direct).sqrt())

    def _pair(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weights of two points, and (b - a) w_a w_b, of length sin_k h, with cos_k h."""
        v, w = self._weight(a), self._weight(b)
        chord = (b - a) * v * w
        if self.curvature > 0:
            return v, w, chord, self._cosine(v, v * a, w, w * b)
        return v, w, chord, _norm(torch.nn.functional.pad(chord, (1, 0), value=1.0))

    def _dist(self, a: Tensor, b: Tensor) -> Tensor:
        *_, chord, cosine = self._pair(a, b)
        return 2 * self._half(_norm(chord), cosine)[..., 0]

    def _exp(self, z: Tensor, v: Tensor) -> Tensor:
        k, w = self.curvature, self._weight(z)
        half = w * (w * v)
        h2 = _square(half)
        x, c = _sine(k, h2) * half, 1 - k * h2 / 2 * _sine(k, h2 / 4).square()  # of length sin_k h; cos_k h
        root = self._cosine(w, -w * z, c, x)  # 1 + k |end|^2 is its inverse square
        end = z + (c * x - k * _square(x) * z) / root / root
        if k < 0:  # so near to the rim the next number is a long way off
            held = (4 * torch.finfo(z.dtype).eps * root.square() < 1) & (_gap(end) > 0)
            return torch.where(held, end, torch.nan)
        y = w * z  # that sum cancels on the way in from far out
        near = ((c.square() - _square(x)) * w * y - 2 * c * (x * y).sum(-1, keepdim=True) * y + c * x) / root / root
        return torch.where(_norm(near) < _norm(z) / 2, near, end)

    def _log(self, a: Tensor, b: Tensor) -> Tensor:
        k, (v, w, chord, cosine) = self.curvature, self._pair(a, b)
        tangent2 = _square(chord / cosine)
        near = tangent2 < _NEAR
        sine = _norm(torch.where(near, 1.0, chord))
        ratio = torch.where(near, _arc(k, tangent2) / cosine.square(), self._half(sine, cosine) / (sine * cosine))
        way = w.square() * (b - a) + k * _square(chord) * a
        # which cancels where a is far out and b is not
        y, x = v * a, w * b
        inward = w * x - (w.square() - k * _square(x)) * v * y - 2 * k * w * (x * y).sum(-1, keepdim=True) * y
        way = torch.where(_norm(b) < _norm(a) / 2, inward, way)
        # near antipodes no digit of the direction is left
        antipodal = cosine <= 16 * torch.finfo(cosine.dtype).eps * (v * w + _norm(x) * _norm(y))
        return torch.where(antipodal, torch.nan, ratio * way / v / v)


_NEAR = 1 / 16  # squared tangents below which power series stand for quotients


def _square(v: Tensor) -> Tensor:
    return v.square().sum(-1, keepdim=True)


def _series(x: Tensor, coefficients: list[float]) -> Tensor:
    """Polynomial with coefficients from the constant one upwards, by Horner's rule."""
    value = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value = value * x + c
    return value


def _sine(k: float, h2: Tensor) -> Tensor:
    """sin(h) / h for k = 1, sinh(h) / h for k = -1, as a smooth function of h^2."""
    near = h2 < 1
    h = torch.where(near, 1.0, h2).sqrt()
    series = _series(torch.where(near, h2, 0.0), [(-k) ** n / math.factorial(2 * n + 1) for n in range(10)])
    return torch.where(near, series, (h.sin() if k > 0 else h.sinh()) / h)


def _arc(k: float, tangent2: Tensor) -> Tensor:
    """arctan(t) / t for k = 1, artanh(t) / t for k = -1, as a power series in t^2 <= 1/16."""
    return _series(tangent2.clamp(max=_NEAR), [(-k) ** n / (2 * n + 1) for n in range(14)])


@final
class Sphere(_ConstantCurvature, rows=False):
    """The unit sphere S^d in its stereographic chart, G = (2 / (1 + |z|^2))^2 I; exp, log and dist are exact.

    The chart covers all but one point, the pole at infinity. Between points that the dtype cannot tell from antipodal
    ones ``log`` is NaN, since every direction is a shortest one.

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

    def _weight(self, z: Tensor) -> Tensor:
        return 1 / _norm(torch.nn.functional.pad(z, (1, 0), value=1.0))

    def _half(self, sine: Tensor, cosine: Tensor) -> Tensor:
        return torch.atan2(sine, cosine)


@final
class Hyperbolic(_ConstantCurvature, rows=False):
    """Hyperbolic space H^d as the Poincare ball, G = (2 / (1 - |z|^2))^2 I; exp, log and dist are exact.

    The ball ends where its numbers do: at 16 from the centre in float32, at 36 in float64, the next number is a long
    way off. ``exp`` is NaN beyond, and before that next to the true point, off by about eps / (1 - |z|).

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

    def _weight(self, z: Tensor) -> Tensor:
        gap = _gap(z)
        return torch.where(gap > 0, gap, torch.nan).rsqrt().to(z.dtype)

    def _half(self, sine: Tensor, cosine: Tensor) -> Tensor:  # noqa: ARG002
        return torch.asinh(sine)

    def _between(self, a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        """Weighted means on the hyperboloid, for on long ways rounding at the start grows exponentially."""
        v, w = self._weight(a), self._weight(b)
        length2 = _square(2 * v * (v * self._log(a, b)))
        start, end = (s * _sine(-1, s.square() * length2) / _sine(-1, length2) for s in (1 - t, t))
        along = 2 * (start * v * (v * a) + end * w * (w * b))
        up = start * (v.square() + _square(v * a)) + end * (w.square() + _square(w * b))
        return along / (1 + up)

    def admit(self, z: Tensor, name: str = "z") -> None:
        """Refuse points outside the open unit ball."""
        super().admit(z, name)
        outside = _gap(z.detach())[..., 0] <= 0
        if bool(outside.any()):
            radius = float(torch.linalg.vector_norm(z.detach()[outside].double(), dim=-1).max())
            raise ValueError(f"{name} holds a point of norm {radius:.4g}; the Poincare ball is |z| < 1")


def _gap(z: Tensor) -> Tensor:
    """1 - |z|^2 of points of the unit ball: ``(*, d) -> (*, 1)``, in float64 and off by less than 1e-23 / itself.

    With h the leading half of the digits of z, the squares of h and their sum are exact, and so is what they leave of
    one.
    """
    z = z.double()
    h = (z.detach() * 2.0**26).trunc() / 2.0**26
    return 1 - _square(h) - ((z - h) * (z + h)).sum(-1, keepdim=True)


@final
class TensorField(Manifold, rows=False):
    """Any smooth field of symmetric positive-definite matrices: push = chol(G(z))' v.

    Parameters
    ----------
    G
        ``(N, d) -> (N, d, d)``, symmetric positive definite, each row by itself. Where it is not, the push is NaN, and
        a geodesic that meets such a point reports it. Asymmetry counts from the square root of the rounding error.
    dim
        Dimension of the chart, where it matters.

    Raises
    ------
    ValueError
        If G has another shape; where points enter, if it is not symmetric there: that is no property of a space.

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
        G = self._matrices(z)
        L, info = torch.linalg.cholesky_ex(G)
        wrong = (info > 0) | _asymmetric(G)
        return torch.where(wrong[..., None], torch.nan, (L.mT @ v[..., None])[..., 0])

    def _matrices(self, z: Tensor) -> Tensor:
        return by_rows(self.G, "G", ("N", "d", "d"), z)

    @torch.no_grad()
    def admit(self, z: Tensor, name: str = "z") -> None:
        """Refuse points at which G is no symmetric matrix of the chart's size."""
        super().admit(z, name)
        G = self._matrices(z)
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
