"""The energy of chains under a metric of the plane that is known by its square root and the derivatives of that.

Two segments at a time are one element: the curve is the parabola through its three nodes, and so is the time; Simpson's
rule integrates the energy over it. The result is of fourth order in the step, and a sum of squares, so that it is
bounded below and has a Gauss-Newton matrix. The metric is asked at the nodes alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from oddity.numerics.bicubic import evaluated
from oddity.numerics.chain import ChainModel
from oddity.numerics.native import Kernel, Part, serves

__all__ = [
    "TableProgram",
    "copied",
    "coupled_in_table",
    "derive_in_table",
    "energy_in_table",
    "first_momentum",
    "model_from_root",
    "room_in_table",
    "squares_in_table",
]


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
    return _natively(S, c, widths) if serves(S, c, widths) else _in_torch(S, c, widths)


_SECONDS = 0.1e-6  # for a node


def _natively(S: Tensor, c: Tensor, widths: Tensor) -> ChainModel:
    (B, n), k = widths.shape, len(S)
    blocks = [c.new_zeros(B, count, 2, 2) for count in (n - 1, n - 2, max(0, n // 2 - 2))]
    bends = [torch.zeros_like(b) if k > 2 else c.new_empty(B, 0, 2, 2) for b in blocks]
    energy, gradient = c.new_zeros(B), c.new_zeros(B, n - 1, 2)
    out = (energy, gradient, *blocks, *bends)
    _modelled(S.permute(3, 4, 2, 0, 1), c, widths, out=out, seconds=n * _SECONDS)
    return ChainModel(energy, gradient, *blocks, *(bends if k > 2 else ()))


@Part
def modelled(S, c, widths, energy, gradient, diagonal, upper, skip, bend_diagonal, bend_upper, bend_skip):  # type: ignore[no-untyped-def]
    """The model element by element; S is ``(B, n+1, 3, k, k)``, results are added to."""
    B, n = widths.shape
    exact, elements = S.shape[3] > 2, n // 2
    number = c.dtype.type  # whole numbers would make double precision of single
    three, four, nine, sixteen = number(3), number(4), number(9), number(16)
    vectors, matrices = np.empty((4, 3, 2), c.dtype), np.empty((5, 3, 2, 2), c.dtype)
    d, p, u, local = vectors[0], vectors[1], vectors[2], vectors[3]
    N, V, G, N_bent, V_bent = matrices[0], matrices[1], matrices[2], matrices[3], matrices[4]
    turns, parts = np.empty((2, 2), c.dtype), np.empty((6, 2, 2), c.dtype)
    for b in range(B):
        for e in range(elements):
            first, second = widths[b, 2 * e], widths[b, 2 * e + 1]
            whole = first + second
            for i in range(2):
                x, y, z = c[b, 2 * e, i], c[b, 2 * e + 1, i], c[b, 2 * e + 2, i]
                d[0, i], d[1, i], d[2, i] = four * y - three * x - z, z - x, x - four * y + three * z
            for k in range(3):
                if k == 0:
                    q = number(1 / 6) / max(three * first - second, number(0.1) * whole)
                elif k == 1:
                    q = number(2 / 3) / whole
                else:
                    q = number(1 / 6) / max(three * second - first, number(0.1) * whole)
                s = S[b, 2 * e + k]
                s0, s1, s2 = s[0, 0, 0], s[1, 0, 0], s[2, 0, 0]
                r0, r1 = s0 * d[k, 0] + s1 * d[k, 1], s1 * d[k, 0] + s2 * d[k, 1]
                p[k, 0], p[k, 1] = q * r0, q * r1
                energy[b] += number(0.5) * (p[k, 0] * r0 + p[k, 1] * r1)
                u[k, 0], u[k, 1] = s0 * p[k, 0] + s1 * p[k, 1], s1 * p[k, 0] + s2 * p[k, 1]
                G[k, 0, 0], G[k, 1, 1] = q * (s0 * s0 + s1 * s1), q * (s1 * s1 + s2 * s2)
                G[k, 0, 1] = G[k, 1, 0] = q * s1 * (s0 + s2)
                for a in range(2):
                    t0, t1, t2 = s[0, 1 - a, a], s[1, 1 - a, a], s[2, 1 - a, a]
                    turns[a, 0], turns[a, 1] = t0 * d[k, 0] + t1 * d[k, 1], t1 * d[k, 0] + t2 * d[k, 1]
                    local[k, a] = turns[a, 0] * p[k, 0] + turns[a, 1] * p[k, 1]
                    N[k, a, 0] = q * (turns[a, 0] * s0 + turns[a, 1] * s1)
                    N[k, a, 1] = q * (turns[a, 0] * s1 + turns[a, 1] * s2)
                    if exact:
                        N_bent[k, a, 0], N_bent[k, a, 1] = t0 * p[k, 0] + t1 * p[k, 1], t1 * p[k, 0] + t2 * p[k, 1]
                for a in range(2):
                    for i in range(2):
                        V[k, a, i] = q * (turns[a, 0] * turns[i, 0] + turns[a, 1] * turns[i, 1])
                        if exact:
                            t = s[:, 2 - a - i, a + i]
                            turn0, turn1 = t[0] * d[k, 0] + t[1] * d[k, 1], t[1] * d[k, 0] + t[2] * d[k, 1]
                            V_bent[k, a, i] = turn0 * p[k, 0] + turn1 * p[k, 1]
            inner = 2 * e  # number of the middle among the inner nodes
            for a in range(2):
                gradient[b, inner, a] += local[1, a] + four * (u[0, a] - u[2, a])
                if e > 0:
                    gradient[b, inner - 1, a] += local[0, a] + u[2, a] - u[1, a] - three * u[0, a]
                if e < elements - 1:
                    gradient[b, inner + 1, a] += local[2, a] + u[1, a] - u[0, a] + three * u[2, a]
            for bent in range(2 if exact else 1):
                n_, v_ = (N_bent, V_bent) if bent else (N, V)
                for a in range(2):
                    for i in range(2):
                        parts[0, a, i] = v_[0, a, i] - three * (n_[0, a, i] + n_[0, i, a])
                        parts[1, a, i] = v_[1, a, i]
                        parts[2, a, i] = v_[2, a, i] + three * (n_[2, a, i] + n_[2, i, a])
                        parts[3, a, i] = four * n_[0, a, i] - n_[1, i, a]
                        parts[4, a, i] = n_[1, a, i] - four * n_[2, i, a]
                        parts[5, a, i] = n_[2, i, a] - n_[0, a, i]
                        if not bent:
                            x, y, z = G[0, a, i], G[1, a, i], G[2, a, i]
                            parts[0, a, i] += nine * x + y + z
                            parts[1, a, i] += sixteen * (x + z)
                            parts[2, a, i] += x + y + nine * z
                            parts[3, a, i] -= four * (three * x + z)
                            parts[4, a, i] -= four * (x + three * z)
                            parts[5, a, i] += three * (x + z) - y
                D, U, K = (bend_diagonal, bend_upper, bend_skip) if bent else (diagonal, upper, skip)
                for a in range(2):
                    for i in range(2):
                        D[b, inner, a, i] += parts[1, a, i]
                        if e > 0:
                            D[b, inner - 1, a, i] += parts[0, a, i]
                            U[b, inner - 1, a, i] = parts[3, a, i]
                        if e < elements - 1:
                            D[b, inner + 1, a, i] += parts[2, a, i]
                            U[b, inner, a, i] = parts[4, a, i]
                        if 0 < e < elements - 1:
                            K[b, e - 1, a, i] = parts[5, a, i]


_modelled = Kernel(modelled.f)


class TableProgram(NamedTuple):
    """The square root of a metric in a :class:`~oddity.numerics.bicubic.BicubicSpline`, as the loops read it."""

    rows: Tensor  # (cells, 4, 12)   coefficients around each cell
    weights: Tensor  # (2, 4, 3, 4)   of the basis, by axis, power, derivative and node
    low: Tensor  # (2,)   first corner
    steps: Tensor  # (2,)   between nodes
    last: Tensor  # (2,)   number of the last node

    def fits(self, c: Tensor) -> bool:
        """Whether it can be asked at chains ``(B, n+1, d)``."""
        return c.dtype == self.rows.dtype and c.shape[-1] == 2

    def seconds(self, n: int, d: int) -> float:  # noqa: ARG002
        """Roughly what a model of a chain of n segments takes."""
        return 2 * n * _SECONDS


@Part
def room_in_table(_program, c):  # type: ignore[no-untyped-def]
    """Room for the root and its derivatives at the nodes of a chain, to first and to second order, and for a model."""
    nodes, n = c.shape[1], c.shape[1] - 1
    once, twice = np.empty((1, nodes, 3, 2, 2), c.dtype), np.empty((1, nodes, 3, 3, 3), c.dtype)
    blocks = np.empty((2, n - 1, 2, 2), c.dtype), np.empty((2, n - 2, 2, 2), c.dtype)
    skips = np.empty((2, max(0, n // 2 - 2), 2, 2), c.dtype)
    return once, twice, np.empty(1, c.dtype), np.empty((1, n - 1, 2), c.dtype), blocks[0], blocks[1], skips


@Part
def coupled_in_table(_program):  # type: ignore[no-untyped-def]
    """Whether blocks beside the diagonal bend: the root depends on the point, and a step on its neighbours."""
    return True


@Part
def energy_in_table(program, c, widths, exact, work):  # type: ignore[no-untyped-def]
    """The energy of one chain ``(n+1, 2)``; the whole of its model stays in the room."""
    once, twice, energy, gradient, diagonals, uppers, skips = work
    energy[:] = 0
    gradient[:] = 0
    diagonals[:] = 0
    uppers[:] = 0
    skips[:] = 0
    S = twice if exact else once
    evaluated(c, S[0], program[0], program[1], program[2], program[3], program[4])
    chain, h = c.reshape(1, c.shape[0], 2), widths.reshape(1, len(widths))
    modelled(S, chain, h, energy, gradient, diagonals[:1], uppers[:1], skips[:1], diagonals[1:], uppers[1:], skips[1:])
    return energy[0]


@Part
def copied(x, into):  # type: ignore[no-untyped-def]
    """Copy a contiguous array to another one. An assignment would have its message of error compiled: two seconds."""
    a, b = x.ravel(), into.ravel()
    for i in range(len(a)):
        b[i] = a[i]


@Part
def derive_in_table(_program, _c, _widths, _exact, work, k, model):  # type: ignore[no-untyped-def]
    """Take that model from the room to the k-th of some models."""
    _, _, _, slope, diagonals, uppers, skips = work
    gradient, diagonal, upper, skip, bend, bend_upper, bend_skip = model
    copied(slope[0], gradient[k])
    for bent, D, U, K in ((0, diagonal, upper, skip), (1, bend, bend_upper, bend_skip)):
        copied(diagonals[bent], D[k])
        copied(uppers[bent], U[k])
        copied(skips[bent], K[k])


@Kernel
def _squared(c, squares, stride, program):  # type: ignore[no-untyped-def]
    """Squares of the steps over every so many nodes of chains, by the root at their middles."""
    n, half = squares.shape[1], c.dtype.type(0.5)
    middles, root = np.empty((n, 2), c.dtype), np.empty((n, 3, 1, 1), c.dtype)
    for b in range(len(c)):
        for i in range(n):
            for a in range(2):
                middles[i, a] = half * (c[b, i * stride, a] + c[b, (i + 1) * stride, a])
        evaluated(middles, root, program[0], program[1], program[2], program[3], program[4])
        for i in range(n):
            u = c[b, (i + 1) * stride, 0] - c[b, i * stride, 0]
            v = c[b, (i + 1) * stride, 1] - c[b, i * stride, 1]
            x = root[i, 0, 0, 0] * u + root[i, 1, 0, 0] * v
            y = root[i, 1, 0, 0] * u + root[i, 2, 0, 0] * v
            squares[b, i] = x * x + y * y


def squares_in_table(program: TableProgram, c: Tensor, stride: int) -> Tensor:
    """Squared lengths of the steps over every so many nodes of chains: ``(B, n+1, 2) -> (B, n/stride)``."""
    squares = c.new_empty(len(c), (c.shape[1] - 1) // stride)
    _squared(c, out=(squares,), shared=(stride, tuple(program)), seconds=squares.shape[1] * _SECONDS)
    return squares


def _in_torch(S: Tensor, c: Tensor, widths: Tensor) -> ChainModel:
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
    bends: tuple[Tensor, ...] = ()
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
