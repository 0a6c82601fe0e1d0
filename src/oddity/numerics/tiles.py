"""Products of small matrices, tile by tile, each tile's sums held in the registers.

A compiler fills the registers in long loops, but around short rows it spends more on loads, checks and remainders than
on the arithmetic. So the two innermost loops are written in LLVM's own vectors: one sums over rows of the second factor
(:func:`product`), one along them (:func:`inner`). Numbers lie row by row in flat arrays, and a place is a number in
them. Sums take numbers in vectors of 16: what is read beyond the last column must be there, and be zero where it counts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from oddity.numerics.native import Part, coded

__all__ = ["ROWS", "inner", "inner_of_few", "inner_of_one", "laid", "product"]

ROWS = 4  # of a tile
_COLUMNS = 16  # of a narrow one; vectors hold 16 numbers of single precision, or half as many of double
_BYTES = 64  # of a vector; on lesser processors it is two or four


class Tile(Part):
    """A part that is written in LLVM's vectors.

    Parameters
    ----------
    f
        What it does, in Python.
    emit
        Writes it: ``emit(builder, pointers and numbers, element, sizes)``.
    sizes
        Numbers that the code is made for.
    """

    def __init__(self, f: Callable[..., None], emit: Callable[..., None], *sizes: int) -> None:
        super().__init__(f)
        self.emit, self.sizes = emit, sizes

    def told(self) -> list[Any]:
        """See :class:`Part`."""
        return [*super().told(), self.sizes, *(coded(f.__code__) for f in (self.emit, *_WRITERS))]

    def compiled(self) -> Any:
        """See :class:`Part`."""
        from numba.core import types
        from numba.extending import intrinsic
        from numba.np.arrayobj import make_array

        def typed(_context, *args):  # type: ignore[no-untyped-def]
            kinds = [x if isinstance(x, types.Array | types.Float | types.Boolean) else types.int64 for x in args]
            dtype = next(x.dtype for x in kinds if isinstance(x, types.Array))
            kinds = [dtype if isinstance(x, types.Float) else x for x in kinds]

            def written(context, builder, signature, values):  # type: ignore[no-untyped-def]
                given = [
                    make_array(kind)(context, builder, value).data if isinstance(kind, types.Array) else value
                    for kind, value in zip(signature.args, values, strict=True)
                ]
                self.emit(builder, given, context.get_data_type(dtype), *self.sizes)
                return context.get_dummy_value()

            return types.void(*kinds), written

        first = [inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
        own = list(inspect.signature(self.f).parameters.values())
        typed.__signature__ = inspect.Signature(first + own[: len(own) - len(self.sizes)])
        return intrinsic(typed)


# -- writing ---------------------------------------------------------------------------------------------------------


def _number(value: Any) -> Any:
    from llvmlite import ir

    return ir.Constant(ir.IntType(64), value)


def _lanes(element: Any) -> int:
    from llvmlite import ir

    return _BYTES // (4 if isinstance(element, ir.FloatType) else 8)


def _vector(element: Any) -> Any:
    from llvmlite import ir

    return ir.VectorType(element, _lanes(element))


def _at(builder: Any, pointer: Any, *steps: Any) -> Any:
    """The address so many numbers further; a step is a number, or a number times an integer."""
    for step in steps:
        far = builder.mul(step[0], _number(step[1])) if isinstance(step, tuple) else step
        pointer = builder.gep(pointer, [far if not isinstance(far, int) else _number(far)])
    return pointer


def _loaded(builder: Any, pointer: Any, element: Any) -> Any:
    place = builder.bitcast(pointer, _vector(element).as_pointer())
    return builder.load(place, align=_BYTES // _lanes(element))


def _stored(builder: Any, value: Any, pointer: Any, element: Any) -> None:
    place = builder.bitcast(pointer, value.type.as_pointer())
    builder.store(value, place, align=_BYTES // _lanes(element))


def _spread(builder: Any, value: Any, lanes: int) -> Any:
    """A vector of one number."""
    from llvmlite import ir

    none = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    one = builder.insert_element(none, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, none, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes))


def _folded(builder: Any, x: Any, y: Any, group: int) -> Any:
    """Sums of neighbouring groups of numbers, those of x before those of y in each quarter, or in all, of a vector.

    A shuffle within quarters, or of whole quarters, is one instruction.
    """
    from llvmlite import ir

    lanes = x.type.count
    quarter = lanes // 4
    within = quarter if group < quarter else lanes
    kind = ir.VectorType(ir.IntType(32), lanes)
    halves = []
    for odd in (0, group):
        places: list[int] = []
        for begin in range(0, lanes, within):
            for vector in (0, lanes):
                firsts = range(vector + begin + odd, vector + begin + within, 2 * group)
                places += [first + i for first in firsts for i in range(group)]
        halves.append(builder.shuffle_vector(x, y, ir.Constant(kind, places)))
    return builder.fadd(*halves)


def _mask(builder: Any, some: Any, count: int) -> Any:
    """Which of a few numbers are among the first so many."""
    from llvmlite import ir

    whole = ir.IntType(32)
    numbers = ir.Constant(ir.VectorType(whole, count), list(range(count)))
    return builder.icmp_signed("<", numbers, _spread(builder, builder.trunc(some, whole), count))


def _masked(builder: Any, pointer: Any, mask: Any, element: Any) -> tuple[Any, Callable[[Any], None]]:
    """Those numbers at a place that a mask tells, zeros for the others; and what writes them back there."""
    from llvmlite import ir
    from numba.core import cgutils

    kind, whole = ir.VectorType(element, mask.type.count), ir.IntType(32)
    place, align = builder.bitcast(pointer, kind.as_pointer()), ir.Constant(whole, _BYTES // _lanes(element))
    name = f"v{kind.count}f{32 if isinstance(element, ir.FloatType) else 64}.p0"
    load = ir.FunctionType(kind, [kind.as_pointer(), whole, mask.type, kind])
    store = ir.FunctionType(ir.VoidType(), [kind, kind.as_pointer(), whole, mask.type])
    loading = cgutils.get_or_insert_function(builder.module, load, f"llvm.masked.load.{name}")
    storing = cgutils.get_or_insert_function(builder.module, store, f"llvm.masked.store.{name}")
    found = builder.call(loading, [place, align, mask, ir.Constant(kind, [0.0] * kind.count)])
    return found, lambda value: builder.call(storing, [value, place, align, mask])


def _row(builder: Any, rows: Any, r: int) -> Any:
    """The number of a row, or of the last where there are no more: it is made twice, to the same end."""
    last = builder.sub(rows, _number(1))
    return builder.select(builder.icmp_signed("<", _number(r), last), _number(r), last)


def _write_product(builder: Any, given: list[Any], element: Any, chunks: int) -> None:
    from llvmlite import ir
    from numba.core import cgutils

    C, c, c_row, rows, kept, factor, A, a, a_row, a_next, B, b, b_next, count = given
    lanes, kind = _lanes(element), _vector(element)
    parts = range(0, chunks * _COLUMNS, lanes)
    zero = ir.Constant(kind, [0.0] * lanes)
    sums = [[cgutils.alloca_once_value(builder, zero) for _ in parts] for _ in range(ROWS)]
    for r in range(ROWS):
        for sum_ in sums[r]:
            builder.store(zero, sum_)
    places = [_row(builder, rows, r) for r in range(ROWS)]
    left = [_at(builder, A, a, builder.mul(a_row, r)) for r in places]
    right = _at(builder, B, b)
    with cgutils.for_range(builder, count) as loop:
        further = builder.mul(loop.index, b_next)
        vectors = [_loaded(builder, _at(builder, right, further, p), element) for p in parts]
        for r in range(ROWS):
            x = _spread(builder, builder.load(_at(builder, left[r], builder.mul(loop.index, a_next))), lanes)
            for sum_, vector in zip(sums[r], vectors, strict=True):
                more = builder.fmul(x, vector, flags=_FUSED)
                builder.store(builder.fadd(builder.load(sum_), more, flags=_FUSED), sum_)
    times = _spread(builder, factor, lanes)
    into = [[_at(builder, C, c, builder.mul(c_row, r), p) for p in parts] for r in places]
    with builder.if_else(kept) as (added, fresh):
        with added:
            before = [[_loaded(builder, place, element) for place in row] for row in into]
            for r in range(ROWS):
                for old, place, sum_ in zip(before[r], into[r], sums[r], strict=True):
                    more = builder.fmul(times, builder.load(sum_), flags=_FUSED)
                    _stored(builder, builder.fadd(old, more, flags=_FUSED), place, element)
        with fresh:
            for r in range(ROWS):
                for place, sum_ in zip(into[r], sums[r], strict=True):
                    _stored(builder, builder.fmul(times, builder.load(sum_)), place, element)


def _write_inner(builder: Any, given: list[Any], element: Any, rows: int, columns: int) -> None:
    from llvmlite import ir
    from numba.core import cgutils

    C, c, c_row, factor, A, a, a_row, a_rows, B, b, b_row, b_rows, count = given
    lanes, kind = _lanes(element), _vector(element)
    zero = ir.Constant(kind, [0.0] * lanes)
    sums = [cgutils.alloca_once_value(builder, zero) for _ in range(rows * columns)]
    for sum_ in sums:
        builder.store(zero, sum_)
    places = [_row(builder, a_rows, r) for r in range(rows)]
    left = [_at(builder, A, a, builder.mul(a_row, r)) for r in places]
    right = [_at(builder, B, b, builder.mul(b_row, _row(builder, b_rows, r))) for r in range(columns)]
    with cgutils.for_range_slice(builder, _number(0), count, _number(lanes), _number(0).type) as (index, _):
        vectors = [_loaded(builder, _at(builder, place, index), element) for place in right]
        for r in range(rows):
            row = _loaded(builder, _at(builder, left[r], index), element)
            for k in range(columns):
                sum_ = sums[r * columns + k]
                more = builder.fmul(row, vectors[k], flags=_FUSED)
                builder.store(builder.fadd(builder.load(sum_), more, flags=_FUSED), sum_)
    rest, quarter = [builder.load(sum_) for sum_ in sums], lanes // 4
    for group in [1] * (quarter.bit_length() - 1) + [quarter] * 2:
        pairs = zip(rest[::2], rest[1::2], strict=True) if len(rest) > 1 else [(rest[0], rest[0])]
        rest = [_folded(builder, *pair, group) for pair in pairs]
    times = _spread(builder, factor, columns)
    mask = _mask(builder, b_rows, columns)
    into = [_masked(builder, _at(builder, C, c, builder.mul(c_row, r)), mask, element) for r in places]
    for r, (before, write) in enumerate(into):
        first = r * columns
        some = ir.Constant(ir.VectorType(ir.IntType(32), columns), [first % lanes + k for k in range(columns)])
        row = builder.shuffle_vector(rest[first // lanes], rest[first // lanes], some)
        write(builder.fadd(before, builder.fmul(times, row, flags=_FUSED), flags=_FUSED))


def _write_rows(builder: Any, given: list[Any], element: Any) -> None:
    from numba.core import cgutils

    C, c, c_row, width, A, a, rows, columns, factor, B, b = given
    lanes = _lanes(element)
    times = _spread(builder, factor, lanes)
    zero = _number(0)
    with cgutils.for_range_slice(builder, zero, width, _number(lanes), zero.type) as (column, _):
        mask, whole = (_mask(builder, builder.sub(end, column), lanes) for end in (columns, width))
        with cgutils.for_range(builder, rows) as loop:
            from_here = builder.add(builder.mul(loop.index, columns), column)
            x, _ = _masked(builder, _at(builder, A, a, from_here), mask, element)
            y, _ = _masked(builder, _at(builder, B, b, from_here), mask, element)
            _, write = _masked(builder, _at(builder, C, c, builder.mul(loop.index, c_row), column), whole, element)
            write(builder.fadd(x, builder.fmul(times, y, flags=_FUSED), flags=_FUSED))


_FUSED = ("contract",)  # a product and a sum are one operation
_WRITERS = _number, _lanes, _vector, _at, _loaded, _stored, _spread, _folded, _mask, _masked, _row


# -- what is written -------------------------------------------------------------------------------------------------


def _tile(C, c, c_row, rows, kept, factor, A, a, a_row, a_next, B, b, b_next, count, width):  # type: ignore[no-untyped-def]
    """C = factor A B, added to C where that is kept."""
    for r in range(min(rows, ROWS)):
        for j in range(width):
            total = sum(A[a + r * a_row + k * a_next] * B[b + k * b_next + j] for k in range(count))
            C[c + r * c_row + j] = factor * total + (C[c + r * c_row + j] if kept else 0)


def _block(C, c, c_row, factor, A, a, a_row, a_rows, B, b, b_row, b_rows, count, rows, columns):  # type: ignore[no-untyped-def]
    """Add a factor times the products of a few rows of A with a few of B to C; count is a multiple of 16."""
    for r in range(min(a_rows, rows)):
        for k in range(min(b_rows, columns)):
            C[c + r * c_row + k] += factor * sum(A[a + r * a_row + j] * B[b + k * b_row + j] for j in range(count))


_narrow, _wide = Tile(_tile, _write_product, 1), Tile(_tile, _write_product, 2)
inner, inner_of_few, inner_of_one = (Tile(_block, _write_inner, *size) for size in ((4, 4), (2, 2), (1, 4)))


def _rows(C, c, c_row, width, A, a, rows, columns, factor, B, b):  # type: ignore[no-untyped-def]
    """C = A + factor B, row by row, with zeros beyond their columns up to a width."""
    for r in range(rows):
        for k in range(width):
            i = r * columns + k
            C[c + r * c_row + k] = A[a + i] + factor * B[b + i] if k < columns else 0


laid = Tile(_rows, _write_rows)


@Part
def product(C, c, c_row, rows, width, kept, factor, A, a, a_row, a_next, B, b, b_next, count):  # type: ignore[no-untyped-def]
    """C = factor A B, added to C where that is kept: rows ``r`` of C from ``c + r c_row`` on, so many columns.

    A is ``(rows, count)`` by steps of ``a_row`` and ``a_next``, B ``(count, width)`` by rows of ``b_next``. Columns are
    rounded up to 16: C is changed there too, by what B holds there.
    """
    for j in range(0, width, 2 * _COLUMNS):
        for r in range(0, rows, ROWS):
            if width - j > _COLUMNS:
                _wide(C, c + r * c_row + j, c_row, rows - r, kept, factor, A, a + r * a_row, a_row, a_next, B, b + j, b_next, count)
            else:
                _narrow(C, c + r * c_row + j, c_row, rows - r, kept, factor, A, a + r * a_row, a_row, a_next, B, b + j, b_next, count)
