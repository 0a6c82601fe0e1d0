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
from oddity.numerics.tiles import COLUMNS, ROWS, inner_of_one, laid, product

__all__ = ["FIRST_DAMPING", "RAISES", "eliminated", "room_for_elimination", "solve_block_tridiagonal", "solve_damped"]


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
        damping[rest] = (4 * damping[rest]).clamp(min=FIRST_DAMPING)
        raised = diagonal[rest] + damping[rest, None, None, None] * unit[rest]
        x[rest], definite[rest] = solve_block_tridiagonal(raised, upper[rest], rhs[rest], skip[rest])
    return x, damping, definite


FIRST_DAMPING = 0.1
RAISES = 12  # times 4 each; what is not definite then either is not finite or bends sharply, and waits for the caller
_SECONDS = 0.02e-6, 4e-9  # for a block, and for each of its d^2


def _one_after_another(
    diagonal: Tensor, upper: Tensor, rhs: Tensor, skip: Tensor | None, unit: Tensor | None, damping: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Sequential elimination, compiled; the damping is overwritten. Without a unit it is never raised."""
    B, n, d = rhs.shape
    x, definite = rhs.new_empty(rhs.shape), torch.empty(B, dtype=torch.bool, device="cpu")
    assert diagonal.dtype == upper.dtype == rhs.dtype, "one dtype for all"
    skip = rhs.new_zeros(B, max(0, n // 2 - 1), d, d) if skip is None else skip
    seconds = n * (_SECONDS[0] + _SECONDS[1] * d**2)
    raises = 0 if unit is None else RAISES
    unit = diagonal if unit is None else unit
    _eliminated(diagonal, unit, upper, skip, rhs, out=(x, damping, definite), shared=(raises,), seconds=seconds)
    return x, damping, definite


@Part
def eliminated(diagonal, unit, upper, skip, rhs, x, damping, definite, raises, work):  # type: ignore[no-untyped-def]
    """Solve for matrix after matrix, block after block: the factor's transpose, and then backwards.

    Rows are made four at a time: what the rows above leave of them, times the inverse of their own 4 x 4 factor.
    """
    B, n, d = rhs.shape
    M, inverse, y, found = work
    number, row, groups = rhs.dtype.type, _row_of(d), -(-d // ROWS)
    one, minus = number(1), number(-1)
    if d == 2:
        _eliminated_pairs(diagonal, unit, upper, skip, rhs, x, damping, definite, raises, M)
        return
    for b in range(B):
        positive = False
        for turn in range(raises + 1):
            if turn:
                damping[b] = max(number(4) * damping[b], number(FIRST_DAMPING))
            positive = True
            for i in range(n):
                for r in range(d):
                    y[i * d + r] = rhs[b, i, r]
            for i in range(-2, n):
                if i + 2 < n:  # blocks are taken in hand before they are changed
                    _taken(b, i + 2, diagonal, unit, upper, skip, damping[b] if raises else number(0), M)
                if i < 0:
                    continue
                here, width = i * d * row, _width(i, n, d)
                for g in range(groups):
                    first = g * ROWS
                    rows, place, own = min(ROWS, d - first), here + first * (row + 1), (i * groups + g) * ROWS * ROWS
                    if g:
                        top, wide = here + first, width - first
                        product(M, place, row, rows, wide, True, minus, M, top, 1, row, M, top, row, first)
                    positive = positive and _inverted(M, place, row, rows, inverse, own)
                    if not positive:
                        break
                    product(M, place, row, rows, width - first, False, one, inverse, own, ROWS, 1, M, place, row, rows)
                    loads, rest = i * d + first, width - first - rows
                    _lowered(y, loads, rows, inverse, own)
                    if rest:
                        right, after = place + rows, loads + rows
                        product(y, after, 0, 1, rest, True, minus, y, loads, 0, 1, M, right, row, rows)
                if not positive:
                    break
                for k in range(1, width // d):  # the rows of the next block, and of the one after
                    for first in range(0, d, ROWS):
                        into, top = here + k * d * row + first * (row + 1), here + k * d + first
                        rows, wide = min(ROWS, d - first), width - k * d - first
                        product(M, into, row, rows, wide, True, minus, M, top, 1, row, M, top, row, d)
            if positive:
                break
        definite[b] = positive
        if positive:
            _backwards(M, inverse, y, found, n, d)
        for i in range(n):
            for r in range(d):
                x[b, i, r] = found[i * d + r] if positive else number(0)


@Part
def _eliminated_pairs(diagonal, unit, upper, skip, rhs, x, damping, definite, raises, room):  # type: ignore[no-untyped-def]
    """The same for blocks of 2 x 2, written out: of a block are kept y, U and S of R x = y - U x' - S x''.

    R is the unit triangle of R'DR, the pivot: an explicit inverse would lose definite matrices of single precision.
    """
    B, n, number = len(rhs), rhs.shape[1], rhs.dtype.type
    zero, one = number(0), number(1)
    rows = room[: 11 * n].reshape(n, 11)
    for b in range(B):
        positive = False
        for turn in range(raises + 1):
            if turn:
                damping[b] = max(number(4) * damping[b], number(FIRST_DAMPING))
            positive, held = True, damping[b] if raises else zero
            # what the blocks before leave on this one and on the next: pivot p q s, load f g, block beside it t u v w
            p, q, s, f, g = zero, zero, zero, zero, zero
            next_p, next_q, next_s, next_f, next_g = zero, zero, zero, zero, zero
            t, u, v, w = zero, zero, zero, zero
            for i in range(n):
                row = rows[i]
                p += diagonal[b, i, 0, 0]
                q += diagonal[b, i, 0, 1]
                s += diagonal[b, i, 1, 1]
                if held > 0:
                    p += held * unit[b, i, 0, 0]
                    q += held * unit[b, i, 0, 1]
                    s += held * unit[b, i, 1, 1]
                scale = one / p
                ratio = scale * q
                rest = s - q * ratio
                positive = p > 0 and rest > 0
                if not positive:
                    break
                last = one / rest
                row[10] = ratio
                f += rhs[b, i, 0]
                g += rhs[b, i, 1]
                g -= ratio * f
                y0, y1 = scale * f, last * g
                row[0], row[1] = y0, y1
                if i + 1 == n:
                    break
                t += upper[b, i, 0, 0]
                u += upper[b, i, 0, 1]
                v += upper[b, i, 1, 0]
                w += upper[b, i, 1, 1]
                v -= ratio * t
                w -= ratio * u
                t0, u0, v0, w0 = scale * t, scale * u, last * v, last * w
                row[2], row[3], row[4], row[5] = t0, u0, v0, w0
                p, q, s = next_p - t * t0 - v * v0, next_q - t * u0 - v * w0, next_s - u * u0 - w * w0
                f, g = next_f - t * y0 - v * y1, next_g - u * y0 - w * y1
                if i % 2 == 1 and i + 2 < n:
                    S = skip[b, i // 2]
                    j, k, m, o = S[0, 0], S[0, 1], S[1, 0], S[1, 1]
                    m -= ratio * j
                    o -= ratio * k
                    j0, k0, m0, o0 = scale * j, scale * k, last * m, last * o
                    row[6], row[7], row[8], row[9] = j0, k0, m0, o0
                    next_p, next_q, next_s = -j * j0 - m * m0, -j * k0 - m * o0, -k * k0 - o * o0
                    next_f, next_g = -j * y0 - m * y1, -k * y0 - o * y1
                    t, u, v, w = -t * j0 - v * m0, -t * k0 - v * o0, -u * j0 - w * m0, -u * k0 - w * o0
                else:
                    next_p, next_q, next_s, next_f, next_g = zero, zero, zero, zero, zero
                    t, u, v, w = zero, zero, zero, zero
            if positive:
                break
        definite[b] = positive
        if not positive:
            for i in range(n):
                x[b, i, 0] = x[b, i, 1] = zero
            continue
        for i in range(n - 1, -1, -1):
            row = rows[i]
            f, g = row[0], row[1]
            if i + 1 < n:
                f -= row[2] * x[b, i + 1, 0] + row[3] * x[b, i + 1, 1]
                g -= row[4] * x[b, i + 1, 0] + row[5] * x[b, i + 1, 1]
            if i % 2 == 1 and i + 2 < n:
                f -= row[6] * x[b, i + 2, 0] + row[7] * x[b, i + 2, 1]
                g -= row[8] * x[b, i + 2, 0] + row[9] * x[b, i + 2, 1]
            x[b, i, 0], x[b, i, 1] = f - row[10] * g, g


@Part
def room_for_elimination(n, d, dtype):  # type: ignore[no-untyped-def]
    """Rows of pivots and blocks right of them; inverse factors; right-hand side and solution.

    What makes up numbers beyond the columns counts on zeros: in the rows, which are written anew for each matrix, above
    the diagonals of the inverse factors, and behind the solution. Behind the right-hand side anything may come to
    stand: nothing is summed over it.
    """
    rows, factors = np.zeros(n * d * _row_of(d), dtype), np.zeros(n * -(-d // ROWS) * ROWS * ROWS, dtype)
    return rows, factors, np.zeros(n * d + COLUMNS, dtype), np.zeros(n * d + COLUMNS, dtype)


@Part
def _row_of(d):  # type: ignore[no-untyped-def]
    """Numbers from row to row."""
    return -(-(3 * d + COLUMNS - 1) // COLUMNS) * COLUMNS


@Part
def _width(i, n, d):  # type: ignore[no-untyped-def]
    """Columns of a row: the pivot's, and those of the next block and of the one after where there are any."""
    if i + 1 == n:
        return d
    return 3 * d if i % 2 == 1 and i + 2 < n else 2 * d


@Part
def _taken(b, i, diagonal, unit, upper, skip, damping, M):  # type: ignore[no-untyped-def]
    """Write the rows of block i, with zeros beyond."""
    n, d, zero = diagonal.shape[1], diagonal.shape[2], M.dtype.type(0)
    row, width = _row_of(d), _width(i, n, d)
    at, block = i * d * row, d * d
    here, beside, over = (b * n + i) * block, (b * (n - 1) + i) * block, (b * skip.shape[1] + i // 2) * block
    laid(M, at, row, d, diagonal, here, d, d, damping, unit, here)
    laid(M, at + d, row, d, upper, beside, d, d if width > d else 0, zero, upper, beside)
    laid(M, at + 2 * d, row, row - 2 * d, skip, over, d, d if width > 2 * d else 0, zero, skip, over)


@Part
def _inverted(M, place, row, rows, T, own):  # type: ignore[no-untyped-def]
    """The inverse of the factor of up to four rows, of their upper half; whether they are positive definite."""
    one = M.dtype.type(1)
    square = M[place]
    positive = square > 0
    a = one / np.sqrt(square)
    T[own] = a
    if rows == 1:
        return positive
    p = a * M[place + 1]  # of the factor's transpose: p q r, s t, u
    second = place + row
    square = M[second + 1] - p * p
    positive = positive and square > 0
    b = one / np.sqrt(square)
    T[own + 4], T[own + 5] = -b * p * a, b
    if rows == 2:
        return positive
    q = a * M[place + 2]
    s = b * (M[second + 2] - p * q)
    third = second + row
    square = M[third + 2] - q * q - s * s
    positive = positive and square > 0
    c = one / np.sqrt(square)
    T[own + 8], T[own + 9], T[own + 10] = -c * (q * T[own] + s * T[own + 4]), -c * s * b, c
    if rows == 3:
        return positive
    r = a * M[place + 3]
    t = b * (M[second + 3] - p * r)
    u = c * (M[third + 3] - q * r - s * t)
    square = M[third + row + 3] - r * r - t * t - u * u
    positive = positive and square > 0
    d = one / np.sqrt(square)
    T[own + 12] = -d * (r * T[own] + t * T[own + 4] + u * T[own + 8])
    T[own + 13], T[own + 14], T[own + 15] = -d * (t * b + u * T[own + 9]), -d * u * c, d
    return positive


@Part
def _lowered(y, place, rows, T, own):  # type: ignore[no-untyped-def]
    """The inverse factor times up to four numbers."""
    for r in range(rows - 1, -1, -1):
        total = T[own + r * ROWS + r] * y[place + r]
        for k in range(r):
            total += T[own + r * ROWS + k] * y[place + k]
        y[place + r] = total


@Part
def _backwards(M, inverse, y, x, n, d):  # type: ignore[no-untyped-def]
    """Solve with the transposed factor."""
    row, groups, number = _row_of(d), -(-d // ROWS), y.dtype.type
    minus = number(-1)
    for i in range(n - 1, -1, -1):
        width = _width(i, n, d)
        for g in range(groups - 1, -1, -1):
            first = g * ROWS
            rows, place, own = min(ROWS, d - first), i * d * row + first * (row + 1), (i * groups + g) * ROWS * ROWS
            rest = first + rows
            right, own_y = i * d + rest, i * d + first
            inner_of_one(y, own_y, 0, minus, x, right, 0, 1, M, place + rows, row, rows, width - rest)
            for c in range(rows):
                total = number(0)
                for r in range(c, rows):
                    total += inverse[own + r * ROWS + c] * y[own_y + r]
                x[own_y + c] = total


@Kernel
def _eliminated(diagonal, unit, upper, skip, rhs, x, damping, definite, raises):  # type: ignore[no-untyped-def]
    work = room_for_elimination(rhs.shape[1], rhs.shape[2], rhs.dtype)
    eliminated(diagonal, unit, upper, skip, rhs, x, damping, definite, raises, work)


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
