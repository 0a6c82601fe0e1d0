"""One contract for every function that a user gives: points come as rows, and the shape of what it returns is checked.

A scale, a matrix field, or a method of a subclass of ``Manifold`` may be written for rows ``(N, d)``, as a decoder is.
The library asks for whole grids and chains of points, which are folded into rows here.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["METHODS", "asked_by_rows", "by_rows"]

METHODS = {
    "push": ("N", "m"),
    "secant": ("N", "m"),
    "secants": ("N", "n", "m"),
    "frame": ("N", "m", "d"),
    "force": ("N", "d"),
    "linear_curvature": ("N",),
}
"""Methods that a subclass of ``Manifold`` may have of its own, with the shapes of their results."""


def by_rows(f: Callable[..., Any], name: str, result: Sequence[str], *points: Tensor, axes: int = 1) -> Tensor:
    """Ask a function for tensors of any leading shapes that broadcast, by one leading axis.

    Parameters
    ----------
    f
        The function, asked with tensors of one shape: ``(N, d)``, or ``(N, n+1, d)`` where points have two axes.
    name
        Its name for messages.
    result
        Axes of its result by letters: N the rows, d the coordinates, any other letter a size that is free.
    *points
        ``(*, d)`` or ``(*, n+1, d)``.
    axes
        Axes of one point.

    Returns
    -------
    Tensor
        The result, its rows unfolded.

    Raises
    ------
    ValueError
        If the result is no tensor of those axes.

    Examples
    --------
    >>> by_rows(lambda z: z.sum(1), "total", ("N",), torch.ones(2, 3, 4)).tolist()
    [[4.0, 4.0, 4.0], [4.0, 4.0, 4.0]]
    >>> by_rows(lambda z: z.sum(0), "total", ("N",), torch.ones(4, 4))
    Traceback (most recent call last):
    ValueError: total gives (4,) for points of shape (5, 4); it must give (N,), here (5,): ...
    """
    if len(points) > 1:
        points = torch.broadcast_tensors(*points)
    lead, one = points[0].shape[:-axes], points[0].shape[-axes:]
    rows = [x.reshape(-1, *one) for x in points]
    count, extra = len(rows[0]), len(rows[0]) == one[-1]
    if extra:  # as many points as coordinates: the axes could be taken for each other
        rows = [torch.cat([x, x[-1:]]) for x in rows]
    value = f(*rows)
    _refuse(value, name, result, rows[0])
    value = value[:count] if extra else value
    return value.reshape((*lead, *value.shape[1:]))  # type: ignore[no-any-return]


def _refuse(value: object, name: str, result: Sequence[str], rows: Tensor) -> None:
    known = {"N": len(rows), "d": rows.shape[-1]}
    if isinstance(value, Tensor) and value.ndim == len(result):
        sizes = zip(value.shape, result, strict=True)
        if all(size == known.get(letter, size) for size, letter in sizes):
            return
    what = tuple(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"
    letters, here = (
        f"({', '.join(map(str, x))}{',' * (len(x) == 1)})" for x in (result, [known.get(x, x) for x in result])
    )
    raise ValueError(
        f"{name} gives {what} for points of shape {tuple(rows.shape)}; it must give {letters}, here "
        f"{here}: each row by itself"
    )


def asked_by_rows(name: str, method: Callable[..., Any]) -> Callable[..., Tensor]:
    """A method of :data:`METHODS`, written for one leading axis, as one for any leading shapes that broadcast."""
    axes = 2 if name == "secants" else 1

    @functools.wraps(method)
    def asked(self: Any, *points: Tensor, **named: Tensor) -> Tensor:
        bound = method.__get__(self)
        if named:
            points = inspect.signature(bound).bind(*points, **named).args
        return by_rows(bound, f"{type(self).__name__}.{name}", METHODS[name], *points, axes=axes)

    return asked
