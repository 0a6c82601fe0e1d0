"""Least squares on a chain with fixed ends, for a whole batch of chains at once.

A chain is a row of nodes c_0, ..., c_n whose ends stay where they are. Its energy is n/2 times a sum of squares,
one for each pair of neighbours, so that the Gauss-Newton matrix is block-tridiagonal. Every chain has its own
damping, acceptance and stopping, and leaves the batch when it is done: what happens to one chain cannot change
the answer of another.

References: Nocedal and Wright, "Numerical Optimization", 2006, sections 4.1 and 10.3.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from oddity.numerics.blocktri import solve_block_tridiagonal, solve_damped
from oddity.numerics.expansion import Expansion, gram, pull
from oddity.numerics.native import Kernel, Part, serves

__all__ = [
    "ISOTROPIC",
    "LITTLE",
    "MAX_DAMPING",
    "NEWTON_BELOW",
    "ChainModel",
    "ChainProblem",
    "ChainSolution",
    "Status",
    "at_rest",
    "chain_velocity",
    "doubled",
    "energy_of_values",
    "interpolate_chain",
    "keep_freed_memory",
    "leaps",
    "model_from_blocks",
    "model_from_expansion",
    "node_slopes",
    "places_at",
    "sentences",
    "solve_chain",
    "squared_steps",
    "usual_tolerance",
]


class ChainModel(NamedTuple):
    """The local quadratic model of the energy of B chains in their n-1 inner nodes.

    The first blocks are those of Gauss and Newton, the bend is what the exact Hessian has besides.
    """

    energy: Tensor  # (B,)
    gradient: Tensor  # (B, n-1, d)
    diagonal: Tensor  # (B, n-1, d, d)
    upper: Tensor  # (B, n-2, d, d)   between neighbours
    skip: Tensor  # (B, n/2-2, d, d)   between nodes 2 and 4, 4 and 6, ...
    bend_diagonal: Tensor | None = None  # None is zero
    bend_upper: Tensor | None = None
    bend_skip: Tensor | None = None

    def hessian(self) -> tuple[Tensor, Tensor, Tensor]:
        """Diagonal, upper and skipping blocks, the bend included."""
        blocks = zip(self[2:5], self[5:], strict=True)
        diagonal, upper, skip = (block if bend is None else block + bend for block, bend in blocks)
        return diagonal, upper, skip

    def plus(self, other: ChainModel) -> ChainModel:
        """Model of the sum of two energies."""
        return _each(lambda parts: parts[0] + parts[1], self, other)

    def times(self, factor: float) -> ChainModel:
        """Model of a multiple of the energy."""
        return _each(lambda parts: factor * parts[0], self)

    def at(self, index: Tensor) -> ChainModel:
        """Models of the chains at an index."""
        return _each(lambda parts: parts[0][index], self)

    def where(self, mask: Tensor, other: ChainModel) -> ChainModel:
        """Return self where the mask is true, other elsewhere."""

        def chosen(parts: tuple[Tensor, ...]) -> Tensor:
            return torch.where(mask.reshape(-1, *[1] * (parts[0].ndim - 1)), parts[0], parts[1])

        return _each(chosen, self, other)

    def without_bend(self) -> ChainModel:
        """Return the Gauss-Newton model."""
        return ChainModel(*self[:5])

    @staticmethod
    def cat(models: list[ChainModel]) -> ChainModel:
        """Models of several batches as one."""
        return _each(torch.cat, *models)


def _each(f: Callable[[tuple[Tensor, ...]], Tensor], *models: ChainModel) -> ChainModel:
    """Apply f to each field of some models; a bend that only some of them have is zero in the others."""
    for bend, block in (("bend_diagonal", "diagonal"), ("bend_upper", "upper"), ("bend_skip", "skip")):
        missing = [getattr(m, bend) is None for m in models]
        if any(missing) and not all(missing):
            models = tuple(
                m._replace(**{bend: torch.zeros_like(getattr(m, block))}) if none else m
                for m, none in zip(models, missing, strict=True)
            )
    return ChainModel(*(None if parts[0] is None else f(parts) for parts in zip(*models, strict=True)))  # type: ignore[arg-type]


def doubled(widths: Tensor) -> Tensor:
    """Widths of every two segments together: ``(*, n) -> (*, n/2)``."""
    return widths[..., ::2] + widths[..., 1::2]


def model_from_blocks(r: Tensor, left: Tensor, right: Tensor, widths: Tensor, bend: Tensor | None = None) -> ChainModel:
    """Model of 1/2 sum |r_i|^2 / h_i, of second order in the step, from each residual and its derivatives.

    Parameters
    ----------
    r
        ``(B, n, m)``, the residual of each segment.
    left, right
        ``(d, B, n, m)``, the derivatives of r_i by node i and by node i + 1.
    widths
        ``(B, n)``, the widths h_i of the segments.
    bend
        ``(B, n, 2d, 2d)``, the Hessian of <w, r_i> in both its nodes at w = r_i, for the exact model.
    """
    (d, B, n, m), per_segment = left.shape, r.shape[:2]
    jacobian = torch.cat([left, right]).reshape(2 * d, B * n, m)
    stiff = 1 / widths
    H = stiff[..., None, None] * gram(jacobian, jacobian).reshape(*per_segment, 2 * d, 2 * d)
    g = stiff[..., None] * pull(jacobian, r.reshape(B * n, m)).reshape(*per_segment, 2 * d)
    gradient = g[:, 1:, :d] + g[:, :-1, d:]
    energy = 0.5 * (stiff * r.square().sum(-1)).sum(-1)
    skip = r.new_zeros(B, max(0, n // 2 - 2), d, d)
    bends = () if bend is None else _node_blocks(stiff[..., None, None] * bend, d)
    return ChainModel(energy, gradient, *_node_blocks(H, d), skip, *bends)


def _node_blocks(H: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """Sum the Hessians of the segments ``(B, n, 2d, 2d)`` to diagonal and upper blocks of the inner nodes."""
    return H[:, 1:, :d, :d] + H[:, :-1, d:, d:], H[:, 1:-1, :d, d:]


def model_from_expansion(f: Expansion, widths: Tensor, exact: bool) -> ChainModel:
    """Model of an energy of fourth order of f along chains: one frame a node serves all its segments.

    The energy is (4 E - E_2) / 3, where E_2 sees every second node only. Since the chord of a double segment is the sum
    of two, E_2 <= E (Cauchy and Schwarz): the combination is bounded below by E, and so is its Gauss-Newton matrix.
    Where the two differ, a segment steps over something, and that costs extra.

    Parameters
    ----------
    f
        Expansion at the nodes of all chains, ``(B * (n+1), d)``, chain after chain; further rows are left alone.
    widths
        ``(B, n)``, the widths of the segments; n is even.
    exact
        Whether the model shall hold the bend: the Hessian of <w, f> at w = dE/df.
    """
    frame = f.frame  # (d, N, m)
    B, n = widths.shape

    def by_chain(x: Tensor) -> Tensor:
        return x[: B * (n + 1)].reshape(B, n + 1, *x.shape[1:])

    weights = torch.zeros_like(f.value)  # dE/df
    energy = energy_of_values(by_chain(f.value), widths, by_chain(weights))  # by_chain gives a view
    stiff, loose = _stiffness(widths)

    d, N, m = frame.shape
    rows = torch.nn.functional.pad(frame.permute(1, 0, 2), (0, 0, 0, 0, 0, 2))  # (N+2, d, m)   node after node, copied,
    windows = rows.as_strided((N, 3 * d, m), (d * m, m, 1))  # so that a node and the next two are one matrix
    products = by_chain(torch.bmm(rows[:N], windows.mT))  # (B, n+1, d, 3d)   those between chains belong to none
    with_own, with_next, with_second = products.split(d, -1)
    mass = stiff[:, :-1] + stiff[:, 1:]  # (B, n-1)
    mass[:, 1::2] -= loose[:, :-1] + loose[:, 1:]
    diagonal = mass[..., None, None] * with_own[:, 1:-1]
    upper = -stiff[:, 1:-1, None, None] * with_next[:, 1:-2]
    skip = loose[:, 1:-1, None, None] * with_second[:, 2:-4:2]
    bend = by_chain(f.bend(weights))[:, 1:-1] if exact else None
    gradient = by_chain(pull(frame, weights))[:, 1:-1]
    return ChainModel(energy, gradient, diagonal, upper, skip, bend)


def _stiffness(widths: Tensor) -> tuple[Tensor, Tensor]:
    """The energy is 1/2 sum stiff |r|^2 over single segments, less 1/2 sum loose |r|^2 over double ones."""
    return 4 / (3 * widths), 1 / (3 * doubled(widths))  # (B, n), (B, n/2)


def energy_of_values(value: Tensor, widths: Tensor, weights: Tensor) -> Tensor:
    """The energy of fourth order of values ``(B, n+1, m)`` along chains, ``-> (B,)``.

    Its derivative by the inner values is written to ``weights``, of their shape; those of the ends are set to zero.
    """
    stiff, loose = _stiffness(widths)
    if serves(value, weights):
        energy = value.new_zeros(len(value))
        seconds = value.shape[1] * value.shape[2] * _SECONDS
        _sloped(value, stiff, loose, out=(energy, weights), seconds=seconds)
        return energy
    r = value.diff(dim=1)  # (B, n, m)
    double = r[:, ::2] + r[:, 1::2]
    single_square, double_square = (torch.linalg.vector_norm(x, dim=-1).square() for x in (r, double))
    r.mul_(stiff[..., None])
    weights[:, 0], weights[:, -1] = 0, 0
    torch.sub(r[:, :-1], r[:, 1:], out=weights[:, 1:-1])
    weights[:, 2:-2:2] += double.mul_(loose[..., None]).diff(dim=1)
    squares: Tensor = (stiff * single_square).sum(-1) - (loose * double_square).sum(-1)
    return squares / 2


_SECONDS = 0.3e-9  # for a number


@Kernel
def _sloped(value, stiff, loose, energy, weights):  # type: ignore[no-untyped-def]
    """That energy and its derivative, node by node: the neighbours' values are still at hand."""
    (B, nodes, m), half = value.shape, value.dtype.type(0.5)
    for b in range(B):
        for j in range(m):
            weights[b, 0, j] = 0
            weights[b, nodes - 1, j] = 0
        for i in range(1, nodes - 1):
            before, here, after, into = value[b, i - 1], value[b, i], value[b, i + 1], weights[b, i]
            s, t = stiff[b, i - 1], stiff[b, i]
            if i % 2:
                one, two, both = half - half, half - half, half - half
                for j in range(m):
                    x, y = here[j] - before[j], after[j] - here[j]
                    one += x * x
                    two += y * y
                    both += (x + y) * (x + y)
                energy[b] += half * (s * one + t * two - loose[b, i // 2] * both)
                for j in range(m):
                    into[j] = s * (here[j] - before[j]) - t * (after[j] - here[j])
            else:
                first, last = value[b, i - 2], value[b, i + 2]
                u, v = loose[b, i // 2 - 1], loose[b, i // 2]
                for j in range(m):
                    x = here[j]
                    single = s * (x - before[j]) - t * (after[j] - x)
                    into[j] = single - u * (x - first[j]) + v * (last[j] - x)


def squared_steps(values: Tensor, strides: Sequence[int]) -> list[Tensor]:
    """Squared lengths of the steps over every s-th of some values, for each stride s: ``(B, n+1, m) -> (B, n/s)``."""
    if not serves(values):
        return [values[:, ::s].diff(dim=1).square().sum(-1) for s in strides]
    sizes = [(values.shape[1] - 1) // stride for stride in strides]
    squares = values.new_empty(len(values), sum(sizes))
    seconds = 2e-10 * sum(sizes) * values.shape[2]
    _squared(values, out=(squares,), shared=(tuple(strides),), seconds=seconds)
    return list(squares.split(sizes, 1))


@Kernel
def _squared(value, squares, strides):  # type: ignore[no-untyped-def]
    """One stride after another."""
    for b in range(len(value)):
        begin = 0
        for stride in strides:
            steps = (value.shape[1] - 1) // stride
            for i in range(steps):
                x, y, total = value[b, i * stride], value[b, (i + 1) * stride], value.dtype.type(0)
                for j in range(len(x)):
                    total += (y[j] - x[j]) * (y[j] - x[j])
                squares[b, begin + i] = total
            begin += steps


class ChainProblem(Protocol):
    """What the solver asks of a problem: a quadratic model of the energy at given chains."""

    def chain_model(self, c: Tensor, widths: Tensor, *, exact: bool = False) -> ChainModel:
        """Model at chains c ``(B, n+1, d)`` with segments of given widths ``(B, n)``; exact asks for the bend too."""
        ...


class ChainSolution(NamedTuple):
    """What the solver found, chain by chain."""

    points: Tensor  # (B, n+1, d)   the best finite iterate
    energy: Tensor  # (B,)
    decrement: Tensor  # (B,)   relative energy that the last quadratic model still promised
    iterations: Tensor  # (B,)
    stationary: Tensor  # (B,) bool
    why: list[str]  # "" where stationary, else a sentence


def solve_chain(
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
    """Minimise the energy of each chain: damped Gauss-Newton first, damped Newton to finish.

    Gauss-Newton descends from any start but contracts slowly where a curve is nearly conjugate, and crawls where a
    direction costs almost nothing. A chain therefore moves on to the exact Hessian once a step promises little;
    where that is not positive definite, damping makes it so, and the step leaves the saddle.

    Parameters
    ----------
    problem
        Gives the quadratic model of the energy at a batch of chains.
    start
        ``(B, n+1, d)``, n even. The two end nodes of each chain stay fixed.
    widths
        ``(B, n)``, the widths of the segments, which sum to one; default 1/n.
    tolerance
        A chain is stationary when a step promises to lower its energy by less than this share, with a damping of at
        most 1, which halves the step along the longest mode of a chain; with more, an undamped one is asked.
        Default ``eps ** 0.75`` of the dtype: 6e-6 in float32, 2e-12 in float64.
    max_iterations
        Steps tried for each chain, rejected ones included.
    spent
        ``(B,)``, how many of them each chain has spent before; a chain that has spent all is only looked at.
    exact
        Whether to begin with the exact Hessian, for a start that is nearly solved.
    damping
        Of the first step; 1 halves it along the longest mode of a chain.

    Returns
    -------
    ChainSolution
        With a sentence for each chain that is not stationary. No exception is raised for a single chain.
    """
    tol = usual_tolerance(start.dtype) if tolerance is None else tolerance
    B, n = len(start), start.shape[1] - 1
    c, h = start.clone(), start.new_full((B, n), 1 / n) if widths is None else widths
    energy, decrement = start.new_zeros(B), start.new_zeros(B)
    iterations = torch.zeros(B, dtype=torch.long, device=start.device)
    left_over = max_iterations - (iterations if spent is None else spent)
    status = torch.full((B,), Status.RUNNING, device=start.device)

    keep_freed_memory(start.device)
    if B == 0:
        return ChainSolution(c, energy, decrement, iterations, status == Status.STATIONARY, [])
    live = torch.arange(B, device=start.device)
    x, held, newton = c.clone(), start.new_full((B,), damping), torch.full((B,), exact, device=start.device)
    model = problem.chain_model(x, h, exact=exact)
    energy = model.energy.clone()
    status[~_finite(model)] = Status.NOT_FINITE
    for iteration in itertools.count():
        going = status[live] == Status.RUNNING
        if not bool(going.all()):
            live, x, h, held, newton = live[going], x[going], h[going], held[going], newton[going]
            model = model.at(going)
        if len(live) == 0:
            break
        step, promised, held, solved = _damped_step(model, held, n)
        left = _undamped_promise(model, promised, held, tol)
        decrement[live] = left / model.energy.clamp(min=torch.finfo(x.dtype).tiny)
        iterations[live] = iteration
        small = solved & (left <= tol * model.energy)
        status[live[held > MAX_DAMPING]] = Status.STUCK
        status[live[iteration >= left_over[live]]] = Status.SPENT
        status[live[small]] = Status.STATIONARY
        if bool((status[live] != Status.RUNNING).all()):
            break
        newton = newton | (solved & (promised <= max(NEWTON_BELOW, tol) * model.energy))
        moving = solved & (status[live] == Status.RUNNING)
        trial = x.clone()
        trial[:, 1:-1] += torch.where(moving[:, None, None], step, 0.0)
        trial_model = _evaluate(problem, trial, h, newton)
        gain = (model.energy - trial_model.energy) / promised
        better = moving & (gain > 1e-4) & _finite(trial_model)
        if bool(better.all()):
            x, model = trial, trial_model
        else:
            x, model = torch.where(better[:, None, None], trial, x), trial_model.where(better, model)
        held = torch.where(better, _relaxed(held, gain), _raised(held))
        c[live], energy[live] = x, model.energy
    why = sentences(status, decrement, max_iterations)
    return ChainSolution(c, energy, decrement, iterations, status == Status.STATIONARY, why)


def usual_tolerance(dtype: torch.dtype) -> float:
    """Share of its energy that a chain is still promised when it counts as stationary."""
    return float(torch.finfo(dtype).eps ** 0.75)


def keep_freed_memory(device: torch.device) -> None:
    """Teach the C library to keep freed blocks for the next step.

    By default glibc hands large blocks back to the kernel and takes them again page by page, which took half of the
    solver's time. Freeing one untouched block of just under 32 MB raises its thresholds, for the life of the process.
    """
    if device.type == "cpu":
        torch.empty((1 << 25) - (1 << 16), dtype=torch.uint8, device="cpu")


class Status(IntEnum):
    """How a chain ended."""

    SPENT, STATIONARY, NOT_FINITE, STUCK, RUNNING = range(5)


MAX_DAMPING = 1e12
_NO_STEP = "no step lowers the energy"
NEWTON_BELOW = 1e-2  # share of the energy that a step promises, below which the exact Hessian takes over


def _evaluate(problem: ChainProblem, c: Tensor, h: Tensor, exact: Tensor) -> ChainModel:
    """Model each chain in its own mode."""
    if bool(exact.all()) or not bool(exact.any()):
        return problem.chain_model(c, h, exact=bool(exact.all()))
    back = torch.cat([exact.nonzero()[:, 0], (~exact).nonzero()[:, 0]]).argsort()
    parts = [problem.chain_model(c[exact], h[exact], exact=True), problem.chain_model(c[~exact], h[~exact])]
    return ChainModel.cat(parts).at(back)


def _damped_step(model: ChainModel, damping: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Solve (H + P) s = -g; return s, the decrease that the model promises, the damping that it took, and success.

    H is the exact Hessian where the model has its bend. Where H + P is not positive definite, the damping rises until
    it is: a step that follows the negative curvature, of a length that trust allows.

    The longest mode of a chain is (pi/n)^2 / 2 times softer than its diagonal blocks, so damping is counted in
    that unit: at 1 it halves the step along the longest mode. It follows the metric, with an isotropic part that
    holds directions which cost almost nothing; it changes the path to the solution and never the solution.
    """
    D = model.diagonal
    scale = D.diagonal(dim1=-2, dim2=-1).mean(-1).amax(-1) if D.shape[1] else D.new_zeros(len(D))  # (B,)
    eye = torch.eye(D.shape[-1], dtype=D.dtype, device=D.device)
    unit = 0.5 * (math.pi / n) ** 2 * (D + ISOTROPIC * scale[:, None, None, None] * eye)
    step, damping, solved = solve_damped(*_system(model), unit, damping)
    # s'(H + P) s = -g's, so the undamped model falls by -g's/2 + s'P s/2
    held = damping[:, None, None] * (unit @ step[..., None])[..., 0]
    promised = 0.5 * (held - model.gradient).mul(step).sum((-2, -1))
    return step, promised, damping, solved & step.isfinite().all(-1).all(-1)


ISOTROPIC = 0.1


def _undamped_promise(model: ChainModel, promised: Tensor, damping: Tensor, tol: float) -> Tensor:
    """What is left to be gained: the promise, or that of an undamped Gauss-Newton step where damping made it small."""
    held = ((damping > 1) & (promised <= tol * model.energy)).nonzero()[:, 0]
    if len(held) == 0:
        return promised
    flat = model.at(held).without_bend()
    step, solved = solve_block_tridiagonal(*_system(flat))
    left = promised.clone()
    left[held] = torch.where(solved, -0.5 * (flat.gradient * step).sum((-2, -1)), torch.inf)
    return left


def _system(model: ChainModel) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The equations H s = -g of an undamped step."""
    diagonal, upper, skip = model.hessian()
    return diagonal, upper, -model.gradient, skip


def _relaxed(damping: Tensor, gain: Tensor) -> Tensor:
    """Less damping after a step that did what the model promised, more after one that did not."""
    eased = torch.where(gain > 0.75, damping / 3, torch.where(gain > 0.25, damping, (2 * damping).clamp(min=LITTLE)))
    return torch.where(eased < 1e-3, 0.0, eased)


def _raised(damping: Tensor) -> Tensor:
    """More damping after a step that gained nothing: much where there was none, else as little as may do."""
    return torch.where(damping == 0, 1.0, (6 * damping).clamp(min=LITTLE))


LITTLE = 0.02


def _finite(model: ChainModel) -> Tensor:
    return model.energy.isfinite() & model.gradient.isfinite().all(-1).all(-1)


def sentences(status: Tensor, decrement: Tensor, max_iterations: int) -> list[str]:
    """What is to be said of each chain that is not stationary."""

    def sentence(code: int, left: float) -> str:
        spent = f"still moving after {max_iterations} iterations"
        match Status(code):
            case Status.STATIONARY:
                return ""
            case Status.NOT_FINITE:
                return "the energy of the starting curve is not finite"
            case ended if not math.isfinite(left):
                so_far = spent if ended == Status.SPENT else _NO_STEP
                return f"{so_far}, and the matrix of the energy is singular: a direction costs nothing"
            case Status.SPENT:
                return f"{spent}: a step still promises {left:.1e} of the energy"
        return f"{_NO_STEP} although the model promises {left:.1e} of it"

    return [sentence(code, left) for code, left in zip(status.tolist(), decrement.tolist(), strict=True)]


def interpolate_chain(c: Tensor, t: Tensor) -> Tensor:
    """Evaluate the cubic Hermite interpolant of uniformly spaced nodes.

    The slopes at the nodes are fourth-order differences, so the interpolant is fourth order and local: a node
    moves only the curve beside it. Where long chords follow short ones, slopes are means of the neighbouring chords,
    so that no segment swings out.

    Parameters
    ----------
    c
        ``(*, n+1, d)``, nodes at 0, 1/n, ..., 1.
    t
        ``(T,)`` in [0, 1], or ``(*, T)``, for each chain its own.

    Returns
    -------
    Tensor
        ``(*, T, d)``; exactly the nodes at multiples of 1/n.

    Examples
    --------
    >>> t = torch.linspace(0, 1, 9, dtype=torch.float64)
    >>> cubic = ((1 + t) ** 3)[:, None]
    >>> bool(torch.allclose(interpolate_chain(cubic, t + 0.01 * (1 - t)), ((1 + t + 0.01 * (1 - t)) ** 3)[:, None]))
    True
    """
    if c.ndim != 3 or c.shape[1] < 5 or not serves(c, t):
        return _cubics(c, t)[0]
    t = t.expand(len(c), t.shape[-1])
    points = c.new_empty(*t.shape, c.shape[2])
    _interpolated(c, t, out=(points,), seconds=3e-9 * (c.shape[1] + t.shape[1]) * c.shape[2])
    return points


@Kernel
def _interpolated(c, t, points):  # type: ignore[no-untyped-def]
    """Chain after chain: lengths of chords, slopes, and the cubic at each place."""
    B, nodes, d = c.shape
    n, number = nodes - 1, c.dtype.type
    size, slope = np.empty(n, c.dtype), np.empty((nodes, d), c.dtype)
    one, two, three, tiny = number(1), number(2), number(3), number(np.finfo(c.dtype).tiny)
    for b in range(B):
        for i in range(n):
            square = number(0)
            for a in range(d):
                square += (c[b, i + 1, a] - c[b, i, a]) ** 2
            size[i] = np.sqrt(square)
        for i in range(nodes):
            left, right = max(i - 1, 0), min(i, n - 1)  # the chords beside the node
            least = most = size[left]
            for k in range(max(i - 2, 0), min(i + 2, n)):
                least, most = min(least, size[k]), max(most, size[k])
            even = min(max(three * (least / max(most, tiny)) - number(0.5), number(0)), one)
            total = max(size[left] + size[right], tiny)
            for a in range(d):
                near = c[b, i, a] - c[b, i - 1, a] if i else c[b, 1, a] - c[b, 0, a]
                far = c[b, i + 1, a] - c[b, i, a] if i < n else near
                mean = (size[right] * near + size[left] * far) / total
                own = _slope(c[b], i, a)
                slope[i, a] = own if even == 1 else mean + even * (own - mean)
        for k in range(t.shape[1]):
            place = t[b, k] * t.dtype.type(n)
            whole = np.floor(place)
            left = min(int(whole), n - 1) if 0 < whole < n else (0 if not whole > 0 else n - 1)  # NaN is at 0
            s = number(place - left)
            for a in range(d):
                begin, end, u, v = c[b, left, a], c[b, left + 1, a], slope[left, a], slope[left + 1, a]
                square, cube = three * (end - begin) - two * u - v, two * (begin - end) + u + v
                points[b, k, a] = begin + s * (u + s * (square + s * cube))


@Part
def _slope(c, i, a):  # type: ignore[no-untyped-def]
    """One of :func:`node_slopes`."""
    n, number = len(c) - 1, c.dtype.type
    if 2 <= i <= n - 2:
        return (c[i - 2, a] - c[i + 2, a] + number(8) * (c[i + 1, a] - c[i - 1, a])) / number(12)
    sign, first = (1, 0) if i < 2 else (-1, n)
    v, w, x = c[first, a], c[first + sign, a], c[first + 2 * sign, a]
    y, z = c[first + 3 * sign, a], c[first + 4 * sign, a]
    if i in (0, n):
        total = number(48) * w - number(25) * v - number(36) * x + number(16) * y - number(3) * z
    else:
        total = number(18) * x - number(3) * v - number(10) * w - number(6) * y + z
    return number(sign) * total / number(12)


def chain_velocity(c: Tensor, t: Tensor) -> Tensor:
    """Derivative of that interpolant: shapes as there."""
    return (c.shape[-2] - 1) * _cubics(c, t)[1]


def places_at(times: Tensor, t: Tensor) -> Tensor:
    """Where on a chain whose nodes have growing times ``(*, n+1)`` the times t are, as a share of its node numbers.

    t ``(T,)`` or ``(*, T)`` between the first time and the last; returns ``(*, T)`` in [0, 1]: the inverse of the
    interpolant of the times, by a monotone cubic.
    """
    n = times.shape[-1] - 1
    t = t.expand(*times.shape[:-1], t.shape[-1]).contiguous()
    left = (torch.searchsorted(times.contiguous(), t, right=True) - 1).clamp(0, n - 1)
    pace = node_slopes(times[..., None])[..., 0]
    begin, first, last = times.gather(-1, left), pace.gather(-1, left), pace.gather(-1, left + 1)
    width = times.gather(-1, left + 1) - begin
    tiny = torch.finfo(t.dtype).tiny
    x = (t - begin) / width.clamp(min=tiny)
    u, v = ((width / p.clamp(min=tiny)).clamp(max=3) for p in (first, last))  # Fritsch and Carlson: so it is monotone
    return (left + (x * (u + x * ((3 - 2 * u - v) + x * (u + v - 2)))).clamp(0, 1)) / n


def _cubics(c: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The interpolant at shares t of the node numbers, and its derivative by the node number."""
    n = c.shape[-2] - 1
    t = t.expand(*c.shape[:-2], t.shape[-1]) if t.ndim > 1 else t
    left = (t * n).floor().long().clamp(0, n - 1)  # (T,) or (*, T)
    s, slope = (t * n - left).to(c.dtype)[..., None], _tamed(node_slopes(c), c)
    if left.ndim == 1:
        a, b, u, v = (x[..., left + k, :] for x in (c, slope) for k in (0, 1))
    else:
        at = left[..., None].expand(*left.shape, c.shape[-1])
        a, b, u, v = (x.gather(-2, at + k) for x in (c, slope) for k in (0, 1))
    square, cube = 3 * (b - a) - 2 * u - v, 2 * (a - b) + u + v
    return a + s * (u + s * (square + s * cube)), u + s * (2 * square + 3 * s * cube)


def at_rest(c: Tensor) -> Tensor:
    """Whether a chain never leaves its point: ``(*, n+1, d) -> (*)`` bool."""
    return (c == c[..., :1, :]).all(-1).all(-1)


def leaps(c: Tensor) -> Tensor:
    """Whether chains have long chords beside short ones, where interpolants are coarse: ``(*, n+1, d) -> (*)``."""
    return (_evenness(torch.linalg.vector_norm(c.diff(dim=-2), dim=-1)) < 1).any(-1)


def _tamed(slope: Tensor, c: Tensor) -> Tensor:
    """Slopes of the two neighbouring chords alone, their harmonic mean, where a curve leaps from short chords to long.

    Where the four chords around a node are about as long as each other, the slope stays what it is. Elsewhere a slope
    by differences of four neighbours is made of the leap, and swings the short segments beside it.
    """
    chord = c.diff(dim=-2)
    size = torch.linalg.vector_norm(chord, dim=-1)  # (*, n)
    before, after = (torch.cat(x, -2) for x in ((chord[..., :1, :], chord), (chord, chord[..., -1:, :])))
    left, right = (torch.cat(x, -1)[..., None] for x in ((size[..., :1], size), (size, size[..., -1:])))
    mean = (right * before + left * after) / (left + right).clamp(min=torch.finfo(c.dtype).tiny)
    return torch.lerp(mean, slope, _evenness(size)[..., None])


def _evenness(size: Tensor) -> Tensor:
    """From 1, where chords ``(*, n)`` around a node are within a factor of two, to 0 from six on: ``-> (*, n+1)``."""
    padded = torch.cat([size[..., :1], size[..., :1], size, size[..., -1:], size[..., -1:]], -1)
    around = [padded[..., i : padded.shape[-1] - 3 + i] for i in range(4)]  # slice by slice: amin of windows is slow
    least, most = (functools.reduce(f, around) for f in (torch.minimum, torch.maximum))
    ratio = least / most.clamp(min=torch.finfo(size.dtype).tiny)
    return (3 * ratio - 0.5).clamp(0, 1)


def node_slopes(c: Tensor) -> Tensor:
    """Derivative of the chain by its node number, fourth order where there are five nodes: ``(*, n+1, d)``."""
    n = c.shape[-2] - 1
    if n < 4:
        return torch.gradient(c, dim=-2, edge_order=2 if n >= 2 else 1)[0]
    slope = torch.empty_like(c)
    slope[..., 2:-2, :] = (c[..., :-4, :] - c[..., 4:, :] + 8 * (c[..., 3:-1, :] - c[..., 1:-3, :])) / 12
    for end, row in ((0, (-25, 48, -36, 16, -3)), (1, (-3, -10, 18, -6, 1))):
        weights = c.new_tensor(row)[:, None] / 12
        slope[..., end, :] = (weights * c[..., :5, :]).sum(-2)
        slope[..., n - end, :] = -(weights * c[..., n - 4 :, :].flip(-2)).sum(-2)
    return slope
