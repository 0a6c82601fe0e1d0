"""Between tangent spaces and the manifold: shooting, the logarithm, and the distance with its gradient."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oddity.geometry.connect import ChainSolver, Init, admit_pair, depart
from oddity.geometry.curve import ConvergenceWarning, Geodesic, nested
from oddity.geometry.manifold import Manifold
from oddity.numerics.ambient import door, doors
from oddity.numerics.ode import integrate

__all__ = ["Trajectory", "dist", "exp", "log", "shoot"]


@doors
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


@door
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


@door
def exp(M: Manifold, z: Tensor, v: Tensor) -> Tensor:
    """End of the geodesic that leaves z with velocity v; see :meth:`oddity.Manifold.exp`."""
    path = M.shoot(z, v)
    return _without_gradient(torch.where(path.converged[..., None], path.points, torch.nan), "exp", z, v)


@door
def log(M: Manifold, a: Tensor, b: Tensor, *, init: Init = None, solver: ChainSolver | None = None) -> Tensor:
    """Initial velocity of the geodesic from a to b: ``(*, d), (*, d) -> (*, d)``, NaN where it did not converge.

    The energy of the best curve changes with its start as dE = -<log_a(b), da>, so that the logarithm is
    -G(a)^-1 dE/da at the solved chain, of fourth order in the step, brought to the length of the geodesic.

    Examples
    --------
    >>> import oddity
    >>> M = oddity.expected_metric(oddity.GaussianDecoder(torch.nn.Tanh(), torch.nn.Softplus()).eval())
    >>> a, b = torch.tensor([0.5, 0.0]).double(), torch.tensor([-0.5, 1.0]).double()
    >>> bool(torch.allclose(M.exp(a, log(M, a, b)), b, atol=1e-5))
    True
    """
    g, momentum, _ = depart(M, a, b, init=init, solver=solver)
    with torch.no_grad():
        v = M._sharp(a.detach().expand(momentum.shape), momentum)
        norm = torch.linalg.vector_norm(M.push(a.detach().expand(v.shape), v), dim=-1, keepdim=True)
        v = torch.where(norm > 0, g.length[..., None] / norm * v, v)
        v = torch.where((momentum == 0).all(-1, keepdim=True), 0.0, v)  # also where the metric is singular
        v = torch.where(g.converged[..., None], v, torch.nan)
    return _without_gradient(v, "log", a, b)


@door
def dist(M: Manifold, a: Tensor, b: Tensor, *, init: Init = None, solver: ChainSolver | None = None) -> Tensor:
    """Geodesic distance with its gradient by the envelope theorem; see :meth:`oddity.Manifold.dist`."""
    if not _asks_for_gradient(M, a, b):
        return _warned(M.geodesic(a, b, init=init, solver=solver)).length
    g, at_a, at_b = depart(M, a, b, init=init, solver=solver)
    a, b = admit_pair(M, a, b)
    # by the decoder: length^2 = 2 energy of the curve held still, so d length = d energy / length
    energy = (4 * M.energy(g.points) - M.energy(g.points[..., ::2, :])) / 3
    by_ends = (at_a * (a - a.detach()) + at_b * (b - b.detach())).sum(-1)  # the geodesic gets shorter by its momentum
    change = (energy - energy.detach() - by_ends) / torch.where(g.length > 0, g.length, 1.0)
    known = (g.length > 0) & at_a.isfinite().all(-1) & at_b.isfinite().all(-1)
    distance: Tensor = _warned(g).length + _Once.apply(torch.where(known, change, 0.0))  # type: ignore[no-untyped-call]
    return distance


def _asks_for_gradient(M: Manifold, a: Tensor, b: Tensor) -> bool:
    """Whether the ends, or what the metric is made of, ask for a gradient."""
    if not torch.is_grad_enabled():
        return False
    ends = admit_pair(M, a, b)
    if any(x.requires_grad for x in ends):
        return True
    few = torch.stack([x.reshape(-1, x.shape[-1])[:1] for x in ends], 1)  # (1, 2, d), or none
    return bool(M.length(few).requires_grad)


def _warned(g: Geodesic) -> Geodesic:
    """Say how many of some geodesics did not converge, where the caller will see only their lengths."""
    failed = int((~g.converged).sum())
    if failed:
        warnings.warn(
            f"{failed} of {g.converged.numel()} geodesics did not converge, and their distances are those of the best "
            "curves found; M.geodesic(a, b) has the same lengths with converged, why and length_error for each pair",
            ConvergenceWarning,
            stacklevel=6,  # that of the caller of a method, past the doors
        )
    return g


_NO_DERIVATIVE = (
    "{} found numerically has no derivative here; M.dist has one, by its ends and by the decoder, and exp and log of "
    "closed-form spaces such as oddity.Sphere do"
)
_ONCE = (
    "dist is differentiable once: its gradient holds the solved curve still, which a second derivative must not; take "
    "differences of gradients"
)


def _without_gradient(value: Tensor, name: str, *ends: Tensor) -> Tensor:
    """A result that raises where somebody asks it for a gradient, in place of none."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in ends):
        value = _Refused.apply(value, _NO_DERIVATIVE.format(name), *ends)  # type: ignore[no-untyped-call]
    return value


class _Refused(torch.autograd.Function):
    """A value that raises a sentence when it is differentiated by the tensors that it comes of."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, sentence: str, *_of: Tensor) -> Tensor:
        ctx.sentence = sentence
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(ctx.sentence)


class _Once(torch.autograd.Function):
    """The same value; its gradient refuses to be differentiated again."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.save_for_backward(value)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> Any:
        if not torch.is_grad_enabled():
            return slopes[0]
        return _Refused.apply(slopes[0], _ONCE, *ctx.saved_tensors)  # type: ignore[no-untyped-call]
