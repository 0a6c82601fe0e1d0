"""Loops compiled to machine code, for work that PyTorch has no batched operation for.

Numba compiles a kernel at its first call for a dtype, in up to 20 seconds, and keeps the code on disk. A kernel works
on one item after another, so that an item's numbers do not depend on its companions; threads share the items, as many
as PyTorch uses. Kernels serve tensors in main memory; elsewhere their twins in PyTorch do.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import types
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from oddity.numerics.autodiff import has_tangent

__all__ = ["Kernel", "Part", "coded", "serves"]

_WORTH_A_THREAD = 1e-3  # seconds of work below which a second thread costs more than it saves


def serves(*tensors: Tensor) -> bool:
    """Whether kernels can work on tensors: in main memory, single or double precision, no derivative asked for."""
    return not torch.is_grad_enabled() and all(
        x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and not has_tangent(x) for x in tensors
    )


class Kernel:
    """A loop over items, ``f(*inputs, *out, *shared)``, whose results are written into the arrays of ``out``.

    Parameters
    ----------
    f
        A function of NumPy arrays and numbers that Numba can compile. It may call parts.
    **parts
        To be called in place of those that f knows by these names.

    Examples
    --------
    >>> @Kernel
    ... def doubled(x, y):
    ...     for i in range(len(x)):
    ...         y[i] = 2 * x[i]
    >>> x, y = torch.arange(3.0), torch.empty(3)
    >>> doubled(x, out=(y,))
    >>> y.tolist()
    [0.0, 2.0, 4.0]
    """

    def __init__(self, f: Callable[..., None], **parts: Part) -> None:
        self.f, self.parts = f, parts
        functools.update_wrapper(self, f)

    def __call__(
        self, *inputs: Tensor, out: tuple[Tensor, ...], shared: tuple[Any, ...] = (), seconds: float = 0.0
    ) -> None:
        """Run over all items, piece by piece.

        Parameters
        ----------
        inputs, out
            ``(B, ...)``, the items first.
        shared
            Arguments that are the same for all items: tensors or numbers.
        seconds
            What an item costs, roughly: so much work is shared among threads.
        """
        assert all(x.is_contiguous() for x in out), "results would be lost in a copy"
        count, total = len(out[0]), len(out[0]) * seconds
        rest, arrays = [_array(x) for x in shared], [_array(x) for x in (*inputs, *out)]
        compiled = self._compiled
        threads = min(count, torch.get_num_threads(), 1 + int(total / _WORTH_A_THREAD))
        # some pieces for each thread, so that none waits long; of a second at most, so that an interruption is heard
        pieces = max(1, min(count, max(min(24 * threads, int(total / _WORTH_A_THREAD)), threads, int(total))))
        cuts = deque(itertools.pairwise([count * i // pieces for i in range(pieces + 1)]))

        def work() -> None:
            try:
                while (cut := _next(cuts)) is not None:
                    compiled(*(x[slice(*cut)] for x in arrays), *rest)
            finally:
                cuts.clear()  # nothing is left to do, or something went wrong

        jobs: list[Future[None]] = []
        try:
            jobs += [_threads(os.getpid()).submit(work) for _ in range(threads - 1)]
            work()
        finally:
            wait(jobs)
        for job in jobs:
            job.result()

    @functools.cached_property
    def _compiled(self) -> Callable[..., None]:
        from oddity.numerics.compiled import compiled

        return compiled(_joined(self), **_COMPILING)


class Part:
    """A function that kernels and other parts call, and that is compiled with them.

    Parameters
    ----------
    f, **parts
        As for a :class:`Kernel`.

    Examples
    --------
    >>> @Part
    ... def twice(x):
    ...     return 2 * x
    >>> @Kernel
    ... def doubled(x, y):
    ...     for i in range(len(x)):
    ...         y[i] = twice(x[i])
    >>> y = torch.empty(2)
    >>> doubled(torch.ones(2), out=(y,))
    >>> y.tolist()
    [2.0, 2.0]
    """

    def __init__(self, f: Callable[..., Any], **parts: Part) -> None:
        self.f, self.parts = f, parts
        functools.update_wrapper(self, f)

    def __call__(self, *args: Any) -> Any:
        """Run it uncompiled."""
        return self.f(*args)

    def compiled(self) -> Any:
        """What Numba makes of it."""
        from oddity.numerics.compiled import linked

        return linked(_joined(self), **_COMPILING)

    def told(self) -> list[Any]:
        """What a mark has to tell of it, beside its own function and parts."""
        return []


_FAST = "contract", "reassoc", "nsz", "arcp"  # sums are reordered to fill the registers; NaN keeps its meaning
_COMPILING: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": set(_FAST)}


def _joined(whole: Kernel | Part) -> Callable[..., Any]:
    """Its function, in which parts are what Numba made of them; a mark in its name tells Numba when it changes."""
    f = whole.f
    compiled = {name: _compiled_part(part) for name, part in _parts(whole).items()}
    joined = types.FunctionType(f.__code__, f.__globals__ | compiled, f.__name__, f.__defaults__, f.__closure__)
    joined.__module__, joined.__qualname__ = f.__module__, f"{f.__qualname__}_{_mark(whole)}"
    return joined


@functools.cache
def _compiled_part(part: Part) -> Any:
    return part.compiled()


def _parts(whole: Kernel | Part) -> dict[str, Part]:
    """What it calls, by the names it has there."""
    known = {name: whole.f.__globals__.get(name) for name in whole.f.__code__.co_names}
    return {name: part for name, part in known.items() if isinstance(part, Part)} | whole.parts


def _mark(whole: Kernel | Part) -> str:
    """A mark of all that its code is made of: its own, that of its parts, the constants and settings of each."""
    told = [*coded(whole.f), _FAST]
    told += [(name, _mark(part)) for name, part in sorted(_parts(whole).items())]
    told += whole.told() if isinstance(whole, Part) else []
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def coded(f: Callable[..., Any]) -> list[Any]:
    """What a function does, and the constants that it knows by name: the same in every process."""
    names = {name: _constant(value) for name, value in f.__globals__.items() if name in f.__code__.co_names}
    return [*_code(f.__code__), sorted(names.items())]


def _code(code: types.CodeType) -> list[Any]:
    inner = [_code(x) if isinstance(x, types.CodeType) else x for x in code.co_consts]
    return [code.co_code.hex(), inner, code.co_names]


def _constant(value: Any) -> Any:
    """A number or text that Numba takes for constant, or the members of an enumeration."""
    if isinstance(value, type) and issubclass(value, Enum):
        return list(value)
    return value if isinstance(value, int | float | str | tuple) else None


def _next(cuts: deque[tuple[int, int]]) -> tuple[int, int] | None:
    """The next piece, whoever asks, or None."""
    try:
        return cuts.popleft()
    except IndexError:
        return None


def _array(x: Any) -> Any:
    """A tensor, or each of a tuple of them, as the loops read it."""
    if isinstance(x, tuple):
        return tuple(map(_array, x))
    return x.detach().contiguous().numpy() if isinstance(x, Tensor) else x


@functools.cache
def _threads(process: int) -> ThreadPoolExecutor:
    """Threads, as many as were ever needed at once; for each process its own, since a fork has none of its parent's."""
    del process
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="oddity")
