"""Batched symmetric block-tridiagonal systems, solved by cyclic reduction.

Every second block is eliminated at once, then every second of the rest: log2(n) levels of batched d x d work in
place of n sequential steps, O(n d^3) operations in all. Blocks of odd index may also be coupled to the next one of
odd index, as in a chain whose energy is extrapolated from two step sizes: they are neighbours after the first level.
For a positive definite matrix every pivot block is a Schur complement and so positive definite too; the reduction
needs no pivoting, and a pivot that fails to be positive definite proves that the matrix is not.

Reference: Buzbee, Golub, Nielson, "On direct methods for solving Poisson's equations", SIAM J. Numer. Anal. 1970.
"""

import torch
from torch import Tensor

__all__ = ["solve_block_tridiagonal"]


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
    x_odd, rest_definite = solve_block_tridiagonal(odd, odd_upper if skip is None else odd_upper + skip, odd_rhs)

    padded = torch.nn.functional.pad(x_odd, (0, 0, 1, 1))
    around = torch.cat([padded[:, : most + 1], padded[:, 1 : most + 2]], -1)  # (B, ceil(n/2), 2d)
    x = torch.empty_like(rhs)
    x[:, 0::2] = even[..., -1] - (even[..., : 2 * d] @ around[..., None])[..., 0]
    x[:, 1::2] = x_odd
    return x, definite & rest_definite


def _solve_blocks(blocks: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    factor, info = torch.linalg.cholesky_ex(blocks)
    return torch.cholesky_solve(columns, factor), (info == 0).all(-1)
