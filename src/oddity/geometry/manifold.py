"""The one idea: a Riemannian manifold in one chart is a smooth field of linear maps, ``push(z, v)``.

Its metric is <push(z, u), push(z, v)>, that is G(z) = A(z)'A(z), symmetric and positive semi-definite by
construction. Everything else is derived from ``push``, and a subclass may override a derivation for speed but
never for meaning.
"""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Callable, Iterator
from functools import cached_property
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple, final

import torch
from torch import Tensor

from oddity.geometry.contract import METHODS, asked_by_rows
from oddity.numerics.ambient import doors, is_vectorised
from oddity.numerics.autodiff import Differential, gradient, refuse_followed
from oddity.numerics.chain import ChainModel, model_from_blocks
from oddity.numerics.descent import Program
from oddity.numerics.layered import LayeredProgram, squares_in_layers
from oddity.numerics.native import serves

if TYPE_CHECKING:
    from oddity.geometry.connect import ChainSolver, Init
    from oddity.geometry.curve import Geodesic
    from oddity.geometry.maps import Trajectory

__all__ = ["Curving", "Manifold", "Scaled", "Sum", "in_chart"]

_POINTS_AT_A_TIME = 264  # frames of so many points stay in a processor's cache


@doors
class Manifold(abc.ABC):
    """A Riemannian manifold in one chart R^d.

    A subclass must define :meth:`push`; it may override :meth:`secant`, :meth:`secants`, :meth:`frame`,
    :meth:`chain_model`, :meth:`force` and :meth:`linear_curvature` for speed, never for meaning:
    :func:`oddity.testing.check_manifold` holds each to its derivation from ``push``. The other methods are derived; a
    subclass that knows a formula may override the global ones. A subclass writes ``push`` and its companions for rows
    ``(N, d)``, as a decoder is written; they can be called with any leading shape, and the shape of what they return is
    checked. Classes of this library are final: derive from ``Manifold``, with the other manifold as an attribute.

    Shapes: ``*`` stands for any leading shape; leading shapes broadcast. Manifolds form a small algebra: ``M1 + M2``
    adds metrics, ``sum([M1, M2])`` too, ``c * M`` scales the metric by c > 0, and ``M / c`` by 1 / c. A tensor without
    axes is a number, unless a gradient is asked of it, which would be lost.

    Attributes
    ----------
    dim : int or None
        Dimension d of the chart where the manifold knows it.

    Raises
    ------
    ValueError
        From every derived method whose points or vectors are unusable (:meth:`admit`), with value and remedy; from
        every method of a subclass that returns another shape than its rows ask for.
    TypeError
        Where a class is derived from a final one.

    References
    ----------
    do Carmo, "Riemannian Geometry", 1992.

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

    def __init_subclass__(cls, *, rows: bool = True, **options: Any) -> None:
        """Refuse to derive from final classes; ``rows=False`` says that methods take any leading shape themselves."""
        super().__init_subclass__(**options)
        for base in cls.__mro__[1:]:
            if vars(base).get("__final__"):  # typing.final marks classes and methods so
                raise TypeError(
                    f"{base.__name__} is final, for its methods are formulae of one metric and an override would "
                    f"contradict the others; derive {cls.__name__} from oddity.Manifold, with a {base.__name__} as an "
                    "attribute"
                )
            for name in vars(cls).keys() & vars(base).keys():
                if getattr(vars(base)[name], "__final__", False):
                    raise TypeError(
                        f"{cls.__name__}.{name} would contradict the metric, from which {base.__name__}.{name} is "
                        "derived; define push, and give another function another name"
                    )
        for name in METHODS if rows else ():
            owner = next(kind for kind in cls.__mro__ if name in vars(kind))
            if owner is cls or not issubclass(owner, Manifold):  # of its own, or from a class beside
                setattr(cls, name, asked_by_rows(name, vars(owner)[name]))
        doors(cls)

    # -- must be said ------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def push(self, z: Tensor, v: Tensor) -> Tensor:
        """Linear square root of the metric: ``(*, d), (*, d) -> (*, m)``, linear in v; leading shapes broadcast.

        A subclass writes it for rows, ``(N, d), (N, d) -> (N, m)``, each row by itself.
        """

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

    def chain_model(self, c: Tensor, widths: Tensor, *, exact: bool = False) -> ChainModel:
        """Quadratic model of the energy of chains ``(B, n+1, d)`` with segments of given widths ``(B, n)``, n even.

        With ``exact`` the model holds, beside the Gauss-Newton matrix, what the exact Hessian has more. By default the
        energy 1/2 sum |secant|^2 / h of second order in the step, by automatic derivatives of the secant; a map into
        flat space has one of fourth order.
        """
        return self._by_chunks(c, widths, lambda c, h: _secant_model(self._secant_differential, c, h, exact))

    def _program(self) -> Program | None:
        """That energy as compiled loops know it, or None."""
        return None

    def _chain_slope(self, c: Tensor, widths: Tensor) -> tuple[Tensor, Tensor]:
        """That energy and its gradient alone: ``-> (B,), (B, n-1, d)``."""
        model = self.chain_model(c, widths)
        return model.energy, model.gradient

    def _momentum(self, c: Tensor, widths: Tensor) -> tuple[Tensor, int]:
        """Minus the gradient of that energy by the first node, and the order of the energy: ``-> (B, d)``."""
        return -self._first_pull(c[:, 0], c[:, 1]) / widths[:, :1], 2

    def _first_pull(self, a: Tensor, b: Tensor) -> Tensor:
        """Gradient of |secant|^2 / 2 by its first end: ``(B, d), (B, d) -> (B, d)``."""
        pair = torch.cat([a, b], -1)
        return self._secant_differential.pull(pair, self._secant_differential(pair))[:, : a.shape[-1]]

    def _by_chunks(self, c: Tensor, widths: Tensor, model: Callable[[Tensor, Tensor], ChainModel]) -> ChainModel:
        size = max(1, self._points_at_a_time() // c.shape[1])
        if len(c) <= size:
            return model(c, widths)
        return ChainModel.cat([model(*part) for part in zip(c.split(size), widths.split(size), strict=True)])

    def _points_at_a_time(self) -> int:
        """So many points' frames stay in a processor's cache."""
        return _POINTS_AT_A_TIME

    def _curvatures_at_a_time(self) -> int:
        """So many at once: by automatic derivatives there is a price for each call."""
        return 4 * _POINTS_AT_A_TIME

    def _frames_in_memory(self, d: int) -> int:  # noqa: ARG002
        """So many points' frames are held at once, where only small results are kept."""
        return 8 * _POINTS_AT_A_TIME

    @cached_property
    def _secant_differential(self) -> Differential:
        def secant(ab: Tensor) -> Tensor:
            d = ab.shape[-1] // 2
            return self.secant(ab[..., :d], ab[..., d:])

        return Differential(secant)

    def force(self, z: Tensor, v: Tensor) -> Tensor:
        """Covector G(z) z'' of the geodesic through z with velocity v: ``(*, d), (*, d) -> (*, d)``.

        Euler and Lagrange's equation for L(z, v) = |push(z, v)|^2 / 2 reads G z'' = dL/dz - (d/dz dL/dv) v. It is
        linear in the metric, so that the forces of a sum add. By default from the push by automatic derivatives.
        """
        z, v = torch.broadcast_tensors(z, v)
        d = z.shape[-1]
        state, ahead = torch.cat([z, v], -1), torch.cat([v, torch.zeros_like(v)], -1)
        slope, change = self._lagrangian_slope.tangents(state.reshape(-1, 2 * d), ahead.reshape(1, -1, 2 * d))
        return (slope[:, :d] - change[0, :, d:]).reshape(z.shape)

    @cached_property
    def _lagrangian_slope(self) -> Differential:
        """(dL/dz, dL/dv) as a function of (z, v), with its derivative."""

        def lagrangian(zv: Tensor) -> Tensor:
            z, v = zv.chunk(2, -1)
            return 0.5 * self.push(z, v).square().sum(-1)

        return Differential(gradient(lagrangian))

    def linear_curvature(self, z: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Part of R(u, v, v, u) that is linear in the metric: ``(*, d)`` three times ``-> (*,)``.

        With u and v constant in the chart it is D_u D_v <u, v> - D_u D_u <v, v> / 2 - D_v D_v <u, u> / 2. The rest
        of the curvature follows from the forces, see :func:`oddity.geometry.curvature.riemann`.
        """
        z, u, v = torch.broadcast_tensors(z, u, v)
        zero = torch.zeros_like(z)
        state, along_u, along_v = (torch.cat(x, -1) for x in ((z, u, v), (u, zero, zero), (v, zero, zero)))
        second = self._inner_products.second
        uv, vv, uu = second(state, along_u, along_v), second(state, along_u, along_u), second(state, along_v, along_v)
        return uv[..., 1] - vv[..., 2] / 2 - uu[..., 0] / 2

    @cached_property
    def _inner_products(self) -> Differential:
        """<u, u>, <u, v> and <v, v> as a function of (z, u, v)."""

        def products(zuv: Tensor) -> Tensor:
            z, u, v = zuv.chunk(3, -1)
            Au, Av = self.push(z, u), self.push(z, v)
            return torch.stack([(x * y).sum(-1) for x, y in ((Au, Au), (Au, Av), (Av, Av))], -1)

        return Differential(products)

    def admit(self, z: Tensor, name: str = "z") -> None:
        """Refuse points that are not in the chart: the check at every public door.

        Raises
        ------
        ValueError
            With the offending value and a remedy: not a floating-point tensor, the wrong dimension, NaN or
            infinite values.

        Examples
        --------
        >>> import oddity
        >>> oddity.Sphere(2).admit(torch.zeros(3))
        Traceback (most recent call last):
        ValueError: z has shape (3,), but points of Sphere(2) have 2 coordinates: (*, 2)
        """
        if not isinstance(z, Tensor):
            raise ValueError(f"{name} is a {type(z).__name__}; give a tensor, e.g. torch.as_tensor({name})")
        if z.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name} has dtype {z.dtype}; give float32 or float64 coordinates, e.g. {name}.float()")
        if is_vectorised(z):
            raise ValueError(
                f"{name} is inside torch.func.vmap, where no value can be checked; give the whole batch, points (*, d)"
            )
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

        Examples
        --------
        >>> import oddity
        >>> oddity.Sphere(2).metric(torch.zeros(2)).tolist()
        [[4.0, 0.0], [0.0, 4.0]]
        """
        self.admit(z)
        return self._grams(z)

    @final
    def inner(self, z: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Inner product <u, v> at z: ``(*, d)`` three times ``-> (*,)``.

        Examples
        --------
        >>> import oddity
        >>> u, v = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])
        >>> float(oddity.Sphere(2).inner(torch.zeros(2), u, v))
        4.0
        """
        z, u, v = self._admit_tangents(z, u=u, v=v)
        return (self.push(z, u) * self.push(z, v)).sum(-1)

    @final
    def norm(self, z: Tensor, v: Tensor) -> Tensor:
        """Riemannian norm of v at z: ``(*, d), (*, d) -> (*,)``.

        Examples
        --------
        >>> import oddity
        >>> float(oddity.Sphere(2).norm(torch.zeros(2), torch.tensor([3.0, 4.0])))
        10.0
        """
        return _norm(self.push(*self._admit_tangents(z, v=v)))[..., 0]

    @final
    def log_volume(self, z: Tensor) -> Tensor:
        """Log magnification factor, log sqrt det G(z): ``(*, d) -> (*,)``; -inf where the metric is singular.

        Summed in float64, since det G squares the condition number of the frame.

        Examples
        --------
        >>> import oddity
        >>> round(float(oddity.Sphere(2).log_volume(torch.zeros(2))), 4)  # log 4
        1.3863
        """
        self.admit(z)
        log_det: Tensor = torch.linalg.slogdet(self._grams(z, torch.float64)).logabsdet
        return (0.5 * log_det).to(z.dtype)

    @final
    def sample_tangent(self, z: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Standard normal tangent vectors, v ~ N(0, G(z)^-1): ``(*, d) -> (*, d)``.

        Raises
        ------
        ValueError
            If the metric is singular at a point, where no such law exists.

        Examples
        --------
        >>> import oddity
        >>> rng = torch.Generator().manual_seed(0)
        >>> v = oddity.Sphere(2).sample_tangent(torch.zeros(10_000, 2), generator=rng)
        >>> round(float(v.std()), 1)  # G = 4 I there
        0.5
        """
        L, info = torch.linalg.cholesky_ex(self.metric(z))
        if bool(info.any()):
            where = tuple(info.nonzero()[0].tolist())
            raise ValueError(f"the metric at point {where} is singular; add a ridge, e.g. M + 1e-3 * Euclidean()")
        noise = torch.randn(z.shape, dtype=z.dtype, device=z.device, generator=generator)
        v: Tensor = torch.linalg.solve_triangular(L.mT, noise[..., None], upper=True)
        return v[..., 0]

    @final
    def acceleration(self, z: Tensor, v: Tensor) -> Tensor:
        """Second derivative z'' of the geodesic through z with velocity v: ``(*, d), (*, d) -> (*, d)``.

        In coordinates z''^k = -Gamma^k_ij v^i v^j. NaN where the metric is singular, since no geodesic equation
        holds there.

        Raises
        ------
        ValueError
            If z or v is unusable: NaN, wrong dimension, mixed dtype, shapes that do not broadcast.

        Notes
        -----
        "Latent Space Oddity", ICLR 2018, appendix A, in the corrected form of version 3 on arXiv, 1710.11379.

        Examples
        --------
        In the upper half-plane a horizontal start bends upwards, along a half-circle:

        >>> import oddity
        >>> half_plane = oddity.Conformal(lambda z: 1 / z[..., 1])
        >>> half_plane.acceleration(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])).tolist()
        [0.0, -1.0]
        """
        return self._acceleration(*self._admit_tangents(z, v=v))

    @final
    def sectional_curvature(self, z: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Curvature of the plane that u and v span: ``(*, d)`` three times ``-> (*,)``.

        See :func:`oddity.geometry.curvature.sectional_curvature`.

        Examples
        --------
        >>> import oddity
        >>> u, v = torch.eye(2)
        >>> round(float(oddity.Hyperbolic(2).sectional_curvature(torch.zeros(2), u, v)), 3)
        -1.0
        """
        from oddity.geometry.curvature import sectional_curvature

        return sectional_curvature(self, z, u, v)

    @final
    def scalar_curvature(self, z: Tensor) -> Tensor:
        """Sum of the sectional curvatures over all ordered pairs of an orthonormal basis: ``(*, d) -> (*,)``.

        See :func:`oddity.geometry.curvature.scalar_curvature`.

        Examples
        --------
        >>> import oddity
        >>> round(float(oddity.Sphere(3).scalar_curvature(torch.zeros(3))), 3)
        6.0
        """
        from oddity.geometry.curvature import scalar_curvature

        return scalar_curvature(self, z)

    # -- derived, along a curve -----------------------------------------------------------------------------------

    @final
    def energy(self, c: Tensor) -> Tensor:
        """Discrete energy n/2 sum |secant|^2 of chains on the uniform grid: ``(*, n+1, d) -> (*,)``.

        The limit is 1/2 int |c'|^2 dt, so that a geodesic has length^2 = 2 energy.

        Examples
        --------
        >>> import oddity
        >>> line = torch.tensor([[0.0, 0.0], [1.5, 2.0], [3.0, 4.0]])
        >>> float(oddity.Euclidean().energy(line))
        12.5
        """
        self._admit_curve(c)
        steps = self._steps(c)
        return 0.5 * steps.shape[-1] * steps.square().sum(-1)

    @final
    def length(self, c: Tensor) -> Tensor:
        """Discrete length sum |secant| of chains: ``(*, n+1, d) -> (*,)``; second order in 1/n.

        Examples
        --------
        >>> import oddity
        >>> line = torch.tensor([[0.0, 0.0], [1.5, 2.0], [3.0, 4.0]])
        >>> float(oddity.Euclidean().length(line))
        5.0
        """
        self._admit_curve(c)
        return self._lengths(c)

    @final
    def transport(self, c: Tensor, v: Tensor) -> Tensor:
        """Parallel transport of v along a chain: ``(*, n+1, d), (*, d) -> (*, n+1, d)``, v at every node.

        See :func:`oddity.geometry.transport.transport`.

        Examples
        --------
        Along a meridian of the sphere a tangent vector stays one, and keeps its length while the metric shrinks:

        >>> import oddity
        >>> meridian = torch.stack([torch.linspace(0, 1, 65), torch.zeros(65)], -1)
        >>> v = oddity.Sphere(2).transport(meridian, torch.tensor([1.0, 0.0]))
        >>> [round(x, 2) for x in v[-1].tolist()]  # 2 * 1 = 1 * 2
        [2.0, 0.0]
        """
        from oddity.geometry.transport import transport

        return transport(self, c, v)

    def _admit_curve(self, c: Tensor) -> None:
        self.admit(c, "c")
        if c.ndim < 2 or c.shape[-2] < 2:
            raise ValueError(f"c has shape {tuple(c.shape)}; a curve has shape (*, n+1, d) with at least two nodes")

    def _lengths(self, c: Tensor) -> Tensor:
        return self._steps(c).sum(-1)

    def _reckoned_lengths(self, c: Tensor) -> Tensor:
        """Lengths ``(B, n+1, d) -> (B,)`` by compiled loops where they know the metric: to choose, not to certify."""
        squares = self._compiled_squares(c, (1,))
        return self._lengths(c) if squares is None else _root(squares[0]).sum(-1)

    def _compiled_squares(self, c: Tensor, strides: tuple[int, ...]) -> list[Tensor] | None:
        """Squared lengths of the steps of chains by the program of the energy, where there is a layered one."""
        program = self._program() if serves(c) else None
        if not isinstance(program, LayeredProgram) or not program.fits(c):
            return None
        return squares_in_layers(program, c, strides)

    def _steps(self, c: Tensor) -> Tensor:
        """Length of each segment, ``(*, n+1, d) -> (*, n)``."""
        chains = c.reshape(-1, *c.shape[-2:])
        return self._steps_at(chains, (1,))[0].reshape(*c.shape[:-2], c.shape[-2] - 1)

    def _steps_at(self, c: Tensor, strides: tuple[int, ...]) -> list[Tensor]:
        """Length of each step over every s-th node, for each stride s: ``(B, n+1, d) -> (B, n/s)``."""
        size = max(1, 8 * self._points_at_a_time() // c.shape[1])  # memory stays bounded
        steps = [c.new_empty(len(c), (c.shape[1] - 1) // s) for s in strides]
        for at in range(0, len(c), size):  # filled in place: small results between large ones fragment the heap
            part = c[at : at + size]
            for s, whole, squares in zip(strides, steps, self._squares(part, strides), strict=True):
                still = (part[:, s::s] == part[:, :-s:s]).all(-1)  # of length zero, whatever a processor rounds
                whole[at : at + size] = _root(squares.masked_fill(still & squares.isfinite(), 0))
        return steps

    def _squares(self, c: Tensor, strides: tuple[int, ...]) -> list[Tensor]:
        """Squared lengths of the steps; sums of metrics add them."""
        return [self.secants(c[:, ::s]).square().sum(-1) for s in strides]

    def _rounding(self, z: Tensor) -> Tensor:
        """How much of a secant's length at points is rounding: ``(N, d) -> (N,)``; none where it is a push."""
        return torch.zeros_like(z[:, 0])

    # -- a cheaper metric nearby ------------------------------------------------------------------------------------

    @final
    @torch.no_grad()
    def sketch(self, z: Tensor, *, tolerance: float = 0.1, most: int = 1 << 16) -> Manifold:
        """A cheaper manifold whose metric is close to this one around the points z, or this one itself.

        Solvers start on it and finish on the metric itself: it saves their time and never touches their result. In
        two dimensions it is a table (:mod:`oddity.geometry.tabulated`); else a decoder known in closed form is replaced
        by some of its outputs (:mod:`oddity.numerics.reduction`).

        Parameters
        ----------
        z
            ``(N, d)``, N of some hundreds: where it shall be close.
        tolerance
            Root mean square error over the points, as a share of the metric, for each part of a sum.
        most
            Nodes that a table may have.

        Examples
        --------
        A closed form is cheap enough:

        >>> import oddity
        >>> S = oddity.Sphere(2)
        >>> S.sketch(torch.zeros(10, 2)) is S
        True
        """
        self.admit(z, "z")
        factor, info = torch.linalg.cholesky_ex(self.metric(z).double())
        regular = info == 0
        if not bool(regular.any()):
            return self
        if z.shape[-1] == 2 and self._is_dear:
            from oddity.geometry.tabulated import tabulated

            if (table := tabulated(self, z[regular], factor[regular], most)) is not None:
                return table
        return self._sketch(z[regular], factor[regular], tolerance)

    @property
    def _is_dear(self) -> bool:
        """Whether the metric calls a decoder or another function, so that a table of it saves time."""
        return False

    def _sketch(self, z: Tensor, whiten: Tensor, tolerance: float) -> Manifold:
        """The sketch at regular points, whose errors count in the norm of the whole metric, of which this is a part."""
        del z, whiten, tolerance
        return self

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

        refuse_followed("geodesic", a=a, b=b)
        return connect(self, a, b, init=init, solver=solver)

    def dist(self, a: Tensor, b: Tensor, *, init: Init = None, solver: ChainSolver | None = None) -> Tensor:
        """Geodesic distance, ``geodesic(a, b).length``, differentiably: ``(*, d), (*, d) -> (*,)``.

        The gradient by an end is the unit covector with which the geodesic arrives there; that by the parameters of the
        decoder is that of the length of the solved curve held still: where a curve is stationary, moving it changes
        nothing (the envelope theorem). Both mean something where the geodesic converged, and are zero from a point to
        itself. Under ``torch.no_grad()`` nothing is recorded. A second derivative raises.

        Parameters and errors are those of :meth:`geodesic`.

        Warns
        -----
        ConvergenceWarning
            With their number, if some of the geodesics did not converge; ``geodesic(a, b)`` says which, and why.

        Examples
        --------
        Going away from a point of the sphere, distance grows by the Riemannian length of the step:

        >>> import oddity
        >>> S = oddity.Pullback(lambda z: torch.cat([2 * z, z.square().sum(-1, keepdim=True) - 1], -1)
        ...                     / (1 + z.square().sum(-1, keepdim=True)))
        >>> a, b = torch.zeros(2), torch.tensor([0.5, 0.0], requires_grad=True)
        >>> S.dist(a, b).backward()
        >>> [round(x, 2) + 0.0 for x in b.grad.tolist()]  # 2 / (1 + 0.25)
        [1.6, 0.0]
        """
        from oddity.geometry.maps import dist

        refuse_followed("dist", a=a, b=b)
        return dist(self, a, b, init=init, solver=solver)

    def shoot(
        self,
        z: Tensor,
        v: Tensor,
        t: Tensor | float = 1.0,
        *,
        tolerance: float | None = None,
        max_steps: int = 2000,
    ) -> Trajectory:
        """Geodesics that leave z with velocity v, at times t, each with its verdict.

        See :func:`oddity.geometry.maps.shoot`.

        Examples
        --------
        >>> import oddity
        >>> path = oddity.Sphere(2).shoot(torch.zeros(2), torch.tensor([1.0, 0.0]), torch.pi / 4)
        >>> bool(path.converged), [round(x, 3) for x in path.points.tolist()]
        (True, [1.0, 0.0])
        """
        from oddity.geometry.maps import shoot

        refuse_followed("shoot", z=z, v=v)
        path = shoot(self, z, v, t, tolerance=tolerance, max_steps=max_steps)
        refuse_followed("shoot", v=path.points)  # by way of the decoder, too
        return path

    def exp(self, z: Tensor, v: Tensor) -> Tensor:
        """End of the geodesic that leaves z with velocity v, at t = 1: ``(*, d), (*, d) -> (*, d)``.

        The points of :meth:`shoot`; NaN where that did not converge, which ``shoot(z, v).why`` explains. Not
        differentiable: a gradient that is asked of it raises.

        Examples
        --------
        >>> import oddity
        >>> half_plane = oddity.Conformal(lambda z: 1 / z[..., 1])
        >>> end = half_plane.exp(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))  # (0, e)
        >>> [round(x, 3) for x in end.tolist()]
        [0.0, 2.718]
        """
        from oddity.geometry.maps import exp

        return exp(self, z, v)

    def log(self, a: Tensor, b: Tensor, *, init: Init = None, solver: ChainSolver | None = None) -> Tensor:
        """Initial velocity of the geodesic from a to b, in the chart: ``(*, d), (*, d) -> (*, d)``.

        Its Riemannian norm is the distance. It is NaN where the geodesic did not converge, since a bare vector
        has no place for a verdict; ``geodesic(a, b)`` has the reason and the best curve. Not differentiable: a gradient
        that is asked of it raises.

        See :func:`oddity.geometry.maps.log` for the method and its order. Parameters and errors are those of
        :meth:`geodesic`.

        Examples
        --------
        >>> import oddity
        >>> half_plane = oddity.Conformal(lambda z: 1 / z[..., 1])
        >>> v = half_plane.log(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0]))  # (0, ln 2)
        >>> [round(x, 3) for x in v.tolist()]
        [0.0, 0.693]
        """
        from oddity.geometry.maps import log

        refuse_followed("log", a=a, b=b)
        return log(self, a, b, init=init, solver=solver)

    # -- algebra --------------------------------------------------------------------------------------------------

    @final
    def __add__(self, other: Manifold) -> Manifold:
        if not isinstance(other, Manifold):
            return NotImplemented
        return Sum(self, other)

    @final
    def __radd__(self, other: object) -> Manifold:
        return self if isinstance(other, int) and other == 0 else NotImplemented  # where sum() starts

    @final
    def __mul__(self, factor: float | Tensor) -> Manifold:
        number = _number(factor)
        return NotImplemented if number is None else Scaled(number, self)

    __rmul__ = __mul__

    @final
    def __truediv__(self, divisor: float | Tensor) -> Manifold:
        number = _number(divisor)
        return NotImplemented if number is None else Scaled(1 / number if number else math.inf, self)

    __array_ufunc__ = None  # a number of NumPy's leaves the product to us

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'' if self.dim is None else self.dim})"

    # -- copies ---------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """State without what is derived once and kept: a copy derives it anew, since local functions have no pickle."""
        kept = {name for kind in type(self).__mro__ for name, x in vars(kind).items() if isinstance(x, cached_property)}
        return {name: value for name, value in self.__dict__.items() if name not in kept}

    # -- private helpers ------------------------------------------------------------------------------------------

    def _admit_tangents(self, z: Tensor, **vectors: Tensor) -> tuple[Tensor, ...]:
        """Check a point and tangent vectors there, and bring them to their common shape."""
        self.admit(z)
        for name, v in vectors.items():
            Manifold.admit(self, v, name)
            if v.dtype != z.dtype or v.device != z.device:
                raise ValueError(
                    f"z is {z.dtype} on {z.device} but {name} is {v.dtype} on {v.device}; bring them together"
                )
            if v.shape[-1] != z.shape[-1]:
                raise ValueError(f"z has {z.shape[-1]} coordinates but {name} has {v.shape[-1]}")
        try:
            return tuple(torch.broadcast_tensors(z, *vectors.values()))
        except RuntimeError:
            shapes = ", ".join(f"{name} {tuple(v.shape)}" for name, v in {"z": z, **vectors}.items())
            raise ValueError(f"the shapes do not broadcast: {shapes}") from None

    def _acceleration(self, z: Tensor, v: Tensor) -> Tensor:
        """Acceleration without the check: where a solver tries a point that is no good, the answer is NaN."""
        return self._by_rows(lambda *x: _solve(*self._metric_and_force(*x)), z, v)

    def _sharp(self, z: Tensor, covector: Tensor) -> Tensor:
        """Vector G(z)^-1 p of a covector p: ``(*, d), (*, d) -> (*, d)``, NaN where the metric is singular."""
        return _solve(self._grams(z), covector)

    def _metric_and_force(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """G(z) and the force together, where they share work: ``(N, d)`` twice ``-> (N, d, d), (N, d)``."""
        return self._grams(z), self.force(z, v)

    def _curving(self, z: Tensor, u: Tensor, v: Tensor) -> Curving:
        """What the curvature of the plane of u and v is made of: ``(N, d)`` three times."""
        mixed = (self.force(z, u + v) - self.force(z, u - v)) / 4
        return Curving(self._grams(z), self.force(z, u), mixed, self.force(z, v), self.linear_curvature(z, u, v))

    def _by_rows(self, f: Callable[..., Tensor], *points: Tensor) -> Tensor:
        """Apply a rowwise function to tensors ``(*, d)`` of one shape, so many rows at a time as stay in cache."""
        shape = points[0].shape
        size = min(_POINTS_AT_A_TIME, self._frames_in_memory(shape[-1]))
        rows = [x.reshape(-1, shape[-1]).split(size) for x in points]
        value = torch.cat([f(*part) for part in zip(*rows, strict=True)])
        return value.reshape((*shape[:-1], *value.shape[1:]))

    def _grams(self, z: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Metric tensors A'A, summed in a dtype: ``(*, d) -> (*, d, d)``."""
        return self._gram(z.reshape(-1, z.shape[-1]), dtype or z.dtype).reshape(*z.shape, z.shape[-1])

    def _gram(self, z: Tensor, dtype: torch.dtype) -> Tensor:
        """The same ``(N, d) -> (N, d, d)``, of so many points at a time that memory stays bounded."""
        return torch.cat([self._few_grams(part, dtype) for part in z.split(self._frames_in_memory(z.shape[-1]))])

    def _deviation(self, z: Tensor, whiten: Tensor) -> Tensor:
        """How far this metric is from another at points, as a share of that: ``(N, d), (N, d, d) -> (N,)``.

        By the lower triangular factors of the other metric; root mean square over its orthonormal directions.
        """
        half = torch.linalg.solve_triangular(whiten, self._grams(z).to(whiten), upper=False)
        ratio = torch.linalg.solve_triangular(whiten, half.mT, upper=False)
        d = z.shape[-1]
        off: Tensor = (ratio - torch.eye(d, dtype=ratio.dtype, device=ratio.device)).flatten(1).norm(dim=1) / d**0.5
        return off

    def _few_grams(self, z: Tensor, dtype: torch.dtype) -> Tensor:
        """The same, of points whose frames may be held at once."""
        A = self.frame(z).to(dtype)
        return A.mT @ A


def _number(factor: object) -> float | None:
    """What scales a metric, if it is one number; not a truth value, nor a tensor whose gradient would be lost."""
    if isinstance(factor, Tensor):
        return float(factor) if factor.ndim == 0 and not factor.requires_grad else None
    return float(factor) if isinstance(factor, Real) and not isinstance(factor, bool) else None


class Curving(NamedTuple):
    """Metric, force and linear curvature at N points for two vectors u, v: each linear in the metric."""

    metric: Tensor  # (N, d, d)
    uu: Tensor  # (N, d)   force, a quadratic form; here between u and u
    uv: Tensor  # (N, d)
    vv: Tensor  # (N, d)
    linear: Tensor  # (N,)

    def curvature(self) -> Tensor:
        """R(u, v, v, u): ``(N,)``; NaN where the metric is singular."""
        squares = (self.uv * _solve(self.metric, self.uv)).sum(-1) - (self.uu * _solve(self.metric, self.vv)).sum(-1)
        return self.linear + squares


def _solve(G: Tensor, covector: Tensor) -> Tensor:
    """Vector G^-1 p of a covector p: ``(*, d, d), (*, d) -> (*, d)``, NaN where G is singular."""
    L, info = torch.linalg.cholesky_ex(G)
    v = torch.cholesky_solve(covector[..., None], L)[..., 0]
    return torch.where((info > 0)[..., None], torch.nan, v)


def _norm(v: Tensor) -> Tensor:
    """Norm ``(*, m) -> (*, 1)`` by which nothing overflows or underflows but itself; of slope zero at zero."""
    size = v.detach().abs().amax(-1, keepdim=True)
    size = torch.where(size > 0, size, 1.0)
    norm: Tensor = size * torch.linalg.vector_norm(v / size, dim=-1, keepdim=True)
    return norm


def _root(squares: Tensor) -> Tensor:
    """Square root with slope zero at zero, as a norm has."""
    zero = squares == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squares).sqrt())


def _secant_model(differential: Differential, c: Tensor, widths: Tensor, exact: bool) -> ChainModel:
    B, n, d = c.shape[0], c.shape[1] - 1, c.shape[2]
    ends = torch.cat([c[:, :-1], c[:, 1:]], -1).reshape(B * n, 2 * d)
    r, blocks = differential.value_and_frame(ends)  # (B n, m), (2 d, B n, m)
    bend = differential.curvature(ends, r).reshape(B, n, 2 * d, 2 * d) if exact else None
    blocks = blocks.reshape(2 * d, B, n, -1)
    return model_from_blocks(r.reshape(B, n, -1), blocks[:d], blocks[d:], widths, bend)


@final
class Sum(Manifold, rows=False):
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

    def _squares(self, c: Tensor, strides: tuple[int, ...]) -> list[Tensor]:
        parts = [part._squares(c, strides) for part in self.parts]
        return [torch.stack(squares).sum(0) for squares in zip(*parts, strict=True)]

    def _rounding(self, z: Tensor) -> Tensor:
        return torch.stack([part._rounding(z).square() for part in self.parts]).sum(0).sqrt()

    def frame(self, z: Tensor) -> Tensor:
        """Stack the parts' frames."""
        return torch.cat([part.frame(z) for part in self.parts], -2)

    def chain_model(self, c: Tensor, widths: Tensor, *, exact: bool = False) -> ChainModel:
        """Add the parts' models."""
        first, *rest = (part.chain_model(c, widths, exact=exact) for part in self.parts)
        for model in rest:
            first = first.plus(model)
        return first

    def _program(self) -> Program | None:
        programs = [part._program() for part in self.parts]
        layered = [program for program in programs if isinstance(program, LayeredProgram)]
        return functools.reduce(LayeredProgram.plus, layered) if len(layered) == len(programs) else None

    def _chain_slope(self, c: Tensor, widths: Tensor) -> tuple[Tensor, Tensor]:
        energies, gradients = zip(*(part._chain_slope(c, widths) for part in self.parts), strict=True)
        return sum(energies[1:], energies[0]), sum(gradients[1:], gradients[0])

    @property
    def _is_dear(self) -> bool:
        return any(part._is_dear for part in self.parts)

    def _momentum(self, c: Tensor, widths: Tensor) -> tuple[Tensor, int]:
        covectors, orders = zip(*(part._momentum(c, widths) for part in self.parts), strict=True)
        return torch.stack(covectors).sum(0), min(orders)

    def _gram(self, z: Tensor, dtype: torch.dtype) -> Tensor:
        """Add the parts' metric tensors, so that the frames of one part at a time are in memory."""
        first, *rest = (part._gram(z, dtype) for part in self.parts)
        return sum(rest, first)

    def _curvatures_at_a_time(self) -> int:
        return min(part._curvatures_at_a_time() for part in self.parts)

    def _frames_in_memory(self, d: int) -> int:
        return min(part._frames_in_memory(d) for part in self.parts)

    def force(self, z: Tensor, v: Tensor) -> Tensor:
        """Add the parts' forces."""
        first, *rest = (part.force(z, v) for part in self.parts)
        return sum(rest, first)

    def linear_curvature(self, z: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Add the parts' linear curvatures."""
        first, *rest = (part.linear_curvature(z, u, v) for part in self.parts)
        return sum(rest, first)

    def _metric_and_force(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        metrics, forces = zip(*(part._metric_and_force(z, v) for part in self.parts), strict=True)
        return sum(metrics[1:], metrics[0]), sum(forces[1:], forces[0])

    def _curving(self, z: Tensor, u: Tensor, v: Tensor) -> Curving:
        parts = [part._curving(z, u, v) for part in self.parts]
        return Curving(*(sum(terms[1:], terms[0]) for terms in zip(*parts, strict=True)))

    def _sketch(self, z: Tensor, whiten: Tensor, tolerance: float) -> Manifold:
        return Sum(*(part._sketch(z, whiten, tolerance) for part in self.parts))

    def admit(self, z: Tensor, name: str = "z") -> None:
        """Admit what every part admits."""
        for part in self.parts:
            part.admit(z, name)

    def __repr__(self) -> str:
        return " + ".join(map(str, self.parts))


def in_chart(M: Manifold, points: Tensor) -> Tensor:
    """Whether each point, or every node of each curve, belongs to the chart: ``(N, *, d) -> (N,)`` bool.

    Halving finds the few that do not.
    """
    try:
        M.admit(points)
    except ValueError:
        if len(points) > 1:
            return torch.cat([in_chart(M, half) for half in points.tensor_split(2)])
        return torch.zeros(len(points), dtype=torch.bool, device=points.device)
    return torch.ones(len(points), dtype=torch.bool, device=points.device)


def _flatten(parts: tuple[Manifold, ...]) -> Iterator[Manifold]:
    for part in parts:
        if isinstance(part, Sum):
            yield from part.parts
        else:
            yield part


@final
class Scaled(Manifold, rows=False):
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

    def _squares(self, c: Tensor, strides: tuple[int, ...]) -> list[Tensor]:
        return [self.factor * squares for squares in self.base._squares(c, strides)]

    def _rounding(self, z: Tensor) -> Tensor:
        return self._root * self.base._rounding(z)

    def frame(self, z: Tensor) -> Tensor:
        """Scale the frame by sqrt(c)."""
        return self._root * self.base.frame(z)

    def chain_model(self, c: Tensor, widths: Tensor, *, exact: bool = False) -> ChainModel:
        """Scale the model by c."""
        return self.base.chain_model(c, widths, exact=exact).times(self.factor)

    def _program(self) -> Program | None:
        program = self.base._program()
        return program.times(self.factor) if isinstance(program, LayeredProgram) else None

    def _chain_slope(self, c: Tensor, widths: Tensor) -> tuple[Tensor, Tensor]:
        energy, gradient = self.base._chain_slope(c, widths)
        return self.factor * energy, self.factor * gradient

    @property
    def _is_dear(self) -> bool:
        return self.base._is_dear

    def _momentum(self, c: Tensor, widths: Tensor) -> tuple[Tensor, int]:
        covector, order = self.base._momentum(c, widths)
        return self.factor * covector, order

    def _gram(self, z: Tensor, dtype: torch.dtype) -> Tensor:
        return self.factor * self.base._gram(z, dtype)

    def _curvatures_at_a_time(self) -> int:
        return self.base._curvatures_at_a_time()

    def _frames_in_memory(self, d: int) -> int:
        return self.base._frames_in_memory(d)

    def force(self, z: Tensor, v: Tensor) -> Tensor:
        """Scale the force by c."""
        return self.factor * self.base.force(z, v)

    def linear_curvature(self, z: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Scale the linear curvature by c."""
        return self.factor * self.base.linear_curvature(z, u, v)

    def _metric_and_force(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        G, force = self.base._metric_and_force(z, v)
        return self.factor * G, self.factor * force

    def _curving(self, z: Tensor, u: Tensor, v: Tensor) -> Curving:
        return Curving(*(self.factor * term for term in self.base._curving(z, u, v)))

    def _sketch(self, z: Tensor, whiten: Tensor, tolerance: float) -> Manifold:
        return Scaled(self.factor, self.base._sketch(z, whiten / self._root, tolerance))

    def admit(self, z: Tensor, name: str = "z") -> None:
        """Admit what the base admits."""
        self.base.admit(z, name)

    def __repr__(self) -> str:
        base = f"({self.base})" if isinstance(self.base, Sum) else str(self.base)
        return f"{self.factor:g} * {base}"
