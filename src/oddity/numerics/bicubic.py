"""Smooth interpolation of values on a regular grid in the plane.

The interpolant is the cubic spline in both directions: twice continuously differentiable, of fourth order, and a
polynomial of 16 coefficients between four nodes. Beyond the grid it goes on as at its edge, where its slope is zero.

Reference: Unser, "Splines: a perfect fit for signal and image processing", IEEE Signal Processing Magazine 1999.
"""

from __future__ import annotations

import torch
from scipy.ndimage import spline_filter
from torch import Tensor

__all__ = ["BicubicSpline"]


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
    >>> x = torch.linspace(0, 3, 31, dtype=torch.float64)
    >>> spline = BicubicSpline((x[:, None] * x).cos()[..., None], torch.zeros(2), torch.full((2,), 3.0))
    >>> value = spline(torch.tensor([[1.03, 0.96]], dtype=torch.float64))  # (1, 1, C, N)
    >>> abs(value.item() - math.cos(1.03 * 0.96)) < 1e-5
    True
    """

    def __init__(self, values: Tensor, low: Tensor, high: Tensor) -> None:
        n1, n2, channels = values.shape
        self.low, self.shape = low, (n1, n2)
        self.steps = (high - low) / low.new_tensor([n1 - 1, n2 - 1])
        filtered = [spline_filter(v.double().cpu().numpy(), 3, mode="mirror") for v in values.unbind(-1)]
        coefficients = torch.stack([torch.from_numpy(c) for c in filtered])[None]  # (1, C, n1, n2)
        padded = torch.nn.functional.pad(coefficients, (1, 1, 1, 1), mode="reflect")[0]
        windows = padded.unfold(1, 4, 1).unfold(2, 4, 1)  # (C, n1-1, n2-1, 4, 4)
        rows = windows.permute(1, 2, 3, 0, 4).reshape((n1 - 1) * (n2 - 1), 4, channels * 4)
        self.rows = rows.to(values).contiguous()

    def __call__(self, z: Tensor, order: int = 0) -> Tensor:
        """Derivatives up to an order in each direction: ``(N, 2) -> (order+1, order+1, C, N)``."""
        places = (z - self.low) / self.steps
        most = places.new_tensor([n - 1 for n in self.shape])
        within = places.clamp(places.new_zeros(()), most)
        cells = within.long().clamp(torch.zeros_like(most).long(), (most - 1).long())
        weights = _weights(within - cells, self.steps, order, (places == within) | places.isnan())
        k, channels = order + 1, self.rows.shape[2] // 4
        window = self.rows[cells[:, 0] * (self.shape[1] - 1) + cells[:, 1]]  # (N, 4, C * 4)
        half = torch.bmm(weights[0], window).reshape(len(z), k * channels, 4)
        whole = torch.bmm(half, weights[1].mT).reshape(len(z), k, channels, k)
        return whole.permute(1, 3, 2, 0)


def _weights(s: Tensor, steps: Tensor, order: int, inside: Tensor) -> Tensor:
    """Cubic B-splines of the four nodes around, and their derivatives: ``(N, 2) -> (2, N, order+1, 4)``."""
    s, inside = s.mT, inside.mT  # (2, N)
    r = 1 - s
    rows = [[r**3 / 6, 2 / 3 - s * s * (1 + r) / 2, 2 / 3 - r * r * (1 + s) / 2, s**3 / 6]]
    if order >= 1:
        rows.append([-r * r / 2, s * (3 * s - 4) / 2, r * (4 - 3 * r) / 2, s * s / 2])
    if order >= 2:
        rows.append([r, 3 * s - 2, 3 * r - 2, s])
    scale = 1 / steps[:, None]
    return torch.stack(
        [torch.stack(row, -1) * (inside * scale**i if i else 1 + 0 * s)[..., None] for i, row in enumerate(rows)], -2
    )
