"""Initial value problems z'' = a(z, z') for a whole batch at once, one step size per item.

Every item has its own time, step and verdict, and leaves the batch when it is done: a stiff or hopeless item costs
its companions nothing and cannot change their answers.

Reference: Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", 1993, sections II.4 to II.6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Flow", "integrate"]

# Dormand and Prince, 1980. The last row of the stages is the solution, so that its slope opens the next step.
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)

_RUNNING, _DONE, _NOT_FINITE, _VANISHING = range(4)
_LONGEST = 1 / 8  # share of the time span: a longer step could leap over what it should see


class Flow(NamedTuple):
    """What the integrator found, item by item."""

    points: Tensor  # (B, T, d)   NaN at times that were not reached
    velocity: Tensor  # (B, T, d)
    ok: Tensor  # (B,) bool
    reached: Tensor  # (B,)   time up to which the solution is known
    steps: Tensor  # (B,)   tried, rejected ones included
    why: list[str]  # "" where ok, else a sentence


def integrate(
    acceleration: Callable[[Tensor, Tensor], Tensor],
    z: Tensor,
    v: Tensor,
    times: Tensor,
    *,
    tolerance: float | None = None,
    max_steps: int = 2000,
) -> Flow:
    """Solve z'' = a(z, z') from z(0) = z, z'(0) = v by the Runge-Kutta pair 5(4) of Dormand and Prince.

    Between steps the solution is the quintic that matches z, z' and z'' at both ends, of the order of the method,
    so that the requested times cost nothing and change nothing.

    Parameters
    ----------
    acceleration
        a: ``(N, d), (N, d) -> (N, d)``, each row by itself.
    z, v
        ``(B, d)``, start and initial velocity.
    times
        ``(T,)``, non-negative, in any order. The solution runs to the last of them.
    tolerance
        A step's error in z' is at most this share of the item's speed, and its error in z at most this share of
        the way that the item makes at that speed over the whole time span. Default ``eps ** (2/3)`` of the dtype:
        2e-5 in float32, 4e-11 in float64.
    max_steps
        Steps tried for each item, rejected ones included.

    Returns
    -------
    Flow
        With a sentence for each item that did not reach the end. No exception is raised for a single item.

    Examples
    --------
    A quarter of a spring's period, from its end to its middle:

    >>> z, v = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    >>> flow = integrate(lambda z, v: -z, z, v, torch.tensor([torch.pi / 2], dtype=torch.float64))
    >>> bool(flow.ok), bool(flow.points.abs() < 1e-9), round(float(flow.velocity), 6)
    (True, True, -1.0)
    """
    eps = torch.finfo(z.dtype).eps
    tol = eps ** (2 / 3) if tolerance is None else tolerance
    times = times.to(z)
    end = float(times.max())
    B, d = z.shape
    found = z.new_full((B, len(times), 2 * d), torch.nan)
    found[:, times == 0] = torch.cat([z, v], -1)[:, None]
    reached, steps = z.new_zeros(B), torch.zeros(B, dtype=torch.long, device=z.device)
    status = torch.full((B,), _RUNNING if end > 0 else _DONE, device=z.device)

    def slope(y: Tensor) -> Tensor:
        return torch.cat([y[:, d:], acceleration(y[:, :d], y[:, d:])], -1)

    live, y = torch.arange(B, device=z.device), torch.cat([z, v], -1)  # (L,), (L, 2d)
    k, t = slope(y), reached.clone()
    h = _first_step(k, end)
    status[~_finite(k) & (status == _RUNNING)] = _NOT_FINITE
    for _ in range(max_steps):
        going = status[live] == _RUNNING
        if not bool(going.all()):
            live, y, k, t, h = live[going], y[going], k[going], t[going], h[going]
        if len(live) == 0:
            break
        last = t + h >= end
        h = torch.where(last, end - t, h)
        step, new_k, error = _step(slope, y, k, h)
        share = _error(error, y, y + step, end) / tol  # (L,)   at most one is good, NaN is bad
        good = share <= 1
        t_new = torch.where(last, end, t + h)
        at, j = (good[:, None] & (times > t[:, None]) & (times <= t_new[:, None])).nonzero(as_tuple=True)
        found[live[at], j] = _between(y[at], step[at], k[at], new_k[at], h[at], times[j] - t[at])
        y, k = torch.where(good[:, None], y + step, y), torch.where(good[:, None], new_k, k)
        t = torch.where(good, t_new, t)
        reached[live], steps[live] = t, steps[live] + 1
        h = (h * _factor(share)).clamp(max=_LONGEST * end)
        status[live[h < 4 * eps * end]] = _VANISHING
        status[live[share.isnan() & (h < eps**0.5 * end)]] = _NOT_FINITE  # half the digits place the edge well enough
        status[live[good & last]] = _DONE
    return Flow(found[..., :d], found[..., d:], status == _DONE, reached, steps, _sentences(status, reached, max_steps))


def _finite(y: Tensor) -> Tensor:
    return y.isfinite().all(-1)


def _first_step(k: Tensor, end: float) -> Tensor:
    """Time in which the velocity turns by a tenth of itself: ``(L, 2d) -> (L,)``. The error control corrects it."""
    speed, force = (torch.linalg.vector_norm(half, dim=-1) for half in k.chunk(2, -1))
    first: Tensor = (0.1 * speed / force).nan_to_num(end)
    return first.clamp(1e-3 * end, _LONGEST * end)


def _step(slope: Callable[[Tensor], Tensor], y: Tensor, k: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Increment of y, the slope at its end, and the increment's error: each ``(L, 2d)``."""
    slopes = k[None]
    for row in _STAGES:
        step = h[:, None] * torch.tensordot(k.new_tensor(row), slopes, 1)
        slopes = torch.cat([slopes, slope(y + step)[None]])
    return step, slopes[-1], h[:, None] * torch.tensordot(k.new_tensor(_ERROR), slopes, 1)


def _error(error: Tensor, y: Tensor, y_new: Tensor, end: float) -> Tensor:
    """Error of a step as a share of the speed: ``(L, 2d)`` three times ``-> (L,)``. At rest any error is infinite."""
    in_z, in_v = (torch.linalg.vector_norm(half, dim=-1) for half in error.chunk(2, -1))
    speed, new_speed = (torch.linalg.vector_norm(x.chunk(2, -1)[1], dim=-1) for x in (y, y_new))
    size = torch.maximum(in_z / end, in_v)
    share = torch.where(size == 0, 0.0, size / torch.maximum(speed, new_speed))
    return torch.where(_finite(y_new), share, torch.nan)


def _factor(share: Tensor) -> Tensor:
    """By how much to change the step: the error of a step is of fifth order."""
    factor: Tensor = 0.9 * share.pow(-1 / 5)
    return factor.nan_to_num(0.2).clamp(0.2, 5.0)


def _between(y: Tensor, step: Tensor, k: Tensor, k_new: Tensor, h: Tensor, t: Tensor) -> Tensor:
    """Quintic through z, z', z'' at both ends of a step, and its derivative, at the time t into the step."""
    h, s = h[:, None], (t / h)[:, None]
    (z, v), (dz, _), (_, a), (_, b) = (x.chunk(2, -1) for x in (y, step, k, k_new))
    D = dz - h * (v + h * a / 2)  # what a parabola leaves of z,
    V = h * (step.chunk(2, -1)[1] - h * a)  # of h z',
    A = h * h * (b - a)  # of h^2 z''
    c3, c4, c5 = 10 * D - 4 * V + A / 2, -15 * D + 7 * V - A, 6 * D - 3 * V + A / 2
    point = z + s * (h * v + s * (h * h * a / 2 + s * (c3 + s * (c4 + s * c5))))
    velocity = v + s * (h * a + s * (3 * c3 + s * (4 * c4 + s * 5 * c5)) / h)
    return torch.cat([point, velocity], -1)


def _sentences(status: Tensor, reached: Tensor, max_steps: int) -> list[str]:
    def sentence(code: int, t: float) -> str:
        return {
            _RUNNING: f"only t = {t:.4g} was reached in {max_steps} steps: raise max_steps or the tolerance",
            _DONE: "",
            _NOT_FINITE: f"the acceleration is not finite at t = {t:.4g}",
            _VANISHING: f"the step size vanishes at t = {t:.4g}: the acceleration is not smooth or grows without bound",
        }[code]

    return [sentence(code, t) for code, t in zip(status.tolist(), reached.tolist(), strict=True)]
