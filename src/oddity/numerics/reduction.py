"""A function of many outputs replaced by some of them: a cheap stand-in with nearly the same metric.

The derivatives of an image decoder's outputs depend on each other: a well chosen tenth of them nearly determines the
rest, linearly. With J_R the rows of the Jacobian that were chosen and J = A J_R fitted by least squares over sample
points, the metric is J'J = J_R' (A'A) J_R, so that the chosen outputs, mixed by a square root of A'A, stand for all.

Reference: Chaturantabut and Sorensen, "Nonlinear model reduction via discrete empirical interpolation", SIAM J. Sci.
Comput. 2010, for the idea; here the outputs are chosen by a pivoted QR factorisation of whitened derivatives.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from oddity.numerics.expansion import ClosedForm, Expansion

__all__ = ["Reduced", "reduced"]


class Reduced:
    """Some outputs of a function, mixed: the stand-in, itself in closed form."""

    def __init__(self, part: ClosedForm, mix: Tensor) -> None:
        self.part, self.mix = part, mix  # mix (k, k)

    def __call__(self, z: Tensor) -> Expansion:
        """Value, frame and bend: ``(N, d)``."""
        value, frame, bend, second = self.part(z)
        mixed = None if second is None else lambda u, v: second(u, v) @ self.mix
        return Expansion(value @ self.mix, frame @ self.mix, lambda w: bend(w @ self.mix.mT), mixed)

    def values(self, z: Tensor) -> Tensor:
        """Value alone: ``(N, d) -> (N, k)``."""
        return self.part.values(z) @ self.mix

    def outputs(self, index: Tensor) -> Reduced:
        """The stand-in with some of its mixed outputs."""
        return Reduced(self.part, self.mix[:, index])


def reduced(f: ClosedForm, z: Tensor, whiten: Tensor, tolerance: float) -> Reduced | None:
    """Find a stand-in for f near the points z, or None where it would not save half of the outputs.

    Parameters
    ----------
    f
        The function, ``(N, d) -> (N, D)``.
    z
        ``(N, d)``, sample points.
    whiten
        ``(N, d, d)``, lower triangular factors of the metric at the points, in which errors are measured.
    tolerance
        Share of the whitened derivatives' energy that the outputs not chosen may have left unexplained.

    Examples
    --------
    >>> from oddity.numerics.expansion import layered_expansion
    >>> g = torch.Generator().manual_seed(0)
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 100))
    >>> _ = torch.nn.init.normal_(net[0].weight, generator=g)
    >>> small = reduced(layered_expansion(net), torch.zeros(4, 2), torch.eye(2).expand(4, 2, 2), 1e-3)
    >>> full, part = net[0].weight, small(torch.zeros(1, 2)).frame[:, 0].mT  # a linear map: a few stand for all
    >>> part.shape, bool(torch.allclose(part.mT @ part, full.mT @ full, rtol=1e-4))
    (torch.Size([4, 2]), True)
    """
    with torch.no_grad():
        rows = torch.linalg.solve_triangular(whiten.double(), f(z).frame.double().permute(1, 0, 2), upper=False)
        rows = rows.flatten(0, 1)  # (N d, D)
        most = rows.shape[1] // 2
        order, left = _pivots(rows, most)
        count = min(4 * ((int((left > tolerance).sum()) + 4) // 4), rows.shape[1])  # fills a processor's registers
        if count > most:
            return None
        index = order[:count].sort().values
        mix = _mixing(rows, index)
        return Reduced(f.outputs(index.to(z.device)), mix.to(z))


def _pivots(rows: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Columns in the order of a pivoted QR factorisation, and the share of energy that the first k leave.

    The rows are sketched by a random matrix first, which keeps their geometry and makes their number small.
    """
    generator = torch.Generator().manual_seed(0)
    few = most + 32
    if len(rows) > few:
        mixing = torch.randn(few, len(rows), dtype=rows.dtype, generator=generator) / few**0.5
        rows = mixing @ rows.cpu()
    r, order = scipy.linalg.qr(rows.cpu().numpy(), mode="r", pivoting=True)
    energy = np.square(r).sum(1)
    return torch.from_numpy(order.astype(np.int64)), torch.from_numpy(1 - energy.cumsum() / max(energy.sum(), 1e-300))


def _mixing(rows: Tensor, index: Tensor) -> Tensor:
    """Square root L of A'A, with A the best map from the chosen columns to all: ``(k, k)``, used as ``f_R L``."""
    chosen = rows[:, index.to(rows.device)]
    own = chosen.mT @ chosen
    ridge = 1e-9 * own.diagonal().mean() * torch.eye(len(own), dtype=own.dtype, device=own.device)
    A = torch.linalg.solve(own + ridge, chosen.mT @ rows)  # (k, D)
    gram = A @ A.mT
    values, vectors = torch.linalg.eigh(gram)
    root: Tensor = vectors * values.clamp(min=0).sqrt()
    return root
