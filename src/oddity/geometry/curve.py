"""The geodesic as a value: where it runs, how long it is, and whether to believe it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from oddity.numerics.ambient import doors
from oddity.numerics.chain import chain_velocity, interpolate_chain, node_slopes

if TYPE_CHECKING:
    from oddity.geometry.manifold import Manifold

__all__ = ["ConvergenceWarning", "Geodesic"]


class ConvergenceWarning(UserWarning):
    """Some geodesics did not converge, where only their lengths are returned.

    Examples
    --------
    Make it an error, to be told at once:

    >>> import warnings
    >>> warnings.simplefilter("error", ConvergenceWarning)
    """


@doors
@dataclass(frozen=True, eq=False, repr=False)
class Geodesic:
    """Geodesics of a batch of end points, each with its own certificate.

    Attributes
    ----------
    points : Tensor
        ``(*, n+1, d)``, nodes at equal steps of Riemannian length: t = 0, 1/n, ..., 1. A batch shares a grid twice as
        fine as the finest on which one of its curves was solved.
    length : Tensor
        ``(*,)``, measured on a grid finer than the one that was solved.
    length_error : Tensor
        ``(*,)``, a bound, not proven but tried, on the difference between ``length`` and the length of the geodesic
        of this valley: by how much the curve is longer than its chain of chords, which is no longer than the geodesic,
        and by what was found between the nodes. Where geodesics are unique, this is the error of the distance. No local
        measurement can exclude a shorter geodesic in another valley.
    converged : Tensor
        ``(*,)`` bool: stationary, resolved by its grid and between its nodes, as far as 1,536 irregular places
        show, and no longer than the straight line or the path of the roadmap (up to the share ``sqrt(eps)``). A
        stationary curve need not be the shortest, nor even a local minimum.
    why
        A sentence for each curve that did not converge, ``""`` for the others; a string for a single
        curve, otherwise nested lists in the shape of the batch.
    iterations : Tensor
        ``(*,)``, solver iterations spent on the curve, over all grids.
    decrement : Tensor
        ``(*,)``, the share of the energy that one more step would promise: half the square of the gradient's relative
        norm, seen by the inverse Hessian.
    speed_residual : Tensor
        ``(*,)``, the largest deviation of the Riemannian speed from its mean, as a share.
    start
        Which start won: ``"line"``, ``"curve"``, ``"roadmap"`` or ``"closed form"``; nested like ``why``.
    manifold : Manifold
        Where it is a geodesic.

    Examples
    --------
    >>> import oddity
    >>> g = oddity.Sphere(2).geodesic(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0]))
    >>> g
    Geodesic(length=1.571, converged=True)
    >>> g(torch.tensor([0.0, 0.5, 1.0])).shape
    torch.Size([3, 2])
    """

    points: Tensor
    length: Tensor
    length_error: Tensor
    converged: Tensor
    why: Any
    iterations: Tensor
    decrement: Tensor
    speed_residual: Tensor
    start: Any
    manifold: Manifold

    @cached_property
    def equation_residual(self) -> Tensor:
        """How far the curve is from solving z'' = acceleration(z, z'): ``(*,)``, computed when first asked for.

        The Riemannian norm of the difference, root mean square over the nodes, as a share of length^2: an angle in
        radians by which the curve turns over its whole length where a geodesic would not. Second differences of the
        points see rounding n^2-fold, so in float32 expect a thousandth where float64 shows nothing. Zero for a curve
        of length zero.
        """
        c, n = self.points, self.points.shape[-2] - 1
        if n < 4:
            raise RuntimeError(f"{n} segments are too few for the residual of the geodesic equation: it takes four")
        inner = c[..., 2:-2, :]
        second = n**2 * (16 * (c[..., 1:-3, :] + c[..., 3:-1, :]) - c[..., :-4, :] - c[..., 4:, :] - 30 * inner) / 12
        velocity = n * node_slopes(c)[..., 2:-2, :]
        with torch.no_grad():
            turn = self.manifold.norm(inner, second - self.manifold.acceleration(inner, velocity))
        length = self.length.detach()
        share = turn.square().mean(-1).sqrt() / torch.where(length > 0, length, 1.0).square()
        return torch.where(length > 0, share, 0.0)

    def __call__(self, t: Tensor | float) -> Tensor:
        """Position at the share t of the length: t ``(T,)`` gives ``(*, T, d)``, a number ``(*, d)``.

        Raises
        ------
        ValueError
            If t leaves [0, 1] or has more than one axis.
        """
        return self._at(t, interpolate_chain)

    def velocity(self, t: Tensor | float) -> Tensor:
        """Derivative dz/dt there, shapes as for the position: of norm ``length`` as far as the grid resolves it."""
        return self._at(t, chain_velocity)

    def _at(self, t: Tensor | float, curve: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        times = torch.as_tensor(t, dtype=self.points.dtype, device=self.points.device)
        if times.ndim > 1:
            raise ValueError(f"t has shape {tuple(times.shape)}; give a number or one axis of times in [0, 1]")
        if not bool(((times >= 0) & (times <= 1)).all()):
            bad = times.flatten()[~((times >= 0) & (times <= 1)).flatten()][0]
            raise ValueError(f"t = {bad:.4g} lies outside [0, 1], where the geodesic ends")
        value = curve(self.points, times.reshape(-1))
        return value if times.ndim else value[..., 0, :]

    def require(self) -> Geodesic:
        """Return self, or raise if any curve did not converge.

        Raises
        ------
        RuntimeError
            Naming how many curves failed, and the reason of the first.
        """
        if bool(self.converged.all()):
            return self
        failed = (~self.converged).flatten().nonzero().flatten().tolist()
        reasons = [self.why] if isinstance(self.why, str) else _flat(self.why)
        raise RuntimeError(
            f"{len(failed)} of {self.converged.numel()} geodesics did not converge; "
            f"number {failed[0]}: {reasons[failed[0]]}"
        )

    def __repr__(self) -> str:
        if self.length.ndim == 0:
            return f"Geodesic(length={float(self.length):.4g}, converged={bool(self.converged)})"
        if self.length.numel() == 0:
            return "Geodesic(0 curves)"
        low, high, done = self.length.min(), self.length.max(), int(self.converged.sum())
        return f"Geodesic({self.length.numel()} curves, length {low:.4g} to {high:.4g}, {done} converged)"


def nested(flat: list[str], shape: torch.Size) -> Any:
    """Fold a flat list into nested lists of the given shape; a single item for the empty shape."""
    if len(shape) == 0:
        return flat[0]
    width = math.prod(shape[1:])
    return [nested(flat[i * width : (i + 1) * width], shape[1:]) for i in range(shape[0])]


def _flat(tree: Any) -> list[str]:
    return [tree] if isinstance(tree, str) else [leaf for branch in tree for leaf in _flat(branch)]
