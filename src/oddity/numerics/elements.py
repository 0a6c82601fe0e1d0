"""The energy of chains under a metric of the plane that is known by its square root and the derivatives of that.

Two segments at a time are one element: the curve is the parabola through its three nodes, and so is the time; Simpson's
rule integrates the energy over it. The result is of fourth order in the step, and a sum of squares, so that it is
bounded below and has a Gauss-Newton matrix. The metric is asked at the nodes alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from oddity.numerics.chain import ChainModel

__all__ = ["first_momentum", "model_from_root"]


def model_from_root(S: Tensor, c: Tensor, widths: Tensor) -> ChainModel:
    """Model of the energy of chains in the plane.

    Parameters
    ----------
    S
        ``(k, k, 3, B, n+1)``, the symmetric square root of the metric at the nodes (its entries 11, 12, 22) and its
        derivatives ``S[i, j]``, i times by the first coordinate and j times by the second; k = 2, or 3 for a model that
        holds the bend.
    c
        ``(B, n+1, 2)``, the chains; n is even.
    widths
        ``(B, n)``, the widths of the segments.
    """
    S = S.unfold(-1, 3, 2)  # (k, k, 3, B, n/2, 3)   the nodes of each element
    d, q = _slopes(c), _weights(widths)  # (2, B, n/2, 3), (B, n/2, 3)
    root, by_x, by_y = S[0, 0], S[1, 0], S[0, 1]
    r = _times(root, d)  # (2, B, n/2, 3)
    p = q * r
    turns = torch.stack([_times(by_x, d), _times(by_y, d)])  # (a, i, ...)   derivatives of r by the node itself
    energy = 0.5 * (p * r).sum((0, 2, 3))
    local = torch.stack([_dot(turns[0], p), _dot(turns[1], p)]) + _adjoint_slopes(_times(root, p))
    gradient = _gathered(local[..., 1], local[..., 2], local[..., 0]).permute(1, 2, 0)

    G = torch.stack([_dot(root[:2], root[:2]), _dot(root[:2], root[1:]), _dot(root[1:], root[1:])])
    stiff = _products_of_slopes((q * G)[[0, 1, 1, 2]].reshape(2, 2, *q.shape))
    turned = q * turns
    N = torch.stack([torch.stack([_dot(t, root[:2]), _dot(t, root[1:])]) for t in turned])
    V = torch.stack([torch.stack([_dot(t, turns[0]), _dot(t, turns[1])]) for t in turned])
    blocks = _blocks(N, V, stiff)
    bends = tuple(torch.zeros((), dtype=c.dtype, device=c.device).expand_as(block) for block in blocks)
    if len(S) > 2:
        second = torch.stack([_dot(_times(S[k], d), p) for k in ((2, 0), (1, 1), (0, 2))])
        turned_once = torch.stack([_times(by_x, p), _times(by_y, p)])
        bends = _blocks(turned_once, second[[0, 1, 1, 2]].reshape(V.shape), None)
    return ChainModel(energy, gradient, *blocks, *bends)


def first_momentum(S: Tensor, c: Tensor, widths: Tensor) -> Tensor:
    """Minus the gradient of that energy by the first node, ``-> (B, 2)``; S as above, of the first three nodes."""
    d, q = _slopes(c[:, :3])[:, :, 0], _weights(widths[:, :2])[:, 0]  # (2, B, 3), (B, 3)
    p = q * _times(S[0, 0], d)
    first = [_dot(_times(x, d), p)[..., 0] for x in (S[1, 0], S[0, 1])]
    return -(torch.stack(first) + _adjoint_slopes(_times(S[0, 0], p))[..., 0]).mT


def _slopes(c: Tensor) -> Tensor:
    """d/ds of each element's parabola at its nodes, 0 <= s <= 1: ``(B, n+1, 2) -> (2, B, n/2, 3)``."""
    x, y, z = c.permute(2, 0, 1).unfold(-1, 3, 2).unbind(-1)
    return torch.stack([4 * y - 3 * x - z, z - x, x - 4 * y + 3 * z], -1)


def _adjoint_slopes(p: Tensor) -> Tensor:
    """The transpose of that, element by element: ``(*, 3) -> (*, 3)``."""
    x, y, z = p.unbind(-1)
    return torch.stack([z - y - 3 * x, 4 * (x - z), y - x + 3 * z], -1)


def _products_of_slopes(g: Tensor) -> list[Tensor]:
    """Blocks of the quadratic form sum g |slope|^2 of an element: nodes 0-0, 1-1, 2-2, 0-1, 1-2, 0-2."""
    x, y, z = g.unbind(-1)
    return [9 * x + y + z, 16 * (x + z), x + y + 9 * z, -4 * (3 * x + z), -4 * (x + 3 * z), 3 * (x + z) - y]


def _weights(widths: Tensor) -> Tensor:
    """Simpson's weights over dt/ds at the nodes of each element: ``(B, n) -> (B, n/2, 3)``.

    Time is a parabola too. Where one segment is three times as wide as the other it would stand still, so it is held.
    """
    first, second = widths[:, ::2], widths[:, 1::2]
    whole = first + second
    pace = torch.stack(
        [(3 * first - second).maximum(0.1 * whole), whole, (3 * second - first).maximum(0.1 * whole)], -1
    )
    return widths.new_tensor([1 / 6, 2 / 3, 1 / 6]) / pace


def _times(S: Tensor, v: Tensor) -> Tensor:
    """Symmetric matrices ``(3, *)`` times vectors ``(2, *)``: ``-> (2, *)``."""
    return torch.stack([S[0] * v[0] + S[1] * v[1], S[1] * v[0] + S[2] * v[1]])


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return a[0] * b[0] + a[1] * b[1]


def _gathered(middle: Tensor, last: Tensor, first: Tensor) -> Tensor:
    """Sum what elements say of their middle, last and first nodes to the inner nodes: ``(*, n/2)`` -> ``(*, n-1)``."""
    inner = middle.new_empty(*middle.shape[:-1], 2 * middle.shape[-1] - 1)
    inner[..., ::2] = middle
    inner[..., 1::2] = last[..., :-1] + first[..., 1:]
    return inner


def _blocks(N: Tensor, V: Tensor, stiff: list[Tensor] | None) -> tuple[Tensor, ...]:
    """Diagonal, upper and skipping blocks of the inner nodes.

    N ``(a, b, B, n/2, 3)`` couples a node's own coordinate a with the slope's b, V a node's coordinates with each
    other, and stiff, six times ``(a, b, B, n/2)``, is the rest of the blocks.
    """
    N0, N1, N2 = N.unbind(-1)
    parts = [
        V[..., 0] - 3 * (N0 + N0.transpose(0, 1)),
        V[..., 1],
        V[..., 2] + 3 * (N2 + N2.transpose(0, 1)),
        4 * N0 - N1.transpose(0, 1),
        N1 - 4 * N2.transpose(0, 1),
        N2.transpose(0, 1) - N0,
    ]
    if stiff is not None:
        parts = [part + more for part, more in zip(parts, stiff, strict=True)]
    first, middle, last, to_middle, to_last, across = parts  # (a, b, B, n/2)
    upper = middle.new_empty(*middle.shape[:-1], 2 * middle.shape[-1] - 2)
    upper[..., ::2], upper[..., 1::2] = to_last[..., :-1], to_middle[..., 1:]
    blocks = _gathered(middle, last, first), upper, across[..., 1:-1]
    return tuple(x.permute(2, 3, 0, 1).contiguous() for x in blocks)
