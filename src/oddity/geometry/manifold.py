"""The one idea: a Riemannian manifold in one chart is a smooth field of linear maps, ``push(z, v)``.

Its metric is <push(z, u), push(z, v)>, that is G(z) = A(z)'A(z), symmetric and positive semi-definite by
construction. Everything else is derived from ``push``, and a subclass may override a derivation for speed but
never for meaning.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from oddity.numerics.autodiff import Differential
from oddity.numerics.chain import ChainModel, model_from_blocks

if TYPE_CHECKING:
    from oddity.geometry.connect import ChainSolver, Init
    from oddity.geometry.curve import Geodesic

__all__ = ["Manifold", "Scaled", "Sum"]

_POINTS_AT_A_TIME = 512  # frames of so many points stay in a processor's cache


class Manifold(abc.ABC):
    """A Riemannian manifold in one chart R^d.

    A subclass must define :meth:`push`; it may override :meth:`secant`, :meth:`secants`, :meth:`frame` and
    :meth:`chain_model` for speed. The other methods are derived and final. Shapes: ``*`` stands for any leading
    shape; leading shapes broadcast. Manifolds form a small algebra: ``M1 + M2`` adds metrics, ``c * M`` scales
    the metric by c > 0.

    Attributes
    ----------
    dim : int or None
        Dimension d of the chart where the manifold knows it.

    Examples
    --------
    A surface of revolution by its metric's square root, and the length of its parallel at height one:

    >>> class Funnel(Manifold):
    ...     dim = 2
    ...     def push(self, z, v):
    ...         return torch.stack([v[..., 0], torch.exp(-z[..., 0]) * v[..., 1]], -1)
    >>> parallel = torch.stack([torch.ones(101), torch.linspace(0, 1, 101)], -1)
    >>> round(float(Funnel().length(parallel)), 4)
    0.3679
    """

    dim: int | None = None

    # -- must be said ------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def push(self, z: Tensor, v: Tensor) -> Tensor:
        """Linear square root of the metric: ``(*, d), (*, d) -> (*, m)``, linear in v."""

    # -- may be overridden for speed, never for meaning ----------------------------------------------------------

    def secant(self, a: Tensor, b: Tensor) -> Tensor:
        """Vector whose norm is the distance of near points up to O(|b - a|^3): ``(*, d), (*, d) -> (*, m)``."""
        return self.push((a + b) / 2, b - a)

    def secants(self, c: Tensor) -> Tensor:
        """Secants along a chain: ``(*, n+1, d) -> (*, n, m)``."""
        return self.secant(c[..., :-1, :], c[..., 1:, :])

    def frame(self, z: Tensor) -> Tensor:
        """Push of the coordinate basis, A(z): ``(*, d) -> (*, m, d)``."""
        d = z.shape[-1]
        basis = torch.eye(d, dtype=z.dtype, device=z.device)
        return self.push(z[..., None, :].expand(*z.shape, d), basis.expand(*z.shape, d)).mT

    def chain_model(self, c: Tensor, *, exact: bool = False) -> ChainModel:
        """Quadratic model of the energy of chains ``(B, n+1, d)``, by automatic derivatives of the secant.

        With ``exact`` the model holds, beside the Gauss-Newton matrix, what the exact Hessian has more.
        """
        return self._by_chunks(c, lambda part: _secant_model(self._secant_differential, part, exact))

    def _by_chunks(self, c: Tensor, model: Callable[[Tensor], ChainModel]) -> ChainModel:
        size = max(1, _POINTS_AT_A_TIME // c.shape[1])
        return ChainModel.cat([model(part) for part in c.split(size)]) if len(c) > size else model(c)

    @cached_property
    def _secant_differential(self) -> Differential:
        def secant(ab: Tensor) -> Tensor:
            d = ab.shape[-1] // 2
            return self.secant(ab[..., :d], ab[..., d:])

        return Differential(secant)

    def admit(self, z: Tensor, name: str = "z") -> None:
        """Refuse points that are not in the chart: the check at every public door.

        Raises
        ------
        ValueError
            With the offending value and a remedy: not a floating-point tensor, the wrong dimension, NaN or
            infinite values.
        """
        if not isinstance(z, Tensor):
            raise ValueError(f"{name} is a {type(z).__name__}; give a tensor, e.g. torch.as_tensor({name})")
        if not z.is_floating_point():
            raise ValueError(f"{name} has dtype {z.dtype}; give floating-point coordinates, e.g. {name}.float()")
        if z.ndim == 0:
            raise ValueError(f"{name} is a single number; points have shape (*, d)")
        if self.dim is not None and z.shape[-1] != self.dim:
            raise ValueError(
                f"{name} has shape {tuple(z.shape)}, but points of {self} have {self.dim} coordinates: (*, {self.dim})"
            )
        if not bool(z.isfinite().all()):
            where = tuple((~z.isfinite()).nonzero()[0].tolist())
            raise ValueError(f"{name} holds {z[where].item()} at index {where}; give finite coordinates")

    # -- derived, at a point --------------------------------------------------------------------------------------

    @final
    def metric(self, z: Tensor) -> Tensor:
        """Metric tensor G(z) = A'A: ``(*, d) -> (*, d, d)``.

        Raises
        ------
        ValueError
            If z is not a finite floating-point tensor of the chart's dimension. This holds for every derived method.
        """
        self.admit(z)
        return self._over_points(z, lambda A: A.mT @ A, (z.shape[-1], z.shape[-1]))

    @final
    def inner(self, z: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Inner product <u, v> at z: ``(*, d)`` three times ``-> (*,)``."""
        self._admit_all(z=z, u=u, v=v)
        return (self.push(z, u) * self.push(z, v)).sum(-1)

    @final
    def norm(self, z: Tensor, v: Tensor) -> Tensor:
        """Riemannian norm of v at z: ``(*, d), (*, d) -> (*,)``."""
        self._admit_all(z=z, v=v)
        norm: Tensor = torch.linalg.vector_norm(self.push(z, v), dim=-1)
        return norm

    @final
    def log_volume(self, z: Tensor) -> Tensor:
        """Log magnification factor, log sqrt det G(z): ``(*, d) -> (*,)``; -inf where the metric is singular.

        Summed in float64, since det G squares the condition number of the frame.
        """
        self.admit(z)

        def half_log_det(A: Tensor) -> Tensor:
            A = A.double()
            log_det: Tensor = torch.linalg.slogdet(A.mT @ A).logabsdet
            return 0.5 * log_det

        return self._over_points(z, half_log_det, ()).to(z.dtype)

    @final
    def sample_tangent(self, z: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Standard normal tangent vectors, v ~ N(0, G(z)^-1): ``(*, d) -> (*, d)``.

        Raises
        ------
        ValueError
            If the metric is singular at a point, where no such law exists.
        """
        L, info = torch.linalg.cholesky_ex(self.metric(z))
        if bool(info.any()):
            where = tuple(info.nonzero()[0].tolist())
            raise ValueError(f"the metric at point {where} is singular; add a ridge, e.g. M + 1e-3 * Euclidean()")
        noise = torch.randn(z.shape, dtype=z.dtype, device=z.device, generator=generator)
        v: Tensor = torch.linalg.solve_triangular(L.mT, noise[..., None], upper=True)
        return v[..., 0]

    # -- derived, along a curve -----------------------------------------------------------------------------------

    @final
    def energy(self, c: Tensor) -> Tensor:
        """Discrete energy n/2 sum |secant|^2 of chains on the uniform grid: ``(*, n+1, d) -> (*,)``.

        The limit is 1/2 int |c'|^2 dt, so that a geodesic has length^2 = 2 energy.
        """
        self._admit_curve(c)
        steps = self._steps(c)
        return 0.5 * steps.shape[-1] * steps.square().sum(-1)

    @final
    def length(self, c: Tensor) -> Tensor:
        """Discrete length sum |secant| of chains: ``(*, n+1, d) -> (*,)``; second order in 1/n."""
        self._admit_curve(c)
        return self._lengths(c)

    def _admit_curve(self, c: Tensor) -> None:
        self.admit(c, "c")
        if c.ndim < 2 or c.shape[-2] < 2:
            raise ValueError(f"c has shape {tuple(c.shape)}; a curve has shape (*, n+1, d) with at least two nodes")

    def _lengths(self, c: Tensor) -> Tensor:
        return self._steps(c).sum(-1)

    def _steps(self, c: Tensor) -> Tensor:
        """Length of each segment, ``(*, n+1, d) -> (*, n)``, so many at a time that memory stays bounded."""
        chains = c.reshape(-1, *c.shape[-2:])
        size = max(1, 8 * _POINTS_AT_A_TIME // c.shape[-2])
        steps = [torch.linalg.vector_norm(self.secants(part), dim=-1) for part in chains.split(size)]
        return (
            torch.cat(steps).reshape(*c.shape[:-2], -1) if len(chains) else c.new_zeros(*c.shape[:-2], c.shape[-2] - 1)
        )

    # -- global: numerical by default, exact in closed-form spaces --------------------------------------------------

    def geodesic(self, a: Tensor, b: Tensor, *, init: Init = None, solver: ChainSolver | None = None) -> Geodesic:
        """Geodesics between a and b, found numerically.

        Minimises the discrete energy of a chain of points. A geodesic found this way is stationary, and the
        shortest of those reached from the given starts; no local method can promise the global shortest.

        Parameters
        ----------
        a, b
            ``(*, d)``; leading shapes broadcast.
        init
            Where to start: None for the straight line; a curve ``(*, n+1, d)`` from a to b; or a
            :class:`~oddity.Roadmap`, whose path and the straight line are both tried, and the shorter result wins.
        solver
            Settings; by default those of a plain :class:`~oddity.ChainSolver`.

        Returns
        -------
        Geodesic
            With ``converged`` and ``why`` for each pair. A pair that fails never raises, and is never replaced.

        Raises
        ------
        ValueError
            If the end points or the start are unusable: NaN, wrong dimension, mixed dtype, a start that does not
            join the ends.

        Examples
        --------
        >>> import oddity
        >>> paraboloid = oddity.Pullback(lambda z: torch.cat([z, z.square().sum(-1, keepdim=True)], -1))
        >>> paraboloid.geodesic(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 0.0]))
        Geodesic(length=2.958, converged=True)
        """
        from oddity.geometry.connect import connect

        return connect(self, a, b, init=init, solver=solver)

    def dist(self, a: Tensor, b: Tensor, *, init: Init = None, solver: ChainSolver | None = None) -> Tensor:
        """Geodesic distance, ``geodesic(a, b).length``: ``(*, d), (*, d) -> (*,)``."""
        return self.geodesic(a, b, init=init, solver=solver).length

    # -- algebra --------------------------------------------------------------------------------------------------

    @final
    def __add__(self, other: Manifold) -> Manifold:
        if not isinstance(other, Manifold):
            return NotImplemented
        return Sum(self, other)

    @final
    def __mul__(self, factor: float) -> Manifold:
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            return NotImplemented
        return Scaled(float(factor), self)

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'' if self.dim is None else self.dim})"

    # -- private helpers ------------------------------------------------------------------------------------------

    def _admit_all(self, **points: Tensor) -> None:
        for name, z in points.items():
            Manifold.admit(self, z, name) if name in "uv" else self.admit(z, name)

    def _over_points(self, z: Tensor, of_frame: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
        """Apply a function to the frames of all points, so many at a time that memory stays bounded."""
        rows = z.reshape(-1, z.shape[-1])
        parts = [of_frame(self.frame(part)) for part in rows.split(8 * _POINTS_AT_A_TIME)]
        return (torch.cat(parts) if parts else z.new_zeros(0, *shape)).reshape(*z.shape[:-1], *shape)


def _secant_model(differential: Differential, c: Tensor, exact: bool) -> ChainModel:
    B, n, d = c.shape[0], c.shape[1] - 1, c.shape[2]
    ends = torch.cat([c[:, :-1], c[:, 1:]], -1).reshape(B * n, 2 * d)
    r, blocks = differential.value_and_frame(ends)  # (B n, m), (2 d, B n, m)
    bend = differential.curvature(ends, r).reshape(B, n, 2 * d, 2 * d) if exact else None
    blocks = blocks.reshape(2 * d, B, n, -1)
    return model_from_blocks(r.reshape(B, n, -1), blocks[:d], blocks[d:], bend)


class Sum(Manifold):
    """The sum of metrics on one chart, ``M1 + M2 + ...``: pushes and secants are concatenated.

    Examples
    --------
    >>> import oddity
    >>> M = oddity.Sphere(2) + 0.5 * oddity.Euclidean()
    >>> M.metric(torch.zeros(2)).tolist()
    [[4.5, 0.0], [0.0, 4.5]]
    """

    def __init__(self, *parts: Manifold) -> None:
        self.parts = tuple(_flatten(parts))
        known = {part.dim for part in self.parts} - {None}
        if len(known) > 1:
            raise ValueError(f"cannot add metrics on charts of different dimension: {sorted(map(int, known))}")  # type: ignore[arg-type]
        self.dim = known.pop() if known else None

    def push(self, z: Tensor, v: Tensor) -> Tensor:
        """Concatenate the parts' pushes."""
        return torch.cat([part.push(z, v) for part in self.parts], -1)

    def secant(self, a: Tensor, b: Tensor) -> Tensor:
        """Concatenate the parts' secants."""
        return torch.cat([part.secant(a, b) for part in self.parts], -1)

    def secants(self, c: Tensor) -> Tensor:
        """Concatenate the parts' secants along a chain."""
        return torch.cat([part.secants(c) for part in self.parts], -1)

    def frame(self, z: Tensor) -> Tensor:
        """Stack the parts' frames."""
        return torch.cat([part.frame(z) for part in self.parts], -2)

    def chain_model(self, c: Tensor, *, exact: bool = False) -> ChainModel:
        """Add the parts' models."""
        first, *rest = (part.chain_model(c, exact=exact) for part in self.parts)
        for model in rest:
            first = first.plus(model)
        return first

    def admit(self, z: Tensor, name: str = "z") -> None:
        """Admit what every part admits."""
        for part in self.parts:
            part.admit(z, name)

    def __repr__(self) -> str:
        return " + ".join(map(str, self.parts))


def _flatten(parts: tuple[Manifold, ...]) -> Iterator[Manifold]:
    for part in parts:
        if isinstance(part, Sum):
            yield from part.parts
        else:
            yield part


class Scaled(Manifold):
    """A metric times a positive number, ``c * M``: lengths grow by sqrt(c).

    Raises
    ------
    ValueError
        If c is not a positive finite number.

    Examples
    --------
    >>> import oddity
    >>> float((4 * oddity.Euclidean()).norm(torch.zeros(2), torch.tensor([3.0, 4.0])))
    10.0
    """

    def __init__(self, factor: float, base: Manifold) -> None:
        if not (0 < factor < math.inf):
            raise ValueError(f"a metric can be scaled by a positive number only, got {factor}")
        self.factor, self.base, self.dim = factor, base, base.dim
        self._root = math.sqrt(factor)

    def push(self, z: Tensor, v: Tensor) -> Tensor:
        """Scale the push by sqrt(c)."""
        return self._root * self.base.push(z, v)

    def secant(self, a: Tensor, b: Tensor) -> Tensor:
        """Scale the secant by sqrt(c)."""
        return self._root * self.base.secant(a, b)

    def secants(self, c: Tensor) -> Tensor:
        """Scale the secants along a chain by sqrt(c)."""
        return self._root * self.base.secants(c)

    def frame(self, z: Tensor) -> Tensor:
        """Scale the frame by sqrt(c)."""
        return self._root * self.base.frame(z)

    def chain_model(self, c: Tensor, *, exact: bool = False) -> ChainModel:
        """Scale the model by c."""
        return self.base.chain_model(c, exact=exact).times(self.factor)

    def admit(self, z: Tensor, name: str = "z") -> None:
        """Admit what the base admits."""
        self.base.admit(z, name)

    def __repr__(self) -> str:
        base = f"({self.base})" if isinstance(self.base, Sum) else str(self.base)
        return f"{self.factor:g} * {base}"
