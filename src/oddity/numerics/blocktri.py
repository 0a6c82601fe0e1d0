"""Batched symmetric block-tridiagonal systems, solved by cyclic reduction.

Every second block is eliminated at once, then every second of the rest: log2(n) levels of batched d x d work in
place of n sequential steps, O(n d^3) operations in all. For a positive definite matrix every pivot block is a
Schur complement and so positive definite too; the reduction needs no pivoting, and a pivot that fails to be
positive definite proves that the matrix is not.

Reference: Buzbee, Golub, Nielson, "On direct methods for solving Poisson's equations", SIAM J. Numer. Anal. 1970.
"""

import torch
from torch import Tensor

__all__ = ["solve_block_tridiagonal"]


def solve_block_tridiagonal(diagonal: Tensor, upper: Tensor, rhs: Tensor) -> tuple[Tensor, Tensor]:
    """Solve H x = rhs for symmetric positive definite block-tridiagonal H.

    Parameters
    ----------
    diagonal
        ``(B, n, d, d)``, the symmetric diagonal blocks.
    upper
        ``(B, n-1, d, d)``, the blocks right of the diagonal; those below are their transposes.
    rhs
        ``(B, n, d)``.

    Returns
    -------
    x : Tensor
        ``(B, n, d)``. Meaningless for items whose matrix is not positive definite.
    definite : Tensor
        ``(B,)`` bool: whether that item's matrix is (numerically) positive definite.

    Examples
    --------
    >>> two, one = 2 * torch.eye(1).expand(1, 3, 1, 1), -torch.eye(1).expand(1, 2, 1, 1)
    >>> x, definite = solve_block_tridiagonal(two, one, torch.ones(1, 3, 1))
    >>> [round(v, 4) for v in x.flatten().tolist()], definite.tolist()
    ([1.5, 2.0, 1.5], [True])
    """
    d = rhs.shape[-1]
    if diagonal.shape[1] == 0:
        return rhs, torch.ones(len(rhs), dtype=torch.bool, device=rhs.device)
    if diagonal.shape[1] == 1:
        x, definite = _solve_blocks(diagonal, rhs[..., None])
        return x[..., 0], definite

    right, left = upper[:, 0::2], upper[:, 1::2]  # even -> odd block, odd -> next even block
    n_odd, n_left = right.shape[1], left.shape[1]
    pad = left.new_zeros(len(left), n_odd - n_left, d, d)
    columns = torch.cat([right.mT, torch.cat([left, pad], 1), rhs[:, 1::2, :, None]], -1)
    eliminated, definite = _solve_blocks(diagonal[:, 1::2], columns)
    by_right, by_left, by_rhs = eliminated.split([d, d, 1], -1)

    even, even_rhs = diagonal[:, 0::2].clone(), rhs[:, 0::2].clone()
    even[:, :n_odd] -= right @ by_right
    even[:, 1 : 1 + n_left] -= left.mT @ by_left[:, :n_left]
    even_rhs[:, :n_odd] -= (right @ by_rhs)[..., 0]
    even_rhs[:, 1 : 1 + n_left] -= (left.mT @ by_rhs[:, :n_left])[..., 0]
    x_even, rest_definite = solve_block_tridiagonal(even, -right[:, :n_left] @ by_left[:, :n_left], even_rhs)

    x_odd = by_rhs - by_right @ x_even[:, :n_odd, :, None]
    x_odd[:, :n_left] -= by_left[:, :n_left] @ x_even[:, 1 : 1 + n_left, :, None]
    x = torch.empty_like(rhs)
    x[:, 0::2], x[:, 1::2] = x_even, x_odd[..., 0]
    return x, definite & rest_definite


def _solve_blocks(blocks: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    factor, info = torch.linalg.cholesky_ex(blocks)
    return torch.cholesky_solve(columns, factor), (info == 0).all(-1)
