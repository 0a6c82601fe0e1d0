"""Both eliminations, the compiled one and cyclic reduction, against a dense solve and SciPy's banded Cholesky."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.linalg import solveh_banded

from oddity.numerics.blocktri import solve_block_tridiagonal, solve_damped
from oddity.numerics.native import serves


@pytest.fixture(autouse=True, params=["compiled", "in PyTorch"])
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    """Tensors of which a derivative may be asked are PyTorch's."""
    with torch.set_grad_enabled(request.param == "in PyTorch"):
        assert serves(torch.zeros(1)) == (request.param == "compiled")
        yield request.param


def system(B: int, n: int, d: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random positive definite blocks, right-hand side and the dense matrices."""
    g = torch.Generator().manual_seed(n * 100 + d)
    L = torch.tril(torch.randn(B, n * d, n * d, generator=g, dtype=torch.float64))
    band = torch.kron(torch.tril(torch.ones(n, n)).triu(-1), torch.ones(d, d))  # two block diagonals
    L = 0.3 * L * band + 2 * torch.eye(n * d)  # well conditioned
    dense = L @ L.mT
    blocks = dense.reshape(B, n, d, n, d).permute(0, 1, 3, 2, 4)
    diagonal = torch.stack([blocks[:, i, i] for i in range(n)], 1)
    upper = torch.stack([blocks[:, i, i + 1] for i in range(n - 1)], 1) if n > 1 else dense.new_zeros(B, 0, d, d)
    return diagonal, upper, torch.randn(B, n, d, generator=g, dtype=torch.float64), dense


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8, 31])
@pytest.mark.parametrize("d", [1, 2, 3, 5, 10, 17, 33])
def test_agrees_with_a_dense_solve(n: int, d: int) -> None:
    diagonal, upper, rhs, dense = system(3, n, d)
    x, definite = solve_block_tridiagonal(diagonal, upper, rhs)
    assert definite.all()
    torch.testing.assert_close(x.flatten(1), torch.linalg.solve(dense, rhs.flatten(1)))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8, 31])
@pytest.mark.parametrize("d", [1, 2, 3, 4, 9, 16, 33])
def test_blocks_that_skip_one_are_coupled_too(n: int, d: int) -> None:
    diagonal, upper, rhs, dense = system(3, n, d)
    skip = (
        0.1
        * 0.5 ** (d / 2 - 1)
        * torch.randn(3, max(0, n // 2 - 1), d, d, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    )
    blocks = dense.reshape(3, n, d, n, d)
    for i in range(skip.shape[1]):
        blocks[:, 2 * i + 1, :, 2 * i + 3] += skip[:, i]
        blocks[:, 2 * i + 3, :, 2 * i + 1] += skip[:, i].mT
    x, definite = solve_block_tridiagonal(diagonal, upper, rhs, skip if n > 1 else None)
    assert definite.all()
    torch.testing.assert_close(x.flatten(1), torch.linalg.solve(dense, rhs.flatten(1)))


def test_agrees_with_scipy_banded_cholesky() -> None:
    n, d = 40, 3
    diagonal, upper, rhs, dense = system(1, n, d)
    a = dense[0].numpy()
    bands = np.zeros((2 * d, n * d))
    for k in range(2 * d):
        bands[2 * d - 1 - k, k:] = np.diagonal(a, k)
    expected = solveh_banded(bands, rhs[0].flatten().numpy())
    x, _ = solve_block_tridiagonal(diagonal, upper, rhs)
    np.testing.assert_allclose(x.flatten().numpy(), expected, rtol=1e-9)


def test_definiteness_is_found_out_item_by_item() -> None:
    diagonal, upper, rhs, dense = system(4, 9, 2)
    diagonal[1, 4] -= 100 * torch.eye(2)
    diagonal[2, 3, 0, 0] = torch.nan
    shift = torch.linalg.eigvalsh(dense[3])[0] * 1.001
    diagonal[3] -= shift * torch.eye(2)  # barely indefinite: no single block shows it
    x, definite = solve_block_tridiagonal(diagonal, upper, rhs)
    assert definite.tolist() == [True, False, False, False]
    assert not x[1:].any()
    torch.testing.assert_close(x[0].flatten(), torch.linalg.solve(dense[0], rhs[0].flatten()))


@pytest.mark.parametrize("d", [1, 2, 3, 9, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e38])
def test_what_is_not_finite_stays_where_it_is(d: int, dtype: torch.dtype, bad: float) -> None:
    """Tiles read beyond their columns: what lies there must not spread, not to later matrices either."""
    diagonal, upper, rhs, _ = (x.to(dtype) for x in system(3, 9, d))
    skip = 0.01 * torch.randn(3, 3, d, d, generator=torch.Generator().manual_seed(0), dtype=dtype)
    alone, _ = solve_block_tridiagonal(diagonal, upper, rhs, skip)
    for place in (diagonal, upper, rhs, skip):
        kept = place.clone()
        place[1, 1] = bad
        x, definite = solve_block_tridiagonal(diagonal, upper, rhs, skip)
        assert definite[0]
        assert definite[2]
        assert torch.equal(x[0], alone[0])
        assert torch.equal(x[2], alone[2])
        place.copy_(kept)


@pytest.mark.parametrize("d", [1, 2, 3, 4, 10])
def test_what_is_definite_stays_so_in_single_precision(d: int) -> None:
    """A chain of segments under a metric of condition 1e4: an explicit inverse of the pivots would lose it."""
    B, n, g = 100, 31, torch.Generator().manual_seed(d)
    turn = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64))[0]
    bend = 0.1 * torch.randn(B, n + 1, d, d, generator=g, dtype=torch.float64)
    R = turn @ torch.linalg.matrix_exp(bend - bend.mT)
    G = R * torch.logspace(0, -4, d, dtype=torch.float64) @ R.mT
    diagonal, upper = (G[:, :-1] + G[:, 1:]).float(), -G[:, 1:-1].float()
    H = torch.zeros(B, n, d, n, d, dtype=torch.float64)
    for i in range(n):
        H[:, i, :, i] = diagonal[:, i].double()
    for i in range(n - 1):
        H[:, i, :, i + 1], H[:, i + 1, :, i] = upper[:, i].double(), upper[:, i].double().mT
    H = H.reshape(B, n * d, n * d)
    assert (torch.linalg.eigvalsh(H)[:, 0] > 0).all()
    rhs = (H @ torch.randn(B, n * d, 1, generator=g, dtype=torch.float64)).float()
    x, definite = solve_block_tridiagonal(diagonal, upper, rhs.reshape(B, n, d))
    assert definite.all()
    left = torch.linalg.vector_norm(H @ x.reshape(B, n * d, 1).double() - rhs, dim=(1, 2))
    assert (left <= 3e-6 * torch.linalg.vector_norm(rhs, dim=(1, 2))).all()


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_blocks_may_be_of_any_size(factor: float) -> None:
    """A determinant of such blocks would not be a number of single precision."""
    diagonal, upper, rhs, dense = (x.float() for x in system(2, 9, 2))
    x, definite = solve_block_tridiagonal(factor * diagonal, factor * upper, factor * rhs)
    assert definite.all()
    torch.testing.assert_close(x.flatten(1), torch.linalg.solve(dense, rhs.flatten(1)), rtol=1e-4, atol=1e-5)


def test_no_unknowns() -> None:
    x, definite = solve_block_tridiagonal(torch.ones(2, 0, 3, 3), torch.ones(2, 0, 3, 3), torch.ones(2, 0, 3))
    assert x.shape == (2, 0, 3)
    assert definite.all()


def test_damping_rises_until_a_matrix_is_definite_and_no_further() -> None:
    diagonal, upper, rhs, dense = system(4, 9, 2)
    lowest = torch.linalg.eigvalsh(dense)[:, 0]
    eye = torch.eye(2, dtype=torch.float64)
    shift = lowest + torch.tensor([-1.0, 0.05, 1.0, torch.nan], dtype=torch.float64)  # lowest values of 1, -0.05 and -1
    diagonal = diagonal - shift[:, None, None, None] * eye
    skip = 0.01 * torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    blocks = dense.reshape(4, 9, 2, 9, 2)
    for i in range(3):
        blocks[:, 2 * i + 1, :, 2 * i + 3] += skip[:, i]
        blocks[:, 2 * i + 3, :, 2 * i + 1] += skip[:, i].mT
    begin = torch.tensor([0.0, 0.0, 0.01, 0.0], dtype=torch.float64)
    x, damping, definite = solve_damped(diagonal, upper, rhs, skip, eye.expand(4, 9, 2, 2), begin)
    assert definite.tolist() == [True, True, True, False]
    torch.testing.assert_close(damping[:3], torch.tensor([0.0, 0.1, 1.6], dtype=torch.float64))
    assert begin.tolist() == [0.0, 0.0, 0.01, 0.0]
    shifted = dense + (damping - shift)[:, None, None] * torch.eye(18, dtype=torch.float64)
    torch.testing.assert_close(x[:3].flatten(1), torch.linalg.solve(shifted[:3], rhs[:3].flatten(1)))


@pytest.mark.parametrize(("B", "n"), [(0, 9), (3, 1), (3, 0)])
def test_little_to_damp(B: int, n: int) -> None:
    eye = torch.eye(5).expand(B, n, 5, 5)
    none, rhs = torch.ones(B, max(0, n - 1), 5, 5), torch.ones(B, n, 5)
    skip = torch.ones(B, max(0, n // 2 - 1), 5, 5)
    x, damping, definite = solve_damped(2 * eye, 0 * none, rhs, 0 * skip, eye, torch.ones(B))
    torch.testing.assert_close(x, rhs / 3)
    assert damping.tolist() == [1.0] * B
    assert definite.all()


@pytest.mark.parametrize("d", [2, 3, 10])
def test_single_precision_is_as_good_as_it_can_be(d: int) -> None:
    diagonal, upper, rhs, _ = system(5, 31, d)
    exact = solve_block_tridiagonal(diagonal, upper, rhs)[0]
    x, definite = solve_block_tridiagonal(diagonal.float(), upper.float(), rhs.float())
    assert x.dtype == torch.float32
    assert definite.all()
    assert (x - exact).abs().max() < 1e-4 * exact.abs().max()


def test_threads_leave_no_trace() -> None:
    diagonal, upper, rhs, _ = system(40, 63, 5)
    before, found = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(solve_block_tridiagonal(diagonal, upper, rhs)[0])
    torch.set_num_threads(before)
    assert serves(rhs) == (not torch.is_grad_enabled())
    if serves(rhs):
        assert torch.equal(*found)
