"""A metric of the plane in a table: what a decoder of two latent dimensions costs to look at, once for all."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from oddity.geometry.manifold import Manifold, in_chart
from oddity.numerics.bicubic import BicubicSpline
from oddity.numerics.chain import ChainModel
from oddity.numerics.elements import TableProgram, first_momentum, model_from_root, squares_in_table
from oddity.numerics.native import serves

__all__ = ["Tabulated", "tabulated"]

_NODES = (64, 128, 256)  # in each direction, as many as the metric needs
_MARGIN = 0.25  # of the extent of the points, beyond them on every side
_CLOSE = 1e-3  # the error of nine in ten of the points, as a share of the metric


@final
class Tabulated(Manifold, rows=False):
    """A metric of the plane, interpolated between the nodes of a grid.

    The symmetric square root of the metric is interpolated by bicubic splines, so that the metric stays positive
    semi-definite and is twice continuously differentiable; beyond the grid it goes on as at its edge. A point costs
    about a microsecond, whatever made the metric.

    Parameters
    ----------
    metric
        ``(n1, n2, 2, 2)``, symmetric positive definite, at the nodes.
    low, high
        ``(2,)``, the first and the last node, in the dtype of the points to come.

    Examples
    --------
    >>> import oddity
    >>> low, high = -torch.ones(2), torch.ones(2)
    >>> x, y = torch.meshgrid(torch.linspace(-1, 1, 41), torch.linspace(-1, 1, 41), indexing="ij")
    >>> S = oddity.Sphere(2)
    >>> table = Tabulated(S.metric(torch.stack([x, y], -1)), low, high)
    >>> z = torch.tensor([0.32, 0.11])
    >>> bool(torch.allclose(table.metric(z), S.metric(z), rtol=1e-4, atol=1e-4))
    True
    """

    dim = 2

    def __init__(self, metric: Tensor, low: Tensor, high: Tensor) -> None:
        det = metric[..., 0, 0] * metric[..., 1, 1] - metric[..., 0, 1].square()
        root = det.clamp(min=0).sqrt()
        trace = metric[..., 0, 0] + metric[..., 1, 1]
        width = (trace + 2 * root).sqrt()
        values = torch.stack([metric[..., 0, 0] + root, metric[..., 0, 1], metric[..., 1, 1] + root], -1)
        self.low, self.high = low, high
        self.spline = BicubicSpline((values / width[..., None]).to(low), low, high)

    def covers(self, z: Tensor) -> Tensor:
        """Whether points lie on the grid: ``(*, 2) -> (*)`` bool."""
        return ((z >= self.low) & (z <= self.high)).all(-1)

    def push(self, z: Tensor, v: Tensor) -> Tensor:
        """Square root of the metric times v: ``(*, 2), (*, 2) -> (*, 2)``."""
        s = self.spline(z.reshape(-1, 2))[0, 0].reshape(3, *z.shape[:-1])
        return torch.stack([s[0] * v[..., 0] + s[1] * v[..., 1], s[1] * v[..., 0] + s[2] * v[..., 1]], -1)

    def chain_model(self, c: Tensor, widths: Tensor, *, exact: bool = False) -> ChainModel:
        """Quadratic model of an energy of fourth order, by the derivatives of the splines."""
        return self._by_chunks(c, widths, lambda c, h: model_from_root(self._roots(c, 2 if exact else 1), c, h))

    def _squares(self, c: Tensor, strides: tuple[int, ...]) -> list[Tensor]:
        program = self._program()
        if serves(c) and program.fits(c):
            return [squares_in_table(program, c, stride) for stride in strides]
        return super()._squares(c, strides)

    def _program(self) -> TableProgram:
        spline = self.spline
        return TableProgram(spline.rows, spline.weights, spline.low, spline.steps, spline.last)

    def _momentum(self, c: Tensor, widths: Tensor) -> tuple[Tensor, int]:
        return first_momentum(self._roots(c[:, :3], 1), c, widths), 4

    def _points_at_a_time(self) -> int:
        return 1 << 14

    def _roots(self, c: Tensor, order: int) -> Tensor:
        """Derivatives of the square root at the nodes: ``(B, n+1, 2) -> (order+1, order+1, 3, B, n+1)``."""
        found = self.spline(c.reshape(-1, 2), order)
        return found.reshape(*found.shape[:3], *c.shape[:2])


def tabulated(M: Manifold, z: Tensor, whiten: Tensor, most: int) -> Tabulated | None:
    """Tabulate a metric of the plane around points, or None where it does not keep close to it.

    Parameters
    ----------
    M
        The manifold.
    z
        ``(N, 2)``, where it shall be close.
    whiten
        ``(N, 2, 2)``, lower triangular factors of the metric there, in which errors are measured.
    most
        Nodes that a grid may have.
    """
    low, high = z.amin(0), z.amax(0)
    margin = _MARGIN * (high - low).amax()
    if not bool(margin > 0):
        return None
    low, high = low - margin, high + margin
    for n in _NODES:
        sides = [
            torch.linspace(float(i), float(j), n, dtype=z.dtype, device=z.device)
            for i, j in zip(low, high, strict=True)
        ]
        nodes = torch.cartesian_prod(*sides)
        if n * n > most or not bool(in_chart(M, nodes[None]).all()):
            return None
        metric = M._grams(nodes, torch.float64)
        if not bool(metric.isfinite().all()) or bool(torch.linalg.cholesky_ex(metric).info.any()):
            return None
        table = Tabulated(metric.reshape(n, n, 2, 2), low, high)
        error = float(table._deviation(z, whiten).quantile(0.9))
        if error <= _CLOSE:
            return table
        if error * (n / _NODES[-1]) ** 4 > 10 * _CLOSE:  # of fourth order: it would still be too large on the last grid
            return None
    return None
