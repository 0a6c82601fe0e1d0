"""Least squares on chains whose energy compiled loops know: each chain is solved in one go, from start to end.

The method is that of :func:`~oddity.numerics.chain.solve_chain`, step by step. What it saves is all that lies between
the steps: a call of PyTorch takes as long as a node's derivatives, and a batch keeps step with its slowest chain.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from oddity.numerics.blocktri import FIRST_DAMPING, RAISES, eliminated, room_for_elimination
from oddity.numerics.chain import (
    ISOTROPIC,
    LITTLE,
    MAX_DAMPING,
    NEWTON_BELOW,
    ChainModel,
    ChainProblem,
    ChainSolution,
    Status,
    keep_freed_memory,
    sentences,
    solve_chain,
    usual_tolerance,
)
from oddity.numerics.elements import (
    TableProgram,
    copied,
    coupled_in_table,
    derive_in_table,
    energy_in_table,
    room_in_table,
)
from oddity.numerics.layered import (
    LayeredProgram,
    coupled_in_layers,
    derive_in_layers,
    energy_in_layers,
    nothing,
    room_in_layers,
    slope_of,
)
from oddity.numerics.native import Kernel, Part, serves

__all__ = ["Guided", "Program", "Programmed", "solve", "solve_in_double"]

Program: TypeAlias = LayeredProgram | TableProgram
"""An energy as compiled loops know it."""


@runtime_checkable
class Programmed(Protocol):
    """A problem whose energy compiled loops may know."""

    def _program(self) -> Program | None:
        """The energy as it is now, or None."""
        ...


class Sloped(ChainProblem, Protocol):
    """A problem that gives its gradient alone, at less than the price of a model."""

    def _chain_slope(self, c: Tensor, widths: Tensor) -> tuple[Tensor, Tensor]:
        """Energy ``(B,)`` and gradient ``(B, n-1, d)`` at chains."""
        ...


class Guided(NamedTuple):
    """A problem whose energy and gradient are its own, and whose Hessian is that of another one: less work."""

    own: Sloped
    guide: ChainProblem

    def chain_model(self, c: Tensor, widths: Tensor, *, exact: bool = False) -> ChainModel:
        """Model with the own energy and gradient."""
        energy, gradient = self.own._chain_slope(c, widths)
        return self.guide.chain_model(c, widths, exact=exact)._replace(energy=energy, gradient=gradient)


def solve(
    problem: ChainProblem,
    start: Tensor,
    widths: Tensor | None = None,
    *,
    tolerance: float | None = None,
    max_iterations: int = 200,
    spent: Tensor | None = None,
    exact: bool = False,
    damping: float = 0.0,
) -> ChainSolution:
    """Minimise the energy of each chain, as :func:`~oddity.numerics.chain.solve_chain` does, compiled where it can be.

    See there for parameters and result. The compiled loop takes the same steps; numbers differ by rounding.
    """
    B, n = len(start), start.shape[1] - 1
    h = start.new_full((B, n), 1 / n) if widths is None else widths
    programs = _programs(problem, start) if serves(start, h) and B else None
    if programs is None:
        return solve_chain(
            problem,
            start,
            widths,
            tolerance=tolerance,
            max_iterations=max_iterations,
            spent=spent,
            exact=exact,
            damping=damping,
        )
    return _compiled(
        programs,
        start,
        h,
        usual_tolerance(start.dtype) if tolerance is None else tolerance,
        max_iterations,
        torch.zeros(B, dtype=torch.long, device="cpu") if spent is None else spent,
        exact=exact,
        damping=damping,
    )


def solve_in_double(
    problem: object, start: Tensor, widths: Tensor, *, tolerance: float, max_iterations: int, spent: Tensor
) -> ChainSolution | None:
    """Solve chains of single precision to the end in double; None where no loop knows the layers of the problem."""
    program = problem._program() if isinstance(problem, Programmed) and serves(start, widths) else None
    if not isinstance(program, LayeredProgram) or start.dtype != torch.float32 or not program.fits(start):
        return None
    program = program._replace(matrices=program.matrices.double(), units=program.units.double())
    c = start.double()
    found = _compiled((nothing(c), program), c, widths.double(), tolerance, max_iterations, spent, exact=True)
    points = found.points.float()
    points[:, 0], points[:, -1] = start[:, 0], start[:, -1]
    return found._replace(points=points, energy=found.energy.float(), decrement=found.decrement.float())


def _compiled(
    programs: tuple[LayeredProgram, Program],
    start: Tensor,
    h: Tensor,
    tol: float,
    max_iterations: int,
    spent: Tensor,
    *,
    exact: bool,
    damping: float = 0.0,
) -> ChainSolution:
    """What the loops find, in so many iterations as are left to each chain."""
    (metric, program), (B, n, d) = programs, (len(start), start.shape[1] - 1, start.shape[2])
    iterations, allowed = torch.zeros_like(spent), max_iterations - spent
    points, energy, decrement = start.new_empty(start.shape), start.new_zeros(B), start.new_zeros(B)
    status = torch.full((B,), Status.RUNNING, device="cpu")
    keep_freed_memory(start.device)  # PyTorch will measure what is found
    kernel = _solved_under_layers if isinstance(program, LayeredProgram) else _solved_in_table
    kernel(
        start,
        h,
        allowed,
        out=(points, energy, decrement, iterations, status),
        shared=(tuple(metric), tuple(program), tol, torch.finfo(start.dtype).tiny, damping, exact),
        seconds=_STEPS * (metric.seconds(n, d) + program.seconds(n, d)),
    )
    why = sentences(status, decrement, max_iterations)
    return ChainSolution(points, energy, decrement, iterations, status == Status.STATIONARY, why)


_STEPS = 10  # that a chain takes, roughly


def _programs(problem: ChainProblem, start: Tensor) -> tuple[LayeredProgram, Program] | None:
    """The program of the energy and its gradient, empty where the other one gives them too, and that of the Hessian."""
    own, guide = problem if isinstance(problem, Guided) else (None, problem)
    metric, program = (x._program() if isinstance(x, Programmed) else None for x in (own, guide))
    if program is None or not program.fits(start):
        return None
    if own is None:
        return nothing(start), program
    return (metric, program) if isinstance(metric, LayeredProgram) and metric.fits(start) else None


def _solved(c, h, allowed, points, energy, decrement, iterations, status, metric, program, tol, tiny, damping, exact):  # type: ignore[no-untyped-def]
    """Solve chain after chain. Everything is held twice: at the chain, and at the one that is tried.

    Of each chain: nodes ``(n+1, d)``, widths ``(n,)``, the iterations that are left to it; results as of a
    :class:`~oddity.numerics.chain.ChainSolution`. The metric has no stages where the program gives the energy too.
    """
    B, nodes, d = c.shape
    n, number = nodes - 1, c.dtype.type
    tolerance, newton_below = number(tol), number(max(tol, NEWTON_BELOW))
    guided, beside = len(metric[2]) > 0, coupled(program)
    place, other_place = room(program, c), room_in_layers(metric, c)
    x = np.empty((2, nodes, d), c.dtype)
    model = _two_models(n, d, beside, c.dtype)
    gradient, diagonal, upper, skip, bend, bend_upper, bend_skip = model
    H, unit = np.empty((1, n - 1, d, d), c.dtype), np.empty((1, n - 1, d, d), c.dtype)
    H_upper, H_skip = np.empty((1, n - 2, d, d), c.dtype), np.empty((1, max(0, n // 2 - 2), d, d), c.dtype)
    rhs, step = np.empty((1, n - 1, d), c.dtype), np.empty((1, n - 1, d), c.dtype)
    undamped, none = np.empty((1, n - 1, d), c.dtype), np.zeros(1, c.dtype)
    held, definite = np.empty(1, c.dtype), np.empty(1, np.bool_)
    raises, never, work = np.int64(RAISES), np.int64(0), room_for_elimination(n - 1, d, c.dtype)
    for b in range(B):
        k, iteration, newton, bent, solved, begun = np.int64(1), 0, exact, exact, True, False
        held[0] = number(damping)
        value, left, promised, code = number(0), number(0), number(0), Status.RUNNING
        copied(c[b], x[0])
        while True:
            j = 1 - k  # what is tried; what was accepted last is at k
            gain, better = number(0), False
            if solved:
                if guided:
                    tried = energy_in_layers(metric, x[j], h[b], newton, other_place)
                else:
                    tried = energy_of(program, x[j], h[b], newton, place)
                if begun:
                    gain = (value - tried) / promised
                if np.isfinite(tried) and (gain > number(1e-4) or not begun):
                    if guided:
                        energy_of(program, x[j], h[b], newton, place)
                    derive(program, x[j], h[b], newton, place, j, model)
                    if guided:
                        gradient[j] = 0  # that of the guide
                        slope_of(metric, x[j], h[b], other_place, gradient[j])
                    better = _is_finite(gradient[j])
            if not begun:
                k, value, begun = j, tried, True
                if not better:
                    code = Status.NOT_FINITE
                    break
            else:
                iteration += 1
                if better:
                    k, value, bent = j, tried, newton
                    if gain > number(0.75):
                        held[0] /= number(3)
                    elif gain <= number(0.25):
                        held[0] = max(number(2) * held[0], number(LITTLE))
                    if held[0] < number(1e-3):
                        held[0] = 0
                elif held[0] == 0:
                    held[0] = 1
                else:
                    held[0] = max(number(6) * held[0], number(LITTLE))
            _blocks(diagonal[k], bend[k], bent, H[0])
            _blocks(upper[k], bend_upper[k], bent and beside, H_upper[0])
            _blocks(skip[k], bend_skip[k], bent and beside, H_skip[0])
            _negated(gradient[k], rhs[0])
            damped = held[0] > 0
            if damped:
                _dampers(diagonal[k], n, unit[0])
                eliminated(H, unit, H_upper, H_skip, rhs, step, held, definite, raises, work)
            else:
                eliminated(H, H, H_upper, H_skip, rhs, step, held, definite, never, work)  # never damped: no unit
                if not definite[0]:
                    damped, held[0] = True, number(FIRST_DAMPING)
                    _dampers(diagonal[k], n, unit[0])
                    eliminated(H, unit, H_upper, H_skip, rhs, step, held, definite, raises - 1, work)
            solved = definite[0] and _is_finite(step[0])
            promised = _promised(step[0], gradient[k])
            if damped:
                promised += _held_back(step[0], unit[0], held[0])
            left = promised
            if held[0] > 1 and promised <= tolerance * value:
                one = slice(k, k + 1)
                eliminated(diagonal[one], unit, upper[one], skip[one], rhs, undamped, none, definite, never, work)
                left = _promised(undamped[0], gradient[k]) if definite[0] else number(np.inf)
            if held[0] > MAX_DAMPING:
                code = Status.STUCK
            if iteration >= allowed[b]:
                code = Status.SPENT
            if solved and left <= tolerance * value:
                code = Status.STATIONARY
            if code != Status.RUNNING:
                break
            newton = newton or (solved and promised <= newton_below * value)
            _moved(x[k], step[0], x[1 - k])
        copied(x[k], points[b])
        energy[b], iterations[b], status[b] = value, iteration, code
        decrement[b] = number(0) if code == Status.NOT_FINITE else left / max(value, number(tiny))


# what depends on the kind of program
room, coupled, energy_of, derive = room_in_layers, coupled_in_layers, energy_in_layers, derive_in_layers
_solved_under_layers = Kernel(_solved)
_solved_in_table = Kernel(
    _solved, room=room_in_table, coupled=coupled_in_table, energy_of=energy_in_table, derive=derive_in_table
)


@Part
def _is_finite(x):  # type: ignore[no-untyped-def]
    """Whether all numbers of a matrix are: zero times any other is not zero, and so is the sum."""
    total = x.dtype.type(0)
    for i in range(x.shape[0]):
        for a in range(x.shape[1]):
            total += x[i, a] * x.dtype.type(0)
    return total == 0


@Part
def _two_models(n, d, beside, dtype):  # type: ignore[no-untyped-def]
    """Room for gradient, blocks and bends of two models; bends beside the diagonal only where there are any."""
    skips = max(0, n // 2 - 2)
    blocks = np.empty((2, n - 1, d, d), dtype), np.empty((2, n - 2, d, d), dtype), np.empty((2, skips, d, d), dtype)
    bend_upper = np.empty((2, n - 2 if beside else 0, d, d), dtype)
    bend_skip = np.empty((2, skips if beside else 0, d, d), dtype)
    gradient, bend = np.empty((2, n - 1, d), dtype), np.empty((2, n - 1, d, d), dtype)
    return gradient, blocks[0], blocks[1], blocks[2], bend, bend_upper, bend_skip


@Part
def _blocks(blocks, bends, bent, into):  # type: ignore[no-untyped-def]
    """Blocks ``(n, d, d)``, and their bends where the model is bent."""
    copied(blocks, into)
    if bent:
        x, y = bends.ravel(), into.ravel()
        for i in range(len(y)):
            y[i] += x[i]


@Part
def _dampers(D, n, unit):  # type: ignore[no-untyped-def]
    """The unit of damping, see :func:`oddity.numerics.chain.solve_chain`."""
    d, number = D.shape[1], D.dtype.type
    x, y, largest = D.ravel(), unit.ravel(), number(0)
    for i in range(len(D)):
        trace = number(0)
        for a in range(d):
            trace += D[i, a, a]
        largest = max(largest, trace / number(d))
    share = number(0.5 * (np.pi / n) ** 2)
    for i in range(len(x)):
        y[i] = share * x[i]
    for i in range(len(D)):
        for a in range(d):
            unit[i, a, a] += share * number(ISOTROPIC) * largest


@Part
def _negated(x, into):  # type: ignore[no-untyped-def]
    a, b = x.ravel(), into.ravel()
    for i in range(len(a)):
        b[i] = -a[i]


@Part
def _moved(x, step, into):  # type: ignore[no-untyped-def]
    """A chain ``(n+1, d)``, its inner nodes moved by a step ``(n-1, d)``."""
    copied(x, into)
    d, a, b = x.shape[1], step.ravel(), into.ravel()
    for i in range(len(a)):
        b[d + i] += a[i]


@Part
def _promised(step, gradient):  # type: ignore[no-untyped-def]
    """What the model promises of an undamped step: -g's/2."""
    total, s, g = step.dtype.type(0), step.ravel(), gradient.ravel()
    for i in range(len(s)):
        total -= g[i] * s[i]
    return step.dtype.type(0.5) * total


@Part
def _held_back(step, unit, held):  # type: ignore[no-untyped-def]
    """What it promises more, since the damping held it back: s'(held unit)s/2."""
    d, total = step.shape[1], step.dtype.type(0)
    for i in range(len(step)):
        for r in range(d):
            for a in range(d):
                total += step[i, r] * unit[i, r, a] * step[i, a]
    return step.dtype.type(0.5) * held * total
