"""Products of small matrices, tile by tile, each tile's sums held in the registers.

A compiler fills the registers in long loops, but around short rows it spends more on loads, checks and remainders than
on the arithmetic. So the innermost loops are written in LLVM's own vectors, which become the widest that a processor
has: :func:`product` sums over rows of its second factor, :func:`inner` along them. Tiles are made for 32 registers of
64 bytes; on processors with less they are right too, but gain less.

Matrices lie row by row in arrays of any shape, C-contiguous; a place is a number in them, from which rows follow in
equal steps. Places are not checked. Vectors hold 16 numbers of single precision, or two of them do of double: where a
function says that columns are rounded up to 16, what lies there must be memory of the array.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from oddity.numerics.native import Part, coded

__all__ = ["COLUMNS", "ROWS", "inner", "inner_of_few", "inner_of_one", "laid", "product"]

ROWS = 4  # of a tile
COLUMNS = 16  # of a narrow one, to which others are rounded up
_BYTES = 64  # of a vector


class Tile(Part):
    """A part that is written in LLVM's vectors.

    Parameters
    ----------
    f
        What it does, in Python: arrays, places and numbers, and sizes last.
    write
        Writes it, ``write(builder, arguments, element type, *sizes)``, arrays as pointers.
    *sizes
        Numbers that the code is made for.
    """

    def __init__(self, f: Callable[..., None], write: Callable[..., None], *sizes: int) -> None:
        super().__init__(f)
        self.write, self.sizes = write, sizes

    def __call__(self, *args: Any) -> None:
        """Do it in Python."""
        self.f(*args, *self.sizes)

    def told(self) -> list[Any]:
        """See :class:`~oddity.numerics.native.Part`."""
        return [*super().told(), self.sizes, *(coded(f) for f in (self.write, *_HELPERS, Tile.compiled))]

    def compiled(self) -> Any:
        """See :class:`~oddity.numerics.native.Part`."""
        from numba.core import types
        from numba.core.errors import TypingError
        from numba.extending import intrinsic
        from numba.np.arrayobj import make_array

        def typed(_context, *args):  # type: ignore[no-untyped-def]
            arrays = [x for x in args if isinstance(x, types.Array)]
            dtype = arrays[0].dtype
            if dtype not in (types.float32, types.float64) or any(x.dtype != dtype or x.layout != "C" for x in arrays):
                raise TypingError(f"a tile needs contiguous arrays of one floating dtype, not {arrays}")
            numbers = [dtype if isinstance(x, types.Float) else types.int64 for x in args]
            kept = [isinstance(x, types.Array | types.Boolean) for x in args]
            kinds = [x if keep else number for x, keep, number in zip(args, kept, numbers, strict=True)]

            def written(context, builder, signature, values):  # type: ignore[no-untyped-def]
                given = [
                    make_array(kind)(context, builder, value).data if isinstance(kind, types.Array) else value
                    for kind, value in zip(signature.args, values, strict=True)
                ]
                self.write(builder, given, context.get_data_type(dtype), *self.sizes)
                return context.get_dummy_value()

            return types.void(*kinds), written

        own = list(inspect.signature(self.f).parameters.values())
        context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        typed.__signature__ = inspect.Signature([context, *own[: len(own) - len(self.sizes)]])  # type: ignore[attr-defined]
        return intrinsic(typed)


# -- what tiles do ---------------------------------------------------------------------------------------------------


@Part
def product(C, c, c_row, rows, width, kept, factor, A, a, a_row, a_next, B, b, b_next, count):  # type: ignore[no-untyped-def]
    """C = factor A B, added to C where that is kept.

    C ``(rows, width)`` has rows from ``c`` on every ``c_row``, B ``(count, width)`` from ``b`` on every ``b_next``; A
    ``(rows, count)`` goes in steps of ``a_row`` and ``a_next``. Columns are rounded up to 16, in B and in C, where they
    are written too. C may be B if neither has more than four rows.
    """
    for j in range(0, width, 2 * COLUMNS):  # a panel of B stays in the nearest cache
        for r in range(0, rows, ROWS):
            into, left, rest = c + r * c_row + j, a + r * a_row, rows - r
            if width - j > COLUMNS:
                _wide(C, into, c_row, rest, kept, factor, A, left, a_row, a_next, B, b + j, b_next, count)
            else:
                _narrow(C, into, c_row, rest, kept, factor, A, left, a_row, a_next, B, b + j, b_next, count)


def _strip(C, c, c_row, rows, kept, factor, A, a, a_row, a_next, B, b, b_next, count, chunks):  # type: ignore[no-untyped-def]
    """Up to four rows and one or two chunks of 16 columns of a product."""
    for r in range(min(rows, ROWS)):
        for j in range(chunks * COLUMNS):
            total = sum(A[a + r * a_row + k * a_next] * B[b + k * b_next + j] for k in range(count))
            C[c + r * c_row + j] = factor * total + (C[c + r * c_row + j] if kept else 0)


def _block(C, c, c_row, factor, A, a, a_row, a_rows, B, b, b_row, b_rows, count, rows, columns):  # type: ignore[no-untyped-def]
    """Add a factor times the products of the first few rows of A with those of B to C.

    They are ``count`` long, rounded up to a whole vector, 16 or 8 numbers: behind a shorter row of A or B have to be
    zeros, and finite numbers behind the other's.
    """
    for r in range(min(a_rows, rows)):
        for k in range(min(b_rows, columns)):
            C[c + r * c_row + k] += factor * sum(A[a + r * a_row + j] * B[b + k * b_row + j] for j in range(count))


def _rows(C, c, c_row, width, A, a, rows, columns, factor, B, b):  # type: ignore[no-untyped-def]
    """C = A + factor B, or A where the factor is zero, row by row, with zeros beyond their columns up to a width."""
    for r in range(rows):
        for k in range(width):
            i = r * columns + k
            C[c + r * c_row + k] = (A[a + i] + (factor * B[b + i] if factor else 0)) if k < columns else 0


# -- writing them ----------------------------------------------------------------------------------------------------


def _write_strip(builder: Any, given: list[Any], element: Any, chunks: int) -> None:
    from numba.core import cgutils

    C, c, c_row, rows, kept, factor, A, a, a_row, a_next, B, b, b_next, count = given
    lanes = _lanes(element)
    parts, numbers = range(0, chunks * COLUMNS, lanes), [_row(builder, rows, r) for r in range(ROWS)]
    sums = [[_sum(builder, element) for _ in parts] for _ in numbers]
    left = [_at(builder, A, a, builder.mul(a_row, r)) for r in numbers]
    right = _at(builder, B, b)
    with cgutils.for_range(builder, count) as loop:
        further = builder.mul(loop.index, b_next)
        vectors = [_loaded(builder, _at(builder, right, further, part), element) for part in parts]
        for place, row in zip(left, sums, strict=True):
            x = _spread(builder, builder.load(_at(builder, place, builder.mul(loop.index, a_next))), lanes)
            for total, vector in zip(row, vectors, strict=True):
                builder.store(_fused(builder, x, vector, builder.load(total)), total)
    times = _spread(builder, factor, lanes)
    into = [[_at(builder, C, c, builder.mul(c_row, r), part) for part in parts] for r in numbers]
    with builder.if_else(kept) as (added, fresh):
        with added:  # all is read before any is written: the last row may stand for others
            before = [[_loaded(builder, place, element) for place in row] for row in into]
            for r in range(ROWS):
                for old, place, total in zip(before[r], into[r], sums[r], strict=True):
                    _stored(builder, _fused(builder, times, builder.load(total), old), place, element)
        with fresh:
            for row, totals in zip(into, sums, strict=True):
                for place, total in zip(row, totals, strict=True):
                    _stored(builder, builder.fmul(times, builder.load(total)), place, element)


def _write_block(builder: Any, given: list[Any], element: Any, rows: int, columns: int) -> None:
    from llvmlite import ir
    from numba.core import cgutils

    C, c, c_row, factor, A, a, a_row, a_rows, B, b, b_row, b_rows, count = given
    lanes = _lanes(element)
    sums = [_sum(builder, element) for _ in range(rows * columns)]
    numbers = [_row(builder, a_rows, r) for r in range(rows)]
    left = [_at(builder, A, a, builder.mul(a_row, r)) for r in numbers]
    right = [_at(builder, B, b, builder.mul(b_row, _row(builder, b_rows, k))) for k in range(columns)]
    with cgutils.for_range_slice(builder, _number(0), count, _number(lanes), _number(0).type) as (index, _):
        vectors = [_loaded(builder, _at(builder, place, index), element) for place in right]
        for r, place in enumerate(left):
            row = _loaded(builder, _at(builder, place, index), element)
            for k, vector in enumerate(vectors):
                total = sums[r * columns + k]
                builder.store(_fused(builder, row, vector, builder.load(total)), total)
    rest, quarter = [builder.load(total) for total in sums], lanes // 4
    for group in [1] * (quarter.bit_length() - 1) + [quarter] * 2:  # all vectors are summed up at once
        pairs = zip(rest[::2], rest[1::2], strict=True) if len(rest) > 1 else [(rest[0], rest[0])]
        rest = [_folded(builder, *pair, group) for pair in pairs]
    times, mask = _spread(builder, factor, columns), _mask(builder, b_rows, columns)
    into = [_masked(builder, _at(builder, C, c, builder.mul(c_row, r)), mask, element) for r in numbers]
    for r, (before, write) in enumerate(into):
        first = r * columns
        some = ir.Constant(ir.VectorType(ir.IntType(32), columns), [first % lanes + k for k in range(columns)])
        row = builder.shuffle_vector(rest[first // lanes], rest[first // lanes], some)
        write(_fused(builder, times, row, before))


def _write_rows(builder: Any, given: list[Any], element: Any) -> None:
    from llvmlite import ir
    from numba.core import cgutils

    C, c, c_row, width, A, a, rows, columns, factor, B, b = given
    lanes, zero = _lanes(element), _number(0)
    times = _spread(builder, factor, lanes)
    nothing = builder.fcmp_ordered("==", factor, ir.Constant(element, 0.0))
    added = builder.select(nothing, zero, columns)  # zero times what is not finite is not zero
    with cgutils.for_range_slice(builder, zero, width, _number(lanes), zero.type) as (column, _):
        some, asked, whole = (_mask(builder, builder.sub(end, column), lanes) for end in (columns, added, width))
        with cgutils.for_range(builder, rows) as loop:
            further = builder.add(builder.mul(loop.index, columns), column)
            x, _ = _masked(builder, _at(builder, A, a, further), some, element)
            y, _ = _masked(builder, _at(builder, B, b, further), asked, element)
            _, write = _masked(builder, _at(builder, C, c, builder.mul(loop.index, c_row), column), whole, element)
            write(_fused(builder, times, y, x))


def _number(value: int) -> Any:
    from llvmlite import ir

    return ir.Constant(ir.IntType(64), value)


def _lanes(element: Any) -> int:
    from llvmlite import ir

    return _BYTES // (4 if isinstance(element, ir.FloatType) else 8)


def _at(builder: Any, pointer: Any, *steps: Any) -> Any:
    """The address so many numbers further."""
    for step in steps:
        pointer = builder.gep(pointer, [_number(step) if isinstance(step, int) else step])
    return pointer


def _row(builder: Any, rows: Any, r: int) -> Any:
    """The number of a row, or of the last where there are no more: it is made twice, to the same end."""
    last = builder.sub(rows, _number(1))
    return builder.select(builder.icmp_signed("<", _number(r), last), _number(r), last)


def _sum(builder: Any, element: Any) -> Any:
    """A vector of zeros to add to."""
    from llvmlite import ir
    from numba.core import cgutils

    zeros = ir.Constant(ir.VectorType(element, _lanes(element)), [0.0] * _lanes(element))
    place = cgutils.alloca_once(builder, zeros.type)
    builder.store(zeros, place)  # here, not at the entry of the function: it is one of many in a loop
    return place


def _loaded(builder: Any, pointer: Any, element: Any) -> Any:
    from llvmlite import ir

    place = builder.bitcast(pointer, ir.VectorType(element, _lanes(element)).as_pointer())
    return builder.load(place, align=_BYTES // _lanes(element))


def _stored(builder: Any, value: Any, pointer: Any, element: Any) -> None:
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=_BYTES // _lanes(element))


def _spread(builder: Any, value: Any, lanes: int) -> Any:
    """A vector of one number."""
    from llvmlite import ir

    none = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    one = builder.insert_element(none, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, none, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes))


def _fused(builder: Any, x: Any, y: Any, z: Any) -> Any:
    """Multiply two and add a third, rounding once where the processor can."""
    return builder.fadd(z, builder.fmul(x, y, flags=("contract",)), flags=("contract",))


def _folded(builder: Any, x: Any, y: Any, group: int) -> Any:
    """Sums of neighbouring groups of numbers, those of x before those of y: in each quarter of a vector, or in all.

    A shuffle within quarters, or of whole quarters, is one instruction.
    """
    from llvmlite import ir

    lanes = x.type.count
    within = lanes // 4 if group < lanes // 4 else lanes
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


_HELPERS = _number, _lanes, _at, _row, _sum, _loaded, _stored, _spread, _fused, _folded, _mask, _masked

_narrow, _wide = Tile(_strip, _write_strip, 1), Tile(_strip, _write_strip, 2)
inner, inner_of_few, inner_of_one = (Tile(_block, _write_block, *size) for size in ((4, 4), (2, 2), (1, 4)))
laid = Tile(_rows, _write_rows)
