"""A function of many outputs replaced by some of them: a cheap stand-in with nearly the same metric.

The metric J'J is a sum over the outputs, and those of an image decoder say much the same: a few of the terms, each with
a positive weight, nearly makes the sum, as few places with weights make an integral. The weights of the chosen
outputs are fitted by least squares over sample points; the roots of the weights scale the outputs, so that the stand-in
is a function like any.

Reference: Hernandez, Caicedo, Ferrer, "Dimensional hyper-reduction of nonlinear finite element models via empirical
cubature", Computer Methods in Applied Mechanics and Engineering 2017, for the idea.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from oddity.numerics.expansion import ClosedForm, Expansion
from oddity.numerics.stages import Layered, Stage

__all__ = ["Reduced", "reduced"]


class Reduced:
    """Some outputs of a function, scaled: the stand-in, itself in closed form."""

    def __init__(self, part: ClosedForm, scale: Tensor) -> None:
        self.part, self.scale = part, scale  # scale (k,)

    def __call__(self, z: Tensor) -> Expansion:
        """Value, frame and bend: ``(N, d)``."""
        value, frame, bend, second = self.part(z)
        scaled = None if second is None else lambda u, v: second(u, v) * self.scale
        return Expansion(value * self.scale, frame * self.scale, lambda w: bend(w * self.scale), scaled)

    def values(self, z: Tensor) -> Tensor:
        """Value alone: ``(N, d) -> (N, k)``."""
        return self.part.values(z) * self.scale

    def _stages(self) -> list[Stage] | None:
        """The stand-in as stages, if its function has them."""
        stages = self.part._stages() if isinstance(self.part, Layered) else None
        return None if stages is None else [*stages[:-1], stages[-1]._replace(scale=self.scale)]

    def outputs(self, index: Tensor) -> Reduced:
        """The stand-in with some of its outputs."""
        return Reduced(self.part.outputs(index), self.scale[index])


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
        Root mean square error of the function's own metric that the stand-in may have at the points, as a share of it;
        so the errors of a sum's parts do not add up to a larger share.

    Examples
    --------
    >>> from oddity.numerics.expansion import layered_expansion
    >>> g = torch.Generator().manual_seed(0)
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 100))
    >>> _ = torch.nn.init.normal_(net[0].weight, generator=g)
    >>> small = reduced(layered_expansion(net), torch.zeros(4, 2), torch.eye(2).expand(4, 2, 2), 1e-2)
    >>> full, part = (x.detach() for x in (net[0].weight, small(torch.zeros(1, 2)).frame[:, 0].mT))
    >>> len(part) < 20, float((part.mT @ part - full.mT @ full).norm() / (full.mT @ full).norm()) < 1e-2
    (True, True)
    """
    with torch.no_grad():
        rows = torch.linalg.solve_triangular(whiten.double(), f(z).frame.double().permute(1, 0, 2), upper=False)
        every = -(-rows.shape[-1] // _MOST)
        some = rows[:, :, ::every]  # (N, d, D')   open to choice
        products = rows.new_zeros(2 * some.shape[-1:])
        with_all = rows.new_zeros(some.shape[-1])
        total = 0.0
        for row, few in zip(rows, some, strict=True):
            products += (few.mT @ few).square_()
            metric = row @ row.mT
            with_all += (few * (metric @ few)).sum(0)
            total += float(metric.square().sum())
        bound = tolerance**2 * total
        index, weights, left = _chosen(products.cpu().numpy(), with_all.cpu().numpy(), total, bound)
        if left > bound or 2 * len(index) > rows.shape[-1]:
            return None
        order = np.argsort(index)
        kept = torch.from_numpy(every * index[order]).to(z.device)
        return Reduced(f.outputs(kept), torch.from_numpy(np.sqrt(weights[order])).to(z))


_MOST = 4096  # outputs that may be chosen; of more, every second, third, ...


def _chosen(
    products: np.ndarray, with_all: np.ndarray, total: float, bound: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Terms whose sum with positive weights is near the sum of all, the weights, what is left: ``-> (k,), (k,), ()``.

    Greedily, that term next which explains most of what is missing, all weights fitted anew; a term whose weight would
    not be positive is left out for good. At least one, and hardly more than half of the terms.

    Parameters
    ----------
    products, with_all, total
        Inner products of the terms ``(D, D)``, of each with the sum of all ``(D,)``, and of that with itself.
    bound
        On the square of the error, which is what is left; more where half of the terms do not do.
    """
    size = np.sqrt(products.diagonal())
    if not (size > 0).any():
        return np.zeros(1, np.int64), np.ones(1), 0.0
    open_, left = size > 0, total
    index, weights = np.empty(0, np.int64), np.empty(0)
    while left > bound and open_.any() and 2 * len(index) <= len(size):
        missing = with_all - products[:, index] @ weights
        best = int(np.argmax(np.where(open_, missing / np.where(size > 0, size, 1), -np.inf)))
        open_[best], index = False, np.append(index, best)
        while True:
            own = products[np.ix_(index, index)]
            own[np.diag_indices_from(own)] *= 1 + 1e-9  # terms may be alike
            weights = scipy.linalg.solve(own, with_all[index], assume_a="pos")
            if (weights > 0).all():
                break
            index = index[weights > 0]
        left = total - float(with_all[index] @ weights)
    return index, weights, left
