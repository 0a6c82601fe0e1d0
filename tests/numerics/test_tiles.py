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
    for inside in (slice(0, 2), slice(37, 40)):
        assert (found[:, inside] == C[:, inside]).all()
    assert (found[3] == C[3]).all()


def test_a_tile_has_a_mark_of_what_writes_it() -> None:
    marks = {native._mark(part) for part in (tiles.inner, tiles.inner_of_few, tiles.inner_of_one, tiles.laid)}
    other = tiles.Tile(tiles._block, lambda builder, *_: builder, 4, 4)
    assert len(marks | {native._mark(other)}) == 5
    assert native._mark(tiles.Tile(tiles._block, tiles._write_block, 4, 4)) == native._mark(tiles.inner)
