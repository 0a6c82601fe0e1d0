"""From two points to a geodesic: starts, solve, refine, certify."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from oddity.geometry.curve import Geodesic, nested
from oddity.geometry.manifold import Manifold
from oddity.geometry.roadmap import Roadmap
from oddity.numerics.chain import interpolate_chain, solve_chain

__all__ = ["ChainSolver", "Init", "admit_pair", "connect"]

Init: TypeAlias = Tensor | Roadmap | None
"""Where a geodesic starts: the straight line, a curve, or a roadmap."""


@dataclass(frozen=True)
class ChainSolver:
    """Settings of the chain solver.

    Parameters
    ----------
    segments
        Segments of the first grid, at least 2.
    max_segments
        A curve that its grid does not resolve is solved again on twice as many, up to this number.
    resolution
        A curve is resolved when its length as a chain and its true length differ by less than this share. The
        excess of the curve over the geodesic is of the order of its square.
    tolerance
        A chain is stationary when the next step promises less than this share of its energy; default
        ``eps ** 0.75`` of the dtype.
    max_iterations
        Steps tried for each chain on each grid.

    Raises
    ------
    ValueError
        If a setting is out of its range.

    Examples
    --------
    >>> ChainSolver(segments=64).segments
    64
    """

    segments: int = 32
    max_segments: int = 512
    resolution: float = 5e-3
    tolerance: float | None = None
    max_iterations: int = 200

    def __post_init__(self) -> None:
        if self.segments < 2 or self.max_segments < self.segments:
            raise ValueError(f"need 2 <= segments <= max_segments, got {self.segments} and {self.max_segments}")
        if not self.resolution > 0 or (self.tolerance is not None and not self.tolerance > 0):
            raise ValueError(f"resolution and tolerance must be positive, got {self.resolution} and {self.tolerance}")
        if self.max_iterations < 1:
            raise ValueError(f"max_iterations must be at least 1, got {self.max_iterations}")


class _Curves(NamedTuple):
    """A batch of solved curves with what is known of each; every field has the batch first."""

    points: Tensor  # (B, n+1, d)
    length: Tensor  # (B,)
    error: Tensor  # (B,)
    stationary: Tensor  # (B,) bool
    resolved: Tensor  # (B,) bool
    iterations: Tensor  # (B,)
    why: list[str]


def connect(M: Manifold, a: Tensor, b: Tensor, *, init: Init = None, solver: ChainSolver | None = None) -> Geodesic:
    """Numerical geodesics between a and b; see :meth:`oddity.Manifold.geodesic`."""
    solver = solver or ChainSolver()
    a, b = admit_pair(M, a, b)
    shape, d = a.shape[:-1], a.shape[-1]
    with torch.no_grad():
        a, b = a.detach().reshape(-1, d), b.detach().reshape(-1, d)
        names, starts = _starts(M, a, b, shape, init, solver.segments)
        curves = _solve_and_refine(M, starts.flatten(0, 1), solver)
        winner = curves.length.nan_to_num(torch.inf).reshape(len(names), len(a)).argmin(0)  # (B,)
        pick = winner * len(a) + torch.arange(len(a), device=a.device)
        straight = _measure(M, _line(a, b, curves.points.shape[1] - 1)).length
        converged, why = _verdict(curves, pick, straight)
    return Geodesic(
        points=curves.points[pick].reshape(*shape, *curves.points.shape[1:]),
        length=curves.length[pick].reshape(shape),
        length_error=curves.error[pick].reshape(shape),
        converged=converged.reshape(shape),
        why=nested(why, shape),
        iterations=curves.iterations[pick].reshape(shape),
        start=nested([names[s] for s in winner.tolist()], shape),
    )


def admit_pair(M: Manifold, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Check two ends at the public door and bring them to their common shape."""
    M.admit(a, "a")
    M.admit(b, "b")
    if a.dtype != b.dtype or a.device != b.device:
        raise ValueError(f"a is {a.dtype} on {a.device} but b is {b.dtype} on {b.device}; bring them together")
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"a has {a.shape[-1]} coordinates but b has {b.shape[-1]}")
    try:
        shape = torch.broadcast_shapes(a.shape, b.shape)
    except RuntimeError:
        raise ValueError(f"the shapes of a and b do not broadcast: {tuple(a.shape)} and {tuple(b.shape)}") from None
    return a.expand(shape), b.expand(shape)


def _line(a: Tensor, b: Tensor, n: int) -> Tensor:
    t = torch.linspace(0, 1, n + 1, dtype=a.dtype, device=a.device)[:, None]
    line = a[:, None] + t * (b - a)[:, None]  # (B, n+1, d)
    line[:, -1] = b
    return line


def _starts(M: Manifold, a: Tensor, b: Tensor, shape: torch.Size, init: Init, n: int) -> tuple[list[str], Tensor]:
    """Names of the starts and the starting chains ``(S, B, n+1, d)``."""
    if init is None:
        return ["line"], _line(a, b, n)[None]
    if isinstance(init, Tensor):
        return ["curve"], _given(M, a, b, shape, init, n)[None]
    if not isinstance(init, Roadmap):
        raise ValueError(f"init is a {type(init).__name__}; give None, a curve (*, n+1, d) or a Roadmap")
    return ["line", "roadmap"], torch.stack([_line(a, b, n), init.paths(a, b, n)])


def _given(M: Manifold, a: Tensor, b: Tensor, shape: torch.Size, curve: Tensor, n: int) -> Tensor:
    """The user's own start, checked and put on the solver's grid."""
    M.admit(curve, "init")
    if curve.dtype != a.dtype or curve.device != a.device:
        raise ValueError(f"init is {curve.dtype} on {curve.device} but the ends are {a.dtype} on {a.device}")
    d = a.shape[-1]
    if curve.ndim < 2 or curve.shape[-1] != d or curve.shape[-2] < 2:
        raise ValueError(
            f"init has shape {tuple(curve.shape)}; a start has shape (*, n+1, {d}) with at least two nodes"
        )
    try:
        curve = curve.detach().expand(*shape, *curve.shape[-2:]).reshape(-1, *curve.shape[-2:])
    except RuntimeError:
        raise ValueError(
            f"init has shape {tuple(curve.shape)}, but the batch of end points is {tuple(shape)}"
        ) from None
    scale = torch.linalg.vector_norm(curve, dim=-1).amax() if curve.numel() else 0.0
    gap = torch.maximum((curve[:, 0] - a).abs().amax(-1), (curve[:, -1] - b).abs().amax(-1)) if len(a) else a[:, 0]
    if bool((gap > 1e-3 * scale).any()):
        raise ValueError(f"init does not join the ends: it misses by {float(gap.max()):.3g}")
    chain = interpolate_chain(curve, torch.linspace(0, 1, n + 1, dtype=a.dtype, device=a.device))
    chain[:, 0], chain[:, -1] = a, b
    return chain


def _solve_and_refine(M: Manifold, starts: Tensor, solver: ChainSolver) -> _Curves:
    """Solve on the first grid; solve those that it does not resolve on finer ones."""
    curves = _at_rest(_solve(M, starts, solver))
    n = solver.segments
    while 2 * n <= solver.max_segments and bool((again := _worth_refining(curves)).any()):
        n *= 2
        curves = _upsampled(curves, n)
        finer = _solve(M, curves.points[again], solver)
        curves = _merged(curves, again, finer)
    return curves


def _at_rest(curves: _Curves) -> _Curves:
    """Give chains that never leave their point the length zero exactly, whatever the rounding of the metric."""
    still = (curves.points == curves.points[:, :1]).all(-1).all(-1)
    zero = torch.where(still, 0.0, curves.length), torch.where(still, 0.0, curves.error)
    why = ["" if rests else reason for rests, reason in zip(still.tolist(), curves.why, strict=True)]
    return curves._replace(
        length=zero[0], error=zero[1], stationary=curves.stationary | still, resolved=curves.resolved | still, why=why
    )


def _worth_refining(curves: _Curves) -> Tensor:
    return ~curves.resolved & curves.points.isfinite().all(-1).all(-1) & (curves.length > 0)


def _solve(M: Manifold, starts: Tensor, solver: ChainSolver) -> _Curves:
    found = solve_chain(M, starts, tolerance=solver.tolerance, max_iterations=solver.max_iterations)
    length, error, coarse = _measure(M, found.points)
    resolved = (coarse - length).abs() <= solver.resolution * length
    return _Curves(found.points, length, error, found.stationary, resolved, found.iterations, found.why)


class _Measured(NamedTuple):
    length: Tensor  # extrapolated
    error: Tensor  # estimated
    coarse: Tensor  # of the chain itself


def _measure(M: Manifold, c: Tensor) -> _Measured:
    """Length of the curve through the chain, on grids two and four times finer, extrapolated.

    Lengths by secants have an error series in 1/n^2, so two grids cancel its first term (Richardson).
    """
    n = c.shape[1] - 1
    fine = interpolate_chain(c, torch.linspace(0, 1, 4 * n + 1, dtype=c.dtype, device=c.device))
    coarse, middle, finest = M._lengths(c), M._lengths(fine[:, ::2]), M._lengths(fine)
    length = finest + (finest - middle) / 3
    return _Measured(length, (length - finest).abs(), coarse)


def _upsampled(curves: _Curves, n: int) -> _Curves:
    t = torch.linspace(0, 1, n + 1, dtype=curves.points.dtype, device=curves.points.device)
    return curves._replace(points=interpolate_chain(curves.points, t))


def _merged(old: _Curves, at: Tensor, new: _Curves) -> _Curves:
    """Put the new curves in the places of the old ones."""
    fields = {}
    for name in ("points", "length", "error", "stationary", "resolved", "iterations"):
        value = getattr(old, name).clone()
        value[at] = getattr(new, name)
        fields[name] = value
    fields["iterations"][at] += old.iterations[at]
    why = list(old.why)
    for place, sentence in zip(at.nonzero().flatten().tolist(), new.why, strict=True):
        why[place] = sentence
    return _Curves(**fields, why=why)


def _verdict(curves: _Curves, pick: Tensor, straight: Tensor) -> tuple[Tensor, list[str]]:
    """Whether each picked curve converged, and if not, why."""
    length, error = curves.length[pick], curves.error[pick]
    slack = error + 8 * torch.finfo(length.dtype).eps ** 0.5 * straight
    longer = ~(length <= straight + slack)  # true for NaN as well
    stationary, resolved = curves.stationary[pick], curves.resolved[pick]
    n = curves.points.shape[1] - 1
    why = []
    for i, at in enumerate(pick.tolist()):
        if not stationary[i]:
            why.append(curves.why[at])
        elif not resolved[i]:
            why.append(f"{n} segments do not resolve the curve: raise max_segments")
        elif longer[i]:
            why.append(f"longer than the straight line: {float(length[i]):.6g} against {float(straight[i]):.6g}")
        else:
            why.append("")
    return stationary & resolved & ~longer, why
