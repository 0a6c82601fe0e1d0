"""Between tangent spaces and the manifold: shooting, the logarithm, and the distance with its gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oddity.geometry.connect import ChainSolver, Init, admit_pair, depart
from oddity.geometry.curve import nested
from oddity.geometry.manifold import Manifold
from oddity.numerics.ode import integrate

__all__ = ["Trajectory", "dist", "log", "shoot"]


@dataclass(frozen=True, eq=False, repr=False)
class Trajectory:
    """Geodesics by their start and velocity, each with its own certificate.

    Attributes
    ----------
    points : Tensor
        ``(*, d)`` for a single time, ``(*, T, d)`` for ``(T,)`` times; NaN at times that were not reached.
    velocity : Tensor
        dz/dt there, in the same shape.
    converged : Tensor
        ``(*,)`` bool: the last time was reached, and the Riemannian speed is still that of the start.
    why
        A sentence for each item that did not converge, ``""`` for the others; a string for a single item,
        otherwise nested lists in the shape of the batch.
    reached : Tensor
        ``(*,)``, the time up to which the geodesic is known.
    speed_change : Tensor
        ``(*,)``, by which share of itself the Riemannian speed changed; zero for the true geodesic.
    steps : Tensor
        ``(*,)``, steps tried.

    Examples
    --------
    >>> import oddity
    >>> path = oddity.Sphere(2).shoot(torch.zeros(3, 2), torch.eye(3, 2))
    >>> path
    Trajectory(3 items, 3 converged)
    >>> path.points.shape, path.why
    (torch.Size([3, 2]), ['', '', ''])
    """

    points: Tensor
    velocity: Tensor
    converged: Tensor
    why: Any
    reached: Tensor
    speed_change: Tensor
    steps: Tensor

    def __repr__(self) -> str:
        return f"Trajectory({self.converged.numel()} items, {int(self.converged.sum())} converged)"


def shoot(
    M: Manifold,
    z: Tensor,
    v: Tensor,
    t: Tensor | float = 1.0,
    *,
    tolerance: float | None = None,
    max_steps: int = 2000,
) -> Trajectory:
    """Geodesics that leave z with velocity v, by the geodesic equation.

    Parameters
    ----------
    M
        The manifold.
    z, v
        ``(*, d)``; leading shapes broadcast.
    t
        A time or ``(T,)`` times, not negative, in any order; the geodesic into the past leaves with -v.
    tolerance
        Error of a step as a share of the speed, see :func:`oddity.numerics.ode.integrate`; default
        ``eps ** (2/3)`` of the dtype.
    max_steps
        Steps tried for each item.

    Returns
    -------
    Trajectory
        With ``converged`` and ``why`` for each item: one that fails never raises, and is never replaced. Detached.

    Raises
    ------
    ValueError
        If z or v is unusable (NaN, wrong dimension, mixed dtype, shapes that do not broadcast), or t is negative,
        not finite or has more than one axis.

    Notes
    -----
    "Latent Space Oddity", ICLR 2018, section 2 and appendix A, in the form of arXiv version 3. The equation needs
    a decoder with a second derivative: with ReLU it sees straight lines between kinks, the speed then jumps at
    each kink, and the item is not called converged.

    Examples
    --------
    Half around the unit sphere's equator:

    >>> import oddity
    >>> path = shoot(oddity.Sphere(2), torch.tensor([1.0, 0.0]), torch.tensor([0.0, torch.pi]), torch.linspace(0, 1, 3))
    >>> bool(path.converged), path.points.round(decimals=2).abs().tolist()
    (True, [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    """
    z, v = M._admit_tangents(z, v=v)
    times = _admit_times(z, t)
    shape, d = z.shape[:-1], z.shape[-1]
    tol = torch.finfo(z.dtype).eps ** (2 / 3) if tolerance is None else tolerance
    with torch.no_grad():
        start, velocity = z.detach().reshape(-1, d), v.detach().reshape(-1, d)
        flow = integrate(M._acceleration, start, velocity, times.reshape(-1), tolerance=tol, max_steps=max_steps)
        last = int(times.argmax())
        change = _speed_change(M, start, velocity, flow.points[:, last], flow.velocity[:, last])
    converged = flow.ok & (change <= tol**0.5)
    why = list(flow.why)
    for i in (flow.ok & ~converged).nonzero().flatten().tolist():
        why[i] = f"the speed changed by {float(change[i]):.1e} of itself: the metric is not smooth along the path"
    where = (*shape, *times.shape, d)
    return Trajectory(
        points=flow.points.reshape(where),
        velocity=flow.velocity.reshape(where),
        converged=converged.reshape(shape),
        why=nested(why, shape),
        reached=flow.reached.reshape(shape),
        speed_change=change.reshape(shape),
        steps=flow.steps.reshape(shape),
    )


def _admit_times(z: Tensor, t: Tensor | float) -> Tensor:
    times = torch.as_tensor(t, dtype=z.dtype, device=z.device)
    if times.ndim > 1 or times.numel() == 0:
        raise ValueError(f"t has shape {tuple(times.shape)}; give a time or one axis of times")
    if not bool(((times >= 0) & times.isfinite()).all()):
        bad = times.flatten()[~((times >= 0) & times.isfinite()).flatten()][0]
        raise ValueError(f"t holds {bad:.4g}; times are finite and not negative: shoot with -v into the past")
    return times


def _speed_change(M: Manifold, z: Tensor, v: Tensor, z_end: Tensor, v_end: Tensor) -> Tensor:
    """Relative change of the Riemannian speed, ``(B, d)`` four times ``-> (B,)``."""
    before, after = (torch.linalg.vector_norm(M.push(x, u), dim=-1) for x, u in ((z, v), (z_end, v_end)))
    return torch.where(before == after, 0.0, (after / before - 1).abs())


def log(M: Manifold, a: Tensor, b: Tensor, *, init: Init = None, solver: ChainSolver | None = None) -> Tensor:
    """Initial velocity of the geodesic from a to b: ``(*, d), (*, d) -> (*, d)``, NaN where it did not converge.

    The energy of the best curve changes with its start as dE = -<log_a(b), da>, so that the logarithm is
    -G(a)^-1 dE/da at the solved chain, of fourth order in the step.

    Examples
    --------
    >>> import oddity
    >>> M = oddity.expected_metric(oddity.GaussianDecoder(torch.nn.Tanh(), torch.nn.Softplus()).eval())
    >>> a, b = torch.tensor([0.5, 0.0]).double(), torch.tensor([-0.5, 1.0]).double()
    >>> bool(torch.allclose(M.exp(a, log(M, a, b)), b, atol=1e-5))
    True
    """
    g, momentum = depart(M, a, b, init=init, solver=solver)
    with torch.no_grad():
        v = M._sharp(a.detach().expand(momentum.shape), momentum)
        v = torch.where((momentum == 0).all(-1, keepdim=True), 0.0, v)  # also where the metric is singular
        return torch.where(g.converged[..., None], v, torch.nan)


def dist(M: Manifold, a: Tensor, b: Tensor, *, init: Init = None, solver: ChainSolver | None = None) -> Tensor:
    """Geodesic distance with its gradient by the envelope theorem; see :meth:`oddity.Manifold.dist`."""
    g = M.geodesic(a, b, init=init, solver=solver)
    if not torch.is_grad_enabled():
        return g.length
    a, b = admit_pair(M, a, b)
    chain = torch.cat([a[..., None, :], g.points[..., 1:-1, :], b[..., None, :]], -2)
    energy = (4 * M.energy(chain) - M.energy(chain[..., ::2, :])) / 3
    if not energy.requires_grad:
        return g.length
    # length^2 = 2 energy, so d length = d energy / length; the value stays the length that the geodesic reports
    apart = g.length > 0
    change = (energy - energy.detach()) / torch.where(apart, g.length, 1.0)
    return g.length + torch.where(apart, change, 0.0)
