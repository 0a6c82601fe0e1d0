"""From two points to a geodesic: starts, solve, refine, certify."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from oddity.geometry.curve import Geodesic, nested
from oddity.geometry.manifold import Manifold
from oddity.geometry.roadmap import Roadmap, resampled
from oddity.geometry.tabulated import Tabulated
from oddity.numerics.chain import (
    ChainProblem,
    ChainSolution,
    at_rest,
    doubled,
    interpolate_chain,
    leaps,
    places_at,
    usual_tolerance,
)
from oddity.numerics.descent import Guided, solve, solve_in_double
from oddity.numerics.layered import LayeredProgram, squares_in_layers
from oddity.numerics.native import serves

__all__ = ["ChainSolver", "Init", "admit_pair", "connect", "depart"]

Init: TypeAlias = Tensor | Roadmap | None
"""Where a geodesic starts: the straight line, a curve, or a roadmap."""


@dataclass(frozen=True)
class ChainSolver:
    """Settings of the chain solver.

    Parameters
    ----------
    segments
        Segments of the first grid, an even number; under a sketch half as many, or at least 64 where it is a table and
        they cost little.
    max_segments
        A curve that its grid does not resolve is solved again on twice as many, denser where it was missed, up to
        this number.
    resolution
        A curve is resolved when its length as a chain and its true length differ by less than this share. The chain
        minimises an energy of fourth order, so that its excess over the geodesic is of the order of the square.
    tolerance
        A chain is stationary when the next step promises less than this share of its energy; default
        ``eps ** 0.75`` of the dtype.
    max_iterations
        Steps tried for each curve, on all grids together. Usual curves take tens; what has spent all is measured where
        it stands, and says so.

    Raises
    ------
    ValueError
        If a setting is out of its range.

    Examples
    --------
    >>> ChainSolver(segments=64).segments
    64
    """

    segments: int = 16
    max_segments: int = 512
    resolution: float = 5e-3
    tolerance: float | None = None
    max_iterations: int = 500

    def __post_init__(self) -> None:
        if self.segments < 2 or self.segments % 2 or self.max_segments < self.segments:
            raise ValueError(
                f"need an even number of segments from 2 to max_segments, got {self.segments} and {self.max_segments}"
            )
        if not self.resolution > 0 or (self.tolerance is not None and not self.tolerance > 0):
            raise ValueError(f"resolution and tolerance must be positive, got {self.resolution} and {self.tolerance}")
        if self.max_iterations < 1:
            raise ValueError(f"max_iterations must be at least 1, got {self.max_iterations}")


def connect(M: Manifold, a: Tensor, b: Tensor, *, init: Init = None, solver: ChainSolver | None = None) -> Geodesic:
    """Numerical geodesics between a and b; see :meth:`oddity.Manifold.geodesic`."""
    a, b = admit_pair(M, a, b, init)
    with torch.no_grad():
        return _raced(M, a.detach(), b.detach(), init, solver or ChainSolver())[0]


def depart(
    M: Manifold, a: Tensor, b: Tensor, *, init: Init = None, solver: ChainSolver | None = None
) -> tuple[Geodesic, Tensor, Tensor]:
    """Numerical geodesics, and the covectors ``(*, d)`` with which they leave a, and leave b the other way.

    Both have the norm that is known best, the length of the geodesic.
    """
    a, b = admit_pair(M, a, b, init)
    with torch.no_grad():
        g, race, pick = _raced(M, a.detach(), b.detach(), init, solver or ChainSolver())
        length = g.length.reshape(-1, 1)
        ends = []
        for z, last in ((a, False), (b, True)):
            p = race.momentum(pick, last=last)
            line = (b - a).detach().reshape(p.shape)[race.lines] * (-1 if last else 1)
            p[race.lines] = (M._grams(z.detach().reshape(p.shape)[race.lines]) @ line[..., None])[..., 0]
            norm = (p * M._sharp(z.detach().reshape(p.shape), p)).sum(-1, keepdim=True).sqrt()
            ends.append(torch.where(norm > 0, length / norm * p, p).reshape(a.shape))
        return g, ends[0], ends[1]


def _raced(M: Manifold, a: Tensor, b: Tensor, init: Init, solver: ChainSolver) -> tuple[Geodesic, _Race, Tensor]:
    """The winners of a race, the race, and which of its curves they are."""
    shape, d = a.shape[:-1], a.shape[-1]
    a, b = a.reshape(-1, d), b.reshape(-1, d)
    sketch = init.sketch if isinstance(init, Roadmap) else M
    first = _scouting(solver, sketch).segments
    if sketch is not M and d > 2:  # the way is long, most of it through what any grid resolves
        first = max(2, first // 4 * 2)
    names, starts, bars = _starts(M, a, b, shape, init, first, solver)
    finer = []
    if isinstance(init, Roadmap) and not isinstance(sketch, Tabulated):
        finer = _finer_starts(M, a, b, init, first, solver, bars[-1])
    race = _Race(M, starts.flatten(0, 1), len(names), solver, sketch, bars, finer)
    converged, why = race.verdict()
    pick = race.winners(converged)  # (B,)
    points, gap = race.published(pick)
    length, converged = race.length[pick], converged[pick]
    why, start = [why[i] for i in pick.tolist()], [names[i // max(1, len(a))] for i in pick.tolist()]
    for i in (converged & (gap > solver.resolution * length)).nonzero()[:, 0].tolist():
        converged[i], why[i] = False, "the curve leaps between its points: raise segments"
    line = bars[0].lengths(M)
    worse = ~converged & race.longer(line)[pick] & line.isfinite()
    for i in worse.nonzero()[:, 0].tolist() if "line" in names else []:  # a curve that was asked for is what it is
        why[i], start[i] = f"{why[i]}, which is given in its place", "line"
        points[i] = resampled(M, _line(a[i : i + 1], b[i : i + 1], solver.max_segments), points.shape[1] - 1)[0]
        length[i], gap[i] = line[i], 0
    rounding = 4 * (M._rounding((a + b) / 2) + torch.finfo(a.dtype).eps * length)
    error = torch.where(length == 0, 0.0, torch.maximum(race.error[pick], gap) + rounding)
    if "line" in names and not bool(converged.all()):  # a curve that was asked for is what it is
        near, straight, off = _near_lines(M, a, b, ~converged, solver)
        points[near], length[near], error[near] = _line(a[near], b[near], points.shape[1] - 1), straight, off
        converged[near], race.lines = True, near
        for i in near.tolist():
            why[i], start[i] = "", "line"
    found = Geodesic(
        points=points.reshape(*shape, *points.shape[1:]),
        length=length.reshape(shape),
        length_error=error.reshape(shape),
        converged=converged.reshape(shape),
        why=nested(why, shape),
        iterations=race.iterations[pick].reshape(shape),
        decrement=race.decrement[pick].reshape(shape),
        speed_residual=race.speed[pick].reshape(shape),
        start=nested(start, shape),
        manifold=M,
    )
    return found, race, pick


def _near_lines(M: Manifold, a: Tensor, b: Tensor, which: Tensor, solver: ChainSolver) -> tuple[Tensor, Tensor, Tensor]:
    """Straight lines between ends so near to each other that the chords of a chain are mostly rounding.

    They are measured by derivatives, which no difference of near values spoils. How far a line is from a geodesic is
    told by the acceleration of one: a turn by a small angle rho makes a curve longer by the share rho^2 / 24.

    Returns
    -------
    tuple of Tensor
        Which of the pairs in the mask ``(B,)`` have a geodesic so, its length, and the error of that.
    """
    noise = solver.segments * M._rounding((a + b) / 2)
    near = (which & (M._steps(torch.stack([a, b], 1))[:, 0] < _NOISY * noise)).nonzero()[:, 0]
    if len(near) == 0:
        return near, a.new_zeros(0), a.new_zeros(0)
    t = _irregular(_PLACES, a)
    z, v = (x.flatten(0, 1) for x in (_at(a[near], b[near], t), (b - a)[near, None].expand(-1, len(t), -1)))
    speed, turn = (
        torch.linalg.vector_norm(M.push(z, u), dim=-1).reshape(len(near), len(t)) for u in (v, M._acceleration(z, v))
    )
    length = torch.trapezoid(speed, t)
    share = (turn.amax(-1) / length).square() / 24
    error = (speed.amax(-1) - speed.amin(-1)) / _PLACES + (share + torch.finfo(a.dtype).eps) * length
    sure = share <= _SURE * solver.resolution
    return near[sure], length[sure], error[sure]


def _at(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Points of straight lines at times ``(T,)``, the ends to the bit what they are: ``-> (B, T, d)``."""
    line = a[:, None] + t[:, None] * (b - a)[:, None]
    line[:, -1] = b
    return line


def admit_pair(M: Manifold, a: Tensor, b: Tensor, init: Init = None) -> tuple[Tensor, Tensor]:
    """Check two ends, and the kind of start, at the public door; bring the ends to their common shape."""
    if not isinstance(init, Tensor | Roadmap | None):
        raise ValueError(f"init is a {type(init).__name__}; give None, a curve (*, n+1, d) or a Roadmap")
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
    return _at(a, b, _times(n, a))  # (B, n+1, d)


class _Bar:
    """Curves from a to b that no geodesic between them may be longer than, measured as far as a verdict asks.

    By chords first, which are no longer than the curves; those that seem shorter than a geodesic are measured better.
    """

    def __init__(self, name: str, curves: Tensor, solver: ChainSolver) -> None:
        self.name, self.curves, self._solver = name, curves, solver  # (B, n+1, d)
        self._lengths: Tensor | None = None

    def lengths(self, M: Manifold) -> Tensor:
        """Lengths under the metric: ``(B,)``."""
        if self._lengths is None:
            self._lengths = M._lengths(_polyline(self.curves, self._grid))
        return self._lengths

    @property
    def _grid(self) -> int:
        """Segments that know the curves: of a straight line few do, a winding one would lose its corners."""
        return self._solver.segments if self.curves.shape[1] == 2 else max(self._solver.segments, _FINE)

    def measured(self, M: Manifold, seems: Callable[[Tensor], Tensor]) -> Tensor:
        """The same, where they seem shorter than a curve by what stepped over nothing: ``(B,)``."""
        lengths = self.lengths(M)
        for n in (2 * self._grid, self._solver.max_segments):
            again = seems(lengths)
            if bool(again.any()):
                lengths[again] = _measure(M, _polyline(self.curves[again], n)).length
        return lengths


def _polyline(c: Tensor, n: int) -> Tensor:
    """Points of polylines ``(B, m+1, d)`` at n + 1 even shares of their node numbers."""
    m = c.shape[1] - 1
    at = _times(n, c) * m
    left = at.floor().long().clamp(max=m - 1)
    points = torch.lerp(c[:, left], c[:, left + 1], (at - left)[:, None])
    points[:, 0], points[:, -1] = c[:, 0], c[:, -1]
    return points


def _starts(
    M: Manifold, a: Tensor, b: Tensor, shape: torch.Size, init: Init, n: int, solver: ChainSolver
) -> tuple[list[str], Tensor, list[_Bar]]:
    """Names of the starts, the starting chains ``(S, B, n+1, d)``, and what the geodesics may not be longer than."""
    line = _Bar("straight line", torch.stack([a, b], 1), solver)
    if init is None:
        return ["line"], _line(a, b, n)[None], [line]
    if isinstance(init, Tensor):
        return ["curve"], _given(M, a, b, shape, init, n)[None], [line]
    _admit_roadmap(init, a)
    paths = init.paths(a, b, n * -(-_CORNERS // n))
    starts = torch.stack([_line(a, b, n), paths[:, :: (paths.shape[1] - 1) // n]])
    return ["line", "roadmap"], starts, [line, _Bar("roadmap's path", paths, solver)]


def _finer_starts(
    M: Manifold, a: Tensor, b: Tensor, roads: Roadmap, n: int, solver: ChainSolver, bar: _Bar
) -> list[tuple[Tensor, Tensor]]:
    """Paths whose walls the first grid steps over, on the grids that don't, finest first: numbers of starts, chains.

    In a corridor a coarse chain goes through the walls, and is far away by the time that its grid sees them. A path
    that every grid steps over starts on the first one, as elsewhere.
    """
    found = list[tuple[Tensor, Tensor]]()
    left, side, paths, truth = torch.arange(len(a), device=a.device), n, bar.curves, bar.lengths(M)
    while len(left) and side <= solver.max_segments // 2:
        if 2 * side >= paths.shape[1] or (paths.shape[1] - 1) % side:
            paths = roads.paths(a[left], b[left], 4 * side)
        m = paths.shape[1] - 1
        if side > n:
            truth = M._lengths(_polyline(paths, min(8 * side, m)))
        chains = paths[:, :: m // side]
        over = (M._lengths(chains) - truth).abs() > _STEPS_OVER * truth
        if side > n and not bool(over.all()):
            found.append((len(a) + left[~over], chains[~over]))
        left, paths, side = left[over], paths[over], 2 * side
    return found[::-1]


def _admit_roadmap(init: Roadmap, a: Tensor) -> None:
    codes = init.codes
    if codes.shape[-1] != a.shape[-1]:
        raise ValueError(f"init is a roadmap in {codes.shape[-1]} dimensions, but the ends have {a.shape[-1]}")
    if codes.dtype != a.dtype or codes.device != a.device:
        raise ValueError(f"init is a roadmap of {codes.dtype} on {codes.device}, the ends are {a.dtype} on {a.device}")


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
    extent = (curve.amax(1) - curve.amin(1)).amax(-1) + (b - a).abs().amax(-1)  # (B,)
    gap = torch.maximum((curve[:, 0] - a).abs().amax(-1), (curve[:, -1] - b).abs().amax(-1))  # (B,)
    if bool((gap > 1e-3 * extent).any()):
        raise ValueError(f"init does not join the ends: it misses by {float(gap.max()):.3g}")
    chain = interpolate_chain(curve, _times(n, a))
    chain[:, 0], chain[:, -1] = a, b
    return chain


_STEPS_OVER = 0.1  # share of a path's length: a grid that misses more of it is too coarse to start on
_CORNERS = 256  # segments, at least, on which the path of a roadmap keeps its corners
_PLACES = 1536  # where a curve is looked at, at most 1.4 / 1536 of its length from each other: what is wider is seen
_RANKS = 32  # places on a curve where the rank of the metric is looked at
_FAR = 4  # times the resolution: a curve with a larger residual is none that its grid resolves
_FINE = 64  # segments, from which on only what is narrow is stepped over
_JUMP = 1.1  # a curve that is longer than its chain by this factor is put anew on the next grid
_NOISY = 1e4  # chords of less than so many times their rounding do not tell whether a chain is stationary
_SURE = 1e-2  # of the resolution: by how much a line may be longer than the geodesic it stands for
_GLIMPSE = 96  # outputs of a layered function that are looked at
_ROUGH = 1e-4  # share of the energy: how well a curve is solved under the sketch, before it is solved under the metric
_UNSURE = 1e-2  # the same under the metric itself, before its grid is known to be fine enough
_MARGIN = 1.6  # a start longer than its rival by more than this share over n is not pursued: finer grids know better
_GIVEN_UP = "given up for a shorter start"
_SCOUTS = 64  # segments in a table
_SCOUTED = 2e-3  # resolution there: the metric's own chain then hardly moves
_GUIDED = 32  # steps by the sketch's Hessian, before the metric's own
_AGREES = 0.3  # a sketch that is further off, in a step as a share of the longest or in the metric, does not guide
_ASTRAY = 0.1  # damping of the first step under a sketch of outputs: far from the solution an undamped one goes astray
_SAME = 0.05  # curves nearer to each other than this share of their length, all along, are in one valley
_ACROSS = 4  # segments from one to the other


def _scouting(solver: ChainSolver, sketch: Manifold) -> ChainSolver:
    """Settings under the sketch: nodes are cheap in a table, and a fine grid steps over no wall."""
    if not isinstance(sketch, Tabulated):
        return solver
    segments = min(max(_SCOUTS, solver.segments), solver.max_segments // 2 * 2)
    return replace(solver, segments=segments, resolution=min(_SCOUTED, solver.resolution))


class _Race:
    """All starts of all pairs, solved on grids as fine as each curve needs.

    The starts of pair i are the curves i, i + B, i + 2 B, ... On each grid every open curve is first solved under the
    sketch of the metric where there is one, and roughly where there is none. Those that the grid resolves are solved
    to the end and measured; the others go on to a grid of twice as many segments, denser where they need it, but for
    starts that have run into their rival's valley or lie hopelessly behind. Where the sketch is a table, a whole race
    is run under that first, and its winners come here.
    """

    def __init__(
        self,
        M: Manifold,
        starts: Tensor,
        count: int,
        solver: ChainSolver,
        sketch: Manifold,
        bars: list[_Bar] | None = None,
        finer: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> None:
        total = len(starts)
        self.M, self.sketch, self.bars = M, sketch, bars
        self.solver, self.count, self.dim = solver, count, starts.shape[-1]
        self.length, self.error = starts.new_full((total,), torch.inf), starts.new_zeros(total)
        self.lines = starts.new_zeros(0, dtype=torch.long)  # pairs whose straight line was taken in the end
        self.flat = torch.zeros(total, dtype=torch.bool, device=starts.device)  # where the metric loses a direction
        self.slip = self.error.clone()  # of the length of the curve itself
        self.speed, self.decrement = starts.new_zeros(total), starts.new_zeros(total)
        self.stationary = torch.zeros(total, dtype=torch.bool, device=starts.device)
        self.resolved = self.stationary.clone()
        self.iterations = torch.zeros(total, dtype=torch.long, device=starts.device)
        self.why = [_GIVEN_UP] * total
        self.grids: list[tuple[Tensor, Tensor, Tensor]] = []  # which curves ended on a grid, their points and widths
        self.segments = torch.zeros_like(self.iterations)  # of the grid on which a curve ended; 0 if given up
        self.pruning = count > 1
        entrants = self._moving(starts)
        if isinstance(sketch, Tabulated) and sketch is not M:
            for entrants, chains, widths in self._scouted(starts, sketch):
                points, measured, again = self._finish(entrants, chains, widths, self._is_last(chains))
                self._run(entrants[again], *self._refined(points[again], widths[again], measured.at(again)))
            self.sketch = M
            entrants = self._forgotten()
            starts = _regridded(starts, solver.segments)
        for some, chains in finer:
            here = torch.isin(some, entrants)
            self._run(some[here], chains[here], _even(chains[here]))
            entrants = entrants[~torch.isin(entrants, some)]
        self._run(entrants, starts[entrants], _even(starts[entrants]))
        self.pruning = False
        abandoned = self._abandoned()
        self._run(abandoned, starts[abandoned], _even(starts[abandoned]))

    def _moving(self, starts: Tensor) -> Tensor:
        """All starts but those of pairs that have one at rest: from a point to itself nothing is solved, or rounded."""
        still = at_rest(starts)
        still[still.clone()] = self.M._lengths(starts[still]).isfinite()  # where there is no metric, nothing is said
        rests = still.nonzero()[:, 0]
        self.length[rests], self.segments[rests] = 0, starts.shape[1] - 1
        self.stationary[rests], self.resolved[rests] = True, True
        for i in rests.tolist():
            self.why[i] = ""
        self.grids.append((rests, starts[rests], _even(starts[rests])))
        return (~still.reshape(self.count, -1).any(0).repeat(self.count)).nonzero()[:, 0]

    def _scouted(self, starts: Tensor, table: Tabulated) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Run the whole race under the table; send its winners on, each from where it ended, on its grid."""
        B = len(starts) // self.count
        inside = table.covers(starts[:B, [0, -1]]).all(-1) & (self.segments.reshape(self.count, B) == 0).all(0)
        inside = inside.repeat(self.count).nonzero()[:, 0]
        scout = _Race(table, starts[inside], self.count, _scouting(self.solver, table), table)
        pick = scout.winners(scout.stationary & scout.resolved)
        self.iterations[inside[pick]] = scout.iterations[pick]
        for used, points, widths in scout.on_grids(pick):
            yield inside[pick[used]], points, widths

    def _forgotten(self) -> Tensor:
        """All starts of the pairs that have no converged curve yet, as if nothing had been tried."""
        done = self.verdict()[0].reshape(self.count, -1).any(0)
        again = (~done).repeat(self.count).nonzero()[:, 0]
        kept = [(grid, ~torch.isin(grid[0], again)) for grid in self.grids]
        self.grids = [(ended[keep], points[keep], widths[keep]) for (ended, points, widths), keep in kept]
        self.iterations[again], self.segments[again], self.length[again] = 0, 0, torch.inf
        self.stationary[again], self.resolved[again], self.flat[again] = False, False, False
        for i in again.tolist():
            self.why[i] = _GIVEN_UP
        return again

    def _run(self, entrants: Tensor, chains: Tensor, widths: Tensor) -> None:
        while len(entrants):
            entrants, chains, widths = self._grid(entrants, chains, widths)

    def _is_last(self, chains: Tensor) -> bool:
        return 2 * (chains.shape[1] - 1) > self.solver.max_segments

    def _abandoned(self) -> Tensor:
        """Starts that were given up for one that then did not converge: they get their turn after all."""
        given_up = self.segments == 0
        if bool(given_up.any()):
            done = self.stationary & self.resolved if self.bars is None else self.verdict()[0]
            given_up &= ~done.reshape(self.count, -1).any(0).repeat(self.count)
        return given_up.nonzero()[:, 0]

    def _grid(self, entrants: Tensor, chains: Tensor, widths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Solve on one grid; return who goes on to the next, from where, and on which grid."""
        last = self._is_last(chains)
        goal = _UNSURE if self.sketch is self.M else _ROUGH
        astray = 0.0 if self.sketch is self.M else _ASTRAY
        rough = self._solve(self.sketch, entrants, chains, widths, goal, damping=astray)
        measured = _measure(self.sketch, rough.points, widths)
        self.length[entrants] = measured.length
        alive = self._worth_pursuing(entrants, rough.points)
        here = measured.resolved(self.solver.resolution) | ~measured.length.isfinite() | last
        here |= self._spent(entrants)
        here, on = here & alive, ~here & alive
        points = rough.points.clone()
        points[here], final, on[here] = self._finish(entrants[here], rough.points[here], widths[here], last)
        for whole, part in zip(measured, final, strict=True):
            whole[here] = part
        return entrants[on], *self._refined(points[on], widths[on], measured.at(on))

    def _refined(self, points: Tensor, widths: Tensor, measured: _Measured) -> tuple[Tensor, Tensor]:
        """Curves on twice as many segments; points and widths.

        A chain that steps over much of its own curve, such as a wall between two nodes, starts anew at equal steps of
        the length that is seen: from elsewhere the way down leads over the wall again.
        """
        finer, times = _refined(points, widths, measured)
        jumps = (measured.length > _JUMP * measured.coarse).nonzero()[:, 0]
        if len(jumps) and widths.shape[1] >= _FINE:
            c = points[jumps]
            fine = interpolate_chain(c, _irregular(_PLACES, c))
            finer[jumps] = resampled(self.M, fine, 2 * (c.shape[1] - 1))
            times[jumps] = _even(finer[jumps])
        return finer, times

    def _solve(
        self,
        problem: ChainProblem,
        entrants: Tensor,
        chains: Tensor,
        widths: Tensor,
        goal: float = 0.0,
        *,
        most: int | None = None,
        exact: bool = False,
        damping: float = 0.0,
    ) -> ChainSolution:
        goal = max(goal, self.solver.tolerance or usual_tolerance(chains.dtype))
        limit, spent = self.solver.max_iterations, self.iterations[entrants]
        if most is not None:
            spent = spent.clamp(min=limit - most)
        found = solve(
            problem,
            chains,
            widths,
            tolerance=goal,
            max_iterations=limit,
            spent=spent,
            exact=exact,
            damping=damping,
        )
        self.iterations[entrants] += found.iterations
        return found

    def _spent(self, entrants: Tensor) -> Tensor:
        """Which curves have made all steps that they may."""
        return self.iterations[entrants] >= self.solver.max_iterations

    def _finish(self, entrants: Tensor, chains: Tensor, widths: Tensor, last: bool) -> tuple[Tensor, _Measured, Tensor]:
        """Solve to the end and measure; return the points, what was measured, and which need a finer grid after all.

        The others have arrived: only they get a sentence, a grid and a number of segments.
        """
        found, measured = self._solve_to_the_end(entrants, chains, widths)
        self.slip[entrants] = measured.error / 4  # what extrapolation took off the length, from grid to grid a quarter
        if self.bars is not None:  # in a table there is nothing that its nodes do not know
            self._look(entrants, found.points, widths, measured, last)
        resolved = measured.resolved(self.solver.resolution, last)
        self.length[entrants], self.error[entrants] = measured.length, measured.error
        self.speed[entrants], self.decrement[entrants] = measured.speed, found.decrement
        self.stationary[entrants], self.resolved[entrants] = found.stationary, resolved
        again = ~resolved & measured.length.isfinite() & ~self._spent(entrants) & (not last)
        for k in (~again).nonzero()[:, 0].tolist():
            self.why[int(entrants[k])] = found.why[k]
        arrived = entrants[~again]
        self.segments[arrived] = chains.shape[1] - 1
        self.grids.append((arrived, found.points[~again], widths[~again]))
        return found.points, measured, again

    def _solve_to_the_end(self, entrants: Tensor, chains: Tensor, widths: Tensor) -> tuple[ChainSolution, _Measured]:
        """Solve under the metric, guided by its sketch as far as that agrees with it; the rest in double."""
        found, measured = self._solve_in_own_precision(entrants, chains, widths)
        left = (~found.stationary & ~self._spent(entrants) & measured.length.isfinite()).nonzero()[:, 0]
        if len(left):
            noise = self.solver.segments * self.M._rounding(chains[left, chains.shape[1] // 2])
            left = left[measured.length[left] >= _NOISY * noise]  # else chords tell nothing
        again = None
        if len(left):
            again = solve_in_double(
                self.M,
                found.points[left],
                widths[left],
                tolerance=self.solver.tolerance or usual_tolerance(chains.dtype),
                max_iterations=self.solver.max_iterations,
                spent=self.iterations[entrants[left]],
            )
        if again is not None:
            self.iterations[entrants[left]] += again.iterations
            self._replace(found, measured, left, again, widths)
        return found, measured

    def _replace(
        self, found: ChainSolution, measured: _Measured, which: Tensor, again: ChainSolution, widths: Tensor
    ) -> None:
        """Put what was found again, and measured, in the place of what was found."""
        found.points[which], found.decrement[which] = again.points, again.decrement
        found.stationary[which] = again.stationary
        for k, i in enumerate(which.tolist()):
            found.why[i] = again.why[k]
        for whole, part in zip(measured, _measure(self.M, again.points, widths[which]), strict=True):
            whole[which] = part

    def _solve_in_own_precision(
        self, entrants: Tensor, chains: Tensor, widths: Tensor
    ) -> tuple[ChainSolution, _Measured]:
        if self.sketch is self.M:
            found = self._solve(self.M, entrants, chains, widths, exact=True)
            return found, _measure(self.M, found.points, widths)
        found = self._solve(Guided(self.M, self.sketch), entrants, chains, widths, exact=True, most=_GUIDED)
        measured = _measure(self.M, found.points, widths)
        drawn = self.sketch._steps_at(found.points, (1,))[0]
        apart = ~((drawn - measured.steps).abs().amax(-1) <= _AGREES * measured.steps.amax(-1))
        n = chains.shape[1] - 1
        some = found.points[:, [n // 8, 3 * n // 8, 5 * n // 8, 7 * n // 8]].flatten(0, 1)
        across = self.sketch._deviation(some, torch.linalg.cholesky_ex(self.M._grams(some, torch.float64))[0])
        apart |= ~(across.reshape(-1, 4) <= _AGREES).all(-1)
        left = (~found.stationary | apart).nonzero()[:, 0]
        if len(left):
            again = self._solve(self.M, entrants[left], found.points[left], widths[left], exact=True)
            self._replace(found, measured, left, again, widths)
        return found, measured

    def _worth_pursuing(self, entrants: Tensor, points: Tensor) -> Tensor:
        """Not the start whose rival is far shorter, nor the longer one of two in the same valley.

        The shortest curve of a pair is never given up, so one of them always arrives.
        """
        on = torch.ones(len(entrants), dtype=torch.bool, device=entrants.device)
        if not self.pruning:
            return on
        B = len(self.length) // self.count
        n = points.shape[1] - 1
        best = self.length.nan_to_num(torch.inf).reshape(self.count, B).amin(0)
        length = self.length[entrants]
        on &= ~(length > (1 + max(_MARGIN / n, 2 * _UNSURE)) * best[entrants % B])
        place = torch.full_like(self.iterations, -1)
        place[entrants] = torch.arange(len(entrants), device=entrants.device)
        for other in range(self.count):
            rival = place[entrants % B + other * B]
            theirs, earlier = length[rival.clamp(min=0)], entrants >= (other + 1) * B
            behind = (length > theirs) | ((length == theirs) & earlier)
            behind = (behind & (rival >= 0) & on).nonzero()[:, 0]
            ways = _line(points[behind].flatten(0, 1), points[rival[behind]].flatten(0, 1), _ACROSS)  # node to node
            apart = self.sketch._lengths(ways).reshape(len(behind), n + 1).amax(-1)
            on[behind] = ~(apart <= _SAME * length[behind])
        return on

    def _look(self, entrants: Tensor, points: Tensor, widths: Tensor, measured: _Measured, last: bool) -> None:
        """Look at curves that seem resolved at irregular places, and correct what was measured of them.

        What is published is what is looked at. A layered function is looked at in some of its outputs, and what they
        miss between the nodes counts as the same share of all.
        """
        seems = measured.resolved(self.solver.resolution, last).nonzero()[:, 0]
        if len(seems) == 0:
            return
        c, h = points[seems], widths[seems]
        n, times = c.shape[1] - 1, _times_of(h)
        curve = _through(c, places_at(times, _times(2 * n, c)))
        t = _irregular(_PLACES, c)
        view = _View(self.M, c)
        at = places_at(times, (t[1:] + t[:-1]) / 2)  # (B, N)   where on the chain each step is
        seen = torch.zeros_like(h).scatter_add_(1, (at * n).long().clamp(max=n - 1), view.steps(_through(curve, t)))
        steps = measured.steps[seems]
        known = steps if view.whole else doubled(view.steps(interpolate_chain(c, _times(2 * n, c))))
        more = steps * (seen / known.clamp(min=torch.finfo(c.dtype).tiny)) - steps if not view.whole else seen - steps
        total = more.sum(-1)
        off = (total.abs() > self.solver.resolution * measured.length[seems])[:, None]
        measured.error[seems] = torch.maximum(measured.error[seems], total.abs())
        measured.length[seems] += torch.where(off[:, 0], total, 0.0)
        measured.steps[seems] = torch.where(off, (steps + more).clamp(min=0), steps)
        measured.missed[seems] += torch.where(off, more.abs(), 0.0)
        if view.whole:  # else loops know a map into flat space, whose chains are no longer than geodesics
            self.flat[entrants[seems]] = self._loses_rank(curve)
            measured.error[seems] += self._residual(curve, measured.length[seems])
            unsure = measured.error[seems] > _FAR * self.solver.resolution * measured.length[seems]
            measured.fourth[seems] = torch.where(unsure, 0.0, measured.fourth[seems])
            measured.coarse[seems] = torch.where(unsure, 0.0, measured.coarse[seems])

    def _loses_rank(self, curve: Tensor) -> Tensor:
        """Whether the metric costs nothing in a direction on a part of a curve, where nothing holds it: ``(B,)``."""
        z = curve[:, :: max(1, (curve.shape[1] - 1) // _RANKS)]
        values = torch.linalg.eigvalsh(self.M._grams(z, torch.float64).nan_to_num(0, 0, 0))  # (B, k, d)
        rank = (values > torch.finfo(curve.dtype).eps ** 2 * values.amax((1, 2), keepdim=True)).sum(-1)
        loses: Tensor = rank.amin(1) < rank.amax(1)
        return loses

    def _residual(self, curve: Tensor, length: Tensor) -> Tensor:
        """How much shorter curves are about to get on an irregular grid, by the residual of their equation: ``(B,)``.

        Half the residual times what a Gauss-Newton step makes of it; twice as much, since finer grids find more.
        """
        most = torch.zeros_like(length)
        for m in {min(side, _PLACES // 2) // 2 * 2 for side in (curve.shape[1] // 2, curve.shape[1])}:
            t = _irregular(m, curve)
            c, h = _through(curve, t), t.diff().expand(len(curve), -1).contiguous()
            promised = solve(self.M, c, h, max_iterations=0).decrement.nan_to_num(0, posinf=0)
            noise = (m * self.M._rounding(curve[:, m // 2]) / length.clamp(min=torch.finfo(c.dtype).tiny)).square()
            most = torch.maximum(most, (promised - noise) * length)
        return most

    def verdict(self) -> tuple[Tensor, list[str]]:
        """Whether each curve converged, and if not, why."""
        assert self.bars is not None
        why, converged = list(self.why), self.stationary & self.resolved
        for i in (converged & self.flat).nonzero().flatten().tolist():
            why[i] = "a direction costs nothing on a part of the curve: add a ridge"
        converged = converged & ~self.flat
        longer = torch.zeros_like(converged)
        for bar in self.bars:
            lengths = bar.measured(self.M, lambda x: self.longer(x).reshape(self.count, -1).any(0))
            over = self.longer(lengths)
            for i in (converged & over & ~longer).nonzero().flatten().tolist():
                other = float(lengths[i % len(lengths)])
                why[i] = f"longer than the {bar.name}: {float(self.length[i]):.6g} against {other:.6g}"
            longer |= over
        for i in (self.stationary & ~self.length.isfinite()).nonzero().flatten().tolist():
            why[i] = "the length of the curve is not finite"
        for i in (self.stationary & self.length.isfinite() & ~self.resolved).nonzero().flatten().tolist():
            why[i] = f"{int(self.segments[i])} segments do not resolve the curve: raise max_segments"
        return converged & ~longer, why

    def longer(self, other: Tensor) -> Tensor:
        """Whether a finished curve exceeds another one of its pair by more than it was mismeasured, or has no length.

        A line that leaves the chart has no length itself, and no curve is longer.
        """
        other = other.nan_to_num(torch.inf, posinf=torch.inf).repeat(self.count)
        slack = self.slip + torch.finfo(other.dtype).eps ** 0.5 * other
        longer: Tensor = (self.segments > 0) & ~(self.length.isfinite() & (self.length <= other + slack))
        return longer

    def winners(self, converged: Tensor) -> Tensor:
        """For each pair the shortest curve that converged, or the shortest where none did: ``(B,)``."""
        B = len(self.length) // self.count
        rank = torch.where(self.segments > 0, self.length.nan_to_num(torch.finfo(self.length.dtype).max), torch.inf)
        rank, done = rank.reshape(self.count, B), converged.reshape(self.count, B)
        best = torch.where(done.any(0), torch.where(done, rank, torch.inf).argmin(0), rank.argmin(0))
        return best * B + torch.arange(B, device=best.device)

    def on_grids(self, pick: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The picked curves, grid by grid: which of them, their points and widths."""
        assert bool((self.segments[pick] > 0).all()), "a winner that never arrived"
        for ended, points, widths in self.grids:
            used = torch.isin(pick, ended)
            if bool(used.any()):
                at = (pick[used][:, None] == ended).int().argmax(1)
                yield used.nonzero()[:, 0], points[at], widths[at]

    def published(self, pick: Tensor) -> tuple[Tensor, Tensor]:
        """The picked curves at equal steps of length, and by how much the curves through them miss their lengths.

        There are twice as many steps as their finest grid has. They are far apart in the chart where the metric is
        small; only there is it measured, on four times the grid of the curve itself, whatever the others have.
        """
        found = list(self.on_grids(pick))
        n = max((2 * widths.shape[1] for _, _, widths in found), default=self.solver.segments)
        whole, gaps = self.length.new_empty(len(pick), n + 1, self.dim), torch.zeros_like(self.length[pick])
        for used, points, widths in found:
            m = 2 * widths.shape[1]
            curve = _through(points, places_at(_times_of(widths), _times(m, points)))
            whole[used], some = _regridded(curve, n), leaps(curve)
            if bool(some.any()):
                fine = interpolate_chain(curve[some], _times(4 * m, curve))
                gaps[used[some]] = (self.M._lengths(fine) - self.length[pick[used[some]]]).abs()
        return whole, gaps

    def momentum(self, pick: Tensor, *, last: bool = False) -> Tensor:
        """Covectors G(a) z'(0) of the picked curves, of fourth order in the step ``(B, d)``; or at the last point.

        It is what the energy loses by the first point. Where the energy is of second order only, the chain is
        solved once more on every second node, and the two extrapolated.
        """
        momentum = self.length.new_empty(len(pick), self.dim)
        for used, points, widths in self.on_grids(pick):
            if last:
                points, widths = points.flip(1), widths.flip(1)
            momentum[used] = torch.where(at_rest(points)[:, None], 0.0, self._extrapolated_momentum(points, widths))
        return momentum

    def _extrapolated_momentum(self, points: Tensor, widths: Tensor) -> Tensor:
        fine, order = self.M._momentum(points, widths)
        if order > 2 or widths.shape[1] % 4:
            return fine
        found = solve(self.M, points[:, ::2], doubled(widths), tolerance=self.solver.tolerance, exact=True)
        coarse, _ = self.M._momentum(found.points, doubled(widths))
        return torch.where(found.stationary[:, None], fine + (fine - coarse) / 3, fine)


def _regridded(c: Tensor, n: int) -> Tensor:
    """The same curves on n segments."""
    return _through(c, _times(n, c))


def _through(c: Tensor, at: Tensor) -> Tensor:
    """The same curves through their points at shares of the node numbers, the ends to the bit what they are."""
    chain = interpolate_chain(c, at)
    chain[:, 0], chain[:, -1] = c[:, 0], c[:, -1]
    return chain


class _Measured(NamedTuple):
    """A curve through its chain, measured on finer grids."""

    length: Tensor  # (B,)   extrapolated
    error: Tensor  # (B,)   estimated
    coarse: Tensor  # (B,)   length of the chain itself
    fourth: Tensor  # (B,)   the same extrapolated from that over every second node, of fourth order in the step
    steps: Tensor  # (B, n)   of the curve on each segment
    missed: Tensor  # (B, n)   by how much a step differs from its secant
    speed: Tensor  # (B,)   largest deviation from constant speed, as a share

    def at(self, index: Tensor) -> _Measured:
        """What was measured of the curves at an index."""
        return _Measured(*(a[index] for a in self))

    def resolved(self, resolution: float, last: bool = False) -> Tensor:
        """Whether the chain steps over nothing: ``(B,)`` bool; where there is no finer grid, to fourth order."""
        return ((self.fourth if last else self.coarse) - self.length).abs() <= resolution * self.length


def _measure(M: Manifold, c: Tensor, widths: Tensor | None = None) -> _Measured:
    """Length of the curve through the chain by secants of a half and a whole step, extrapolated.

    Lengths by secants have an error series in 1/n^2, so two grids cancel its first term (Richardson). Of maps into
    flat space the chain of least energy is no longer than the geodesic, and any curve is no shorter: what lies between
    the two is the error of its length.
    """
    n = c.shape[1] - 1
    fine, coarse, *double = M._steps_at(interpolate_chain(c, _times(2 * n, c)), (1, 2, 4)[: 2 + (n % 2 == 0)])
    long, short = fine.sum(-1), coarse.sum(-1)
    fourth = short + (short - double[0].sum(-1)) / 3 if double else short
    length = long + (long - short) / 3
    error = (length - short).abs()  # the chain is no longer than a geodesic, the curve through it no shorter
    mean = short.clamp(min=torch.finfo(c.dtype).tiny)[:, None] * (_even(c) if widths is None else widths)
    steps, speed = doubled(fine), (coarse / mean - 1).abs().amax(-1)
    return _Measured(length, error, short, fourth, steps, (steps - coarse).abs(), speed)


class _View:
    """Steps along chains by what shows what lies between places that are near to each other."""

    def __init__(self, M: Manifold, c: Tensor) -> None:
        self._M = M
        program = M._program() if serves(c) else None
        fits = isinstance(program, LayeredProgram) and program.fits(c)
        self._glimpse = program.thinned(_GLIMPSE) if fits and isinstance(program, LayeredProgram) else None
        self.whole = self._glimpse is None

    def steps(self, c: Tensor) -> Tensor:
        """Lengths of the steps of chains: ``(B, N+1, d) -> (B, N)``."""
        if self._glimpse is None:
            return self._M._steps(c)
        return squares_in_layers(self._glimpse, c, (1,))[0].sqrt()


def _irregular(n: int, like: Tensor) -> Tensor:
    """Times from 0 to 1 at n distances between 0.6 / n and 1.4 / n that no grid has: by the golden ratio."""
    k = torch.arange(n + 1, dtype=torch.float64, device="cpu")
    t = (k + 0.4 * ((k * ((5**0.5 - 1) / 2)) % 1 - 0.5)) / n
    t[0], t[-1] = 0, 1
    return t.to(like)


def _refined(c: Tensor, widths: Tensor, measured: _Measured) -> tuple[Tensor, Tensor]:
    """The same curves on twice as many segments, denser where a segment missed more; points and widths.

    The error of a chord goes like the cube of its step, so a density like the cube root of what was missed makes
    the errors equal; half of the nodes are spread evenly whatever was missed. Neighbouring widths differ little, so
    that a curve stays smooth as a function of the node's number, and every rule for even grids holds in that number.
    The widths follow the measured steps: a segment that ran over a wall gets the time that the wall takes.
    """
    density = _smoothed((measured.missed.log() / 3).exp())  # the cube root; pow has other rounding at an array's end
    widths = widths * _smoothed(measured.steps / widths)
    n = 2 * (c.shape[1] - 1)
    at = places_at(_times_of(density + density.mean(-1, keepdim=True)), _times(n, c))
    points, times = _through(c, at), interpolate_chain(_times_of(widths)[..., None], at)[..., 0]
    finer = times.diff(dim=1).clamp(min=0.01 / n)
    return points, finer / finer.sum(-1, keepdim=True)


def _smoothed(x: Tensor) -> Tensor:
    """Averages with the neighbours along the last axis, twice: ``(B, n) -> (B, n)``."""
    for _ in range(2):
        near = torch.cat([x[:, :1], x, x[:, -1:]], 1)
        x = (near[:, :-2] + 2 * x + near[:, 2:]) / 4
    return x


def _even(c: Tensor) -> Tensor:
    """Widths of the even grid: ``(B, n+1, d) -> (B, n)``."""
    return c.new_full((len(c), c.shape[1] - 1), 1 / (c.shape[1] - 1))


def _times_of(widths: Tensor) -> Tensor:
    """Times of the nodes between segments of given widths, from 0 to 1: ``(B, n) -> (B, n+1)``."""
    total = widths.sum(-1, keepdim=True)
    widths = torch.where((total > 0) & total.isfinite(), widths / total, 1 / widths.shape[1])
    times = torch.nn.functional.pad(widths.cumsum(-1), (1, 0))
    times[:, -1] = 1
    return times


def _times(n: int, like: Tensor) -> Tensor:
    return torch.linspace(0, 1, n + 1, dtype=like.dtype, device=like.device)
