"""Tiles do what their Python says, and nothing beside it."""

from collections.abc import Callable

import numpy as np
import pytest

from oddity.numerics import native, tiles
from oddity.numerics.native import Part

KINDS = (np.float32, np.float64)


def called(part: Part) -> Callable[..., None]:
    """A part as Numba compiles it."""
    return native._compiled_part(Part(lambda *args: part_(*args), part_=part))  # noqa: F821


product, inner, inner_of_few, inner_of_one, laid = map(
    called, (tiles.product, tiles.inner, tiles.inner_of_few, tiles.inner_of_one, tiles.laid)
)


def numbers(*shape: int, dtype: type) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize(("rows", "width", "count"), [(1, 16, 3), (3, 32, 1), (4, 48, 30), (10, 96, 7), (2, 16, 0)])
@pytest.mark.parametrize("kept", [True, False])
def test_products(dtype: type, rows: int, width: int, count: int, kept: bool) -> None:
    A, B, C = (numbers(*shape, dtype=dtype) for shape in ((rows, count), (count, width), (rows + 1, width)))
    found = C.copy()
    product(found, 0, width, rows, width, kept, 2.0, A, 0, count, 1, B, 0, width, count)
    np.testing.assert_allclose(found[:rows], 2 * A @ B + (C[:rows] if kept else 0), rtol=1e-4, atol=1e-5)
    assert (found[rows] == C[rows]).all()
    turned = C.copy()
    product(turned, 0, width, rows, width, kept, 2.0, A.T.copy(), 0, 1, rows, B, 0, width, count)
    assert (turned == found).all()
    expected = C.copy()
    in_python = expected.ravel(), 0, width, rows, width, kept, 2.0, A.ravel(), 0, count, 1, B.ravel(), 0, width, count
    tiles.product(*in_python)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("width", [1, 17, 33])
def test_columns_are_rounded_up_to_16_and_no_further(dtype: type, width: int) -> None:
    A, B, C = (numbers(*shape, dtype=dtype) for shape in ((3, 5), (5, 64), (3, 64)))
    found, whole = C.copy(), -(-width // 16) * 16
    product(found, 0, 64, 3, width, True, 1.0, A, 0, 5, 1, B, 0, 64, 5)
    np.testing.assert_allclose(found[:, :whole], (C + A @ B)[:, :whole], rtol=1e-4, atol=1e-5)
    assert (found[:, whole:] == C[:, whole:]).all()


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("rows", [1, 3, 4])
def test_few_rows_may_be_replaced_by_their_product(dtype: type, rows: int) -> None:
    A, B = numbers(rows, rows, dtype=dtype), numbers(rows, 48, dtype=dtype)
    found = B.copy()
    product(found, 0, 48, rows, 48, False, 1.0, A, 0, rows, 1, found, 0, 48, rows)
    np.testing.assert_allclose(found, A @ B, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", KINDS)
def test_rows_may_end_in_zeros_within_a_vector(dtype: type) -> None:
    A, B, C = numbers(4, 32, dtype=dtype), numbers(1, 32, dtype=dtype), numbers(1, 4, dtype=dtype)
    A[:, 19:] = 0
    found = C.copy()
    inner_of_one(found, 0, 4, -1.0, B, 0, 0, 1, A, 0, 32, 4, 19)
    np.testing.assert_allclose(found, C - B[:, :19] @ A[:, :19].T, rtol=1e-4, atol=1e-5)


def test_other_arrays_are_refused() -> None:
    from numba.core.errors import TypingError

    single, double = numbers(4, 16, dtype=np.float32), numbers(4, 16, dtype=np.float64)
    for A, B in ((single, double), (double, single), (single, np.asfortranarray(single)), (single[:, ::2], single)):
        with pytest.raises(TypingError, match="contiguous arrays of one floating dtype"):
            laid(numbers(4, 16, dtype=np.float32), 0, 16, 16, A, 0, 4, 16, 1.0, B, 0)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("size", [(4, 4), (2, 2), (1, 4)])
@pytest.mark.parametrize("count", [0, 16, 112])
def test_inner_products(dtype: type, size: tuple[int, int], count: int) -> None:
    rows, columns = size
    f = {(4, 4): inner, (2, 2): inner_of_few, (1, 4): inner_of_one}[size]
    for a_rows, b_rows in ((rows, columns), (max(1, rows - 1), 1), (1, columns - 1)):
        A, B, C = (numbers(*shape, dtype=dtype) for shape in ((a_rows, count), (b_rows, count), (rows, columns + 1)))
        expected, found = C.copy(), C.copy()
        expected[:a_rows, :b_rows] += 0.5 * A @ B.T
        f(found, 0, columns + 1, 0.5, A, 0, count, a_rows, B, 0, count, b_rows, count)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert (found[a_rows:] == C[a_rows:]).all()
        assert (found[:, b_rows:] == C[:, b_rows:]).all()


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("columns", [0, 1, 5, 16, 33])
def test_rows(dtype: type, columns: int) -> None:
    A, B, C = (numbers(*shape, dtype=dtype) for shape in ((3, columns), (3, columns), (4, 40)))
    found = C.copy()
    laid(found, 2, 40, 35, A, 0, 3, columns, 0.5, B, 0)
    assert (found[:3, 2 : 2 + columns] == A + dtype(0.5) * B).all()
    assert not found[:3, 2 + columns : 37].any()
    laid(found, 2, 40, 35, A, 0, 3, columns, 0.0, np.full_like(B, np.inf), 0)
    assert (found[:3, 2 : 2 + columns] == A).all(), "nothing is added"
    for inside in (slice(0, 2), slice(37, 40)):
        assert (found[:, inside] == C[:, inside]).all()
    assert (found[3] == C[3]).all()


def test_a_tile_has_a_mark_of_what_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = {native._mark(part) for part in (tiles.inner, tiles.inner_of_few, tiles.inner_of_one, tiles.laid)}
    other = tiles.Tile(tiles._block, lambda builder, *_: builder, 4, 4)
    assert len(marks | {native._mark(other)}) == 5
    assert native._mark(tiles.Tile(tiles._block, tiles._write_block, 4, 4)) == native._mark(tiles.inner)
    before = native._mark(tiles.inner)
    monkeypatch.setattr(tiles, "_BYTES", 32)
    assert native._mark(tiles.inner) != before
