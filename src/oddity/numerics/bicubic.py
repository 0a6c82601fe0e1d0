"""Smooth interpolation of values on a regular grid in the plane.

The interpolant is the cubic spline in both directions: twice continuously differentiable, of fourth order, and a
polynomial of 16 coefficients between four nodes. Beyond the grid it goes on as at its edge, where its slope is zero.

Reference: Unser, "Splines: a perfect fit for signal and image processing", IEEE Signal Processing Magazine 1999.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import spline_filter
from torch import Tensor

from oddity.numerics.native import Kernel, Part, serves

__all__ = ["BicubicSpline", "evaluated"]


class BicubicSpline:
    """Interpolant of C functions on a grid.

    Parameters
    ----------
    values
        ``(n1, n2, C)``, the functions at the nodes; n1, n2 >= 4.
    low, high
        ``(2,)``, the first and the last node.

    Examples
    --------
    >>> import math
    >>> x = torch.linspace(0, 3, 31, dtype=torch.float64)
    >>> spline = BicubicSpline((x[:, None] * x).cos()[..., None], torch.zeros(2), torch.full((2,), 3.0))
    >>> value = spline(torch.tensor([[1.03, 0.96]], dtype=torch.float64))  # (1, 1, C, N)
    >>> abs(value.item() - math.cos(1.03 * 0.96)) < 1e-5
    True
    """

    def __init__(self, values: Tensor, low: Tensor, high: Tensor) -> None:
        n1, n2, channels = values.shape
        self.low, self.last = low.to(values), values.new_tensor([n1 - 1, n2 - 1])
        self.steps = (high.to(values) - self.low) / self.last
        self.cells = n2 - 1  # in a row
        powers = torch.tensor(_B_SPLINES, dtype=values.dtype, device=values.device)  # (order, power, node)
        scale = self.steps[:, None] ** -torch.arange(3, device=values.device)  # (2, order)
        self.weights = (scale[:, :, None, None] * powers).permute(0, 2, 1, 3)  # (2, power, order, node)
        filtered = [spline_filter(v.double().cpu().numpy(), 3, mode="mirror") for v in values.unbind(-1)]
        coefficients = torch.stack([torch.from_numpy(c) for c in filtered])[None]  # (1, C, n1, n2)
        padded = torch.nn.functional.pad(coefficients, (1, 1, 1, 1), mode="reflect")[0]
        windows = padded.unfold(1, 4, 1).unfold(2, 4, 1)  # (C, n1-1, n2-1, 4, 4)
        rows = windows.permute(1, 2, 3, 0, 4).reshape((n1 - 1) * (n2 - 1), 4, channels * 4)
        self.rows = rows.to(values).contiguous()

    def __call__(self, z: Tensor, order: int = 0) -> Tensor:
        """Derivatives up to an order in each direction: ``(N, 2) -> (order+1, order+1, C, N)``."""
        assert order <= 2, "a cubic spline has two continuous derivatives"
        if serves(z, self.rows) and z.dtype == self.rows.dtype:
            found = z.new_empty(len(z), self.rows.shape[2] // 4, order + 1, order + 1)
            grid = (self.rows, self.weights, self.low, self.steps, self.last)
            _evaluated(z, out=(found,), shared=grid, seconds=_SECONDS)
            return found.permute(2, 3, 1, 0)
        return self._in_torch(z, order)

    def _in_torch(self, z: Tensor, order: int) -> Tensor:
        count = len(z)
        z = _filled(z)
        places = (z - self.low) / self.steps
        within = places.clamp(torch.zeros_like(self.last), self.last)
        cells = within.long().clamp(torch.zeros_like(self.last).long(), self.last.long() - 1)
        s = (within - cells).mT  # (2, N)
        powers = torch.stack([torch.ones_like(s), s, s * s, s * s * s], -1)
        k, channels = order + 1, self.rows.shape[2] // 4
        weights = (powers @ self.weights[:, :, :k].flatten(2)).reshape(2, len(z), k, 4)
        if order > 1:  # beyond the grid nothing changes; at its edge the slope is zero by itself
            weights[:, :, 2] *= (places == within).mT[..., None]
        window = self.rows.index_select(0, cells[:, 0] * self.cells + cells[:, 1])  # (N, 4, C * 4)
        half = torch.bmm(weights[0], window).reshape(len(z), k * channels, 4)
        whole = torch.bmm(half, weights[1].mT).reshape(len(z), k, channels, k)
        return whole.permute(1, 3, 2, 0)[..., :count]


_SECONDS = 0.1e-6  # for a place


@Part
def evaluated(z, found, rows, weights, low, steps, last):  # type: ignore[no-untyped-def]
    """The derivatives ``(N, C, k, k)`` of all channels at places ``(N, 2)``."""
    channels, k = found.shape[1], found.shape[2]
    along, half = np.empty((2, k, 4), z.dtype), np.empty((k, 4 * channels), z.dtype)
    for p in range(len(z)):
        cell = 0
        for axis in range(2):
            place = (z[p, axis] - low[axis]) / steps[axis]
            within = min(max(place, z.dtype.type(0)), last[axis])
            node = int(min(within, last[axis] - 1)) if place == place else 0
            cell = cell * int(last[1]) + node
            s = within - z.dtype.type(node) if place == place else place
            for order in range(k):
                gone = order > 1 and (place < within or place > within)
                for j in range(4):
                    w = weights[axis, 3, order, j]
                    for power in range(2, -1, -1):
                        w = w * s + weights[axis, power, order, j]
                    along[axis, order, j] = w * z.dtype.type(0) if gone else w
        first, second, third, fourth = rows[cell, 0], rows[cell, 1], rows[cell, 2], rows[cell, 3]
        for order in range(k):
            w0, w1, w2, w3 = along[0, order, 0], along[0, order, 1], along[0, order, 2], along[0, order, 3]
            for i in range(4 * channels):
                half[order, i] = w0 * first[i] + w1 * second[i] + w2 * third[i] + w3 * fourth[i]
        for other in range(k):
            w0, w1, w2, w3 = along[1, other, 0], along[1, other, 1], along[1, other, 2], along[1, other, 3]
            for order in range(k):
                for c in range(channels):
                    h = half[order, 4 * c : 4 * c + 4]
                    found[p, c, order, other] = w0 * h[0] + w1 * h[1] + w2 * h[2] + w3 * h[3]


_evaluated = Kernel(evaluated.f)


def _filled(z: Tensor) -> Tensor:
    """The places, and the last again until they fill the registers: a place then has the same bits in any company."""
    missing = max(32 - len(z), -len(z) % 16)
    return torch.cat([z, z[-1:].expand(missing, -1)]) if missing and len(z) else z


# cubic B-splines of the four nodes around, and their derivatives, by powers of the place between the middle two
_B_SPLINES = (
    ((1 / 6, 2 / 3, 1 / 6, 0.0), (-1 / 2, 0.0, 1 / 2, 0.0), (1 / 2, -1.0, 1 / 2, 0.0), (-1 / 6, 1 / 2, -1 / 2, 1 / 6)),
    ((-1 / 2, 0.0, 1 / 2, 0.0), (1.0, -2.0, 1.0, 0.0), (-1 / 2, 3 / 2, -3 / 2, 1 / 2), (0.0, 0.0, 0.0, 0.0)),
    ((1.0, -2.0, 1.0, 0.0), (-1.0, 3.0, -3.0, 1.0), (0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)),
)
