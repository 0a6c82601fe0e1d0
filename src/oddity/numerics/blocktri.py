"""Batched symmetric block-tridiagonal systems, O(n d^3) operations each.

Blocks of odd index may also be coupled to the next one of odd index, as in a chain whose energy is extrapolated from
two step sizes; that fills no block. For a positive definite matrix every pivot block is a Schur complement and so
positive definite too: no pivoting is needed, and a pivot that fails to be positive definite proves that the matrix is
not.

A processor eliminates block after block, in one compiled loop for each matrix. Elsewhere every second block is
eliminated at once, then every second of the rest (cyclic reduction): log2(n) levels of batched d x d work in place of n
sequential steps. There, small blocks are written out entry by entry, each entry an array over all blocks: a call of
LAPACK for every 2 x 2 block takes several times longer than its arithmetic.

Reference: Buzbee, Golub, Nielson, "On direct methods for solving Poisson's equations", SIAM J. Numer. Anal. 1970.
"""

import numpy as np
import torch
from torch import Tensor

from oddity.numerics.native import Kernel, Part, serves

__all__ = ["RAISES", "eliminated", "solve_block_tridiagonal", "solve_damped"]


def solve_block_tridiagonal(
    diagonal: Tensor, upper: Tensor, rhs: Tensor, skip: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Solve H x = rhs for symmetric positive definite block-tridiagonal H.

    Parameters
    ----------
    diagonal
        ``(B, n, d, d)``, the symmetric diagonal blocks.
    upper
        ``(B, n-1, d, d)``, the blocks right of the diagonal; those below are their transposes.
    rhs
        ``(B, n, d)``.
    skip
        ``(B, n//2 - 1, d, d)``, where given: the blocks between rows 1 and 3, 3 and 5, ...

    Returns
    -------
    x : Tensor
        ``(B, n, d)``, zero for items whose matrix is not positive definite.
    definite : Tensor
        ``(B,)`` bool: whether that item's matrix is (numerically) positive definite.

    Examples
    --------
    >>> two, one = 2 * torch.eye(1).expand(1, 3, 1, 1), -torch.eye(1).expand(1, 2, 1, 1)
    >>> x, definite = solve_block_tridiagonal(two, one, torch.ones(1, 3, 1))
    >>> [round(v, 4) for v in x.flatten().tolist()], definite.tolist()
    ([1.5, 2.0, 1.5], [True])
    """
    if diagonal.shape[1] == 0:
        return rhs, torch.ones(len(rhs), dtype=torch.bool, device=rhs.device)
    if serves(rhs):
        x, _, definite = _one_after_another(diagonal, upper, rhs, skip, None, rhs.new_zeros(len(rhs)))
        return x, definite
    x, definite = _cyclic(diagonal, upper, rhs, skip)
    return torch.where(definite[:, None, None], x, 0.0), definite


def solve_damped(
    diagonal: Tensor, upper: Tensor, rhs: Tensor, skip: Tensor, unit: Tensor, damping: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve (H + damping U) x = rhs, the damping of each item raised until the matrix is positive definite.

    Parameters
    ----------
    diagonal, upper, rhs, skip
        As for :func:`solve_block_tridiagonal`.
    unit
        ``(B, n, d, d)``, the diagonal blocks of U.
    damping
        ``(B,)``, what to begin with.

    Returns
    -------
    x : Tensor
        ``(B, n, d)``.
    damping : Tensor
        ``(B,)``, what it took: 0.1 or four times what was too little, in turns.
    definite : Tensor
        ``(B,)`` bool; False where twelve turns did not do, as with numbers that are not finite.

    Examples
    --------
    >>> saddle, unit = -torch.eye(1).expand(1, 1, 1, 1), torch.eye(1).expand(1, 1, 1, 1)
    >>> none = torch.ones(1, 0, 1, 1)
    >>> x, damping, definite = solve_damped(saddle, none, torch.ones(1, 1, 1), none, unit, torch.zeros(1))
    >>> round(damping.item(), 3), round(x.item(), 3)
    (1.6, 1.667)
    """
    damping = damping.clone()
    if serves(rhs) and rhs.shape[1]:
        return _one_after_another(diagonal, upper, rhs, skip, unit, damping)
    x, definite = solve_block_tridiagonal(diagonal + damping[:, None, None, None] * unit, upper, rhs, skip)
    for _ in range(RAISES):
        rest = (~definite).nonzero()[:, 0]
        if len(rest) == 0:
            break
        damping[rest] = (4 * damping[rest]).clamp(min=0.1)
        raised = diagonal[rest] + damping[rest, None, None, None] * unit[rest]
        x[rest], definite[rest] = solve_block_tridiagonal(raised, upper[rest], rhs[rest], skip[rest])
    return x, damping, definite


RAISES = 12  # times 4 each; what is not definite then either is not finite or bends sharply, and waits for the caller
_SECONDS = 0.1e-6, 0.8e-9  # for a block, and for each of its d^3


def _one_after_another(
    diagonal: Tensor, upper: Tensor, rhs: Tensor, skip: Tensor | None, unit: Tensor | None, damping: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Sequential elimination, compiled; the damping is overwritten. Without a unit it is never raised."""
    B, n, d = rhs.shape
    x, definite = rhs.new_empty(rhs.shape), torch.empty(B, dtype=torch.bool)
    skip = rhs.new_zeros(B, max(0, n // 2 - 1), d, d) if skip is None else skip
    seconds = n * (_SECONDS[0] + _SECONDS[1] * d**3)
    raises = 0 if unit is None else RAISES
    unit = diagonal if unit is None else unit
    _eliminated(diagonal, unit, upper, skip, rhs, out=(x, damping, definite), shared=(raises,), seconds=seconds)
    return x, damping, definite


@Part
def eliminated(diagonal, unit, upper, skip, rhs, x, damping, definite, raises):  # type: ignore[no-untyped-def]
    """Cholesky factors L of the pivots, and the rows ``L^-1 [rhs, next block, next but one]``; then backwards."""
    B, n, d = rhs.shape
    factor, rows = np.empty((n, d, d), rhs.dtype), np.empty((n, d, 2 * d + 1), rhs.dtype)
    pivots, loads = np.empty((3, d, d), rhs.dtype), np.empty((3, d), rhs.dtype)  # of this block and the next two
    beside = np.empty((2, d, d), rhs.dtype)  # the block right of the pivot, and of the next one
    one = rhs.dtype.type(1)  # a whole number would make double precision of single
    for b in range(B):
        positive = False
        for turn in range(raises + 1):
            if turn:
                damping[b] = max(rhs.dtype.type(4) * damping[b], rhs.dtype.type(0.1))
            positive = True
            for i in range(-2, n):
                if i + 2 < n:  # blocks are taken in hand before they are changed
                    ahead = (i + 2) % 3
                    for r in range(d):
                        loads[ahead, r] = rhs[b, i + 2, r]
                        for c in range(d):
                            pivots[ahead, r, c] = diagonal[b, i + 2, r, c]
                            if raises:
                                pivots[ahead, r, c] += damping[b] * unit[b, i + 2, r, c]
                if -1 <= i < n - 2:
                    for r in range(d):
                        for c in range(d):
                            beside[(i + 1) % 2, r, c] = upper[b, i + 1, r, c]
                if i < 0:
                    continue
                L, row, pivot = factor[i], rows[i], pivots[i % 3]
                for r in range(d):
                    for c in range(r):
                        entry = pivot[r, c]
                        for k in range(c):
                            entry -= L[r, k] * L[c, k]
                        L[r, c] = entry * L[c, c]
                    square = pivot[r, r]
                    for k in range(r):
                        square -= L[r, k] * L[r, k]
                    positive = positive and square > 0
                    L[r, r] = one / np.sqrt(square)
                if not positive:
                    break
                columns = 1
                for r in range(d):
                    row[r, 0] = loads[i % 3, r]
                    if i + 1 < n:
                        columns = 1 + d
                        for c in range(d):
                            row[r, 1 + c] = beside[i % 2, r, c]
                    if i % 2 == 1 and i + 2 < n:
                        columns = 1 + 2 * d
                        for c in range(d):
                            row[r, 1 + d + c] = skip[b, i // 2, r, c]
                for r in range(d):
                    for k in range(r):
                        for c in range(columns):
                            row[r, c] -= L[r, k] * row[k, c]
                    for c in range(columns):
                        row[r, c] *= L[r, r]
                if columns > 1:
                    pivot, load = pivots[(i + 1) % 3], loads[(i + 1) % 3]
                    for k in range(d):
                        for c in range(d):
                            load[c] -= row[k, 0] * row[k, 1 + c]
                        for r in range(d):
                            for c in range(d):
                                pivot[r, c] -= row[k, 1 + r] * row[k, 1 + c]
                if columns > 1 + d:
                    pivot, load, near = pivots[(i + 2) % 3], loads[(i + 2) % 3], beside[(i + 1) % 2]
                    for k in range(d):
                        for c in range(d):
                            load[c] -= row[k, 0] * row[k, 1 + d + c]
                        for r in range(d):
                            for c in range(d):
                                pivot[r, c] -= row[k, 1 + d + r] * row[k, 1 + d + c]
                                near[r, c] -= row[k, 1 + r] * row[k, 1 + d + c]
            if positive:
                break
        definite[b] = positive
        if not positive:
            x[b] = 0
            continue
        load = loads[0]
        for i in range(n - 1, -1, -1):
            L, row = factor[i], rows[i]
            for r in range(d):
                load[r] = row[r, 0]
                if i + 1 < n:
                    for c in range(d):
                        load[r] -= row[r, 1 + c] * x[b, i + 1, c]
                if i % 2 == 1 and i + 2 < n:
                    for c in range(d):
                        load[r] -= row[r, 1 + d + c] * x[b, i + 2, c]
            for r in range(d - 1, -1, -1):
                x[b, i, r] = load[r] * L[r, r]
                for k in range(r):
                    load[k] -= L[r, k] * x[b, i, r]


_eliminated = Kernel(eliminated.f)


def _cyclic(diagonal: Tensor, upper: Tensor, rhs: Tensor, skip: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cyclic reduction."""
    d = rhs.shape[-1]
    if diagonal.shape[1] == 0:
        return rhs, torch.ones(len(rhs), dtype=torch.bool, device=rhs.device)
    if d <= _SMALL:
        blocks = [x.permute(2, 3, 0, 1).contiguous() for x in (diagonal, upper, skip) if x is not None]
        x, definite = _by_entries(rhs.permute(2, 0, 1).contiguous(), *blocks)
        return x.permute(1, 2, 0), definite
    if diagonal.shape[1] == 1:
        x, definite = _solve_blocks(diagonal, rhs[..., None])
        return x[..., 0], definite

    kept, zero = diagonal.shape[1] // 2, upper.new_zeros(len(upper), 1, d, d)
    before = torch.cat([zero, upper[:, 1::2].mT], 1)  # even block -> the odd one before it
    after = upper[:, 0::2] if upper.shape[1] % 2 else torch.cat([upper[:, 0::2], zero], 1)  # -> the one after it
    even, definite = _solve_blocks(diagonal[:, 0::2], torch.cat([before, after, rhs[:, 0::2, :, None]], -1))
    from_before = after[:, :kept].mT @ even[:, :kept]  # (B, kept, d, 2d+1)   what the elimination leaves on odd rows
    from_after = before[:, 1:].mT @ even[:, 1:]
    most = from_after.shape[1]  # kept, or one less where the last block is odd

    odd, odd_rhs = diagonal[:, 1::2] - from_before[..., d : 2 * d], rhs[:, 1::2] - from_before[..., -1]
    odd[:, :most] -= from_after[..., :d]
    odd_rhs[:, :most] -= from_after[..., -1]
    odd_upper = -from_after[:, : kept - 1, :, d : 2 * d]
    x_odd, rest_definite = _cyclic(odd, odd_upper if skip is None else odd_upper + skip, odd_rhs)

    padded = torch.nn.functional.pad(x_odd, (0, 0, 1, 1))
    around = torch.cat([padded[:, : most + 1], padded[:, 1 : most + 2]], -1)  # (B, ceil(n/2), 2d)
    x = torch.empty_like(rhs)
    x[:, 0::2] = even[..., -1] - (even[..., : 2 * d] @ around[..., None])[..., 0]
    x[:, 1::2] = x_odd
    return x, definite & rest_definite


_SMALL = 3  # entries of a block are written out up to this size
_FEW = 7  # so many blocks are solved at once


def _by_entries(rhs: Tensor, diagonal: Tensor, upper: Tensor, skip: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The same with entries first: rhs and x ``(d, B, n)``, blocks ``(d, d, B, n)``, ``n-1`` and ``n//2-1``."""
    d, B, n = rhs.shape
    if n <= _FEW:
        return _dense(rhs, diagonal, upper, skip)
    factor, definite = _cholesky(diagonal[..., 0::2])
    kept, most = n // 2, (n - 1) // 2
    columns = rhs.new_zeros(d, 2 * d + 1, B, n - kept)  # of the even blocks: the odd one before, the one after, rhs
    columns[:, :d, :, 1:] = upper[..., 1::2].transpose(0, 1)
    columns[:, d : 2 * d, :, :kept] = upper[..., 0::2]
    columns[:, 2 * d] = rhs[..., 0::2]
    even = _substituted(factor, columns)
    from_before = _product(columns[:, d : 2 * d, :, :kept], even[..., :kept])
    from_after = _product(columns[:, :d, :, 1:], even[..., 1:])
    odd, odd_rhs = diagonal[..., 1::2] - from_before[:, d : 2 * d], rhs[..., 1::2] - from_before[:, 2 * d]
    odd[..., :most] -= from_after[:, :d]
    odd_rhs[..., :most] -= from_after[:, 2 * d]
    odd_upper = -from_after[:, d : 2 * d, :, : kept - 1]
    x_odd, rest = _by_entries(odd_rhs, odd, odd_upper if skip is None else odd_upper + skip)
    x = torch.empty_like(rhs)
    inner = even[:, 2 * d].clone()
    for j in range(d):
        inner[..., 1:] -= even[:, j, :, 1:] * x_odd[j, :, :most]
        inner[..., :kept] -= even[:, d + j, :, :kept] * x_odd[j]
    x[..., 0::2], x[..., 1::2] = inner, x_odd
    return x, definite & rest


def _dense(rhs: Tensor, diagonal: Tensor, upper: Tensor, skip: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same for so few blocks that one dense factorisation is cheaper than further levels."""
    d, B, n = rhs.shape
    H = rhs.new_zeros(B, n, d, n, d)  # below the diagonal only
    H.diagonal(0, 1, 3).copy_(diagonal.permute(2, 0, 1, 3))
    H.diagonal(-1, 1, 3).copy_(upper.permute(2, 1, 0, 3))
    if skip is not None:
        H[:, 1::2, :, 1::2].diagonal(-1, 1, 3).copy_(skip.permute(2, 1, 0, 3))
    factor, info = torch.linalg.cholesky_ex(H.reshape(B, n * d, n * d))
    x = torch.cholesky_solve(rhs.permute(1, 2, 0).reshape(B, n * d, 1), factor)
    return x.reshape(B, n, d).permute(2, 0, 1), info == 0


def _cholesky(A: Tensor) -> tuple[list[list[Tensor]], Tensor]:
    """Rows of the lower factor with the inverse of its diagonal, and which items are positive definite throughout."""
    d = len(A)
    rows: list[list[Tensor]] = []
    definite = torch.ones(A.shape[2], dtype=torch.bool, device=A.device)
    for i in range(d):
        row: list[Tensor] = []
        for j in range(i):
            left = A[i, j]
            for k in range(j):
                left = left - row[k] * rows[j][k]
            row.append(left * rows[j][j])
        pivot = A[i, i]
        for entry in row:
            pivot = pivot - entry * entry
        definite &= (pivot > 0).all(-1)
        rows.append([*row, pivot.rsqrt()])
    return rows, definite


def _substituted(rows: list[list[Tensor]], columns: Tensor) -> Tensor:
    """Solve with the factor: ``(d, k, B, m)``, the columns in the second place."""
    y: list[Tensor] = []
    for row, b in zip(rows, columns, strict=True):
        for entry, known in zip(row, y, strict=False):
            b = b - entry * known
        y.append(b * row[-1])
    x: list[Tensor] = []
    for i in reversed(range(len(rows))):
        b = y[i]
        for j, known in zip(range(len(rows) - 1, i, -1), x, strict=False):
            b = b - rows[j][i] * known
        x.append(b * rows[i][i])
    return torch.stack(x[::-1])


def _product(A: Tensor, E: Tensor) -> Tensor:
    """A'E, entry by entry: ``(d, d, B, m), (d, k, B, m) -> (d, k, B, m)``."""
    total = A[0][:, None] * E[0]
    for a, e in zip(A[1:], E[1:], strict=True):
        total = total + a[:, None] * e
    return total


def _solve_blocks(blocks: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    factor, info = torch.linalg.cholesky_ex(blocks)
    return torch.cholesky_solve(columns, factor), (info == 0).all(-1)
