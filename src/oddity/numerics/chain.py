"""Least squares on a chain with fixed ends, for a whole batch of chains at once.

A chain is a row of nodes c_0, ..., c_n whose ends stay where they are. Its energy is n/2 times a sum of squares,
one for each pair of neighbours, so that the Gauss-Newton matrix is block-tridiagonal. Every chain has its own
damping, acceptance and stopping, and leaves the batch when it is done: what happens to one chain cannot change
the answer of another.

References: Nocedal and Wright, "Numerical Optimization", 2006, sections 4.1 and 10.3.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from oddity.numerics.blocktri import solve_block_tridiagonal
from oddity.numerics.expansion import Expansion, gram, pull

__all__ = [
    "ChainModel",
    "ChainProblem",
    "ChainSolution",
    "interpolate_chain",
    "model_from_blocks",
    "model_from_expansion",
    "node_slopes",
    "solve_chain",
]


class ChainModel(NamedTuple):
    """The local quadratic model of the energy of B chains in their n-1 inner nodes."""

    energy: Tensor  # (B,)
    gradient: Tensor  # (B, n-1, d)
    diagonal: Tensor  # (B, n-1, d, d)   Gauss-Newton: sums of J'J
    upper: Tensor  # (B, n-2, d, d)
    bend_diagonal: Tensor  # (B, n-1, d, d)   what the exact Hessian has besides, or zero
    bend_upper: Tensor  # (B, n-2, d, d)

    def plus(self, other: ChainModel) -> ChainModel:
        """Model of the sum of two energies."""
        return ChainModel(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, factor: float) -> ChainModel:
        """Model of a multiple of the energy."""
        return ChainModel(*(factor * a for a in self))

    def at(self, index: Tensor) -> ChainModel:
        """Models of the chains at an index."""
        return ChainModel(*(a[index] for a in self))

    def where(self, mask: Tensor, other: ChainModel) -> ChainModel:
        """Return self where the mask is true, other elsewhere."""
        return ChainModel(
            *(torch.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(self, other, strict=True))
        )

    @staticmethod
    def cat(models: list[ChainModel]) -> ChainModel:
        """Models of several batches as one."""
        return ChainModel(*(torch.cat(parts) for parts in zip(*models, strict=True)))


def model_from_blocks(r: Tensor, left: Tensor, right: Tensor, bend: Tensor | None = None) -> ChainModel:
    """Model of n/2 sum |r_i|^2 from each residual and its derivatives by its two nodes.

    Parameters
    ----------
    r
        ``(B, n, m)``, the residual of each segment.
    left, right
        ``(d, B, n, m)``, the derivatives of r_i by node i and by node i + 1.
    bend
        ``(B, n, 2d, 2d)``, the Hessian of <w, r_i> in both its nodes at w = r_i, for the exact model.
    """
    (d, B, n, m), per_segment = left.shape, r.shape[:2]
    jacobian = torch.cat([left, right]).reshape(2 * d, B * n, m)
    H = gram(jacobian, jacobian).reshape(*per_segment, 2 * d, 2 * d)
    g = pull(jacobian, r.reshape(B * n, m)).reshape(*per_segment, 2 * d)
    gradient = g[:, 1:, :d] + g[:, :-1, d:]
    energy = 0.5 * r.square().sum((-2, -1))
    bent = torch.zeros_like(H) if bend is None else bend
    return ChainModel(energy, gradient, *_node_blocks(H, d), *_node_blocks(bent, d)).times(n)


def _node_blocks(H: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """Sum the Hessians of the segments ``(B, n, 2d, 2d)`` to diagonal and upper blocks of the inner nodes."""
    return H[:, 1:, :d, :d] + H[:, :-1, d:, d:], H[:, 1:-1, :d, d:]


def model_from_expansion(f: Expansion, nodes: int, exact: bool) -> ChainModel:
    """Model of n/2 sum |f(c_i+1) - f(c_i)|^2: one frame a node serves both its segments.

    Parameters
    ----------
    f
        Expansion at the nodes of all chains, ``(B * nodes, d)``, chain after chain.
    nodes
        n + 1, the nodes of a chain.
    exact
        Whether the model shall hold the bend: the Hessian of <w, f> at w = 2 f(c_i) - f(c_i-1) - f(c_i+1).
    """
    value, frame = f.value, f.frame  # (N, m), (d, N, m)
    d = len(frame)
    r = value.diff(dim=0)  # (N-1, m)   rows between two chains belong to none
    w = torch.zeros_like(value)
    w[1:-1] = r[:-1] - r[1:]
    across = torch.bmm(frame[:, :-1].permute(1, 0, 2), frame[:, 1:].permute(1, 2, 0))  # (N-1, d, d)

    def by_chain(x: Tensor) -> Tensor:
        return x.reshape(-1, nodes, *x.shape[1:])

    energy = 0.5 * by_chain(_with_last(r.square().sum(-1)))[:, :-1].sum(-1)
    gradient = by_chain(pull(frame, w))[:, 1:-1]
    diagonal = 2 * by_chain(gram(frame, frame))[:, 1:-1]
    upper = -by_chain(_with_last(across))[:, 1:-2]
    bend = by_chain(f.bend(w))[:, 1:-1] if exact else w.new_zeros(1, 1, d, d).expand_as(diagonal)
    return ChainModel(energy, gradient, diagonal, upper, bend, w.new_zeros(1, 1, d, d).expand_as(upper)).times(
        nodes - 1
    )


def _with_last(x: Tensor) -> Tensor:
    """Add a row, so that there are as many as nodes."""
    return torch.cat([x, x[-1:]])


class ChainProblem(Protocol):
    """What the solver asks of a problem: a quadratic model of the energy at given chains."""

    def chain_model(self, c: Tensor, *, exact: bool = False) -> ChainModel:
        """Quadratic model at the chains c, ``(B, n+1, d)``; exact asks for the bend of the Hessian too."""
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
    *,
    tolerance: float | None = None,
    max_iterations: int = 200,
    exact: bool = False,
) -> ChainSolution:
    """Minimise the energy of each chain: damped Gauss-Newton first, Newton's method to finish.

    Gauss-Newton descends from any start but contracts slowly where a curve is nearly conjugate; Newton's method
    converges quadratically near a minimum and is drawn to saddles elsewhere. A chain therefore moves on to the
    exact Hessian once a step promises little, and falls back to Gauss-Newton wherever that is not positive definite.

    Parameters
    ----------
    problem
        Gives the quadratic model of the energy at a batch of chains.
    start
        ``(B, n+1, d)``. The two end nodes of each chain stay fixed.
    tolerance
        A chain is stationary when a nearly undamped step promises to lower its energy by less than this share.
        Default ``eps ** 0.75`` of the dtype: 6e-6 in float32, 2e-12 in float64.
    max_iterations
        Steps tried for each chain, rejected ones included.
    exact
        Whether to begin with the exact Hessian, for a start that is nearly solved.

    Returns
    -------
    ChainSolution
        With a sentence for each chain that is not stationary. No exception is raised for a single chain.
    """
    tol = torch.finfo(start.dtype).eps ** 0.75 if tolerance is None else tolerance
    B, n = len(start), start.shape[1] - 1
    c = start.clone()
    energy, decrement = start.new_zeros(B), start.new_zeros(B)
    iterations = torch.zeros(B, dtype=torch.long, device=start.device)
    status = torch.full((B,), _RUNNING, device=start.device)

    _keep_freed_memory(start.device)
    if B == 0:
        return ChainSolution(c, energy, decrement, iterations, status == _STATIONARY, [])
    live = torch.arange(B, device=start.device)
    x, damping, newton = c.clone(), start.new_zeros(B), torch.full((B,), exact, device=start.device)
    model = problem.chain_model(x, exact=exact)
    energy = model.energy.clone()
    status[~_finite(model)] = _NOT_FINITE
    for iteration in range(max_iterations + 1):
        going = status[live] == _RUNNING
        if not bool(going.all()):
            live, x, damping, newton, model = live[going], x[going], damping[going], newton[going], model.at(going)
        if len(live) == 0:
            break
        step, promised, definite = _damped_step(model, damping, n)
        decrement[live] = promised / model.energy.clamp(min=torch.finfo(x.dtype).tiny)
        iterations[live] = iteration
        small = definite & (promised <= tol * model.energy) & (damping <= 1)
        status[live[damping > _MAX_DAMPING]] = _STUCK
        status[live[small]] = _STATIONARY
        if iteration == max_iterations or bool(small.all()):
            continue
        newton = newton | (definite & (promised <= max(_NEWTON_BELOW, tol) * model.energy))
        trial = x.clone()
        trial[:, 1:-1] += torch.where((definite & ~small)[:, None, None], step, 0.0)
        trial_model = _evaluate(problem, trial, newton)
        gain = (model.energy - trial_model.energy) / promised
        better = definite & ~small & (gain > 1e-4) & _finite(trial_model)
        x, model = torch.where(better[:, None, None], trial, x), trial_model.where(better, model)
        damping = torch.where(better, _relaxed(damping, gain), (4 * damping).clamp(min=1.0))
        c[live], energy[live] = x, model.energy
    why = _sentences(status, decrement, max_iterations)
    return ChainSolution(c, energy, decrement, iterations, status == _STATIONARY, why)


def _keep_freed_memory(device: torch.device) -> None:
    """Teach the C library to keep freed blocks for the next step.

    By default glibc hands large blocks back to the kernel and takes them again page by page, which took half of the
    solver's time. Freeing one untouched block of just under 32 MB raises its thresholds, for the life of the process.
    """
    if device.type == "cpu":
        torch.empty((1 << 25) - (1 << 16), dtype=torch.uint8)


_RUNNING, _STATIONARY, _NOT_FINITE, _STUCK = range(4)
_MAX_DAMPING = 1e12
_NEWTON_BELOW = 1e-2  # share of the energy that a step promises, below which the exact Hessian takes over


def _evaluate(problem: ChainProblem, c: Tensor, exact: Tensor) -> ChainModel:
    """Model each chain in its own mode."""
    if bool(exact.all()) or not bool(exact.any()):
        return problem.chain_model(c, exact=bool(exact.all()))
    back = torch.cat([exact.nonzero()[:, 0], (~exact).nonzero()[:, 0]]).argsort()
    parts = [problem.chain_model(c[exact], exact=True), problem.chain_model(c[~exact])]
    return ChainModel.cat(parts).at(back)


def _damped_step(model: ChainModel, damping: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Solve (H + P) s = -g; return s, the decrease that the model promises, and whether H + P is definite.

    H is the exact Hessian where the model has its bend and that is positive definite; else with half the bend, else
    with none, which is Gauss-Newton.

    The longest mode of a chain is (pi/n)^2 / 2 times softer than its diagonal blocks, so damping is counted in
    that unit: at 1 it halves the step along the longest mode. It follows the metric, with a small isotropic part
    for metrics that are rank-deficient; it changes the path to the solution and never the solution.
    """
    D = model.diagonal
    d = D.shape[-1]
    scale = D.diagonal(dim1=-2, dim2=-1).mean(-1).amax(-1) if D.shape[1] else D.new_zeros(len(D))  # (B,)
    eye = torch.eye(d, dtype=D.dtype, device=D.device)
    weight = damping * 0.5 * (math.pi / n) ** 2
    P = weight[:, None, None, None] * (D + 1e-3 * scale[:, None, None, None] * eye)
    bent = D + P + model.bend_diagonal, model.upper + model.bend_upper
    step, definite = solve_block_tridiagonal(*bent, -model.gradient)
    if not bool(definite.all()):
        rest = (~definite).nonzero()[:, 0]
        for share in (0.5, 0.0):
            m = model.at(rest)
            step[rest], definite[rest] = solve_block_tridiagonal(
                m.diagonal + P[rest] + share * m.bend_diagonal, m.upper + share * m.bend_upper, -m.gradient
            )
            rest = rest[~definite[rest]]
            if len(rest) == 0:
                break
    # s'(H + P) s = -g's, so the undamped model falls by -g's/2 + s'P s/2
    promised = 0.5 * ((P @ step[..., None])[..., 0] - model.gradient).mul(step).sum((-2, -1))
    return step, promised, definite & step.isfinite().all(-1).all(-1)


def _relaxed(damping: Tensor, gain: Tensor) -> Tensor:
    """Less damping after a step that did what the model promised, more after one that did not."""
    eased = torch.where(gain > 0.75, damping / 3, torch.where(gain > 0.25, damping, (2 * damping).clamp(min=0.5)))
    return torch.where(eased < 1e-3, 0.0, eased)


def _finite(model: ChainModel) -> Tensor:
    return model.energy.isfinite() & model.gradient.isfinite().all(-1).all(-1)


def _sentences(status: Tensor, decrement: Tensor, max_iterations: int) -> list[str]:
    def sentence(code: int, left: float) -> str:
        return {
            _RUNNING: f"still moving after {max_iterations} iterations: a step still promises {left:.1e} of the energy",
            _STATIONARY: "",
            _NOT_FINITE: "the energy of the starting curve is not finite",
            _STUCK: f"no step lowers the energy although the model promises {left:.1e} of it",
        }[code]

    return [sentence(code, left) for code, left in zip(status.tolist(), decrement.tolist(), strict=True)]


def interpolate_chain(c: Tensor, t: Tensor) -> Tensor:
    """Evaluate the cubic Hermite interpolant of uniformly spaced nodes.

    The slopes at the nodes are fourth-order differences, so the interpolant is fourth order and local: a node
    moves only the curve beside it.

    Parameters
    ----------
    c
        ``(*, n+1, d)``, nodes at 0, 1/n, ..., 1.
    t
        ``(T,)`` in [0, 1].

    Returns
    -------
    Tensor
        ``(*, T, d)``; exactly the nodes at multiples of 1/n.

    Examples
    --------
    >>> t = torch.linspace(0, 1, 9, dtype=torch.float64)
    >>> cubic = (t**3)[:, None]
    >>> bool(torch.allclose(interpolate_chain(cubic, t + 0.01 * (1 - t)), ((t + 0.01 * (1 - t))**3)[:, None]))
    True
    """
    n = c.shape[-2] - 1
    slope = node_slopes(c)
    left = (t * n).floor().long().clamp(0, n - 1)  # (T,)
    s = (t * n - left)[:, None].to(c.dtype)  # (T, 1)
    a, b = c[..., left, :], c[..., left + 1, :]
    u, v = slope[..., left, :], slope[..., left + 1, :]
    return a + s * (u + s * ((3 * (b - a) - 2 * u - v) + s * (2 * (a - b) + u + v)))


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
