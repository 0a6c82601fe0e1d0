"""Chains under layered functions: the energy and its model, node by node in compiled loops.

A layered function is a row of stages, each a linear map and an activation of each of its outputs. What it leaves of a
chain is small: the activations at the nodes, from which their slopes follow. Frames are many times larger, and here
they never leave a processor's nearest cache: each is made, multiplied with those of the two nodes before it, and
forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from oddity.numerics.native import Kernel, Part
from oddity.numerics.stages import ACTIVATIONS, SOFTPLUS_THRESHOLD, Stage
from oddity.numerics.tiles import COLUMNS, ROWS, inner, inner_of_few, inner_of_one, product

__all__ = [
    "LayeredProgram",
    "coupled_in_layers",
    "derive_in_layers",
    "energy_in_layers",
    "nothing",
    "program_of",
    "room_in_layers",
    "slope_of",
    "squares_in_layers",
]

_NONE, _TANH, _SIGMOID, _SOFTPLUS, _ROOT, _BUMP, _DEPTH, _INVERSE = range(len(ACTIVATIONS))


class LayeredProgram(NamedTuple):
    """Layered functions of the same point, side by side, as the loops read them."""

    matrices: Tensor  # (total,)   of all stages, one after another, row by row
    units: Tensor  # (3, S)   bias, rate and scale of each output of each stage
    table: Tensor  # (stages, 6)   width before and own, where the matrix and the units begin, activation, place

    def plus(self, other: LayeredProgram) -> LayeredProgram:
        """The functions of both."""
        table = other.table.clone()
        table[:, 2] += len(self.matrices)
        table[:, 3] += self.units.shape[1]
        parts = zip(self, (*other[:2], table), (0, 1, 0), strict=True)
        return LayeredProgram(*(torch.cat([x, y], dim) for x, y, dim in parts))

    def times(self, factor: float) -> LayeredProgram:
        """The functions whose metric is a multiple of this one's."""
        units = self.units.clone()
        for _, width, _, start, _, place in self.table.tolist():
            if place & _LAST:
                units[2, start : start + width] *= factor**0.5
        return self._replace(units=units)

    def thinned(self, most: int) -> LayeredProgram:
        """The same functions, with about as many of the outputs of each, evenly taken, as are given."""
        matrices, units, table, start, unit = [], [], [], 0, 0
        for before, width, at, first, code, place in self.table.tolist():
            few = -(-most // COLUMNS) * COLUMNS
            count = few if place & _LAST and few < width else width
            kept = torch.linspace(0, width - 1, count, device="cpu").long()
            matrices.append(self.matrices[at : at + before * width].reshape(before, width)[:, kept].flatten())
            units.append(self.units[:, first : first + width][:, kept])
            table.append((before, count, start, unit, code, place))
            start, unit = start + before * count, unit + count
        return LayeredProgram(torch.cat(matrices), torch.cat(units, 1), torch.tensor(table, device="cpu"))

    def fits(self, c: Tensor) -> bool:
        """Whether it can be asked at chains ``(B, n+1, d)``."""
        inputs = self.table[(self.table[:, 5] & _FIRST) > 0, 0]
        return c.dtype == self.matrices.dtype and bool((inputs == c.shape[-1]).all())

    def seconds(self, n: int, d: int) -> float:
        """Roughly what a model of a chain of n segments takes."""
        return 2e-11 * n * d * len(self.matrices)


_ROWS = 2 * ROWS + 1  # in the room, that are made use of for a while
_FIRST, _LAST = 1, 2  # of a function, in the column of places


def program_of(stages: Sequence[Stage]) -> LayeredProgram:
    """The program of one function."""
    kinds = [stage.activation for stage in stages]
    assert "bump" not in kinds[1:], "bumps come first"
    assert kinds[-1] != "bump", "a further stage adds bumps up"
    assert all(stage.scale is None for stage in stages[:-1]), "of the last stage only"
    matrices, units, table, start, unit = [], [], [], 0, 0
    before = stages[0].matrix.shape[0]
    for i, stage in enumerate(stages):
        (k, m), like = stage.matrix.shape, stage.matrix
        width = -(-m // COLUMNS) * COLUMNS  # filled up with zeros
        matrices.append(torch.nn.functional.pad(stage.matrix, (0, width - m, 0, before - k)).flatten())
        own = like.new_zeros(3, width)
        own[0] = _FILLED.get(stage.activation, 0.0)
        own[0, :m] = 0.0 if stage.bias is None else stage.bias
        own[1] = 1
        own[1, :m] = stage.rate
        own[2, :m] = 1.0 if stage.scale is None else stage.scale
        units.append(own)
        place = _FIRST * (i == 0) + _LAST * (i == len(stages) - 1)
        table.append((before, width, start, unit, ACTIVATIONS.index(stage.activation), place))
        before, start, unit = width, start + before * width, unit + width
    return LayeredProgram(torch.cat(matrices), torch.cat(units, 1), torch.tensor(table, device="cpu"))


def nothing(like: Tensor) -> LayeredProgram:
    """No function at all."""
    return LayeredProgram(like.new_zeros(0), like.new_zeros(3, 0), torch.zeros(0, 6, dtype=torch.long, device="cpu"))


_FILLED = {"root": 1.0, "depth": 1.0, "inverse": 1.0}  # where units are filled up, their activation must be finite


@Part
def coupled_in_layers(_program):  # type: ignore[no-untyped-def]
    """Whether blocks beside the diagonal bend: the value at a node depends on no other."""
    return False


@Part
def room_in_layers(program, c):  # type: ignore[no-untyped-def]
    """Room for what is made of a chain: activations ``(n+1, S)``, frames, two of the first or widest stage, rows.

    Frames are rows one after another: ``(d, width)`` of each stage of one function but its last, then at three nodes
    ``(d, total)`` of the last stages of all functions, side by side.
    """
    _, units, table = program
    nodes, d = c.shape[1], c.shape[2]
    most, widest, first, inner_stages = 0, 0, 0, 0
    for s in range(len(table)):
        width = table[s, 1]
        widest = max(widest, width)
        if table[s, 5] & _FIRST:
            inner_stages, first = 0, max(first, width)
        if not table[s, 5] & _LAST:
            inner_stages += width
        most = max(most, inner_stages)
    y, frames = np.empty((nodes, units.shape[1]), c.dtype), np.empty(d * (most + 3 * _outputs(table)), c.dtype)
    turned, away = np.empty(d * widest, c.dtype), np.empty(d * first, c.dtype)
    return y, frames, turned, away, np.empty((_ROWS, widest), c.dtype)


@Part
def _outputs(table):  # type: ignore[no-untyped-def]
    """Those of all functions together."""
    total = 0
    for s in range(len(table)):
        if table[s, 5] & _LAST:
            total += table[s, 1]
    return total


@Part
def _exponentials(t, f, p):  # type: ignore[no-untyped-def]
    """e^t = f (1 + p) for each of a row, f a power of two, so that f p + (f - 1) is e^t - 1 to all digits.

    By Taylor's series. Library functions would be called number by number; this fills the registers.
    """
    number = t.dtype.type
    log2e, ln2, one = number(1.4426950408889634), number(0.6931471805599453), number(1)
    if t.itemsize == 4:
        bits = f.view(np.int32)
        low, high = number(-87), number(88)
        for j in range(len(t)):
            x = low if t[j] < low else (high if t[j] > high else t[j])  # NaN stays
            k = np.rint(x * log2e)
            r = x - k * ln2
            q = number(1 / 120) + r * (number(1 / 720) + r * number(1 / 5040))
            p[j] = r * (one + r * (number(1 / 2) + r * (number(1 / 6) + r * (number(1 / 24) + r * q))))
            bits[j] = (np.int32(k) + 127) << 23
    else:
        whole = f.view(np.int64)
        low, high = number(-708), number(709)
        for j in range(len(t)):
            x = low if t[j] < low else (high if t[j] > high else t[j])
            k = np.rint(x * log2e)
            r = x - k * ln2
            q = number(1 / 479001600) + r * (number(1 / 6227020800) + r * number(1 / 87178291200))
            q = number(1 / 362880) + r * (number(1 / 3628800) + r * (number(1 / 39916800) + r * q))
            q = number(1 / 720) + r * (number(1 / 5040) + r * (number(1 / 40320) + r * q))
            q = number(1 / 6) + r * (number(1 / 24) + r * (number(1 / 120) + r * q))
            p[j] = r * (one + r * (number(1 / 2) + r * q))
            whole[j] = (np.int64(k) + 1023) << 52


@Part
def _activated(code, x, rate, rows):  # type: ignore[no-untyped-def]
    """The activation of a row, in place; rows are room for three more."""
    zero, one, two = x.dtype.type(0), x.dtype.type(1), x.dtype.type(2)
    t, f, p = rows[0, : len(x)], rows[1, : len(x)], rows[2, : len(x)]
    if code == _TANH:
        for j in range(len(x)):
            t[j] = -two * abs(x[j])
        _exponentials(t, f, p)
        for j in range(len(x)):
            less = f[j] * p[j] + (f[j] - one)  # e^(-2 |x|) - 1
            y = -less / (two + less)
            x[j] = -y if x[j] < 0 else y
    elif code == _SIGMOID:
        for j in range(len(x)):
            t[j] = -x[j]
        _exponentials(t, f, p)
        for j in range(len(x)):
            x[j] = one / (one + (f[j] + f[j] * p[j]))
    elif code == _SOFTPLUS:
        for j in range(len(x)):
            u = x[j] * rate[j]
            x[j] = x[j] if u > SOFTPLUS_THRESHOLD else (max(u, zero) + np.log1p(np.exp(-abs(u)))) / rate[j]
    elif code == _ROOT:
        for j in range(len(x)):
            x[j] = one / np.sqrt(x[j])
    elif code == _DEPTH:
        for j in range(len(x)):
            x[j] = -np.log(x[j])
    elif code == _INVERSE:
        for j in range(len(x)):
            x[j] = one / x[j]
    elif code == _BUMP:
        most = x.dtype.type(_largest_exponent(x.itemsize))
        for j in range(len(x)):
            exponent = rate[j] * x[j]
            t[j] = -most if exponent > most else -exponent
        _exponentials(t, f, p)
        for j in range(len(x)):
            x[j] = f[j] + f[j] * p[j]


@Part
def _slopes(code, y, rate, slope):  # type: ignore[no-untyped-def]
    """First derivatives of an activation, by its values."""
    zero, one, half, two = y.dtype.type(0), y.dtype.type(1), y.dtype.type(0.5), y.dtype.type(2)
    if code == _NONE:
        for j in range(len(y)):
            slope[j] = one
    elif code == _TANH:
        for j in range(len(y)):
            slope[j] = one - y[j] * y[j]
    elif code == _SIGMOID:
        for j in range(len(y)):
            slope[j] = y[j] * (one - y[j])
    elif code == _SOFTPLUS:
        for j in range(len(y)):
            slope[j] = -np.expm1(-rate[j] * y[j])
    elif code == _ROOT:
        for j in range(len(y)):
            slope[j] = -half * y[j] * y[j] * y[j]
    elif code == _DEPTH:
        for j in range(len(y)):
            slope[j] = -np.exp(y[j])
    elif code == _INVERSE:
        for j in range(len(y)):
            slope[j] = -y[j] * y[j]
    else:
        least = y.dtype.type(1.0001 * np.exp(-_largest_exponent(y.itemsize)))
        for j in range(len(y)):
            slope[j] = -two * rate[j] * y[j] if y[j] > least else zero


@Part
def _curves(code, y, rate, slope, tiny, curve):  # type: ignore[no-untyped-def]
    """Second derivatives of an activation over the square of the first; of a bump, themselves.

    Where the first underflows, so does all that is multiplied with this, which has to be finite only.
    """
    zero, one, two, three = y.dtype.type(0), y.dtype.type(1), y.dtype.type(2), y.dtype.type(3)
    if code == _NONE:
        for j in range(len(y)):
            curve[j] = zero
    elif code == _TANH:
        for j in range(len(y)):
            curve[j] = -two * y[j] / max(slope[j], tiny)
    elif code == _SIGMOID:
        for j in range(len(y)):
            curve[j] = (one - two * y[j]) / max(slope[j], tiny)
    elif code == _SOFTPLUS:
        for j in range(len(y)):
            curve[j] = rate[j] * (one - slope[j]) / max(slope[j], tiny)
    elif code == _ROOT:
        for j in range(len(y)):
            curve[j] = three / y[j]
    elif code == _DEPTH:
        for j in range(len(y)):
            curve[j] = one
    elif code == _INVERSE:
        for j in range(len(y)):
            curve[j] = two / y[j]
    else:
        for j in range(len(y)):
            curve[j] = -two * rate[j] * slope[j]


@Part
def _run(program, z, y, rows):  # type: ignore[no-untyped-def]
    """The activations ``(N, S)`` at points ``(N, d)``, stage by stage."""
    matrices, units, table = program
    N, total, one = len(z), y.shape[1], y.dtype.type(1)
    for s in range(len(table)):
        before, width, start, unit, code, place = table[s]
        bias, rate = units[0, unit : unit + width], units[1, unit : unit + width]
        for i in range(N):
            x = y[i, unit : unit + width]
            for j in range(width):
                x[j] = bias[j]
            if code == _BUMP:
                for a in range(before):
                    at, row = z[i, a], matrices[start + a * width : start + (a + 1) * width]
                    for j in range(width):
                        x[j] += (at - row[j]) * (at - row[j])
        if code != _BUMP and place & _FIRST:
            product(y, unit, total, N, width, True, one, z, 0, before, 1, matrices, start, width, before)
        elif code != _BUMP:
            product(y, unit, total, N, width, True, one, y, unit - before, total, 1, matrices, start, width, before)
        for i in range(N):
            _activated(code, y[i, unit : unit + width], rate, rows)


@Part
def energy_in_layers(program, c, widths, _exact, work):  # type: ignore[no-untyped-def]
    """The energy of fourth order of one chain ``(n+1, d)``; the activations at its nodes stay in the room."""
    _, units, table = program
    n, number, y = len(widths), c.dtype.type, work[0]
    _run(program, c, y, work[4])
    total = number(0)
    for s in range(len(table)):
        if not table[s, 5] & _LAST:
            continue
        width, unit = table[s, 1], table[s, 3]
        scale = units[2, unit : unit + width]
        for i in range(1, n, 2):
            p, q, r = y[i - 1, unit : unit + width], y[i, unit : unit + width], y[i + 1, unit : unit + width]
            one, two, both = number(0), number(0), number(0)
            for j in range(width):
                u, v = scale[j] * (q[j] - p[j]), scale[j] * (r[j] - q[j])
                one += u * u
                two += v * v
                both += (u + v) * (u + v)
            first, second = widths[i - 1], widths[i]
            total += one / first + two / second - number(0.25) * both / (first + second)
    return number(2 / 3) * total


@Kernel
def _squared(c, squares, strides, program):  # type: ignore[no-untyped-def]
    """Squares of the steps over every so many nodes of chains, one stride after another."""
    _, units, table = program
    nodes, number = c.shape[1], c.dtype.type
    y, rows = np.empty((nodes, units.shape[1]), c.dtype), np.empty((_ROWS, units.shape[1]), c.dtype)
    for b in range(len(c)):
        _run(program, c[b], y, rows)
        begin = 0
        for stride in strides:
            steps = (nodes - 1) // stride
            for i in range(steps):
                total = number(0)
                for s in range(len(table)):
                    width, unit = table[s, 1], table[s, 3]
                    if table[s, 5] & _LAST:
                        p, q = y[i * stride, unit : unit + width], y[(i + 1) * stride, unit : unit + width]
                        scale = units[2, unit : unit + width]
                        for j in range(width):
                            r = scale[j] * (q[j] - p[j])
                            total += r * r
                squares[b, begin + i] = total
            begin += steps


def squares_in_layers(program: LayeredProgram, c: Tensor, strides: Sequence[int]) -> list[Tensor]:
    """Squared lengths of the steps over every s-th node of chains, for each stride s: ``(B, n+1, d) -> (B, n/s)``."""
    sizes = [(c.shape[1] - 1) // stride for stride in strides]
    squares = c.new_empty(len(c), sum(sizes))
    seconds = 1e-11 * c.shape[1] * len(program.matrices)
    _squared(c, out=(squares,), shared=(tuple(strides), tuple(program)), seconds=seconds)
    return list(squares.split(sizes, 1))


@Part
def _multiplied(left, p, left_row, right, q, right_row, m, factor, symmetric, into):  # type: ignore[no-untyped-def]
    """Add a factor times the products of two frames ``(d, m)`` to a block; of a symmetric one the upper half."""
    d = len(into)
    for r in range(0, d, ROWS):
        for c in range(r if symmetric else 0, d, ROWS):
            x, y, place = p + r * left_row, q + c * right_row, r * d + c
            if d > 2:
                inner(into, place, d, factor, left, x, left_row, d - r, right, y, right_row, d - c, m)
            else:
                inner_of_few(into, place, d, factor, left, x, left_row, d - r, right, y, right_row, d - c, m)


@Part
def _weighted(y, i, unit, scale, widths, w):  # type: ignore[no-untyped-def]
    """The derivative of the energy by a function's values at inner node i."""
    width, number = len(w), y.dtype.type
    before, here, after = y[i - 1, unit : unit + width], y[i, unit : unit + width], y[i + 1, unit : unit + width]
    s, t = number(4 / 3) / widths[i - 1], number(4 / 3) / widths[i]
    if i % 2:
        for j in range(width):
            w[j] = scale[j] * (s * (here[j] - before[j]) - t * (after[j] - here[j]))
        return
    first, last = y[i - 2, unit : unit + width], y[i + 2, unit : unit + width]
    u = number(1 / 3) / (widths[i - 2] + widths[i - 1])
    v = number(1 / 3) / (widths[i] + widths[i + 1])
    for j in range(width):
        x = here[j]
        single = s * (x - before[j]) - t * (after[j] - x)
        w[j] = scale[j] * (single - u * (x - first[j]) + v * (last[j] - x))


@Part
def derive_in_layers(program, c, widths, exact, work, k, model):  # type: ignore[no-untyped-def]
    """The rest of the model of a chain whose activations are in the room: the k-th of some models.

    Only diagonal blocks bend.
    """
    gradient, diagonal, upper, skip, bend, _, _ = model
    gradient[k] = 0
    diagonal[k] = 0
    upper[k] = 0
    skip[k] = 0
    if exact:
        bend[k] = 0
    _derived(program, c, widths, exact, work, gradient[k], diagonal[k], upper[k], skip[k], bend[k])
    for i in range(diagonal.shape[1]):
        for r in range(c.shape[1]):
            for a in range(r):
                diagonal[k, i, r, a] = diagonal[k, i, a, r]
                if exact:
                    bend[k, i, r, a] = bend[k, i, a, r]


@Part
def _derived(program, c, widths, exact, work, gradient, diagonal, upper, skip, bend):  # type: ignore[no-untyped-def]
    """Node after node; of symmetric blocks the upper half."""
    _, units, table = program
    values, frames, _, away, rows = work
    n, d, number = len(widths), c.shape[1], c.dtype.type
    total = _outputs(table)
    places = len(frames) - 3 * d * total
    for i in range(1, n):
        here = places + i % 3 * d * total
        begin, column, whole = np.int64(0), here, np.int64(0)  # whole: where the frames before the last one end
        for final in range(len(table)):
            if not table[final, 5] & _LAST:
                whole += d * table[final, 1]
                continue
            end, unit = table[final, 1], table[final, 3]
            _framed(program, begin, final, c[i], values[i], frames, column, total, away, rows[1])
            _weighted(values, i, unit, units[2, unit : unit + end], widths, rows[0, :end])
            for a in range(0, d, ROWS):
                row, into = column + a * total, (i - 1) * d + a
                inner_of_one(gradient, into, 0, number(1), rows, 0, 0, 1, frames, row, total, d - a, end)
            if exact:
                _bent(program, begin, final, values[i], work, whole, column, total, bend[i - 1])
            begin, column, whole = np.int64(final + 1), column + end, np.int64(0)
        s, t = number(4 / 3) / widths[i - 1], number(4 / 3) / widths[i]
        mass, loose = s + t, number(0)
        if i % 2 == 0:
            loose = number(1 / 3) / (widths[i - 2] + widths[i - 1])
            mass -= loose + number(1 / 3) / (widths[i] + widths[i + 1])
        for back in range(3):  # with its own frame, that of the node before, and of the one before that
            if back == 0:
                factor, into = mass, diagonal[i - 1]
            elif back == 1 and i > 1:
                factor, into = -s, upper[i - 2]
            elif back == 2 and i > 2 and i % 2 == 0:
                factor, into = loose, skip[i // 2 - 2]
            else:
                continue
            there = places + (i - back) % 3 * d * total
            _multiplied(frames, there, total, frames, here, total, total, factor, back == 0, into)


@Part
def _framed(program, begin, final, z, y, frames, here, total, away, slope):  # type: ignore[no-untyped-def]
    """The frames of the stages of a function at a point z with activations y.

    That of the last has a place of its own, and rows as long as those of all functions together. Of a first stage of
    bumps, the differences from the centres are left in ``away``.
    """
    matrices, units, table = program
    d = len(z)
    p = q = np.int64(0)  # where the frames of this stage and of the one before begin
    for s in range(begin, final + 1):
        before, width, start, u, code = table[s, 0], table[s, 1], table[s, 2], table[s, 3], table[s, 4]
        step = width
        if s == final:
            p, step = here, total
        if s > begin:
            one = frames.dtype.type(1)
            product(frames, p, step, d, width, False, one, frames, q, before, 1, matrices, start, width, before)
        _slopes(code, y[u : u + width], units[1, u : u + width], slope[:width])
        if s == final:
            for j in range(width):
                slope[j] *= units[2, u + j]
        for a in range(d):
            row = frames[p + a * step : p + a * step + width]
            if s == begin:
                first = matrices[start + a * width : start + (a + 1) * width]
                for j in range(width):
                    row[j] = first[j]
            if code == _BUMP:
                for j in range(width):
                    row[j] = away[a * width + j] = z[a] - row[j]
            for j in range(width):
                row[j] *= slope[j]
        q, p = p, p + d * width


@Part
def _bent(program, begin, final, y, work, whole, here, total, bend):  # type: ignore[no-untyped-def]
    """Add the Hessian of <w, f> at one node, w in the first row, its frames in their places; the upper half.

    For each stage P' diag(w s'') P with P the frame of x, or Q' diag(w s'' / s'^2) Q with Q = s' P that of y.
    """
    matrices, units, table = program
    _, frames, turned, away, rows = work
    d, number = len(bend), bend.dtype.type
    tiny = number(1e-19 if bend.itemsize == 4 else 1e-154)  # the root of the least normal number
    w, slope, curve, other, p, origin = rows[0], rows[1], rows[2], rows[3], here, np.int64(0)
    for s in range(final, begin - 1, -1):
        before, width, start, u, code = table[s, 0], table[s, 1], table[s, 2], table[s, 3], table[s, 4]
        p = here if s == final else (whole if s == final - 1 else p) - d * width
        value, rate = y[u : u + width], units[1, u : u + width]
        _slopes(code, value, rate, slope[:width])
        if code != _NONE:
            _curves(code, value, rate, slope[:width], tiny, curve)
            for j in range(width):
                curve[j] *= w[j]
                if s == final:
                    curve[j] /= max(units[2, u + j], tiny)
            plain, q = (away, origin) if code == _BUMP else (frames, p)
            step = total if s == final else width
            for a in range(d):
                x, turn = plain[q + a * step : q + a * step + width], turned[a * width : (a + 1) * width]
                for j in range(width):
                    turn[j] = x[j] * curve[j]
            _multiplied(turned, origin, width, plain, q, step, width, number(1), True, bend)
        for j in range(width):
            w[j] *= slope[j]
            if s == final:
                w[j] *= units[2, u + j]
        if code == _BUMP:
            weight = number(0)
            for j in range(width):
                weight += w[j]
            for a in range(d):
                bend[a, a] += weight
        if s > begin:
            for k in range(before):
                other[k] = 0
            for k in range(0, before, ROWS):
                inner_of_one(other, k, 0, number(1), w, 0, 0, 1, matrices, start + k * width, width, before - k, width)
            w, other = other, w


@Part
def slope_of(program, c, widths, work, gradient):  # type: ignore[no-untyped-def]
    """The gradient alone ``(n-1, d)`` of a chain whose activations are in the room: added to what is given.

    Adjoints of some nodes at a time go back through the stages, and no frames are made: a fraction of the work in many
    dimensions.
    """
    _, units, table = program
    values, _, _, _, rows = work
    for final in range(len(table)):
        if table[final, 5] & _LAST:
            width, u = table[final, 1], table[final, 3]
            for i in range(1, len(widths), ROWS):
                for k in range(min(ROWS, len(widths) - i)):
                    _weighted(values, i + k, u, units[2, u : u + width], widths, rows[k, :width])
                _pulled(program, final, c, values, i, rows, gradient)


@Part
def _pulled(program, final, c, values, first, rows, gradient):  # type: ignore[no-untyped-def]
    """Add J'w of a function at a few inner nodes from the first on, w in the first rows."""
    matrices, units, table = program
    some, length, d, s = min(ROWS, len(gradient) + 1 - first), rows.shape[1], c.shape[1], final
    w, other, slope, one = rows[:ROWS], rows[ROWS : 2 * ROWS], rows[2 * ROWS], rows.dtype.type(1)
    scale = units[2, table[final, 3] : table[final, 3] + table[final, 1]]
    for i in range(some):
        for j in range(len(scale)):
            w[i, j] *= scale[j]
    while True:
        before, width, start, u, code, place = table[s]
        for i in range(some):
            _slopes(code, values[first + i, u : u + width], units[1, u : u + width], slope[:width])
            for j in range(width):
                w[i, j] *= slope[j]
        if place & _FIRST:
            break
        for i in range(some):
            for k in range(before):
                other[i, k] = 0
        for k in range(0, before, ROWS):
            inner(other, k, length, one, w, 0, length, some, matrices, start + k * width, width, before - k, width)
        w, other = other, w
        s -= 1
    if code == _BUMP:
        for i in range(some):
            for a in range(d):
                row, total = matrices[start + a * width : start + (a + 1) * width], w.dtype.type(0)
                for j in range(width):
                    total += (c[first + i, a] - row[j]) * w[i, j]
                gradient[first - 1 + i, a] += total
        return
    for a in range(0, d, ROWS):
        into, from_here = (first - 1) * d + a, start + a * width
        inner(gradient, into, d, one, w, 0, length, some, matrices, from_here, width, d - a, width)


@Part
def _largest_exponent(size):  # type: ignore[no-untyped-def]
    """:func:`~oddity.numerics.stages.largest_exponent` of numbers of 4 or 8 bytes."""
    return 0.45 * (87.3365447505531 if size == 4 else 708.3964185322641)
